"""A cross-layer transcoder on a model: worth, features and edges, by plain sums over its layers."""

import json

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny
from safetensors.torch import save_file
from tiny_models import GROUPED
from tiny_tokenizer import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from acdc.annotation.annotate import annotate
from acdc.annotation.feature_graph import feature_graph
from acdc.annotation.features import edge_features, site_features
from acdc.annotation.sites import changed, read
from acdc.annotation.text import windows
from acdc.cli import main
from acdc.discovery.eap import eap
from acdc.errors import AcdcError
from acdc.metrics import METRICS
from acdc.sae.cross_layer import CrossLayerTranscoder
from acdc.sae.examples import features, logit_effects
from acdc.sae.sparse_coder import SparseCoder
from acdc.sae.worth import worth
from acdc.transformer import Transformer

METRIC = METRICS["logit_difference"]
BATCHES = [make_batch(3, 9, 0), make_batch(2, 7, 1)]
F, LAYERS, D = 13, 3, 24


def transcoder(dtype=torch.float64) -> CrossLayerTranscoder:
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=dtype)

    decoders = tuple(draw(F, LAYERS - layer, D) / 5 for layer in range(LAYERS))
    encoders = tuple(
        SparseCoder("jumprelu", f"resid{layer}.mid", f"m{layer}",
                    {"W_enc": draw(D, F) / 5, "b_enc": draw(F) / 5, "W_dec": decoders[layer][:, 0], "b_dec": draw(D),
                     "threshold": draw(F).abs() / 9}, None, False)
        for layer in range(LAYERS)
    )
    biases = tuple(draw(D) / 5 for _ in range(LAYERS))
    return CrossLayerTranscoder(encoders, decoders, biases, tuple(f"m{layer}" for layer in range(LAYERS)))


@pytest.fixture
def model():
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    hf = LlamaForCausalLM(LlamaConfig(**{**GROUPED, "vocab_size": len(tokenizer)}))
    return Transformer(hf.eval(), tokenizer, "t")


@pytest.fixture
def tokens(model):
    return windows(model, "When Mary and John went to the store, John gave a drink to Mary. " * 30, 12, 20)


def test_what_it_is_worth(model, tokens):
    across = transcoder(torch.float32)
    found = read(model, tokens, ["resid0.mid", "resid1.mid", "m1"])
    x0, x1, y = (found[name][:, 1:].flatten(0, 1) for name in ("resid0.mid", "resid1.mid", "m1"))
    active = [across.encoders[layer].encode(x) for layer, x in ((0, x0), (1, x1))]
    expected = active[0] @ across.decoders[0][:, 1] + active[1] @ across.decoders[1][:, 0] + across.biases[1]
    one = worth(model, across.target(1), tokens)
    explained = 1 - (y - expected).pow(2).sum() / (y - y.mean(0)).pow(2).sum()
    assert one.explained == pytest.approx(float(explained), rel=1e-4)
    assert one.l0 == pytest.approx(float(sum((a > 0).sum(1).float().mean() for a in active)))
    with pytest.raises(AcdcError, match="layer 3 of a cross-layer transcoder of the layers 0 to 2"):
        across.target(3)


def test_features_of_a_layer_and_all_that_they_write(model, tokens):
    across = transcoder(torch.float32)
    values = across.encoders[1].encode(read(model, tokens, ["resid1.mid"])["resid1.mid"][:, 1:])
    busiest = int(values.flatten(0, 1).max(0).values.argmax())
    (one,) = features(model, across.layer(1), tokens, [busiest])
    assert one.largest == pytest.approx(float(values[..., busiest].max()))
    written = across.decoders[1][busiest, 0] + across.decoders[1][busiest, 1]
    effect = model.hf.get_output_embeddings().weight @ (written * model.anatomy.final_norm.gain)
    (ours,) = logit_effects(model, across.layer(1), [busiest])
    torch.testing.assert_close(ours, effect.detach(), atol=1e-5, rtol=1e-4)
    with pytest.raises(AcdcError, match="feature 13"):
        features(model, across.layer(1), tokens, [F])


def test_shares_of_edges_sum_to_their_scores():
    model, across = tiny("llama"), transcoder()
    scores = eap(model, BATCHES)
    circuit = scores.top(150, by="magnitude")
    coders = [across.target(layer) for layer in range(LAYERS)]
    totals = scores.of_nodes()
    shared = edge_features(model, BATCHES, METRIC, circuit=circuit, coders=coders, steps=None)
    assert len(shared) >= 2
    for one in shared:
        np.testing.assert_allclose(one.values.sum(1) + one.errors, [scores[e] for e in one.edges], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(one.total.sum() + one.total_error, totals[one.node], rtol=1e-5, atol=1e-7)
    last = shared[-1]
    assert np.abs(last.total[:F]).max() > 0, "features of earlier layers carry some of it"
    at_site = site_features(model, BATCHES, METRIC, coder=across.target(1), steps=4)
    assert np.abs(at_site.values).max() > 0
    drawn = feature_graph(model, BATCHES, METRIC, circuit=circuit, coders=coders, n_features=4)
    sums = {}
    for (src, _), (dst, _), letter, score in drawn.edges:
        name = f"{src}->{dst}" + f"<{letter}>" * bool(letter)
        sums[name] = sums.get(name, 0) + score
    np.testing.assert_allclose([sums[n] for n in circuit.edge_names], [scores[n] for n in circuit.edge_names],
                               rtol=1e-6, atol=1e-9)
    notes = annotate(model, circuit, BATCHES, METRIC, only=["features"], coders=[across.target(1)])
    assert any("of layer 0" in note.text for note in notes) and any("of layer 1" in note.text for note in notes)


def test_an_edge_into_a_feature_read_before_the_mlps_norm_is_its_derivative():
    model, batch, across = tiny("llama"), make_batch(2, 6, 3), transcoder()
    scores = eap(model, [batch])
    circuit = scores.top(len(scores.values), by="magnitude")
    coder = across.target(1)
    drawn = feature_graph(model, [batch], METRIC, circuit=circuit, coders=[coder], n_features=2 * F)
    into = {j: score for (src, _), (dst, j), _, score in drawn.edges if (src, dst) == ("m0", "m1")}
    assert all(into[j] == 0 for j in into if j is not None and j < F)
    j = max((j for j in into if j is not None), key=lambda j: abs(into[j]))
    clean, corrupted = (read(model, tokens, ["m0", "resid1.mid"]) for tokens in (batch.clean, batch.corrupted))
    step = 1e-6
    moves = [clean["resid1.mid"] + sign * step * (corrupted["m0"] - clean["m0"]) for sign in (1, -1)]
    up, down = (across.encoders[1].encode(moved)[..., j - F] for moved in moves)
    value, final = read(model, batch.clean, ["m1"])["m1"].requires_grad_(), {}
    with changed(model, {"m1": lambda x: value, "resid3": lambda x: final.setdefault("x", x)}):
        model.run_body(batch.clean)
    logits = model.logits(final["x"][:, -1])
    worth_of = torch.autograd.grad(METRIC.loss(logits, batch, logits).sum(), value)[0] @ coder.decoder[j]
    np.testing.assert_allclose(into[j], float((worth_of * (up - down) / (2 * step)).sum()) / 2, rtol=1e-4)


def test_on_the_command_line(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.hf.save_pretrained("model")
    model.tokenizer.save_pretrained("model")
    (tmp_path / "text.txt").write_text("When Mary and John went to the store, John gave a drink to Mary. " * 30)
    across = transcoder(torch.float32)
    (tmp_path / "clt").mkdir()
    for layer, encoder in enumerate(across.encoders):
        w = encoder.weights
        held = {"W_enc": w["W_enc"].T.contiguous(), "b_enc": w["b_enc"], "b_dec": across.biases[layer],
                "threshold": w["threshold"]}
        save_file({f"{name}_{layer}": tensor for name, tensor in held.items()}, f"clt/W_enc_{layer}.safetensors")
        save_file({f"W_dec_{layer}": across.decoders[layer]}, f"clt/W_dec_{layer}.safetensors")
    given = ["--model", "model", "--text", "text.txt", "--context", "12"]
    assert main(["sae", "report", "clt", "--layer", "2", *given, "-o", "worth.json"]) == 0
    assert "cross-layer transcoder, 39 features, from resid0.mid to resid2.mid to m2" in capsys.readouterr().out
    tokens = windows(model, (tmp_path / "text.txt").read_text(), 12)
    expected = worth(model, across.target(2), tokens)
    assert json.loads((tmp_path / "worth.json").read_text())["explained"] == pytest.approx(expected.explained, rel=1e-4)
    assert main(["sae", "features", "clt", "--layer", "1", "--index", "3", *given]) == 0
    assert "feature 3: on" in capsys.readouterr().out
    for arguments, expected in [(["report", "clt"], "layers 0, 1, 2; none is chosen"),
                                (["report", "clt", "--layer", "1", "--absorption"], "labels have 20 words"),
                                (["features", "clt", "--layer", "1", "--index", "13"], "feature 13")]:
        assert main(["sae", *arguments, *given]) == 1
        assert expected in capsys.readouterr().err

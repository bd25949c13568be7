"""What coders are worth, and what features are, against plain computations; and the commands."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import tiny
from tiny_models import GROUPED
from tiny_tokenizer import tiny_tokenizer
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from acdc.annotation.sites import read
from acdc.annotation.text import windows
from acdc.cli import main
from acdc.errors import AcdcError
from acdc.sae.examples import features, logit_effects
from acdc.sae.formats import save_coder
from acdc.sae.on_model import check_on_model
from acdc.sae.sparse_coder import SparseCoder
from acdc.sae.worth import worth
from acdc.transformer import Transformer

TEXT = "When Mary and John went to the store, John gave a drink to Mary. Then, Mary and John had a ring. " * 30


@pytest.fixture
def model():
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    hf = LlamaForCausalLM(LlamaConfig(**{**GROUPED, "vocab_size": len(tokenizer)}))
    with torch.no_grad():
        for weight in hf.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return Transformer(hf.eval(), tokenizer, "tiny")


@pytest.fixture
def tokens(model):
    return windows(model, TEXT, 12, 40)


def identity(site: str = "m1", **changes: torch.Tensor) -> SparseCoder:
    """Rebuilds everything: a feature for each dimension and sign; of 60, twelve are dead."""
    both = torch.cat([torch.eye(24), -torch.eye(24), torch.zeros(12, 24)])
    bias = torch.zeros(60)
    bias[48:] = -1
    return SparseCoder(
        "relu", site, site, {"W_enc": both.T, "W_dec": both, "b_dec": torch.zeros(24), "b_enc": bias, **changes}
    )


def test_a_coder_that_rebuilds_everything_and_one_that_rebuilds_nothing(model, tokens):
    perfect = worth(model, identity(), tokens)
    assert perfect.explained == pytest.approx(1, abs=1e-5) and perfect.recovered == pytest.approx(1, abs=1e-4)
    assert perfect.loss == pytest.approx(perfect.loss_rebuilt, abs=1e-5) != pytest.approx(perfect.loss_zero, abs=1e-3)
    assert perfect.l0 == pytest.approx(24, abs=0.1) and perfect.dead == pytest.approx(12 / 60)
    logits = model.hf(tokens).logits[:, :-1]
    assert perfect.loss == pytest.approx(
        float(cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).detach()), rel=1e-5
    )
    y = read(model, tokens, ["m1"])["m1"][:, 1:].flatten(0, 1)
    silent = identity(b_enc=torch.full((60,), -1e6), b_dec=y.mean(0))
    none = worth(model, silent, tokens)
    assert (none.l0, none.dead) == (0, 1) and none.explained == pytest.approx(0, abs=1e-5)
    half = identity(W_dec=identity().decoder / 2)
    assert worth(model, half, tokens).explained == pytest.approx(
        1 - float((y / 2).pow(2).sum() / (y - y.mean(0)).pow(2).sum()), rel=1e-4
    )


def test_doubles_and_nested_features_are_counted(model, tokens):
    y = read(model, tokens, ["m1"])["m1"][:, 1:].flatten(0, 1)
    rare = y[:, 0].sort().values[-len(y) // 20]
    rarer = y[:, 0].sort().values[-len(y) // 60]
    encoder, bias = torch.zeros(24, 4), torch.tensor([-float(rare), -float(rarer), -1e6, -float(y[:, 5].median())])
    encoder[0, :2], encoder[5, 3] = 1, 1
    decoder = torch.eye(24)[[0, 1, 2, 3]]
    coder = SparseCoder(
        "relu", "m1", "m1", {"W_enc": encoder, "W_dec": decoder, "b_dec": torch.zeros(24), "b_enc": bias}
    )
    found = worth(model, coder, tokens)
    assert found.nested == pytest.approx(1 / 3) and found.alike == 0
    alike = SparseCoder("relu", "m1", "m1", {**coder.weights, "W_dec": torch.eye(24)[[0, 0, 2, 3]]})
    assert worth(model, alike, tokens).alike == pytest.approx(2 / 3)


def test_features_are_shown_where_they_are_strongest(model, tokens):
    coder = identity()
    values = coder.encode(read(model, tokens, ["m1"])["m1"][:, 1:])
    (one,) = features(model, coder, tokens, [7], n_examples=3, around=2)
    assert one.largest == pytest.approx(float(values[..., 7].max()))
    assert one.density == pytest.approx(float((values[..., 7] > 0).float().mean()))
    assert sum(one.histogram[0]) == int((values[..., 7] > 0).sum())
    best = values[..., 7].max(1).values.sort(descending=True).values[:3]
    assert [max(e["activations"]) for e in one.examples] == pytest.approx(best.tolist(), abs=1e-4)
    window, place = divmod(int(values[..., 7].flatten().argmax()), 11)
    shown = one.examples[0]
    assert shown["tokens"][shown["activations"].index(max(shown["activations"]))] == model.tokenizer.decode(
        [int(tokens[window, place + 1])]
    )
    effect = logit_effects(model, coder, [7])[0]
    gained = model.hf.get_output_embeddings().weight @ (coder.decoder[7] * model.anatomy.final_norm.gain)
    torch.testing.assert_close(effect, gained.detach())
    assert one.promotes[0][1] == pytest.approx(float(effect.max()))
    with pytest.raises(AcdcError, match="feature 60"):
        features(model, coder, tokens, [60])


def test_what_is_not_defined_is_none_in_files_and_said(model, tokens, tmp_path, capsys, monkeypatch):
    """Zero is what is there: nothing varies, and taking it away costs nothing."""
    model.blocks[1].mlp.down_proj.weight.data.zero_()
    found = worth(model, identity(), tokens)
    assert found.explained is None and found.recovered is None
    model.hf.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT)
    save_coder(identity(), tmp_path / "sae")
    monkeypatch.chdir(tmp_path)
    given = ["--model", "model", "--text", "text.txt", "--context", "12"]
    assert main(["sae", "report", "sae", *given, "-o", "w.json"]) == 0
    assert "explained variance not defined, loss recovered not defined" in capsys.readouterr().out
    assert json.loads((tmp_path / "w.json").read_text())["recovered"] is None


def test_a_transcoder_that_reads_what_comes_later_or_before_a_norm_that_follows(model, tokens):
    with pytest.raises(AcdcError, match="m1 does not come after resid2 in tiny"):
        worth(model, replace(identity(), site="resid2", centred=False), tokens)
    gemma = tiny("gemma2", torch.float32)
    coder = replace(identity("m1"), site="m1.in", centred=False, record={"before_post_norm": True})
    with pytest.raises(AcdcError, match="before the norm that follows the MLP in gemma2"):
        check_on_model(gemma, coder)
    check_on_model(tiny("llama", torch.float32), coder)


def test_another_models_coder(model, tokens):
    wide = {"W_enc": torch.ones(7, 3), "W_dec": torch.ones(3, 7), "b_dec": torch.ones(7), "b_enc": torch.ones(3)}
    with pytest.raises(AcdcError, match="7 dimensions"):
        worth(model, SparseCoder("relu", "m1", "m1", wide), tokens)


@pytest.fixture
def folder(model, tmp_path):
    model.hf.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def test_train_report_and_features_on_the_command_line(folder, capsys):
    common = ["--model", str(folder / "model"), "--text", str(folder / "text.txt"), "--context", "12"]
    train = [
        "sae",
        "train",
        "--site",
        "m1.in",
        "--target",
        "m1",
        "--features",
        "48",
        "--steps",
        "30",
        "--k",
        "4",
        "--format",
        "sparsify",
        "--tokens-per-step",
        "64",
        "--out",
        str(folder / "sae"),
        *common,
    ]
    assert main(train) == 0
    assert sorted(p.name for p in (folder / "sae").iterdir()) == ["cfg.json", "sae.safetensors", "worth.json"]
    assert not (folder / "sae.checkpoint").exists()
    assert "loss recovered" in capsys.readouterr().out
    assert main(["sae", "report", str(folder / "sae"), "-o", str(folder / "worth.json"), *common]) == 0
    assert "topk transcoder, 48 features, from m1.in to m1" in capsys.readouterr().out
    assert json.loads((folder / "worth.json").read_text())["l0"] <= 4
    busiest = int(
        SparseCoder.encode(_load(folder), read(_model(folder), torch.ones(1, 3, dtype=torch.long), ["m1.in"])["m1.in"])
        .flatten(0, 1)
        .sum(0)
        .argmax()
    )
    assert main(["sae", "features", str(folder / "sae"), "--index", str(busiest), *common]) == 0
    assert f"feature {busiest}: on" in capsys.readouterr().out
    assert main(train) == 1 and "already holds cfg.json" in capsys.readouterr().err


def _load(folder):
    from acdc.sae.formats import load_coder

    return load_coder(folder / "sae")


def _model(folder):
    from acdc.models import load_model

    return load_model(folder / "model")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["features", "sae", "--index", "60"], "feature 60 of a coder that has 0 to 59"),
        (["report", "nothing"], "there is no nothing"),
        (["report", "coder.pt"], "is a pickle"),
        (["report", "sae", "--context", "5000"], "context of 5,000"),
        (["train", "--site", "m9", "--out", "x"], "its last is m2"),
        (["train", "--site", "m1", "--out", "x", "--context", "60", "--windows", "500"], "500 asked for"),
        (["train", "--site", "m1", "--out", "x", "--architecture", "vanilla"], "relu, gated"),
        (["train", "--site", "m1", "--out", "x", "--format", "pickle"], "format of a sparse coder"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, monkeypatch, arguments, expected):
    monkeypatch.chdir(folder)
    save_coder(identity(), folder / "sae")
    (folder / "coder.pt").write_bytes(b"")
    assert main(["sae", *arguments, "--model", "model", "--text", "text.txt"]) == 1
    error = capsys.readouterr().err
    assert expected in error and "Traceback" not in error and not (folder / "x").exists()

"""Directions: from means, tokens, probes, decoders and files, and what is refused."""

import pickle

import pytest
import torch
from conftest import make_batch, tiny
from tiny_models import GROUPED
from tiny_tokenizer import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from acdc.annotation.sites import read
from acdc.errors import AcdcError
from acdc.intervention.direction import (
    Direction,
    checked,
    difference_of_means,
    feature_direction,
    load_direction,
    save_direction,
    token_batches,
    token_direction,
    with_scale,
)
from acdc.intervention.interventions import add
from acdc.intervention.measuring import last_logits
from acdc.transformer import Transformer


@pytest.fixture(scope="module")
def reader():
    """A tiny model that reads text."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    hf = LlamaForCausalLM(LlamaConfig(**{**GROUPED, "vocab_size": len(tokenizer)})).eval().double()
    return Transformer(hf, tokenizer, "tiny")


@pytest.mark.parametrize(("over", "places"), [("last", slice(-1, None)), ("all", slice(1, None))])
def test_the_difference_of_means(over, places):
    model, batch, other = tiny("llama"), make_batch(), make_batch(n=2, length=6, seed=1)
    found = difference_of_means(model, "resid2", [batch.clean, other.clean], [batch.corrupted], over=over)
    run = {key: read(model, tokens, ["resid2"])["resid2"][:, places]
           for key, tokens in (("a", batch.clean), ("b", other.clean), ("c", batch.corrupted))}
    above = torch.cat([run["a"].mean(1), run["b"].mean(1)]).mean(0)
    below = run["c"].mean(1).mean(0)
    torch.testing.assert_close(found.vector, above - below)
    norms = torch.cat([run["a"].norm(dim=-1).mean(1), run["b"].norm(dim=-1).mean(1)]).mean()
    assert found.scale == pytest.approx(float(norms + run["c"].norm(dim=-1).mean(1).mean()) / 2)
    from_each = [float(mean @ found.unit) - found.offset for mean in (above, below)]
    assert from_each[0] == pytest.approx(-from_each[1]) and from_each[0] > 0


def test_a_token_direction_raises_its_logit_most(reader):
    tokens = reader.tokenizer("Then, Alice and Daniel went to the store")["input_ids"]
    batch = make_batch(n=1, length=len(tokens))
    batch.clean[0] = torch.tensor(tokens)
    steer = token_direction(reader, "resid3", " Alice")
    before, after = (last_logits(reader, batch, which)[0] for which in ([], [add(steer, 1e-4, absolute=True)]))
    alice = reader.tokenizer(" Alice")["input_ids"][0]
    gain = reader.anatomy.final_norm.gain.detach()
    resid = read(reader, batch.clean, ["resid3"])["resid3"][0, -1]
    scale = reader.anatomy.final_norm.statistics(resid)[1]
    row = (reader.hf.get_output_embeddings().weight[alice] * gain).detach()
    direct = 1e-4 * row.norm() * scale[0]
    radial = 1e-4 * float(steer.unit @ resid) * float(scale[0]) ** 2 / len(resid) * float(before[alice])
    assert float((after - before)[alice]) == pytest.approx(float(direct) - radial, rel=1e-3)


def test_features():
    decoder = torch.eye(3)
    assert feature_direction("m1", decoder, 2).vector.tolist() == [0, 0, 1]
    with pytest.raises(AcdcError, match="features 0 to 2"):
        feature_direction("m1", decoder, 3)


def test_files_give_back_what_was_saved(tmp_path):
    saved = Direction("a1.h2.z", torch.randn(6), "name & more", 3.25, -0.5)
    save_direction(tmp_path / "d.safetensors", saved)
    found = load_direction(tmp_path / "d.safetensors")
    assert (found.site, found.label, found.scale, found.offset) == ("a1.h2.z", "name & more", 3.25, -0.5)
    assert torch.equal(found.vector, saved.vector)
    elsewhere = load_direction(tmp_path / "d.safetensors", site="resid1")
    assert (elsewhere.site, elsewhere.scale) == ("resid1", None)


def test_mistakes(tmp_path, reader):
    from safetensors.torch import save_file

    model, batch = tiny("llama"), make_batch()
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"direction": [1, 2]}))
    save_file({"a": torch.ones(2, 2)}, tmp_path / "matrix.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "nameless.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "words.safetensors", {"site": "resid1", "scale": "large"})
    cases = [
        ("is a pickle", lambda: load_direction(tmp_path / "pickle.pt")),
        ("there is no", lambda: load_direction(tmp_path / "none.safetensors")),
        ("holds a;", lambda: load_direction(tmp_path / "matrix.safetensors")),
        ("of which site", lambda: load_direction(tmp_path / "nameless.safetensors")),
        ("must be numbers", lambda: load_direction(tmp_path / "words.safetensors")),
        ("has the norm 0", lambda: Direction("resid1", torch.zeros(3))),
        ("7 dimensions, resid1 of llama has 24", lambda: checked(model, Direction("resid1", torch.ones(7)))),
        ("its last is resid3", lambda: checked(model, Direction("resid9", torch.ones(24)))),
        ("set of prompts is empty", lambda: difference_of_means(model, "resid1", [], [batch.clean])),
        ("same mean", lambda: difference_of_means(model, "resid1", [batch.clean], [batch.clean])),
        ("unknown tokens to average over 'some'",
         lambda: difference_of_means(model, "resid1", [batch.clean], [batch.corrupted], over="some")),
        ("is not one token", lambda: token_direction(reader, "resid1", " Alice and")),
        ("has no tokens", lambda: token_batches(reader, [""])),
        ("no tokenizer", lambda: token_batches(model, ["a"])),
    ]
    for message, attempt in cases:
        with pytest.raises(AcdcError, match=message):
            attempt()


def test_the_scale_is_the_mean_norm_but_of_the_first_token():
    model, batch = tiny("llama"), make_batch()
    found = with_scale(model, Direction("m1", torch.ones(24)), [batch.clean])
    assert found.scale == pytest.approx(float(read(model, batch.clean, ["m1"])["m1"][:, 1:].norm(dim=-1).mean()))

"""Causal tracing finds a fact that is planted in one MLP, and equals HuggingFace's own forward at every place."""

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny
from planted_heads import OUT, PASSED, POSITION, SIZE, TOKEN, at, empty, plant
from tiny_models import FAMILIES, tiny_hf
from tiny_tokenizer import tiny_tokenizer
from torch import nn

from acdc.annotation.causal_tracing import (
    GROUPS,
    KINDS,
    Noise,
    Trace,
    averaged,
    noise_scale,
    noised,
    subject_positions,
    token_groups,
    trace,
)
from acdc.annotation.sites import changed, read
from acdc.errors import AcdcError
from acdc.tasks.ioi import NAMES
from acdc.transformer import Transformer

SUBJECT, ANSWER = 7, 11
PROMPT = [3, 5, SUBJECT, 20, 21]


class Fact(nn.Module):
    """An MLP that writes the answer where it reads exactly the subject's last token."""

    def forward(self, x):
        far = (x[..., TOKEN] - torch.eye(SIZE, dtype=x.dtype)[SUBJECT]).square().sum(-1)
        out = torch.zeros_like(x)
        out[..., PASSED][..., ANSWER] = 40 * torch.exp(-50 * far)
        return out


def model_with_a_fact():
    """MLP 1 knows the fact; the first head of layer 2 brings it from the subject's last token (2) to the end (4)."""
    model = empty(n_layers=4)
    model.hf.transformer.h[1].mlp = Fact()
    plant(model, 2, 0, q=[(POSITION, at(2))], k=[(POSITION, torch.eye(SIZE))],
          v=(PASSED, torch.eye(SIZE)), to=OUT)
    return model


def test_it_finds_the_planted_fact():
    model, tokens = model_with_a_fact(), torch.tensor(PROMPT)
    found = trace(model, tokens, ANSWER, [1, 2], Noise(0.2), window=1)
    assert found.clean > 0.99 and found.corrupted < 0.05 and found.total == found.clean - found.corrupted
    expected = {kind: np.zeros((4, 5)) for kind in KINDS}
    expected["hidden"][[0, 1, 2, 3], [2, 2, 4, 4]] = found.total  # before MLP 1, until head 2.0 has read it, and after
    expected["mlp"][1, 2] = expected["attention"][2, 4] = found.total
    for kind in KINDS:
        np.testing.assert_allclose(found.indirect(kind), expected[kind], atol=0.01)

    wide = trace(model, tokens, ANSWER, [1, 2], Noise(0.2), window=2, kinds=["mlp"])  # layers [L - 1, L + 1)
    expected["mlp"][2, 2] = found.total
    np.testing.assert_allclose(wide.indirect("mlp"), expected["mlp"], atol=0.01)


def test_a_model_without_the_fact_has_no_effect_to_trace():
    model = model_with_a_fact()
    model.hf.transformer.h[1].mlp = empty().blocks[0].mlp
    found = trace(model, torch.tensor(PROMPT), ANSWER, [1, 2], Noise(0.2))
    assert abs(found.total) < 0.02 and all(np.abs(found.indirect(kind)).max() < 0.02 for kind in KINDS)


@pytest.mark.parametrize("name", [*FAMILIES, "bidirectional"])
def test_every_place_is_what_huggingface_computes(name):
    model = Transformer(tiny_hf("gpt2", torch.float64), None, name, causal=False) if name == "bidirectional" else (
        tiny(name))
    tokens = make_batch(1, length=6).clean[0]
    answer, noise, subject = 5, Noise(0.5, n_samples=3, seed=1), [1, 2]
    found = trace(model, tokens, answer, subject, noise, window=2)

    def p(put_back):
        rows = tokens.expand(3, -1)
        with torch.no_grad(), noised(model, subject, noise), changed(model, put_back):
            logits = model.hf(input_ids=rows, attention_mask=model.full_mask(rows)).logits[:, -1]
            return float(logits.softmax(-1)[:, answer].mean())

    def restores(value, place):
        def change(x):
            x = x.clone()
            x[:, place] = value[0, place]
            return x

        return change

    assert found.corrupted == pytest.approx(p({}), abs=1e-8)
    with torch.no_grad():
        logits = model.hf(tokens[None], attention_mask=model.full_mask(tokens[None])).logits[0, -1]
    assert found.clean == pytest.approx(float(logits.softmax(-1)[answer]), abs=1e-8)
    for layer in range(3):
        windowed = range(max(0, layer - 1), layer + 1)
        sites = {"hidden": [f"resid{layer + 1}"], "mlp": [f"m{i}" for i in windowed],
                 "attention": [f"a{i}" for i in windowed]}
        for kind, names in sites.items():
            clean = read(model, tokens[None], names)
            for place in range(6):
                expected = p({name: restores(clean[name], place) for name in names})
                assert found.restored[kind][layer, place] == pytest.approx(expected, abs=1e-8), (kind, layer, place)
    assert np.abs(found.indirect("hidden")).max() > 1e-5


def test_chunks_of_places_do_not_change_what_is_found(monkeypatch):
    model, tokens = tiny("llama"), make_batch(1).clean[0]
    one = trace(model, tokens, 5, [2], Noise(0.5))
    monkeypatch.setattr("acdc.annotation.causal_tracing.TOKENS_PER_PASS", 1)
    two = trace(model, tokens, 5, [2], Noise(0.5))
    for kind in KINDS:
        np.testing.assert_allclose(one.restored[kind], two.restored[kind], atol=1e-9)


def test_noise_is_of_the_spread_and_seed_that_are_asked_for():
    model = tiny("gemma3", torch.float32)
    subjects = [torch.tensor([1, 2]), torch.tensor([3])]
    embeddings = model.hf.get_input_embeddings()(torch.tensor([1, 2, 3])).detach()
    assert noise_scale(model, subjects) == pytest.approx(3 * float(embeddings.std()), rel=1e-5)

    def rows(noise):
        tokens = torch.zeros(200, 4, dtype=torch.long)
        with torch.no_grad(), noised(model, [1, 3], noise):
            return model.hf.get_input_embeddings()(tokens) - model.hf.get_input_embeddings().weight[0] * 24**0.5

    added = rows(Noise(0.7, 200))
    assert added[:, [0, 2]].abs().max() < 1e-5
    assert float(added[:, [1, 3]].std()) == pytest.approx(0.7, rel=0.02)
    assert torch.equal(added, rows(Noise(0.7, 200))) and not torch.equal(added, rows(Noise(0.7, 200, seed=1)))


def test_effects_are_averaged_by_where_tokens_stand_to_the_subject():
    assert token_groups(8, [1, 2, 3]) == [GROUPS[i] for i in (0, 1, 2, 3, 4, 5, 5, 6)]
    assert token_groups(3, [1]) == [GROUPS[i] for i in (0, 3, 6)]
    one = Trace((1, 2, 3), 0.9, 0.1, {"mlp": np.arange(8.0)[None] + 0.1})
    two = Trace((1,), 0.9, 0.1, {"mlp": np.arange(3.0)[None] + 0.1})
    names, values = averaged([one, two], "mlp")
    assert names == list(GROUPS)
    np.testing.assert_allclose(values, [[0, 1, 2, (3 + 1) / 2, 4, 5.5, (7 + 2) / 2]])


def test_the_subject_is_found_in_the_prompt():
    tokenizer, prompt = tiny_tokenizer(), f"When {NAMES[0]} and {NAMES[1]} went to the store, {NAMES[0]}"
    words = [tokenizer.decode([i]) for i in tokenizer(prompt)["input_ids"]]
    assert [words[i] for i in subject_positions(tokenizer, prompt, f"{NAMES[0]} and {NAMES[1]}")] == [
        f" {NAMES[0]}", " and", f" {NAMES[1]}"]
    assert subject_positions(tokenizer, prompt, NAMES[0]) == [len(words) - 1]
    for wrong in ("", "nobody"):
        with pytest.raises(AcdcError, match="does not occur"):
            subject_positions(tokenizer, prompt, wrong)


def test_mistakes_are_named():
    model, tokens = tiny("gpt2"), make_batch(1).clean[0]
    for change, message in [({"subject": [9]}, "of prompts of 9 tokens"), ({"subject": []}, "of prompts of 9 tokens"),
                            ({"kinds": ["mlps"]}, "mlp"), ({"window": 0}, "at least 1")]:
        with pytest.raises(AcdcError, match=message):
            trace(model, tokens, 5, **{"subject": [1], "noise": Noise(1.0), **change})
    for wrong in ({"scale": 0.0}, {"scale": 1.0, "n_samples": 0}, {"scale": 1.0, "seed": -1}):
        with pytest.raises(AcdcError, match="noise"):
            Noise(**wrong)
    with pytest.raises(AcdcError, match="where the subjects are"):
        noise_scale(model, [])
    with pytest.raises(AcdcError, match="no traces"):
        averaged([], "mlp")

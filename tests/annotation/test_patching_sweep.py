"""A sweep over places is what patching them one by one gives."""

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny
from tiny_models import tiny_hf

from acdc.annotation.patching_sweep import DIRECTIONS, sweep
from acdc.annotation.sites import changed, read
from acdc.errors import AcdcError
from acdc.metrics import METRICS
from acdc.patching import patch_nodes
from acdc.task import position_groups, position_names
from acdc.transformer import Transformer

METRIC = METRICS["logit_difference"]


def one_by_one(model, batch, direction, name, mask):
    """The summed metric with one place patched at the tokens in `mask` (batch, pos)."""
    base, other = (batch.clean, batch.corrupted)[:: 1 if direction == "noising" else -1]
    there = read(model, other, [name])[name]
    with torch.no_grad(), changed(model, {name: lambda x: torch.where(mask[..., None], there, x)}):
        logits = model.hf(input_ids=base, attention_mask=model.full_mask(base)).logits[:, -1]
    return float(METRIC(logits, batch, logits).sum())


@pytest.mark.parametrize(("place", "direction"), [("residual", "denoising"), ("attention", "noising"),
                                                  ("attention", "denoising"), ("mlp", "noising")])
@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "qwen2", "gemma2", "bidirectional"])  # a kind of block each
def test_positions_are_patched_as_one_by_one(name, place, direction):
    model = Transformer(tiny_hf("gpt2", torch.float64), None, name, causal=False) if name == "bidirectional" else (
        tiny(name))
    batches = [make_batch(2), make_batch(3, length=9, seed=1)]
    found = sweep(model, batches, place=place, direction=direction)
    assert found.columns == tuple(map(str, range(9))) and len(found.rows) == 3 + (place == "residual")
    for r, row in enumerate(found.rows):
        for column in (3, 8):
            mask = torch.zeros(1, 9, dtype=torch.bool)
            mask[:, column] = True
            expected = sum(one_by_one(model, b, direction, row, mask.expand(len(b), -1)) for b in batches) / 5
            assert found.values[r, column] == pytest.approx(expected, abs=1e-5), (row, column)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_nodes_are_patched_as_patch_nodes_does(family, direction):
    model, batch = tiny(family), make_batch()
    heads, mlps = (sweep(model, [batch], place=place, direction=direction) for place in ("head", "mlp"))

    def expected(nodes, positions=None):
        logits = patch_nodes(model, batch, nodes, positions=positions, direction=direction)
        return float(METRIC(logits, batch, logits).mean())

    for layer in range(3):
        for head in range(4):
            assert heads.values[layer, head] == pytest.approx(expected([f"a{layer}.h{head}"]), abs=1e-5)
        for position in (3, 8):
            assert mlps.values[layer, position] == pytest.approx(expected([f"m{layer}"], [position]), abs=1e-5)


def test_roles_are_patched_in_prompts_of_any_length(monkeypatch):
    model, batches = tiny("llama"), [make_batch(), make_batch(2, length=7, seed=1)]
    found = sweep(model, batches, place="residual", positions="roles")
    assert set(found.columns) == {"subject", "verb", "other", "end"} and found.columns[-1] == "end"
    names = position_names(batches, "roles")
    for r, row in enumerate(found.rows):
        for c, column in enumerate(found.columns):
            masks = [position_groups(batch, names) == names.index(column) for batch in batches]
            expected = sum(one_by_one(model, batch, "denoising", row, mask)
                           for batch, mask in zip(batches, masks, strict=True)) / 5
            assert found.values[r, c] == pytest.approx(expected, abs=1e-5)
    monkeypatch.setattr("acdc.annotation.patching_sweep.TOKENS_PER_PASS", 1)
    np.testing.assert_allclose(sweep(model, batches, place="residual", positions="roles").values, found.values,
                               atol=1e-9)


def test_shares_are_of_what_the_metric_loses():
    model, batch = tiny("gpt2"), make_batch()
    for direction in DIRECTIONS:
        found = sweep(model, [batch], place="residual", direction=direction)
        logits = [model.hf(input_ids=tokens).logits[:, -1] for tokens in (batch.clean, batch.corrupted)]
        runs = [METRIC(one, batch, one).mean().item() for one in logits]
        assert (found.clean, found.corrupted) == pytest.approx(runs)
        assert found.share[-1, -1] == pytest.approx(1)  # what the final norm reads at the end is all
        np.testing.assert_allclose(found.share[0, :3], 0, atol=1e-9)  # the prompts do not differ there


def test_mistakes_are_named():
    model, batch = tiny("gpt2"), make_batch()
    for change, message in [({"place": "heads"}, "head"), ({"direction": "x"}, "noising"),
                            ({"positions": "x"}, "each")]:
        with pytest.raises(AcdcError, match=message):
            sweep(model, [batch], **change)
    with pytest.raises(AcdcError, match="no prompts"):
        sweep(model, [])
    with pytest.raises(AcdcError, match="one length"):
        sweep(model, [batch, make_batch(length=7)])
    same = type(batch)(batch.clean, batch.clean, batch.answer, batch.wrong, batch.examples)
    with pytest.raises(AcdcError, match="alike"):
        _ = sweep(model, [same], place="mlp").share

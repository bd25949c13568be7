"""Relevance patching: conservation, and what it refuses. The rules themselves are tested in test_rules.py."""

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny
from test_rules import METHODS, scores

from acdc.discovery.relp import relp
from acdc.errors import AcdcError
from acdc.metrics import METRICS


@pytest.mark.parametrize("pattern", ["derivative", "constant"])
def test_it_follows_its_rules(family, pattern):
    model, batch = tiny(family), make_batch()
    found = relp(model, [batch], pattern=pattern)
    rules = METHODS["relp" if pattern == "derivative" else "relp_constant"]
    np.testing.assert_array_equal(found.values, scores(model, batch, rules).values)
    assert found.provenance["method"] == "relp"
    assert found.provenance["method_options"] == {"pattern": pattern}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma2", "gemma3"])
def test_relevance_is_conserved_without_biases(family):
    """What a node's edges bring in, its edges take out; in all, what the model's logit difference is."""
    model, batch, metric = tiny(family), make_batch(), METRICS["logit_difference"]
    found = relp(model, [batch], pattern="constant", ablation="zero")
    graph, matrix = found.graph, found.graph.to_matrix(found.values)
    largest = np.abs(matrix.sum(1)).max()
    assert largest > 1e-3
    for i, src in enumerate(graph.srcs[1:], start=1):
        letters = [f"<{x}>" for x in "qkv"] if src.kind == "head" else [""]
        into = [graph.channel_index[f"{src.name}{letter}"] for letter in letters]
        assert matrix[:, into].sum() == pytest.approx(matrix[i].sum(), abs=1e-5 * largest), src
        assert not matrix[:, into[:-1]].any()  # q and k
    if family != "gemma2":  # whose logits are soft-capped, which is not linear
        with torch.no_grad():
            logits = model.hf(batch.clean).logits[:, -1]
        difference = float(metric(logits, batch, logits).mean())
        assert matrix[0].sum() == pytest.approx(difference, rel=1e-4)
        assert matrix[:, -1].sum() == pytest.approx(difference, rel=1e-4)


def test_an_unknown_pattern_is_refused():
    with pytest.raises(AcdcError, match="frozen.*derivative, constant"):
        relp(tiny("gpt2"), [make_batch()], pattern="frozen")

"""The live state equals a circuit run from scratch, after every trial and commit."""

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny

from acdc.ablation import prepare_ablation
from acdc.circuit import Circuit
from acdc.live_state import LiveState
from acdc.patching import run_circuit
from acdc.transformer import frozen


def tolerance(family, ablation):
    """HF computes norms of Gemma in float32; of a sum near 0, as with zero ablation, a norm makes much."""
    if ablation == "zero" and family in ("llama", "mistral", "qwen2", "qwen3"):
        return 1e-6
    return 1e-5 if "gemma" in family else 1e-10


@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_trials_and_commits_are_circuit_runs(family, ablation):
    if ablation == "zero" and "gemma" in family:
        pytest.skip("ill-conditioned: norms of sums near 0, rounded to float32, twice a layer")
    model, batch, rng = tiny(family), make_batch(2, 6), np.random.default_rng(0)
    graph, replacement = model.graph(), prepare_ablation(model, [batch], ablation)(batch)
    atol = tolerance(family, ablation)

    def from_scratch(kept):
        return run_circuit(model, batch, Circuit(graph, graph.from_matrix(kept)), replacement)

    with torch.no_grad(), frozen(model):
        state = LiveState(model, batch, replacement)
        kept = graph.to_matrix(rng.random(graph.n_edges) < 0.4)
        torch.testing.assert_close(state.refresh(kept), from_scratch(kept), atol=atol, rtol=0)
        for c in reversed(range(len(graph.channels))):
            node, srcs = graph.channels[c].node, np.nonzero(state.kept[:, c])[0][::-1].tolist()
            if not srcs or not (node.kind == "logits" or state.needed[graph.src_index[node.name]]):
                continue
            trial = state.trial([c], srcs)
            for row in {0, len(srcs) - 1}:
                cut = state.kept.copy()
                cut[srcs[: row + 1], c] = False
                torch.testing.assert_close(trial.logits[row], from_scratch(cut), atol=atol, rtol=0)
            row = int(rng.integers(len(srcs)))
            state.commit(trial, row)
            state.cut([c], srcs[: row + 1])
        final = state.trial([len(graph.channels) - 1], [0]) if state.kept[0, -1] else None
        torch.testing.assert_close(state.refresh(state.kept), from_scratch(state.kept), atol=atol, rtol=0)
        assert final is None or torch.isfinite(final.logits).all()


def test_a_trial_changes_nothing_until_it_is_committed():
    model, batch = tiny("llama"), make_batch(2, 6)
    graph, replacement = model.graph(), prepare_ablation(model, [batch])(batch)
    with torch.no_grad(), frozen(model):
        state = LiveState(model, batch, replacement)
        state.refresh(graph.exists)
        channel = graph.channel_index["a1.h2<v>"]
        first, other = state.trial([channel], [4, 2]), state.trial([channel], [3])
        again = state.trial([channel], [4, 2])
    assert torch.equal(first.logits, again.logits)
    assert not torch.allclose(first.logits[0], other.logits[0])

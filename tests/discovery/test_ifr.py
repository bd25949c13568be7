"""Information flow routes against the definition, read by read and token by token."""

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny
from naive import NaiveModel

from acdc.discovery import ifr as module
from acdc.discovery.ifr import ifr
from acdc.errors import AcdcError
from acdc.task import position_groups


def naive_shares(model, batch, positions):
    """By edge and prompt."""
    naive, graph = NaiveModel(model.hf), model.graph(positions=positions)
    at, leaves = position_groups(batch, positions), {}
    with torch.no_grad():
        _, wrote = naive.run(batch.clean, model.graph())
    naive.run(batch.clean, model.graph(), leaves=leaves)
    shares = np.zeros((len(batch), graph.n_edges))
    for c, channel in enumerate(graph.channels):
        x = leaves[channel.name].detach()
        srcs = [node.name for node in graph.srcs[: graph.n_srcs_read[c]]]
        proximity = {src: (x.abs().sum(-1) - (x - wrote[src]).abs().sum(-1)).clamp(min=0) for src in srcs}
        total = sum(proximity.values())
        for edge in np.nonzero(graph.edge_channel == c)[0]:
            share = proximity[graph.srcs[graph.edge_src[edge]].name] / total
            for i in range(len(batch)):
                tokens = at[i] == graph.edge_position[edge]
                if channel.node.kind == "logits":
                    shares[i, edge] = share[i, -1]
                elif tokens.any():
                    shares[i, edge] = share[i, tokens].mean()
    return shares


@pytest.mark.parametrize("positions", ["all", "each", "roles"])
def test_shares_are_the_naive_ones(family, positions, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 20_000)
    model, batch = tiny(family), make_batch()
    scores = ifr(model, [batch], positions=positions, per_prompt=True)
    expected = naive_shares(model, batch, scores.graph.positions)
    tolerance = 5e-5 if "gemma" in family else 1e-9
    np.testing.assert_allclose(scores.values, expected.mean(0), atol=tolerance)
    np.testing.assert_allclose(scores.per_prompt, expected, atol=max(tolerance, 1e-6))
    per_channel = scores.graph.to_matrix(scores.values).sum(0)
    np.testing.assert_allclose(per_channel[:, -1], 1)


def test_channels_of_a_layer_share_alike_also_by_group():
    model, batches = tiny("llama"), [make_batch(2, 9), make_batch(1, 7)]
    heads, groups = (ifr(model, batches, kv=kv) for kv in ("head", "group"))
    assert heads["m0->a1.h0<q>"] == heads["m0->a1.h3<v>"] == groups["m0->a1.g1<k>"] == groups["m0->a1.h2<q>"]
    assert heads["m0->a2.h0<q>"] != heads["m0->a1.h0<q>"]


def test_what_reads_nothing_has_no_shares():
    model = tiny("gpt2_compiled")
    with torch.no_grad():
        for parameter in model.hf.parameters():
            parameter.zero_()
    assert (ifr(model, [make_batch()]).values == 0).all()


def test_neither_loss_nor_replacement_is_looked_at():
    model, batch = tiny("qwen2"), make_batch()
    assert np.array_equal(ifr(model, [batch]).values, ifr(model, [batch], ablation="zero").values)
    with pytest.raises(AcdcError, match="unknown ablation 'zro'"):
        ifr(model, [batch], ablation="zro")

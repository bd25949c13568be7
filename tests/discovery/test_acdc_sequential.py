"""Sequential ACDC against the algorithm written out on the naive model."""

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny
from naive import NaiveModel

from acdc.discovery.acdc_sequential import acdc_sequential
from acdc.metrics import METRICS


def naive_acdc(model, batch, metric, threshold):
    naive, graph = NaiveModel(model.hf), model.graph()
    with torch.no_grad():
        reference, _ = naive.run(batch.clean, graph)
        _, corrupted = naive.run(batch.corrupted, graph)

        def loss(kept):
            return float(metric.loss(naive.run(batch.clean, graph, kept, corrupted)[0], batch, reference).mean())

        kept = np.ones(graph.n_edges, dtype=bool)
        current = loss(kept)
        for channel in reversed(graph.channels):
            srcs = graph.srcs[: graph.n_srcs_read[graph.channel_index[channel.name]]]
            edges = [graph.edge(f"{src.name}->{channel.name}") for src in reversed(srcs)]
            read = [graph.srcs[s] for s in graph.edge_src[kept]]
            if naive.attn_post and channel.node.kind == "head":  # a head also moves the norm of its layer
                tried = any(node.kind == "head" and node.layer == channel.node.layer for node in read)
            else:
                tried = channel.name == "logits" or channel.node in read
            if not tried:
                kept[edges] = False
                continue
            for edge in edges:
                kept[edge] = False
                without = loss(kept)
                if without - current < threshold:
                    current = without
                else:
                    kept[edge] = True
        return kept


@pytest.mark.parametrize(("family", "metric", "threshold"), [
    ("gpt2", "kl_divergence", 0.003), ("llama", "kl_divergence", 0.01), ("gpt_neox", "logit_difference", 0.05),
    ("gemma2", "kl_divergence", 0.01),
])
def test_same_decisions_as_the_naive_algorithm(family, metric, threshold):
    model, batch = tiny(family), make_batch(2, 6)
    expected = naive_acdc(model, batch, METRICS[metric], threshold)
    scores = acdc_sequential(model, [batch], METRICS[metric], threshold=threshold)
    ours = scores.above(threshold, by="signed").kept
    assert 5 < expected.sum() < len(expected) - 5
    assert (ours == expected).all()


def test_edges_that_nothing_reads_are_never_tried():
    model, batch = tiny("gpt2"), make_batch(2, 6)
    scores = acdc_sequential(model, [batch], threshold=1e9)
    into_logits = scores.graph.edge_channel == len(scores.graph.channels) - 1
    assert np.isfinite(scores.values[into_logits]).all()
    assert (scores.values[~into_logits] == -np.inf).all()
    assert scores.above(1e9, by="signed").n_edges == 0

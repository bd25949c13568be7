"""What the comparison with another ACDC is measured by: plain decisions in a given order, and overlap."""

import random
from types import SimpleNamespace

import numpy as np
import pytest

from acdc.benchmarks.acdc_speed import random_gpt2
from acdc.benchmarks.peers.auto_circuit_side import name_of
from acdc.benchmarks.peers.decisions import decide_in_order, jaccard
from acdc.circuit import Circuit
from acdc.discovery.acdc_sequential import acdc_sequential


@pytest.mark.parametrize("difference", [0, 6])
def test_decisions_in_our_order_are_those_of_acdc(difference):
    model, batches = random_gpt2(2, 2, 32, difference)
    expected = acdc_sequential(model, batches, threshold=1e-4)
    circuit, nearest = decide_in_order(model, batches[0], list(reversed(model.graph().edge_names)), 1e-4)
    kept = expected.above(1e-4, by="signed").kept
    assert 0 < kept.sum() < len(kept)
    np.testing.assert_array_equal(circuit.kept, kept)
    tried = expected.values[np.isfinite(expected.values)]
    assert nearest <= np.abs(tried - 1e-4).min() + 1e-6


def test_order_matters_and_is_obeyed():
    model, batches = random_gpt2(2, 2, 32)
    names = list(model.graph().edge_names)
    circuits = [decide_in_order(model, batches[0], random.Random(seed).sample(names, len(names)), 1e-4)[0]
                for seed in range(3)]
    assert len({circuit.kept.tobytes() for circuit in circuits}) > 1


def test_jaccard():
    graph = random_gpt2(1, 1, 32)[0].graph()
    names = graph.edge_names
    a, b = Circuit.from_edges(graph, list(names[:3])), Circuit.from_edges(graph, list(names[2:4]))
    assert jaccard(a, b) == 0.25
    assert jaccard(a, a) == jaccard(*[Circuit.from_edges(graph, [])] * 2) == 1


@pytest.mark.parametrize(("src", "dst", "expected"), [
    ("Resid Start", "A0.1.Q", "input->a0.h1<q>"), ("A0.1", "MLP 0", "a0.h1->m0"),
    ("MLP 10", "A11.3.V", "m10->a11.h3<v>"), ("A11.10", "Resid End", "a11.h10->logits"),
])
def test_edges_of_auto_circuit_are_named_as_ours(src, dst, expected):
    assert name_of(SimpleNamespace(src=SimpleNamespace(name=src), dest=SimpleNamespace(name=dst))) == expected

"""A node's score is the derivative by what it writes; an edge's score is that of its weaker end."""

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny
from naive import NaiveModel

from acdc.circuit import EdgeScores
from acdc.discovery.eap import eap
from acdc.discovery.eap_ig import eap_ig
from acdc.discovery.hisp import hisp
from acdc.discovery.node_attribution import lifted, node_attribution
from acdc.errors import AcdcError
from acdc.metrics import METRICS
from acdc.task import position_groups

LOGIT_DIFFERENCE = METRICS["logit_difference"]


def naive_derivatives(model, batch, points=(1.0,)):
    """By src, token by token: (replacement - clean) times the derivative of the loss by what the src writes."""
    naive, graph = NaiveModel(model.hf), model.graph()
    with torch.no_grad():
        reference, clean = naive.run(batch.clean, graph)
        _, replaced = naive.run(batch.corrupted, graph)
    total = {name: torch.zeros(()) for name in clean}
    for point in points:
        added = {name: torch.zeros_like(value).requires_grad_() for name, value in clean.items()}
        embedding = replaced["input"] + point * (clean["input"] - replaced["input"])
        logits, _ = naive.run(batch.clean, graph, embedding=embedding,
                              edit=lambda name, x, added=added: x + added[name])
        loss = LOGIT_DIFFERENCE.loss(logits, batch, reference).sum()
        gradients = torch.autograd.grad(loss, list(added.values()), allow_unused=True, materialize_grads=True)
        for name, gradient in zip(added, gradients, strict=True):
            total[name] = total[name] + ((replaced[name] - clean[name]) * gradient).sum(-1) / len(points)
    return total


def naive_edges(graph, by_node):
    """`lifted`, edge by edge; `by_node` maps a src to its score at each position."""
    size = graph.n_heads // graph.n_kv_heads
    expected = []
    for edge in range(graph.n_edges):
        p, channel = graph.edge_position[edge], graph.channels[graph.edge_channel[edge]]
        src, node = by_node[graph.srcs[graph.edge_src[edge]].name][p], channel.node
        if node.kind == "logits":
            expected.append(src)
            continue
        names = ([f"a{node.layer}.h{h}" for h in range(graph.n_heads) if h // size == node.index]
                 if node.kind == "kv" else [node.name])
        dst = sum(by_node[name].sum() if channel.letter in ("k", "v") else by_node[name][p] for name in names)
        expected.append(min(src, dst, key=abs))
    return np.array(expected)


def assert_close(ours, expected, rtol=1e-5):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=rtol * np.abs(expected).max())


@pytest.mark.parametrize(("steps", "points"), [(None, (1.0,)), (2, (0.0, 0.5))])
def test_a_node_scores_its_derivative_which_is_the_sum_over_its_edges(family, steps, points):
    model, batch = tiny(family), make_batch()
    derivatives = naive_derivatives(model, batch, points)
    expected = {name: float(value.sum()) / len(batch) for name, value in derivatives.items()}
    edges = eap(model, [batch]) if steps is None else eap_ig(model, [batch], steps=steps)
    of_nodes = edges.of_nodes()
    assert list(of_nodes) == [node.name for node in model.graph().srcs]
    assert_close(np.array([of_nodes[name] for name in expected]), np.array(list(expected.values())))
    scores = node_attribution(model, [batch], steps=steps)
    by_node = {name: np.array([value]) for name, value in expected.items()}
    assert_close(scores.values, naive_edges(scores.graph, by_node))
    assert scores.provenance["method"] == "node_attribution"
    assert scores.provenance["method_options"] == {"steps": steps}


@pytest.mark.parametrize("positions", ["all", "each", "roles"])
@pytest.mark.parametrize(("family", "kv"), [("qwen2", "group"), ("gpt_neox", "head"), ("gemma2", "group")])
def test_positions_and_groups(family, kv, positions):
    model, batch = tiny(family), make_batch()
    scores = node_attribution(model, [batch], kv=kv, positions=positions)
    graph = scores.graph
    at = position_groups(batch, graph.positions)
    signed = naive_derivatives(model, batch)
    by_node = {name: np.array([float(value[at == p].sum()) / len(batch) for p in range(graph.n_positions)])
               for name, value in signed.items()}
    assert_close(scores.values, naive_edges(graph, by_node))
    importance = {
        name: sum(np.array([abs(float(row[place == p].sum())) for p in range(graph.n_positions)])
                  for row, place in zip(value, at, strict=True)) / len(batch)
        for name, value in signed.items()
    }
    plain = hisp(model, [batch], kv=kv, positions=positions, normalise=False)
    assert_close(plain.values, naive_edges(graph, importance))
    for layer in range(model.n_layers):
        names = [f"m{layer}", *(f"a{layer}.h{h}" for h in range(model.n_heads))]
        norm = np.sqrt(sum((importance[name] ** 2).sum() for name in names))
        importance.update({name: importance[name] / norm for name in names})
    importance["input"] /= np.linalg.norm(importance["input"])
    normalised = hisp(model, [batch], kv=kv, positions=positions)
    assert_close(normalised.values, naive_edges(graph, importance))
    assert (normalised.values >= 0).all()


def test_hisp_averages_over_batches_and_takes_sizes_by_prompt():
    model, batches = tiny("llama"), [make_batch(2, 9), make_batch(1, 7)]
    importance = {}
    for batch in batches:
        for name, value in naive_derivatives(model, batch).items():
            importance[name] = importance.get(name, 0) + np.array([float(value.sum(1).abs().sum()) / 3])
    assert_close(hisp(model, batches, normalise=False).values, naive_edges(model.graph(), importance))


def test_edges_above_a_threshold_are_those_between_the_nodes_above_it():
    model = tiny("gpt2")
    scores, nodes = node_attribution(model, [make_batch()]), eap(model, [make_batch()]).of_nodes()
    threshold = float(np.median(np.abs(list(nodes.values()))))
    strong = {name for name, value in nodes.items() if abs(value) > threshold} | {"logits"}
    kept = scores.above(threshold, by="magnitude")
    assert 0 < kept.n_edges < scores.graph.n_edges
    for edge, name in enumerate(scores.graph.edge_names):
        src, dst = name.split("->")
        assert kept.kept[edge] == (src in strong and dst.split("<")[0] in strong)


def test_untried_edges_count_nothing():
    graph = tiny("gpt2").graph()
    values = np.full(graph.n_edges, -np.inf)
    values[[graph.edge("input->m0"), graph.edge("input->logits"), graph.edge("a0.h1->m2")]] = 1.0, 2.0, -3.0
    nodes = EdgeScores(graph, values).of_nodes()
    assert nodes["input"] == 3.0 and nodes["a0.h1"] == -3.0 and nodes["m2"] == -np.inf


def test_of_nodes_names_positions():
    scores = eap(tiny("gpt2"), [make_batch()], positions="roles")
    nodes = scores.of_nodes()
    places = scores.graph.positions
    assert list(nodes)[: len(places)] == [f"input@{place}" for place in places]
    total = sum(scores[name] for name in scores.graph.edge_names if name.startswith("m0->") and name.endswith("@verb"))
    assert nodes["m0@verb"] == pytest.approx(total)


def test_an_edge_takes_the_sign_of_its_weaker_end():
    graph = tiny("gpt2").graph()
    nodes = np.full((len(graph.srcs), 1), 5.0)
    nodes[graph.src_index["m1"]] = -2.0
    scores = EdgeScores(graph, lifted(graph, nodes))
    assert scores["a0.h1->m1"] == scores["m1->a2.h3<k>"] == scores["m1->logits"] == -2.0
    assert scores["input->logits"] == 5.0


def test_zero_steps_are_refused():
    with pytest.raises(AcdcError, match="steps=0"):
        node_attribution(tiny("gpt2"), [make_batch()], steps=0)

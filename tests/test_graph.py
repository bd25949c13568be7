"""The graph has the edges that the architecture has, and every way to write it reads back the same."""

import re

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc.errors import AcdcError
from acdc.graph import Graph, Node


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    kv_heads = draw(st.integers(1, 3))
    return Graph(
        draw(st.integers(1, 3)), kv_heads * draw(st.integers(1, 2)), kv_heads, draw(st.booleans()),
        draw(st.sampled_from(["head", "group"])), draw(st.sampled_from([(), ("0", "1", "2"), ("S1", "other", "end")])),
    )


@pytest.mark.parametrize(("shape", "kv", "n_edges"), [
    ((12, 12, 12), "head", 32_491), ((30, 9, 3), "head", 123_211), ((30, 9, 3), "group", 70_651),
])
def test_known_models_have_the_known_number_of_edges(shape, kv, n_edges):
    graph = Graph(*shape, kv=kv)
    assert graph.n_edges == len(graph.edge_names) == len(set(graph.edge_names)) == n_edges


@given(graphs())
def test_an_edge_exists_iff_its_src_is_computed_before_its_channel_is_read(graph):
    def time(node: Node, reads: bool) -> tuple[int, int]:
        if node.kind in ("input", "logits"):
            return (-1, 0) if node.kind == "input" else (graph.n_layers, 0)
        after_attention = node.kind == "mlp" and not graph.parallel
        return (node.layer, int(after_attention)) if reads else (node.layer, 2 if node.kind == "mlp" else 0)

    for s, src in enumerate(graph.srcs):
        for c, channel in enumerate(graph.channels):
            reads, written = time(channel.node, reads=True), time(src, reads=False)
            at_last = [False] * (graph.n_positions - 1) + [True]
            expected = [written < reads and (channel.name != "logits" or last) for last in at_last]
            assert graph.exists[s, c].tolist() == expected


@given(graphs())
def test_names_and_numbers_are_inverse(graph):
    assert [graph.edge(name) for name in graph.edge_names] == list(range(graph.n_edges))
    assert tuple(graph.edge_name(edge) for edge in range(graph.n_edges)) == graph.edge_names
    nodes = {*graph.srcs, *(channel.node for channel in graph.channels)}
    assert all(Node.parse(node.name) == node for node in nodes)


@given(graphs(), st.integers(0, 2**32 - 1))
def test_matrix_and_vector_are_inverse(graph, seed):
    values = np.random.default_rng(seed).normal(size=graph.n_edges)
    matrix = graph.to_matrix(values, fill=np.nan)
    assert np.array_equal(graph.from_matrix(matrix), values)
    assert np.array_equal(~np.isnan(matrix), graph.exists)
    for value, name in zip(values, graph.edge_names, strict=True):
        src, channel, position = re.fullmatch("(.*)->([^@]*)@?(.*)", name).groups()
        p = graph.positions.index(position) if graph.positions else 0
        assert matrix[graph.src_index[src], graph.channel_index[channel], p] == value


@given(graphs())
def test_each_query_head_is_fed_by_itself_or_by_its_group(graph):
    size = graph.n_heads // graph.n_kv_heads
    fed_by = [graph.channels[c].name for c in graph.channel_of_per_head]
    for channel, feeder in zip(graph.per_head.channels, fed_by, strict=True):
        node = channel.node
        if graph.kv == "group" and channel.letter in ("k", "v"):
            assert feeder == f"a{node.layer}.g{node.index // size}<{channel.letter}>"
        else:
            assert feeder == channel.name


def test_parallel_blocks_have_no_edge_from_attention_to_their_mlp():
    sequential, parallel = Graph(3, 2, 2), Graph(3, 2, 2, parallel=True)
    missing = set(sequential.edge_names) - set(parallel.edge_names)
    assert missing == {f"a{layer}.h{head}->m{layer}" for layer in range(3) for head in range(2)}
    assert set(parallel.edge_names) < set(sequential.edge_names)


@given(graphs())
def test_networkx_has_the_same_edges_and_no_cycle(graph):
    view = graph.to_networkx()
    cuttable = {
        f"{src}->{dst}" + f"<{data['channel']}>" * bool(data["channel"]) + f"@{data.get('position')}" * ("@" in key)
        for src, dst, key, data in view.edges(keys=True, data=True) if data["cuttable"]
    }
    assert cuttable == set(graph.edge_names)
    fixed = view.number_of_edges() - graph.n_edges
    assert fixed == (graph.n_layers * graph.n_heads if graph.kv == "group" else 0)
    assert nx.is_directed_acyclic_graph(view)


def test_networkx_takes_only_kept_edges():
    graph = Graph(2, 2, 2)
    kept = np.zeros(graph.n_edges, dtype=bool)
    kept[[3, 5]] = True
    assert {data["edge"] for *_, data in graph.to_networkx(kept).edges(data=True)} == {3, 5}


@pytest.mark.parametrize(("name", "message"), [
    ("a0.h1", "not the name of an edge"),
    ("a0.h9->m1", "unknown src 'a0.h9'"),
    ("logits->m1", "unknown src 'logits'"),
    ("a0.h0->a1.h0", "unknown channel 'a1.h0'"),
    ("a0.h0->a1.h0<k", "Did you mean 'a1.h0<k>'"),
    ("m1->m0", "m1 is computed after m0 is read"),
    ("a1.h0->a1.h1<q>", "a1.h0 is computed after a1.h1<q> is read"),
])
def test_a_wrong_edge_is_refused_by_name(name, message):
    with pytest.raises(AcdcError) as error:
        Graph(2, 2, 2).edge(name)
    assert message in str(error.value)


@pytest.mark.parametrize(("name", "message"), [
    ("a0.h1->m1", "does not say at which position; name one, such as a0.h1->m1@end"),
    ("a0.h1->m1@S3", "unknown position 'S3'"),
    ("a0.h1->logits@S1", "the logits are read at 'end' only"),
])
def test_a_wrong_edge_of_a_graph_with_positions_is_refused(name, message):
    with pytest.raises(AcdcError, match=re.escape(message)):
        Graph(2, 2, 2, positions=("S1", "end")).edge(name)


def test_positions_need_names_of_their_own():
    with pytest.raises(AcdcError, match="2 positions, the longest name of 101 characters"):
        Graph(2, 2, 2, positions=("S" * 101, "end"))
    with pytest.raises(AcdcError, match="'S1', 'S1': each must have a name"):
        Graph(2, 2, 2, positions=("S1", "S1"))


@pytest.mark.parametrize("name", ["", "a0", "h0.a1", "m", "a0.h0<q>", "m-1", "inputs"])
def test_a_wrong_node_is_refused_by_name(name):
    with pytest.raises(AcdcError, match="is not the name of a node"):
        Node.parse(name)


@pytest.mark.parametrize("shape", [(0, 1, 1), (1, 0, 1), (1, 3, 2), (1, 1, 2)])
def test_an_impossible_graph_is_refused(shape):
    with pytest.raises(AcdcError, match="no such graph"):
        Graph(*shape)

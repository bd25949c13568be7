"""What is written for MIB is what EAP-IG reads, and reads back as the same circuit; anything else is refused."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_circuits import damaged, with_field

from acdc.circuit import Circuit, EdgeScores
from acdc.errors import AcdcError
from acdc.export.json_file import circuit_from_json
from acdc.export.mib import circuit_from_mib, circuit_to_mib
from acdc.graph import Graph


@st.composite
def circuits(draw: st.DrawFn) -> Circuit:
    kv_heads = draw(st.integers(1, 2))
    graph = Graph(draw(st.integers(1, 3)), 2 * kv_heads, kv_heads, draw(st.booleans()))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kept = rng.random(graph.n_edges) < draw(st.floats(0, 1))
    scores = None
    if draw(st.booleans()):
        values = rng.normal(size=graph.n_edges) * 10.0 ** rng.integers(-300, 300, graph.n_edges)
        values[rng.random(graph.n_edges) < 0.2] = -np.inf
        scores = EdgeScores(graph, values, {"method": "acdc"})
    return Circuit(graph, kept, scores, {"d_model": draw(st.integers(1, 5000)), "task": "ioi"})


@settings(deadline=None)
@given(circuits())
def test_writing_and_reading_is_the_identity(circuit):
    text = circuit_to_mib(circuit)
    again = circuit_from_mib(text)
    assert again == circuit
    assert circuit_to_mib(again) == text


def eap_ig_edges(n_layers: int, n_heads: int, parallel: bool) -> list[str]:
    """The edges in the order in which EAP-IG makes them (`Graph.from_model`)."""
    names, residual = [], ["input"]
    for layer in range(n_layers):
        heads = [f"a{layer}.h{head}" for head in range(n_heads)]
        names += [f"{src}->{head}<{letter}>" for src in residual for head in heads for letter in "qkv"]
        names += [f"{src}->m{layer}" for src in (residual if parallel else residual + heads)]
        residual += [*heads, f"m{layer}"]
    return names + [f"{src}->logits" for src in residual]


@settings(deadline=None)
@given(circuits())
def test_the_file_is_what_eap_igs_reader_asks_for(circuit):
    data = json.loads(circuit_to_mib(circuit))
    graph = circuit.graph
    assert data["cfg"] == {"n_layers": graph.n_layers, "n_heads": graph.n_heads, "parallel_attn_mlp": graph.parallel,
                           "d_model": circuit.provenance["d_model"]}
    assert set(data["edges"]) == set(eap_ig_edges(graph.n_layers, graph.n_heads, graph.parallel))
    assert {name for name, edge in data["edges"].items() if edge["in_graph"]} == set(circuit.edge_names)
    for name, node in data["nodes"].items():
        out = any(edge.startswith(f"{name}->") for edge in circuit.edge_names)
        into = any(edge.partition("->")[2].partition("<")[0] == name for edge in circuit.edge_names)
        assert node == {"in_graph": name == "logits" or (out and (into or name == "input"))}
    assert len(data["nodes"]) == len(graph.srcs) + 1
    if circuit.scores is None:
        assert not any("score" in edge for edge in data["edges"].values())
        return
    for name, edge in data["edges"].items():
        ours = circuit.scores[name]
        assert edge["score"] == (0 if ours == -np.inf else ours)  # -inf is the first by magnitude there


def small(**edge) -> dict:
    """A file as EAP-IG writes it after `apply_topn`."""
    graph = Graph(2, 2, 2)
    edges = {name: {"score": i / 7 - 2, "in_graph": i % 5 == 0, **edge} for i, name in enumerate(graph.edge_names)}
    nodes = {name: {"in_graph": True} for name in (*(node.name for node in graph.srcs), "logits")}
    return {"cfg": {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 16}, "nodes": nodes,
            "edges": edges}


def test_a_file_of_theirs_is_read():
    data = small()
    circuit = circuit_from_mib(json.dumps(data))
    assert circuit.graph == Graph(2, 2, 2)
    assert circuit.scores is not None
    assert {name: circuit.scores[name] for name in data["edges"]} == {n: e["score"] for n, e in data["edges"].items()}
    assert set(circuit.edge_names) == {name for name, edge in data["edges"].items() if edge["in_graph"]}
    assert circuit.provenance == {"d_model": 16}
    assert circuit_from_mib(json.dumps(data), n_kv_heads=1).graph == Graph(2, 2, 1)


def test_a_file_of_kept_edges_alone_may_leave_out_the_others():
    data = small()
    data["edges"] = {name: {"in_graph": name != "m1->logits"} for name in ("input->m0", "m0->logits", "m1->logits")}
    circuit = circuit_from_mib(json.dumps(data))
    assert (circuit.edge_names, circuit.scores) == (("input->m0", "m0->logits"), None)
    data["cfg"] |= {"n_layers": 12, "n_heads": 12}  # of which three are few: no table of names is made for them
    circuit = circuit_from_mib(json.dumps(data))
    assert "edge_names" not in vars(circuit.graph)
    assert circuit.edge_names == ("input->m0", "m0->logits")
    data["edges"]["m3->m1"] = {"in_graph": True}
    with pytest.raises(AcdcError, match="the model has no edge: 'm3->m1'"):
        circuit_from_mib(json.dumps(data))


@pytest.mark.parametrize(("circuit", "message"), [
    (Circuit.from_edges(Graph(1, 2, 1, kv="group"), [], provenance={"d_model": 4}), "--kv head"),
    (Circuit.from_edges(Graph(1, 1, 1, positions=("S", "end")), [], provenance={"d_model": 4}), "--positions all"),
    (Circuit.from_edges(Graph(1, 1, 1), []), "given: None. Give d_model"),
    (Circuit.from_edges(Graph(1, 1, 1), [], provenance={"d_model": True}), "given: True"),
])
def test_what_has_no_place_in_the_format_is_refused(circuit, message):
    with pytest.raises(AcdcError) as error:
        circuit_to_mib(circuit)
    assert message in str(error.value)
    assert circuit_to_mib(Circuit.from_edges(Graph(1, 1, 1), []), d_model=8)


def changed(path: str, value: object) -> str:
    return json.dumps(with_field(small(), path.split("/"), value))


@pytest.mark.parametrize(("path", "value", "message"), [
    ("cfg", ..., "not a circuit of EAP-IG or MIB"), ("edges", ..., "not a circuit of EAP-IG or MIB"),
    ("nodes", ..., 'field "nodes"'), ("cfg", 3, 'field "cfg"'), ("cfg/n_layers", "2", "'2' is not of type int"),
    ("cfg/d_model", ..., 'field "cfg.d_model"'), ("cfg/parallel_attn_mlp", 0, "not of type bool"),
    ("cfg/n_layers", 10**8, "more than any model has"), ("cfg/n_heads", -1, "no such graph"),
    ("nodes/m7", {"in_graph": True}, "no node 'm7'"), ("nodes/m0", {}, '"in_graph" must be'),
    ("nodes/m0", {"in_graph": True, "score": 1.0}, "nodes or neurons"),
    ("nodes/m0", {"in_graph": True, "neurons": [True]}, "nodes or neurons"),
    ("edges", [], 'field "edges"'), ("edges/m1->m0", {"score": 1, "in_graph": True}, "no edge 'm1->m0'"),
    ("edges/input->m0", {"score": 1, "in_graph": 1}, '"in_graph" must be'),
    ("edges/input->m0", {"score": "1", "in_graph": True}, "1 is not a finite number"),
    ("edges/input->m0", {"score": 10**400, "in_graph": True}, "is not a finite number"),
    ("edges/input->m0", {"in_graph": True}, "edges have a score; give all or none"),
    ("edges/input->m0", ..., "edges have a score; give all or none"),
    ("acdc", [], 'field "acdc"'), ("acdc", {"provenance": {}}, "is missing"),
    ("acdc", {"n_kv_heads": 2, "untried": ["x"], "provenance": {}, "scores_provenance": {}}, "'x' is not an edge"),
    ("acdc", {"n_kv_heads": "2", "untried": [], "provenance": {}, "scores_provenance": {}}, "not of type int"),
    ("acdc", {"n_kv_heads": 3, "untried": [], "provenance": {}, "scores_provenance": {}}, "no such graph"),
    ("acdc", {"n_kv_heads": 2, "untried": 3, "provenance": {}, "scores_provenance": {}}, "list of edge names"),
    ("acdc", {"n_kv_heads": 2, "untried": [], "provenance": 3, "scores_provenance": {}}, "acdc.provenance"),
])
def test_a_wrong_field_is_refused_by_name(path, value, message):
    with pytest.raises(AcdcError) as error:
        circuit_from_mib(changed(path, value), source="found.json")
    assert message in str(error.value)
    assert "found.json" in str(error.value)


@settings(max_examples=80, deadline=None)
@given(damaged(circuit_to_mib(circuit_from_mib(json.dumps(small()))), most=3))
def test_a_damaged_file_is_refused_or_still_a_circuit(text):
    try:
        circuit = circuit_from_mib(text)
    except AcdcError:
        return
    assert circuit_from_mib(circuit_to_mib(circuit)) == circuit


@settings(max_examples=60, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.floats(),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
                    max_leaves=6), st.sampled_from(["cfg", "nodes", "edges", "acdc", "edges/input->m0", "nodes/input"]))
def test_any_json_in_a_field_is_a_circuit_or_one_error(value, path):
    try:
        circuit_from_mib(changed(path, value))
    except AcdcError as error:
        assert "\n" not in str(error)


def test_the_other_reader_says_which_reads_it():
    with pytest.raises(AcdcError, match="convert it with `acdc import`"):
        circuit_from_json(json.dumps(small()))

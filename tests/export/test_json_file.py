"""A circuit written and read is the same circuit; anything else is refused by name."""

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_circuits import damaged, with_field

from acdc.circuit import Circuit, EdgeScores
from acdc.errors import AcdcError
from acdc.export.json_file import circuit_from_json, circuit_to_json
from acdc.graph import Graph

plain = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text() | st.floats(
    allow_nan=False, allow_infinity=False
)
records = st.dictionaries(st.text(), st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
), max_size=4)


@st.composite
def circuits(draw: st.DrawFn) -> Circuit:
    kv_heads = draw(st.integers(1, 2))
    positions = draw(st.lists(st.text(min_size=1, max_size=100), max_size=3, unique=True))
    graph = Graph(draw(st.integers(1, 3)), 2 * kv_heads, kv_heads, draw(st.booleans()),
                  draw(st.sampled_from(["head", "group"])), tuple(positions))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kept = rng.random(graph.n_edges) < draw(st.floats(0, 1))
    scores = None
    if draw(st.booleans()):
        values = rng.normal(size=graph.n_edges) * 10.0 ** rng.integers(-300, 300, graph.n_edges)
        values[rng.random(graph.n_edges) < 0.2] = -np.inf
        values[0] = draw(st.floats(allow_nan=False, allow_infinity=False))
        scores = EdgeScores(graph, values, draw(records))
    return Circuit(graph, kept, scores, draw(records))


@given(circuits())
def test_writing_and_reading_is_the_identity(circuit):
    text = circuit_to_json(circuit)
    again = circuit_from_json(text)
    assert again == circuit
    assert circuit_to_json(again) == text
    if circuit.scores is not None and again.scores is not None:
        assert again.scores.values.tobytes() == circuit.scores.values.tobytes()


def small() -> Circuit:
    graph = Graph(2, 2, 1, kv="group")
    values = np.linspace(-1, 1, graph.n_edges)
    values[3] = -np.inf
    return EdgeScores(graph, values, {"method": "eap"}).top(6, by="signed")


def test_the_format_is_as_documented():
    circuit = small()
    data = json.loads(circuit_to_json(circuit))
    assert (data["format"], data["version"]) == ("acdc-circuit", 1)
    assert data["graph"] == {"n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "parallel": False, "kv": "group",
                             "positions": []}
    assert data["kept"] == list(circuit.edge_names)
    assert circuit.scores is not None
    assert [-np.inf if v is None else v for v in data["scores"]] == circuit.scores.values.tolist()
    assert data["provenance"] == {"method": "eap", "selection": "top 6 by signed"}
    assert data["scores_provenance"] == {"method": "eap"}


def test_positions_are_kept():
    graph = Graph(1, 1, 1, positions=("S2", "->@", "end"))
    circuit = Circuit.from_edges(graph, ["input->m0@->@", "input->a0.h0<q>@S2"])
    data = json.loads(circuit_to_json(circuit))
    assert data["graph"]["positions"] == ["S2", "->@", "end"]
    assert data["kept"] == ["input->a0.h0<q>@S2", "input->m0@->@"]
    assert circuit_from_json(json.dumps(data)) == circuit


def test_a_file_need_not_say_that_positions_are_taken_together():
    assert circuit_from_json(changed("graph.positions", ...)) == small()


def changed(path: str, value: object) -> str:
    """The small circuit's file with one field set, or removed where the value is `...`."""
    return json.dumps(with_field(json.loads(circuit_to_json(small())), path.split("."), value))


@pytest.mark.parametrize(("path", "value", "message"), [
    ("format", "graphml", '"format" must be "acdc-circuit"'),
    ("format", ..., '"format" must be "acdc-circuit"'),
    ("version", 2, 'field "version" is 2'),
    ("version", True, 'field "version" is True'),
    ("version", ..., 'field "version" is None'),
    ("kept", ..., 'field "kept" is missing'),
    ("scores", ..., 'field "scores" is missing'),
    ("provenance", ..., 'field "provenance" is missing'),
    ("comment", "hello", 'field "comment" is not one'),
    ("graph", [], 'field "graph"'),
    ("graph.kv", ..., 'field "graph.kv" is missing'),
    ("graph.kv", "none", "'none' is neither"),
    ("graph.n_heads", 3.0, 'field "graph.n_heads"'),
    ("graph.n_layers", True, 'field "graph.n_layers"'),
    ("graph.n_layers", 0, "no such graph"),
    ("graph.n_layers", 10**9, "more than any model has"),
    ("graph.n_heads", 10**8, "more than any model has"),
    ("graph.n_layers", 6000, "more than any model has"),
    ("graph.n_heads", -(10**8), "no such graph"),
    ("graph.positions", "end", "'end' is not of type list"),
    ("graph.positions", None, "None is not of type list"),
    ("graph.positions", ["S2", "end", "S2"], "the position 'S2' is given twice"),
    ("graph.positions", ["S2", 3], "a int where a name"),
    ("graph.positions", [["S2"]], "a list where a name"),
    ("graph.positions", [""], "a text of 0 characters where a name"),
    ("graph.positions", ["x" * 101], "a text of 101 characters where a name"),
    ("graph.positions", [str(i) for i in range(1001)], "1,001 names"),
    ("graph.positions", ["S2", "end"], "36 where 65 numbers"),
    ("kept", ["a0.h0->m7"], "unknown channel 'm7'"),
    ("kept", ["m1->m0"], "m1 is computed after m0"),
    ("kept", ["m0->m1", "m0->m1"], "'m0->m1' is given twice"),
    ("kept", [3], "must be a list of edge names"),
    ("kept", "m0->m1", "must be a list of edge names"),
    ("scores", [0.5], "1 where 36 numbers"),
    ("scores", "0.5", "a str where 36 numbers"),
    ("scores", ["x"] * 36, "'x', for input->a0.h0<q>"),
    ("scores", [True] * 36, "True, for input->a0.h0<q>"),
    ("scores", [10**400] * 36, "too large"),
    ("scores", None, "must be null where scores are null"),
    ("scores_provenance", None, 'field "scores_provenance"'),
    ("provenance", "me", 'field "provenance"'),
])
def test_a_wrong_field_is_refused_by_name(path, value, message):
    with pytest.raises(AcdcError) as error:
        circuit_from_json(changed(path, value), source="found.json")
    assert message in str(error.value)
    assert "found.json" in str(error.value)


def test_positions_multiply_edges_before_they_are_allocated():
    data = json.loads(circuit_to_json(small()))
    data["graph"] |= {"n_layers": 48, "n_heads": 25, "n_kv_heads": 25, "positions": [str(i) for i in range(1000)]}
    with pytest.raises(AcdcError, match="at 1,000 positions have more edges"):
        circuit_from_json(json.dumps(data))


@pytest.mark.parametrize("text", [
    "", "nonsense", "[]", "null", "3", "[" * 100_000, circuit_to_json(small())[:-40],
    circuit_to_json(small()).replace("null", "NaN"), circuit_to_json(small()).replace("null", "-Infinity"),
    circuit_to_json(small()).replace("null", "1e999"),
    circuit_to_json(small()).replace('"version": 1', '"version": 1, "version": 1'),
    changed("provenance", {"deep": json.loads("[" * 500 + "]" * 500)}),
])
def test_what_is_not_a_circuit_is_refused(text):
    with pytest.raises(AcdcError, match=r"found\.json"):
        circuit_from_json(text, source="found.json")


@settings(max_examples=300)
@given(damaged(circuit_to_json(small())))
def test_a_damaged_file_is_refused_or_still_a_circuit(text):
    try:
        circuit = circuit_from_json(text)
    except AcdcError:
        return
    assert circuit_from_json(circuit_to_json(circuit)) == circuit


@pytest.mark.parametrize(("value", "message"), [
    (float("nan"), "provenance.x is nan"), ({1: 2}, "the key 1 is a int"), ({3}, "provenance.x is a set"),
    ([np.float32(1)], "provenance.x[0] is a float32"),
])
def test_provenance_that_json_cannot_hold_is_refused(value, message):
    with pytest.raises(AcdcError) as error:
        circuit_to_json(Circuit.from_edges(Graph(1, 1, 1), [], provenance={"x": value}))
    assert message in str(error.value)


def test_a_whole_model_takes_about_a_second():
    graph = Graph(30, 9, 3)
    circuit = EdgeScores(graph, np.random.default_rng(0).normal(size=graph.n_edges)).top(graph.n_edges, by="signed")
    start = time.perf_counter()
    assert circuit_from_json(circuit_to_json(circuit)) == circuit
    assert time.perf_counter() - start < 20  # far above what it takes, for machines that are busy

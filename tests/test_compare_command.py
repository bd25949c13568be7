"""`acdc compare` prints and writes what the library computes, and refuses in one line what cannot be compared."""

import json

import numpy as np
import pytest

from acdc.benchmarks.known_circuits.load import KNOWN_CIRCUITS, load_known_circuit
from acdc.circuit import Circuit, EdgeScores
from acdc.cli import main
from acdc.evaluation.comparison import mib_roc, overlap, roc
from acdc.export.json_file import circuit_to_json
from acdc.graph import Graph

DOCSTRING = load_known_circuit("docstring")


def saved(folder, circuit, name="circuit.json"):
    path = folder / name
    path.write_text(circuit_to_json(circuit), encoding="utf-8")
    return str(path)


@pytest.fixture
def found() -> Circuit:
    """Scores that find most of the docstring circuit, with noise, ties and edges that were never tried."""
    graph = DOCSTRING.circuit.graph
    rng = np.random.default_rng(0)
    values = np.round(rng.normal(size=graph.n_edges) + 2 * DOCSTRING.circuit.kept, 1)
    values[rng.random(graph.n_edges) < 0.1] = -np.inf
    return EdgeScores(graph, values, {"method": "acdc"}).top(40, by="magnitude")


def test_a_published_circuit_by_name(found, tmp_path, capsys):
    out = tmp_path / "numbers.json"
    assert main(["compare", saved(tmp_path, found), "docstring", "--out", str(out)]) == 0
    printed, record = capsys.readouterr().out, json.loads(out.read_text(encoding="utf-8"))
    for level, row in zip(("edge", "head", "node"), record["overlap"], strict=True):
        expected = overlap(found, DOCSTRING.circuit, level=level, among=DOCSTRING.exists)
        assert row == expected.summary()
        assert f"{expected.recall:.3f}" in printed
    for row in record["roc"]:
        curve = roc(found.scores, DOCSTRING.circuit, by=row["by"], level=row["level"], among=DOCSTRING.exists)
        assert row == curve.summary()
        assert f"{curve.auroc:.3f}" in printed and f"{curve.pessimistic_auroc:.3f}" in printed
    assert [row["auroc"] for row in record["mib_roc"]] == [
        mib_roc(found.scores, DOCSTRING.circuit, by=by).auroc for by in ("magnitude", "signed")]
    assert record["disputes"] == list(DOCSTRING.disputes)
    movers = next(row for row in record["roles"] if row["role"] == "argument mover")
    assert movers["found"] == [node for node in ("a3.h0", "a3.h6") if node in {n.name for n in found.nodes}]
    n_untried = record["roc"][0]["n_untried"]
    assert n_untried > 0 and f"{n_untried} edges were never tried" in printed


def test_another_circuit_and_no_scores(found, tmp_path, capsys):
    plain = Circuit(found.graph, found.kept)
    paths = [saved(tmp_path, plain, "a.json"), saved(tmp_path, DOCSTRING.circuit, "b.json")]
    assert main(["compare", *paths, "--out", str(tmp_path / "out.json")]) == 0
    assert "AUROC" not in capsys.readouterr().out
    record = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert record["overlap"][0] == overlap(found, DOCSTRING.circuit).summary()
    assert (record["roc"], record["mib_roc"], record["roles"]) == ([], [], [])


def test_a_truth_without_edges_has_no_curve_but_counts(found, tmp_path, capsys):
    empty = saved(tmp_path, Circuit.from_edges(found.graph, []), "empty.json")
    assert main(["compare", saved(tmp_path, found), empty]) == 0
    assert "AUROC" not in capsys.readouterr().out


@pytest.mark.parametrize(("truth", "message"), [
    ("ioi", "different models: 4 layers of 8 heads against 12 layers of 12 heads"),
    ("nowhere.json", "no circuit file 'nowhere.json'"),
    ("iol", "a published circuit: ioi, greater_than, docstring"),
])
def test_what_cannot_be_compared(found, tmp_path, capsys, truth, message):
    assert main(["compare", saved(tmp_path, found), truth]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_help_names_every_published_circuit(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in KNOWN_CIRCUITS)


def test_circuits_of_other_shapes_are_refused(found, tmp_path, capsys):
    other = saved(tmp_path, Circuit.from_edges(Graph(2, 2, 2), []), "other.json")
    assert main(["compare", saved(tmp_path, found), other]) == 1
    assert "of different models" in capsys.readouterr().err

"""`acdc export`, `acdc diff` and `acdc report` write what they say, and refuse by name."""

import json

import numpy as np
import pytest

from acdc.circuit import Annotation, EdgeScores
from acdc.cli import main
from acdc.export.annotations_file import annotations_to_json
from acdc.export.formats import FORMATS, read_export
from acdc.export.json_file import circuit_to_json
from acdc.graph import Graph


@pytest.fixture
def folder(tmp_path):
    graph = Graph(2, 2, 2)
    for seed, name in enumerate(("one", "two")):
        values = np.random.default_rng(seed).normal(size=graph.n_edges)
        scores = EdgeScores(graph, values, {"task": "ioi", "method": "eap"})
        (tmp_path / name).mkdir()
        (tmp_path / name / "circuit.json").write_text(circuit_to_json(scores.top(12, by="magnitude")))
    return tmp_path


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def test_every_format_is_written(folder, capsys):
    for name, chosen in FORMATS.items():
        out = folder / f"{name}.{chosen.suffix}"
        assert run("export", folder / "one", "--to", name, "--out", out, "--width", "single",
                   "--d-model", 8) == 0, name
        assert out.stat().st_size > 0
    assert "written to" in capsys.readouterr().out
    assert run("export", folder / "graphml.graphml", "--from", "graphml", "--to", "dot") == 0
    first, second = (read_export((folder / name).read_bytes(), kind, "x").circuit
                     for name, kind in (("graphml.graphml", "graphml"), ("graphml.dot", "dot")))
    assert first == second


def test_roles_and_groups_come_from_files(folder):
    (folder / "one" / "annotations.json").write_text(annotations_to_json([Annotation("a0.h0", "role", "early mover")]))
    assert run("export", folder / "one", "--to", "svg") == 0
    assert "EM: early mover" in (folder / "one" / "circuit.svg").read_text()
    (folder / "groups.json").write_text('{"late heads": ["a1.h0", "a1.h1"]}')
    out = folder / "classes.svg"
    assert run("export", folder / "one", "--to", "svg", "--groups", folder / "groups.json", "--out", out) == 0
    assert "late heads" in out.read_text()


def test_classes_come_from_roles_in_short_form(folder, capsys):
    roles = {"a0.h0": "early mover", "a0.h1": "early mover", "a1.h1": "late mover (seen, without effect on this task)"}
    notes = [Annotation(node, "role", role) for node, role in roles.items()]
    (folder / "one" / "annotations.json").write_text(annotations_to_json(notes))
    groups = {"early mover": ["a0.h0", "a0.h1"], "late mover (seen)": ["a1.h1"]}
    (folder / "groups.json").write_text(json.dumps(groups))
    for kind in ("svg", "tikz"):
        assert run("export", folder / "one", "--to", kind, "--classes", "--out", folder / "roles") == 0
        assert run("export", folder / "one", "--to", kind, "--groups", folder / "groups.json", "--annotations",
                   folder / "one" / "annotations.json", "--out", folder / "named") == 0
        assert (folder / "roles").read_bytes() == (folder / "named").read_bytes()
        assert run("export", folder / "one", "--to", kind, "--out", folder / "nodes") == 0
        assert b"late mover (seen)" in (folder / "nodes").read_bytes()
        assert b"without effect" not in (folder / "nodes").read_bytes()
    assert run("export", folder / "two", "--to", "svg", "--classes", "--out", folder / "none.svg") == 1
    assert "no node has a role" in capsys.readouterr().err and not (folder / "none.svg").exists()
    assert run("export", folder / "one", "--to", "svg", "--classes", "--groups", folder / "groups.json") == 1


@pytest.mark.parametrize(("arguments", "message"), [
    (["--to", "pfd"], "Did you mean 'pdf'"), (["--to", "pdf", "--edges", "0"], "--edges 0"),
    (["--to", "svg", "--width", "wide"], "unknown width"), (["--to", "svg", "--groups", "none.json"], "no file"),
    (["--to", "svg", "--out", "none/x.svg"], "none is not a folder"), (["--to", "json"], "is there already"),
    (["--to", "svg", "--from", "pdf"], "cannot be read from pdf"),
])
def test_mistakes_are_refused_and_nothing_is_written(folder, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(folder)
    source = folder / "one" / "circuit.json"
    before = sorted(folder.rglob("*"))
    assert run("export", source, *arguments) == 1
    assert message in capsys.readouterr().err and sorted(folder.rglob("*")) == before


def test_diff_prints_and_writes(folder, capsys):
    assert run("diff", folder / "one", folder / "two", "--out", folder / "diff") == 0
    said = capsys.readouterr().out
    assert "one: 12 edges; two: 12" in said and "Jaccard" in said and "by chance" in said
    data = json.loads((folder / "diff" / "diff.json").read_text())
    assert data["levels"]["edge"]["n_circuit"] == 12
    assert (folder / "diff" / "diff.pdf").read_bytes().startswith(b"%PDF")
    assert "No interval for other prompts" in said and data["interval"] is None
    assert run("diff", folder / "one", folder / "two", "--html", folder / "page.html") == 0
    assert (folder / "page.html").read_bytes() == (folder / "diff" / "diff.html").read_bytes()
    assert run("diff", folder / "one", folder / "two", "--html", folder / "none" / "page.html") == 1
    assert run("diff", folder / "one", folder / "two", "--out", folder / "diff") == 1
    assert "already holds" in capsys.readouterr().err


def test_report_takes_the_tests_beside_the_circuit(folder, capsys):
    (folder / "one" / "tests.json").write_text(json.dumps(
        {"verdict": "pass", "tests": [{"name": "sufficiency", "verdict": "pass", "reason": "f is 1"}]}))
    assert run("report", folder / "one") == 0
    assert "**pass** sufficiency: f is 1" in (folder / "one" / "report.md").read_text()
    assert "<img" in (folder / "one" / "report.html").read_text()
    (folder / "one" / "tests.json").write_text("[]")
    assert run("report", folder / "one", "--overwrite") == 1
    assert "does not hold the results" in capsys.readouterr().err

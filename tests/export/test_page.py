"""The page as a file: what it holds, what it lets run, what it refuses. How it behaves is tested in a browser."""

import base64
import hashlib
import html as html_module
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from acdc.circuit import Annotation, Circuit, EdgeScores
from acdc.cli import main
from acdc.errors import AcdcError
from acdc.evaluation.curve import Curve, CurvePoint, curves_of
from acdc.export.annotations_file import annotations_from_json, annotations_to_json
from acdc.export.json_file import circuit_to_json
from acdc.export.page import to_html
from acdc.export.page_state import read_state
from acdc.graph import Graph

WEB = Path(__file__).parents[2] / "acdc" / "export" / "web"
CURVE = Curve("magnitude", "logit_difference", 3.0, 0.5, 8,
              (CurvePoint(0.1, 4, 1.0, 0.2), CurvePoint(1.0, 40, 3.0, 1.0)))


def example(**record) -> Circuit:
    graph = Graph(3, 4, 2, kv="group", positions=("S", "end"))
    values = np.random.default_rng(0).normal(size=graph.n_edges)
    values[5:9] = -np.inf
    return Circuit(graph, np.arange(graph.n_edges) % 7 == 0, EdgeScores(graph, values), record)


def data_of(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1))


def decoded(edges: dict, graph: Graph) -> list[str]:
    """The names of the edges on the page, by the numbering of nodes that the page uses."""
    groups = range(graph.n_kv_heads)
    layers = [[*(f"a{i}.g{g}" for g in groups), *(f"a{i}.h{h}" for h in range(graph.n_heads)), f"m{i}"]
              for i in range(graph.n_layers)]
    names = ["input", *(name for layer in layers for name in layer), "logits"]
    kinds = {"src": "<u4", "dst": "<u4", "letter": "u1", "position": "<u2"}
    src, dst, letter, position = (np.frombuffer(base64.b64decode(edges[name]), kind) for name, kind in kinds.items())
    ends = [f"<{'qkv'[c]}>" if c < 3 else "" for c in letter]
    return [f"{names[s]}->{names[d]}{end}@{graph.positions[p]}"
            for s, d, end, p in zip(src, dst, ends, position, strict=True)]


def test_only_what_is_in_it_may_run():
    page = to_html(example())
    policy = html_module.unescape(re.search(r'Content-Security-Policy" content="(.*?)"', page).group(1))
    assert policy.startswith("default-src 'none'; ")
    script, style = (re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL).group(1) for tag in ("script", "style"))
    for name, text in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}';" in policy
    assert not re.search(r'(src|href)="?https?:', page)
    assert "Mike Bostock" in page


def test_it_holds_the_strongest_edges_and_the_kept_ones():
    circuit = example()
    assert circuit.scores is not None
    page = to_html(circuit, max_edges=20)
    edges = data_of(page)["edges"]
    names = decoded(edges, circuit.graph)
    strongest = circuit.scores.top(20, by="magnitude")
    assert set(names[:20]) == set(strongest.edge_names)
    kept = [name for name in circuit.edge_names if name not in strongest.edge_names]
    kept.sort(key=lambda name: -abs(circuit.scores[name]) if np.isfinite(circuit.scores[name]) else np.inf)
    assert names[20:] == kept[:20]
    scores = np.frombuffer(base64.b64decode(edges["score"]), "<f8")
    np.testing.assert_array_equal(scores, [circuit.scores[name] if np.isfinite(circuit.scores[name]) else np.nan
                                           for name in names])
    assert (edges["kept"], edges["tried"], edges["ranked"]) == (circuit.n_edges, circuit.graph.n_edges - 4, 20)
    assert page == to_html(circuit, max_edges=20)


def test_a_circuit_without_scores():
    graph = Graph(2, 2, 2)
    circuit = Circuit.from_edges(graph, ["a0.h1->m1", "m1->logits"])
    edges = data_of(to_html(circuit))["edges"]
    assert (edges["count"], edges["ranked"], edges["scored"]) == (2, 0, False)


def test_curves_go_through_the_provenance():
    record = json.loads(json.dumps({"curves": [CURVE.as_record()]}))
    assert curves_of(record) == [CURVE]
    assert data_of(to_html(example(**record)))["curves"][0]["points"] == [[4, 1.0, 0.2], [40, 3.0, 1.0]]
    assert curves_of({}) == []


@pytest.mark.parametrize("change", [
    {"by": "luck"}, {"points": 3}, {"points": [{"fraction": 1}]}, {"full": "3"}, {"metric": 5}, {"more": 1},
    {"empty": True},
])
def test_provenance_without_sound_curves_is_refused(change):
    with pytest.raises(AcdcError, match=r"provenance\.curves"):
        curves_of({"curves": [{**CURVE.as_record(), **change}]})


def test_annotations_round_trip():
    notes = [Annotation("a1.h0", "role", "mover", 0.5), Annotation("m1", "lens", data={"promotes": [["x", 1.0]]}),
             Annotation("a1.h0", "role\u2028", "</script>")]
    text = annotations_to_json(notes)
    assert sorted(annotations_from_json(text), key=str) == sorted(notes, key=str)
    assert json.loads(text)["annotations"].keys() == {"a1.h0", "m1"}
    assert sum(line.startswith('   {"kind"') for line in text.splitlines()) == len(notes)  # a line an annotation
    assert annotations_from_json(annotations_to_json([])) == []
    shown = data_of(to_html(example(), notes))["annotations"]
    assert shown["m1"] == [{"kind": "lens", "data": {"promotes": [["x", 1.0]]}}]


@pytest.mark.parametrize("annotations", [
    {"a0.h0": {}}, {"b1": [{"kind": "role"}]}, {"a0.h0": [{"text": "no kind"}]},
    {"a0.h0": [{"kind": "role", "value": "much"}]},
    {"a0.h0": [{"kind": "role", "value": 10**400}]}, {"a0.h0": [{"kind": "role", "extra": 1}]}, [1],
])
def test_broken_annotations_are_refused(annotations):
    text = json.dumps({"format": "acdc-annotations", "version": 1, "annotations": annotations})
    with pytest.raises(AcdcError, match="notes.json"):
        annotations_from_json(text, "notes.json")


def test_annotations_of_other_models_are_refused():
    with pytest.raises(AcdcError, match="a9.h0"):
        to_html(example(), [Annotation("a9.h0", "role", "mover")])


STATE = {"format": "acdc-view", "version": 1, "by": "signed", "n": 12, "pinned": ["a1.h0", "group:G"], "hidden": ["m0"],
         "groups": [{"name": "G", "members": ["a0.h0", "a0.h1"]}], "labels": {"m1": "label"},
         "moved": {"m1@end": [1, -2.5]}, "selected": "group:G@S", "channels": "qv", "view": [0, 1, 0.5],
         "theme": "dark", "onPaths": True}


def test_a_state_is_read_back():
    graph = example().graph
    assert read_state(json.dumps(STATE), graph) == STATE
    assert data_of(to_html(example(), state=STATE))["state"] == STATE


@pytest.mark.parametrize("change", [
    {"format": "other"}, {"version": 2}, {"by": "luck"}, {"n": -1}, {"n": True}, {"pinned": ["a7.h0"]},
    {"hidden": "m0"},
    {"labels": {"m1": ""}}, {"labels": {"m1": "x" * 201}}, {"moved": {"m1": [1]}}, {"moved": {"m1@other": [1, 2]}},
    {"groups": [{"name": "G", "members": ["a0.h0", "a0.h0"]}]}, {"groups": [{"name": "", "members": []}]},
    {"selected": 3}, {"channels": "qx"}, {"view": [0, 0, 0]}, {"unknown": 1}, {"theme": ["dark"]}, {"onPaths": 1},
    {"circuit": "x"}, {"moved": {"m1": [10**400, 0]}},
])
def test_a_broken_state_is_refused(change):
    with pytest.raises(AcdcError, match="state.json"):
        read_state(json.dumps({**STATE, **change}), example().graph, "state.json")


@pytest.mark.parametrize("change", [{"sides": "b"}, {"sides": 7}, {"colour": "side"}])
def test_the_state_of_a_page_of_two_circuits_is_refused(change):
    with pytest.raises(AcdcError, match="state.json is of a page that compares two circuits"):
        read_state(json.dumps({**STATE, **change}), example().graph, "state.json")


def test_the_command(tmp_path, capsys):
    circuit = example(task="ioi", model="tiny")
    (tmp_path / "circuit.json").write_text(circuit_to_json(circuit))
    (tmp_path / "annotations.json").write_text(annotations_to_json([Annotation("m1", "role", "x")]))
    (tmp_path / "state.json").write_text(json.dumps(STATE))
    assert main(["view", str(tmp_path), "--state", str(tmp_path / "state.json")]) == 0
    page = (tmp_path / "circuit.html").read_text(encoding="utf-8")
    assert page == to_html(circuit, [Annotation("m1", "role", "x")], state=STATE)
    assert "<title>ioi in tiny</title>" in page
    for wrong, said in ((["--max-edges", "0"], "--max-edges"), (["--state", str(tmp_path / "no.json")], "no.json"),
                        (["--state", str(tmp_path / "circuit.json")], "not a state"),
                        (["--out", str(tmp_path)], "folder"),
                        (["--annotations", str(tmp_path / "state.json")], "no annotations")):
        (tmp_path / "circuit.html").unlink(missing_ok=True)
        assert main(["view", str(tmp_path), *wrong]) == 1
        assert said in capsys.readouterr().err
        assert not (tmp_path / "circuit.html").exists()


def test_the_bundle_is_built_from_the_sources(tmp_path):
    """Types are checked, too."""
    if shutil.which("npm") is None:
        pytest.skip("node is not installed; the bundle is in the package, so only those who change its sources need it")
    sources = tmp_path / "web"
    shutil.copytree(WEB, sources, ignore=shutil.ignore_patterns("node_modules", "bundle"))
    got = subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=sources,
                         capture_output=True, text=True, check=False)
    if got.returncode:
        pytest.skip(f"npm cannot get what the bundle is built with: {got.stderr.strip()[-300:]}")
    for command in (["npm", "run", "check"], ["npm", "run", "build"]):
        done = subprocess.run(command, cwd=sources, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    built = {path.name: path.read_text(encoding="utf-8") for path in (sources / "bundle").iterdir()}
    assert built == {path.name: path.read_text(encoding="utf-8") for path in (WEB / "bundle").iterdir()}

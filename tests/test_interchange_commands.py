"""`acdc export` and `acdc import` write what the library does; every mistake is one line, and leaves nothing behind."""

import hashlib
import json

import numpy as np
import pytest
from tiny_models import tiny_hf
from tiny_tokenizer import tiny_tokenizer

from acdc.circuit import Circuit, EdgeScores
from acdc.cli import main
from acdc.export.json_file import circuit_from_json, circuit_to_json
from acdc.export.mib import circuit_from_mib, circuit_to_mib
from acdc.graph import Graph
from acdc.models import load_model, weights_hash

GRAPH = Graph(3, 4, 2)  # of the tiny Llama, whose d_model is 24


@pytest.fixture
def found() -> Circuit:
    values = np.random.default_rng(0).normal(size=GRAPH.n_edges)
    return EdgeScores(GRAPH, values, {"method": "eap"}).top(9, by="signed")


def read(path):
    return circuit_from_json(path.read_text(encoding="utf-8"))


def test_there_and_back(found, tmp_path, capsys):
    ours, theirs, back = (tmp_path / name for name in ("circuit.json", "importances.json", "back.json"))
    ours.write_text(circuit_to_json(found))
    assert main(["export", str(tmp_path), "--to", "mib", "--d-model", "24", "--out", str(theirs)]) == 0
    assert theirs.read_text() == circuit_to_mib(found, d_model=24)
    assert main(["import", str(theirs), "--out", str(back)]) == 0
    assert f"9 of {GRAPH.n_edges:,} edges, and the scores of all" in capsys.readouterr().out
    again = read(back)
    assert (again.graph, again.kept.tolist(), again.scores) == (GRAPH, found.kept.tolist(), found.scores)
    source = {"file": str(theirs), "sha256": hashlib.sha256(theirs.read_bytes()).hexdigest()}
    assert again.provenance == {**found.provenance, "d_model": 24, "imported": source}
    assert main(["export", str(back), "--to", "json", "--out", str(tmp_path / "copy.json")]) == 0
    assert read(tmp_path / "copy.json") == again


def test_scores_alone_for_a_model_with_groups(found, tmp_path, capsys):
    hf, model = tiny_hf("llama"), tmp_path / "model"
    hf.save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    data = json.loads(circuit_to_mib(found, d_model=24))
    del data["acdc"]
    data["edges"] = {name: {**edge, "in_graph": False} for name, edge in data["edges"].items()}
    theirs, out = tmp_path / "importances.json", tmp_path / "circuit.json"
    theirs.write_text(json.dumps(data))
    assert main(["import", str(theirs), "--out", str(out)]) == 0
    assert "give --size to keep the highest" in capsys.readouterr().out
    assert read(out).graph == Graph(3, 4, 4)
    of_model = ["import", str(theirs), "--out", str(out), "--model", str(model)]
    assert main([*of_model, "--size", "10%", "--by", "signed"]) == 0
    circuit, scores = read(out), circuit_from_mib(json.dumps(data), n_kv_heads=2).scores
    assert scores is not None
    assert circuit.graph == GRAPH
    assert circuit.kept.tolist() == scores.top(int(0.1 * GRAPH.n_edges), by="signed").kept.tolist()
    loaded = load_model(model, dtype="float32")
    assert circuit.provenance["model_sha256"] == weights_hash(loaded)
    assert (circuit.provenance["model"], circuit.provenance["dtype"]) == (str(model), "float32")
    data["cfg"]["d_model"] = 25
    theirs.write_text(json.dumps(data))
    assert main(of_model) == 1
    assert "d_model 25" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    (["export", "FOLDER", "--to", "mib", "--out", "NEW"], "Give d_model (--d-model)"),
    (["export", "FOLDER", "--to", "mip", "--out", "NEW"], "unknown format 'mip'. Did you mean 'mib'"),
    (["export", "FOLDER", "--to", "json", "--out", "FOLDER"], "that is a folder"),
    (["import", "FOLDER/circuit.json", "--out", "NEW"], "is not a circuit of EAP-IG or MIB"),
    (["import", "FOLDER/absent.json", "--out", "NEW"], "no file"),
    (["import", "FOLDER/graph.pt", "--out", "NEW"], "is a pickle"),
    (["import", "FOLDER/theirs.json", "--out", "FOLDER"], "that is a folder"),
    (["import", "FOLDER/theirs.json", "--out", "NEW", "--size", "200%"], "neither a number of edges"),
    (["import", "FOLDER/theirs.json", "--out", "NEW", "--by", "size"], "unknown ranking"),
    (["import", "FOLDER/theirs.json", "--out", "NEW", "--kv-heads", "3"], "no such graph"),
    (["import", "FOLDER/theirs.json", "--out", "NEW", "--kv-heads", "2", "--model", "x"], "leave out one"),
    (["import", "FOLDER/cut.json", "--out", "NEW"], "is not JSON"),
    (["import", "FOLDER/kept.json", "--out", "NEW", "--size", "5"], "no scores to rank by"),
    (["show", "FOLDER/theirs.json"], "convert it with `acdc import`"),
])
def test_mistakes_are_one_line(found, tmp_path, capsys, arguments, message):
    text = circuit_to_mib(found, d_model=24)
    (tmp_path / "circuit.json").write_text(circuit_to_json(found))
    (tmp_path / "theirs.json").write_text(text)
    (tmp_path / "cut.json").write_text(text[:1000])
    (tmp_path / "kept.json").write_text(circuit_to_mib(Circuit(GRAPH, found.kept), d_model=24))
    before = sorted(tmp_path.iterdir())
    places = {"NEW": str(tmp_path / "new.json")}
    given = [places.get(word, word.replace("FOLDER", str(tmp_path))) for word in arguments]
    assert main(given) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before

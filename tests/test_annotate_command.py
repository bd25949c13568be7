"""`acdc annotate` writes what the library says, beside the circuit, and `acdc show` prints it without the model."""

import json
import shutil

import pytest
import torch
from tiny_models import GROUPED
from tiny_tokenizer import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from acdc.annotation.annotate import annotate
from acdc.circuit import Annotation
from acdc.cli import main
from acdc.discovery import METHODS
from acdc.export.annotations_file import annotations_from_json, annotations_to_json
from acdc.export.json_file import circuit_to_json
from acdc.models import load_model
from acdc.tasks import load_task


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A folder with a circuit of a tiny model, and what the library says of it."""
    folder, tokenizer = tmp_path_factory.mktemp("found"), tiny_tokenizer()
    torch.manual_seed(0)
    hf = LlamaForCausalLM(LlamaConfig(**{**GROUPED, "vocab_size": len(tokenizer)}))
    hf.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    model = load_model(folder / "model")
    batches = load_task("ioi", model.tokenizer, n=6).batches(model.tokenizer)
    circuit = METHODS["eap"](model, batches).top(200, by="magnitude")
    known = {"model": str(folder / "model"), "task_source": "ioi", "n_prompts": 6, "seed": 0, "dtype": "float32",
             "metric": "logit_difference", "ablation": "resample"}
    (folder / "circuit.json").write_text(circuit_to_json(type(circuit)(circuit.graph, circuit.kept, None, known)))
    return folder, annotate(model, circuit, batches)


def read(path):
    return annotations_from_json(path.read_text())


def test_it_writes_what_the_library_says_and_show_prints_it(found, tmp_path, capsys):
    folder, expected = found
    assert main(["annotate", str(folder)]) == 0
    assert f"written to {folder / 'annotations.json'}" in capsys.readouterr().out
    assert (folder / "annotations.json").read_text() == annotations_to_json(expected)

    alone = shutil.copytree(folder, tmp_path / "alone", ignore=shutil.ignore_patterns("model"))
    assert main(["show", str(alone), "--annotated", "3"]) == 0
    shown = capsys.readouterr().out
    assert "annotated nodes (3 of" in shown and "looks most at" in shown
    assert main(["show", str(alone), "--annotated", "0"]) == 0
    assert "annotated nodes" not in capsys.readouterr().out


def test_only_what_is_made_anew_is_replaced(found, tmp_path):
    folder, expected = found
    out = tmp_path / "notes.json"
    mine = [Annotation("m0", "probe", "mine", 0.5), Annotation("a0.h0", "attention", "old")]
    out.write_text(annotations_to_json(mine))
    assert main(["annotate", str(folder), "--only", "attention", "--out", str(out)]) == 0
    after = read(out)
    assert mine[0] in after and mine[1] not in after
    now, before = ([a for a in notes if a.kind == "attention"] for notes in (after, expected))
    assert len(now) == len(before) > 0 and all(a in now for a in before)
    assert main(["annotate", str(folder), "--only", "effects", "--out", str(out), "--overwrite"]) == 0
    assert {a.kind for a in read(out)} == {"evidence"}


@pytest.mark.parametrize(("options", "message"), [
    (["--only", "rolls"], "unknown annotator 'rolls'"),
    (["--only", ","], "names no annotator"),
    (["--prompts", "1"], "give at least two"),
    (["--out", "nowhere/notes.json"], "is not a folder"),
])
def test_mistakes_are_one_line(found, options, message, capsys):
    assert main(["annotate", str(found[0]), *options]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("acdc: ") and message in last


def test_annotations_that_cannot_be_read_are_not_replaced(found, tmp_path, capsys):
    out = tmp_path / "notes.json"
    out.write_text(json.dumps({"format": "other"}))
    assert main(["annotate", str(found[0]), "--out", str(out)]) == 1
    assert "holds no annotations" in capsys.readouterr().err
    assert json.loads(out.read_text()) == {"format": "other"}

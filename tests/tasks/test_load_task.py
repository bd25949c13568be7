"""A task is found by name or by path, and every listed builder obeys one contract."""

import json

import pytest
from tiny_tokenizer import tiny_tokenizer

from acdc.errors import AcdcError
from acdc.metrics import METRICS
from acdc.tasks import TASKS, load_task

TOKENIZER = tiny_tokenizer()
EXAMPLE = {"clean": "When Adam and Amy met, Amy said to", "corrupted": "When Adam and Amy met, Alan said to",
           "answer": " Adam", "wrong": " Amy"}


@pytest.mark.parametrize("name", TASKS)
def test_contract(name):
    task = load_task(name, TOKENIZER, n=8, seed=2)
    assert task == TASKS[name](TOKENIZER, n=8, seed=2)
    assert len(task) == 8 and len(load_task(name, TOKENIZER)) == 32
    assert task.name == name and task.metric in METRICS and task.description and task.source
    assert (task.provenance["builder"], task.provenance["n"], task.provenance["seed"]) == (name, 8, 2)
    assert json.loads(json.dumps(task.provenance)) == task.provenance
    (batch,) = task.batches(TOKENIZER)
    assert len(batch) == 8
    assert all(0 <= p < batch.clean.shape[1] for e in task.examples for p in e.roles.values())
    assert (TASKS[name].__doc__ or "").splitlines()[0].endswith(".") or "->" in (TASKS[name].__doc__ or "")


def test_options_reach_the_builder():
    assert load_task("induction", TOKENIZER, length=8).batches(TOKENIZER)[0].clean.shape == (32, 8)
    with pytest.raises(AcdcError, match="unknown option of task 'ioi' 'same_lengths'. Did you mean 'same_length'"):
        load_task("ioi", TOKENIZER, same_lengths=False)


def test_files(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(EXAMPLE))
    assert load_task(path, TOKENIZER) == load_task(str(path), TOKENIZER)
    with pytest.raises(AcdcError, match="takes no options; given length"):
        load_task(path, TOKENIZER, length=3)
    with pytest.raises(AcdcError, match=r"none\.csv does not exist"):
        load_task(tmp_path / "none.csv", TOKENIZER)
    with pytest.raises(AcdcError, match="must end in .json"):
        load_task(tmp_path, TOKENIZER)


def test_unknown_name():
    with pytest.raises(AcdcError, match="unknown task 'iou'. Did you mean 'ioi'.*induction.*json, .jsonl, .csv or .py"):
        load_task("iou", TOKENIZER)

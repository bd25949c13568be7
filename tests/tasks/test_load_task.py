"""A task is found by name or by path, which may be a builder in a Python file."""

import hashlib
import json

import pytest
from tiny_tokenizer import tiny_tokenizer

from acdc.errors import AcdcError
from acdc.tasks import load_task

TOKENIZER = tiny_tokenizer()
EXAMPLE = {"clean": "When Adam and Amy met, Amy said to", "corrupted": "When Adam and Amy met, Alan said to",
           "answer": " Adam", "wrong": " Amy"}


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


BUILDER = """
from acdc.task import Example, Task

def mine(tokenizer, *, n=2, seed=0, answer=" Adam"):
    example = Example("When Adam and Amy met, Amy said to", "When Adam and Amy met, Alan said to", answer, " Amy")
    return Task("mine", (example,) * n, provenance={"n": n, "seed": seed})
"""


def test_python_files(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(BUILDER)
    task = load_task(path, TOKENIZER, n=3, seed=5, answer=" Alan")
    assert len(task) == 3 and task.examples[0].answer == " Alan"
    sha256 = hashlib.sha256(BUILDER.encode()).hexdigest()
    assert task.provenance == {"n": 3, "seed": 5, "file": "mine.py", "sha256": sha256}
    for option, value in (("split", "test"), ("answers", 1)):
        with pytest.raises(AcdcError, match=f"unknown option of task 'mine' '{option}'"):
            load_task(path, TOKENIZER, **{option: value})
    for content, message in (
        ("1 +", "cannot be run: SyntaxError"), ("1 / 0", "cannot be run: ZeroDivisionError: division by zero"),
        ("x = 1", "defines no function 'mine'"),
        ("def mine(tokenizer, *, seed=0): return 3", "must return an acdc.task.Task, not int"),
    ):
        path.write_text(content)
        with pytest.raises(AcdcError, match=message):
            load_task(path, TOKENIZER)
    with pytest.raises(AcdcError, match=r"none\.py cannot be read: No such file"):
        load_task(tmp_path / "none.py", TOKENIZER)


def test_files_are_split_by_template(tmp_path):
    rows = [{**EXAMPLE, "template": template} for template in "abcabd"]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(rows))
    train, test = (load_task(path, TOKENIZER, split=split) for split in ("train", "test"))
    assert ["".join(example.template for example in task.examples) for task in (train, test)] == ["aca", "bbd"]
    assert (test.provenance["split"], test.provenance["by"], test.provenance["possible"]) == ("test", "template", 3)
    assert len(load_task(path, TOKENIZER, split="test", n=2)) == 2
    with pytest.raises(AcdcError, match="can only be split by template"):
        load_task(path, TOKENIZER, split="test", by="word")
    path.write_text(json.dumps([EXAMPLE]))
    with pytest.raises(AcdcError, match="cannot be split: its examples name no `template`"):
        load_task(path, TOKENIZER, split="test")

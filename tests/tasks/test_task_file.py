"""Task files: the three formats give the same examples; every mistake is named with its place."""

import csv
import hashlib
import json

import pytest
from tiny_tokenizer import tiny_tokenizer

import acdc.tasks.file
from acdc.errors import AcdcError
from acdc.task import Example
from acdc.tasks.file import task_from_file
from acdc.tasks.ioi import ioi

TOKENIZER = tiny_tokenizer()
FIELDS = ("clean", "corrupted", "answer", "wrong", "template")
EXAMPLE = {"clean": "When Adam and Amy met, Amy said to", "corrupted": "When Adam and Amy met, Alan said to",
           "answer": " Adam", "wrong": " Amy"}


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def load(folder, name, content, **options):
    return task_from_file(write(folder, name, content), TOKENIZER, **options)


def refused(folder, name, content, **options):
    with pytest.raises(AcdcError) as error:
        load(folder, name, content, **options)
    assert name in str(error.value)
    return str(error.value)


def test_three_formats_one_task(tmp_path):
    examples = ioi(TOKENIZER, n=12).examples
    rows = [{field: getattr(example, field) for field in FIELDS} for example in examples]
    with_roles = [{**row, "roles": dict(example.roles)} for row, example in zip(rows, examples, strict=True)]
    with open(tmp_path / "a.csv", "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    as_list = load(tmp_path, "a.json", json.dumps(with_roles))
    as_object = load(tmp_path, "b.json", json.dumps({"examples": with_roles, "name": "mine", "metric": "accuracy",
                                                     "description": "what it tests"}, indent=2))
    as_lines = load(tmp_path, "a.JSONL", "\n\n".join(map(json.dumps, with_roles)) + "\n")
    as_table = task_from_file(tmp_path / "a.csv", TOKENIZER)
    assert as_list.examples == as_object.examples == as_lines.examples == examples
    assert [example.roles for example in as_table.examples] == [{}] * 12
    assert [[getattr(e, f) for f in FIELDS] for e in as_table.examples] == [list(row.values()) for row in rows]
    assert (as_list.name, as_list.metric) == (as_table.name, as_table.metric) == ("a", "logit_difference")
    assert (as_object.name, as_object.metric, as_object.description) == ("mine", "accuracy", "what it tests")


def test_provenance(tmp_path):
    content = json.dumps({**EXAMPLE, "id": 7, "note": "x"})
    task = load(tmp_path, "mine.jsonl", content)
    assert task.provenance == {"builder": "file", "file": "mine.jsonl", "n": None, "ignored_fields": ["id", "note"],
                               "sha256": hashlib.sha256(content.encode()).hexdigest(), "split": None, "by": None,
                               "possible": 1}
    assert task.examples == (Example(**EXAMPLE),) and task.source == "mine.jsonl"


def test_first_n(tmp_path):
    rows = [{**EXAMPLE, "template": str(i)} for i in range(3)]
    content = json.dumps(rows)
    assert [e.template for e in load(tmp_path, "t.json", content, n=2).examples] == ["0", "1"]
    assert "cannot take 4 examples" in refused(tmp_path, "t.json", content, n=4)
    assert "holds 3" in refused(tmp_path, "t.json", content, n=0)


def test_spaces_of_answers_are_kept_in_csv(tmp_path):
    for newline in ("\n", "\r\n"):
        lines = ['clean, corrupted,answer,wrong', '"When Adam, Amy","When Alan, Amy", Adam,  Amy', '']
        (example,) = load(tmp_path, "t.csv", newline.join(lines)).examples
        assert (example.clean, example.answer, example.wrong) == ("When Adam, Amy", " Adam", "  Amy")


def test_line_separators_inside_json_strings(tmp_path):
    row = {**EXAMPLE, "clean": "one\u2028two\x85three"}
    assert load(tmp_path, "t.jsonl", json.dumps(row, ensure_ascii=False) + "\r\n").examples[0].clean == row["clean"]


HEADER = "clean,corrupted,answer,wrong\n"
MISTAKES = {
    "empty": ("t.json", " \n", "is empty"),
    "empty_csv": ("t.csv", "", "is empty"),
    "no_examples": ("t.json", "[]", "holds no examples"),
    "only_header": ("t.csv", HEADER, "holds no examples"),
    "suffix": ("t.txt", "x", "must end in .json, .jsonl, .csv"),
    "syntax_json": ("t.json", '[\n{"clean": 1,}\n]', "line 2, column 13: not valid JSON"),
    "syntax_jsonl": ("t.jsonl", json.dumps(EXAMPLE) + "\n{oops", "line 2, column 2: not valid JSON"),
    "nested": ("t.json", "[" * 200_000, "nested too deeply"),
    "not_utf8": ("t.csv", HEADER.encode() + b"caf\xe9,a,b,c", "line 2: not UTF-8"),
    "number": ("t.json", "3", "expected a list of examples, or an object with the list as 'examples'; found 3"),
    "no_list": ("t.json", '{"name": "x"}', "found no examples"),
    "unknown_key": ("t.json", '{"example": []}', "Did you mean 'examples'"),
    "unknown_metric": ("t.json", '{"metric": "logit_diff", "examples": []}', "Did you mean 'logit_difference'"),
    "header_type": ("t.json", '{"name": 3, "examples": []}', "'name' must be text, not 3"),
    "row_type": ("t.json", json.dumps([EXAMPLE, "x"]), 'example 1 (counted from 0): expected an object with clean'),
    "missing": ("t.jsonl", "\n" + json.dumps({"clean": "a", "anwser": " b"}),
                "line 2: corrupted, answer, wrong missing; found 'clean', 'anwser'"),
    "not_text": ("t.json", json.dumps([{**EXAMPLE, "answer": 5}]), "'answer' must be text that is not empty, not 5"),
    "empty_text": ("t.json", json.dumps([{**EXAMPLE, "clean": ""}]), 'example 0 (counted from 0): \'clean\' must be'),
    "empty_cell": ("t.csv", HEADER + "a,b,,d\n", "line 2: 'answer' must be text that is not empty"),
    "surrogate": ("t.json", json.dumps([{**EXAMPLE, "wrong": "\ud800"}]), "half a surrogate pair"),
    "surrogate_name": ("t.json", json.dumps({"name": "\ud800", "examples": [EXAMPLE]}), "'name' holds half a"),
    "surrogate_role": ("t.json", json.dumps([{**EXAMPLE, "roles": {"\ud800": 0}}]), "'roles' holds half a surrogate"),
    "template_type": ("t.json", json.dumps([{**EXAMPLE, "template": 3}]), "'template' must be text"),
    "csv_header": ("t.csv", "clean;corrupted;answer;wrong\na;b;c;d", "lacks clean, corrupted, answer, wrong"),
    "csv_twice": ("t.csv", "clean,clean,corrupted,answer,wrong\n", "a column occurs twice"),
    "csv_comma": ("t.csv", HEADER + "\nWhen Adam, Amy,b,c,d", "line 3: 5 cells, but the header has 4 columns"),
    "csv_short": ("t.csv", HEADER + "a,b,c", "line 2: 3 cells"),
    "csv_quote": ("t.csv", HEADER + '"a,b,c,d\n', "not valid CSV"),
    "csv_roles": ("t.csv", HEADER[:-1] + ",roles\na,b,c,d,IO=2\n", 'not "IO=2". CSV cannot hold it'),
    "role_type": ("t.json", json.dumps([{**EXAMPLE, "roles": {"IO": "2"}}]), "role 'IO' is \"2\""),
    "role_bool": ("t.json", json.dumps([{**EXAMPLE, "roles": {"IO": True}}]), "role 'IO' is true"),
    "role_after": ("t.json", json.dumps([{**EXAMPLE, "roles": {"end": 9}}]), "whole number from 0 to 8"),
    "role_before": ("t.json", json.dumps([{**EXAMPLE, "roles": {"end": -1}}]), "the clean prompt has 9 tokens"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(tmp_path, mistake):
    name, content, message = MISTAKES[mistake]
    assert message in refused(tmp_path, name, content)


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(AcdcError, match="does not exist"):
        task_from_file(tmp_path / "none.json", TOKENIZER)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(AcdcError, match="is a folder"):
        task_from_file(tmp_path / "folder.json", TOKENIZER)
    path = write(tmp_path, "big.json", json.dumps([EXAMPLE]))
    monkeypatch.setattr(acdc.tasks.file, "MAX_BYTES", 100)
    with pytest.raises(AcdcError, match="big.json has 0 MB; at most"):
        task_from_file(path, TOKENIZER)


def test_prompts_that_do_not_suit_the_tokenizer_are_named_by_batches(tmp_path):
    task = load(tmp_path, "t.json", json.dumps([{**EXAMPLE, "corrupted": "When Adam met, Alan said to"}]))
    with pytest.raises(AcdcError, match="differ in length: 'When Adam and Amy met"):
        task.batches(TOKENIZER)

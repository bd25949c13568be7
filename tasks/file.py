"""A task from a user's own JSON, JSONL or CSV file: clean, corrupted, answer and wrong of each example."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from acdc.errors import AcdcError, unknown_name
from acdc.input_file import read_bytes
from acdc.metrics import METRICS
from acdc.task import Example, Task, Tokenizer

from .held_out import HeldOut
from .words import token_ids

REQUIRED = ("clean", "corrupted", "answer", "wrong")
HEADER = ("name", "description", "metric")
MAX_BYTES = 200_000_000

Rows = Iterator[tuple[str, Any]]
"""Where each example stands in the file, to say so in an error, and what is there."""


def task_from_file(path: str | Path, tokenizer: Tokenizer, *, n: int | None = None, split: str | None = None,
                   by: str | None = None) -> Task:
    """The task in a file: its first `n` examples, or all.

    .json: a list of objects, or an object with `examples` (such a list) and optionally `name`, `description`
    and `metric`. .jsonl: an object a line. .csv: a header, then a row an example. UTF-8, with or without a BOM.

    Each example has `clean`, `corrupted`, `answer` and `wrong`, all text, and may have `template` and, in JSON
    and JSONL, `roles`: {role: token position in the clean prompt, counted from 0, BOS included}. Other fields are
    ignored and listed in `provenance`. Whether prompts and answers suit the tokenizer is checked when batches are
    made. `split`: the examples of every second `template`, from the first (train) or the second (test).

        task = task_from_file("prompts.csv", tokenizer)
    """
    path = Path(path)
    if path.suffix.lower() not in READERS:
        raise AcdcError(f"task file {str(path)!r}: its name must end in {', '.join(READERS)}")
    content = _read(path)
    header, rows = READERS[path.suffix.lower()](path, _decode(path, content))
    examples, ignored = [], {}
    for where, row in rows:
        examples.append(_example(where, row, tokenizer))
        ignored |= dict.fromkeys(key for key in row if key not in (*REQUIRED, "template", "roles"))
    if not examples:
        raise AcdcError(f"task file {path} holds no examples; at least one is needed")
    held_out = HeldOut(split, by)
    if held_out.part is not None:
        examples = _part(path, examples, held_out)
    if n is not None and not 1 <= n <= len(examples):
        raise AcdcError(f"cannot take {n:,} examples: task file {path} holds {len(examples):,}. Ask for 1 to that")
    return Task(
        name=header.get("name", path.stem),
        examples=tuple(examples[:n]),
        metric=header.get("metric", "logit_difference"),
        description=header.get("description", ""),
        source=path.name,
        provenance={
            "builder": "file", "file": path.name, "sha256": hashlib.sha256(content).hexdigest(), "n": n,
            "ignored_fields": list(ignored), **held_out.provenance, "possible": len(examples),
        },
    )


def _part(path: Path, examples: list[Example], held_out: HeldOut) -> list[Example]:
    if held_out.by != "template":
        raise AcdcError(f"task file {path} can only be split by template: it does not say which words fill its slots")
    templates = list(dict.fromkeys(example.template for example in examples))
    if len(templates) < 2:
        raise AcdcError(
            f"task file {path} cannot be split: its examples name {'one' if templates[0] else 'no'} `template`; at "
            "least two are needed, of which train and test have every second one"
        )
    kept = held_out.of_templates(templates)
    return [example for example in examples if example.template in kept]


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise AcdcError(f"task file {path} is a folder; give one of {', '.join(READERS)}")
        return read_bytes(path, MAX_BYTES)
    except FileNotFoundError:
        raise AcdcError(f"task file {path} does not exist (looked in {Path.cwd()})") from None
    except OSError as error:
        raise AcdcError(f"task file {path} cannot be read: {error.strerror}") from error


def _decode(path: Path, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        where = f"task file {path}, line {line}"
        raise AcdcError(f"{where}: not UTF-8 ({error.reason}). Save the file as UTF-8") from None
    if not text.strip():
        raise AcdcError(f"task file {path} is empty; at least one example is needed")
    return text


def _parse_json(path: Path, text: str, first_line: int = 1) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except json.JSONDecodeError as error:
        where = f"task file {path}, line {first_line + error.lineno - 1}, column {error.colno}"
        raise AcdcError(f"{where}: not valid JSON: {error.msg}. Mend the file there") from None
    except ValueError as error:  # a field given twice, a number of thousands of digits
        raise AcdcError(f"task file {path}, line {first_line}: not valid JSON: {error}") from None
    except RecursionError:
        raise AcdcError(f"task file {path}, line {first_line}: brackets nested too deeply for JSON") from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return found


def _read_json(path: Path, text: str) -> tuple[Mapping[str, str], Rows]:
    data, header = _parse_json(path, text), {}
    if isinstance(data, dict):
        for key, value in data.items():
            if key not in (*HEADER, "examples"):
                raise unknown_name(f"field of task file {path}", key, (*HEADER, "examples"))
            if key in HEADER and not isinstance(value, str):
                raise AcdcError(f"task file {path}: {key!r} must be text, not {_show(value)}")
        header = {key: _whole(f"task file {path}", key, data[key]) for key in HEADER if key in data}
        if header.get("metric", "logit_difference") not in METRICS:
            raise unknown_name(f"metric in task file {path}", header["metric"], METRICS)
        data = data.get("examples")
    if not isinstance(data, list):
        raise AcdcError(
            f"task file {path}: expected a list of examples, or an object with the list as 'examples'; found "
            f"{_show(data) if data is not None else 'no examples'}"
        )
    return header, ((f"task file {path}, example {i} (counted from 0)", row) for i, row in enumerate(data))


def _read_jsonl(path: Path, text: str) -> tuple[Mapping[str, str], Rows]:
    # Not splitlines(): JSON strings may hold other separators that it splits at, such as U+2028.
    lines = ((i, line) for i, line in enumerate(text.split("\n"), start=1) if line.strip())
    return {}, ((f"task file {path}, line {i}", _parse_json(path, line, first_line=i)) for i, line in lines)


def _read_csv(path: Path, text: str) -> tuple[Mapping[str, str], Rows]:
    return {}, _csv_rows(path, text)


def _csv_rows(path: Path, text: str) -> Rows:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = [cell.strip() for cell in next(reader)]
        if len(set(columns)) < len(columns):
            raise AcdcError(f"task file {path}, line 1: a column occurs twice in the header {columns}")
        missing = [field for field in REQUIRED if field not in columns]
        if missing:
            raise AcdcError(
                f"task file {path}, line 1: the header lacks {', '.join(missing)}; its columns are {columns}. The "
                f"first line must name the columns, separated by commas: {','.join(REQUIRED)}"
            )
        for cells in reader:
            where = f"task file {path}, line {reader.line_num}"
            if cells and len(cells) != len(columns):
                raise AcdcError(
                    f"{where}: {len(cells)} cells, but the header has {len(columns)} columns. Put a cell that "
                    'holds a comma into double quotes: "When Mary and John went home, John"'
                )
            if cells:
                yield where, dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        raise AcdcError(
            f"task file {path}, line {reader.line_num}: not valid CSV: {error}. Check the double quotes"
        ) from None


READERS = {".json": _read_json, ".jsonl": _read_jsonl, ".csv": _read_csv}


def _example(where: str, row: Any, tokenizer: Tokenizer) -> Example:
    if not isinstance(row, dict):
        raise AcdcError(f"{where}: expected an object with {', '.join(REQUIRED)}; found {_show(row)}")
    missing = [field for field in REQUIRED if field not in row]
    if missing:
        raise AcdcError(
            f"{where}: {', '.join(missing)} missing; found {', '.join(map(repr, row)) or 'nothing'}. Each "
            f"example needs {', '.join(REQUIRED)}"
        )
    clean, corrupted, answer, wrong = (_text(where, field, row[field]) for field in REQUIRED)
    template = _text(where, "template", row["template"]) if row.get("template") else ""
    roles = _roles(where, row.get("roles", {}), clean, tokenizer)
    return Example(clean, corrupted, answer, wrong, template, roles)


def _text(where: str, field: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise AcdcError(f"{where}: {field!r} must be text that is not empty, not {_show(value)}")
    return _whole(where, field, value)


def _whole(where: str, field: str, value: str) -> str:
    """The text, which a file can hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise AcdcError(f"{where}: {field!r} holds half a surrogate pair, {value!r}; write the character") from None
    return value


def _roles(where: str, roles: Any, clean: str, tokenizer: Tokenizer) -> dict[str, int]:
    if not isinstance(roles, dict):
        raise AcdcError(
            f"{where}: 'roles' must be an object of role and token position, such as {{\"IO\": 2}}, not "
            f"{_show(roles)}. CSV cannot hold it; use JSON or JSONL"
        )
    n_tokens = len(token_ids(tokenizer, clean)) if roles else 0
    for role, position in roles.items():
        _whole(where, "roles", role)
        if type(position) is not int or not 0 <= position < n_tokens:
            raise AcdcError(
                f"{where}: the position of role {role!r} is {_show(position)}; it must be a whole number from 0 "
                f"to {n_tokens - 1}, as the clean prompt has {n_tokens} tokens"
            )
    return dict(roles)


def _show(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 60 else shown[:57] + "..."

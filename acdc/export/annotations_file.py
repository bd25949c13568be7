"""How what is known of a circuit's nodes is kept in a file: JSON, a list of records a node."""

import json
from collections.abc import Sequence
from typing import Any

from acdc.circuit import Annotation
from acdc.errors import AcdcError
from acdc.export.json_file import check_record, parse_json

FORMAT, VERSION = "acdc-annotations", 1
FIELDS = ("kind", "text", "value", "data")


def annotations_to_json(annotations: Sequence[Annotation]) -> str:
    """`{"format": ..., "version": 1, "annotations": {node: [{"kind": ..., "text": ..., "value": ..., "data": ...}]}}`,
    without what is empty; a line an annotation."""
    of_node: dict[str, list[dict[str, Any]]] = {}
    for annotation in annotations:
        check_record(annotation.as_record(), annotation.node)
        of_node.setdefault(annotation.node, []).append(annotation.as_record())
    nodes = ",\n".join(f"  {json.dumps(node)}: [\n{_lines(records)}\n  ]" for node, records in of_node.items())
    inner = f"{{\n{nodes}\n }}" if nodes else "{}"
    return f'{{\n "format": "{FORMAT}",\n "version": {VERSION},\n "annotations": {inner}\n}}\n'


def _lines(records: Sequence[dict[str, Any]]) -> str:
    return ",\n".join(f"   {json.dumps(record, allow_nan=False)}" for record in records)


def annotations_from_json(text: str, source: str = "the text") -> list[Annotation]:
    """The annotations that `annotations_to_json` wrote, node by node. `source` names the text in errors."""
    data = parse_json(text, source)
    if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("version") != VERSION:
        raise AcdcError(f'{source} holds no annotations: it must say "format": "{FORMAT}" and "version": {VERSION}')
    if not isinstance(data.get("annotations"), dict) or len(data) != 3:
        raise AcdcError(f'{source}: beside "format" and "version" it must hold "annotations", an object by node')
    found = []
    for node, records in data["annotations"].items():
        if not isinstance(records, list):
            raise AcdcError(f"{source}: the annotations of {node!r} must be a list")
        found += [_read(node, record, source) for record in records]
    return found


def _read(node: str, record: Any, source: str) -> Annotation:
    where = f"{source}: an annotation of {node!r}"
    if not isinstance(record, dict) or not set(record) <= set(FIELDS):
        raise AcdcError(f"{where} must be an object of {', '.join(FIELDS)}, and no more")
    kinds = {"kind": str, "text": str, "value": int | float | None, "data": dict}
    for name, value in record.items():
        if not isinstance(value, kinds[name]) or isinstance(value, bool):
            raise AcdcError(f"{where}: {name} cannot be a {type(value).__name__}")
    check_record(record, where)
    value = record.get("value")
    try:
        value = None if value is None else float(value)
        return Annotation(node, **{"kind": "", **record, "value": value})
    except OverflowError as error:
        raise AcdcError(f"{where}: its value is too large for a float") from error
    except AcdcError as error:
        raise AcdcError(f"{source}: {error}") from error

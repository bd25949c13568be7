"""A circuit in Graphviz' language, laid out by `dot -Tpdf` with one rank a layer, and read again."""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

from acdc.circuit import Circuit
from acdc.errors import AcdcError
from acdc.export.palette import COLOURS
from acdc.export.record import EDGE_TYPES, Saved, Value, from_record, parsed, readable, shown, to_record

FILLS = {"head": "#FFFFFF", "kv": "#FFF1E6", "mlp": "#E4E4E4", "input": "#333333", "logits": "#333333"}
QUOTED = r'"(?:[^"\\]|\\.)*"'
STATEMENT = re.compile(rf"\s*(?P<src>{QUOTED})\s*->\s*(?P<dst>{QUOTED})\s*\[(?P<attributes>(?:[^\]\"]|{QUOTED})*)\];")
ATTRIBUTE = re.compile(rf"\b(?P<name>\w+)=(?P<value>{QUOTED})")
HEADER = re.compile(rf"^[ \t]*acdc_header=(?P<value>{QUOTED});", re.MULTILINE)


def to_dot(circuit: Circuit, roles: Mapping[str, str] | None = None, *, all_edges: bool = False) -> str:
    """The kept edges, or all. Colour is the channel, width the score, dashes a score below 0. `from_dot` reads it."""
    record = to_record(circuit, roles, all_edges=all_edges)
    most = max((float(row.get("weight", 0)) for row in record.edges), default=0.0) or 1.0
    lines = ["digraph circuit {", "  rankdir=BT; ranksep=0.35; nodesep=0.12; outputorder=edgesfirst;",
             '  node [shape=box, style="rounded,filled", fontname="Helvetica", fontsize=10, height=0.25];',
             '  edge [arrowsize=0.4, fontname="Helvetica", fontsize=8];',
             f"  acdc_header={_quoted(quote(record.header, safe=',:{}[]'))};"]
    ranks: dict[tuple[Any, bool], list[str]] = {}
    for row in record.nodes:
        role = f"\\n{_escaped(str(row['role']))}" if row.get("role") else ""
        attributes = {"kind": row["kind"], "layer": row["layer"], "index": row["index"],
                      "fillcolor": FILLS[str(row["kind"])]}
        attributes |= {"fontcolor": "#FFFFFF"} if row["kind"] in ("input", "logits") else {}
        label = f'label="{_escaped(str(row["label"]))}{role}"'
        lines.append(f"  {_quoted(str(row['id']))} [{label}, {_attributes(attributes)}];")
        if row["kind"] == "head":
            ranks.setdefault((row["layer"], False), []).append(_quoted(str(row["id"])))
    lines += [f"  {{ rank=same; {'; '.join(names)} }}" for names in ranks.values() if len(names) > 1]
    for row in record.edges:
        relative = (float(row.get("weight", 0)) / most) ** 0.5
        style = {"color": COLOURS[str(row["channel"])], "penwidth": f"{0.5 + 2.5 * relative:.2f}"}
        style |= {"style": "dashed"} if float(row.get("score", 0)) < 0 else {}
        known = {name: row[name] for name in EDGE_TYPES if name in row and name != "weight"}
        ends = f"{_quoted(str(row['source']))} -> {_quoted(str(row['target']))}"
        lines.append(f"  {ends} [{_attributes({**known, **style})}];")
    return "\n".join([*lines, "}"]) + "\n"


def from_dot(text: str, source: str = "the text") -> Saved:
    """The circuit and the roles that `to_dot` wrote; not the language at large. `source` names the text in errors."""
    header = HEADER.search(text)
    if not header or not text.rstrip().endswith("}"):
        what = "its end is missing" if header else "it lacks the header that says which model and which edges"
        raise AcdcError(f"{source} is not a circuit that acdc wrote: {what}")
    return from_record(unquote(header["value"][1:-1]), _edges(text, source), source)


def _edges(text: str, source: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        if match := STATEMENT.fullmatch(line):
            row: dict[str, Any] = {"source": match["src"][1:-1], "target": match["dst"][1:-1]}
            for attribute in ATTRIBUTE.finditer(match["attributes"]):
                if attribute["name"] in EDGE_TYPES:
                    row[attribute["name"]] = parsed(attribute["name"], attribute["value"][1:-1], EDGE_TYPES, source)
            yield row


def _attributes(values: Mapping[str, Value]) -> str:
    return ", ".join(f"{name}={_quoted(shown(value))}" for name, value in values.items())


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    """Nothing ends the string, and no backslash is read as one of Graphviz' own sequences."""
    return readable(text).replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")

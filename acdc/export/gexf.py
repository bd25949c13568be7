"""A circuit as GEXF 1.2, Gephi's own format, with a place, colour and thickness for each thing drawn."""

from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

from acdc.circuit import Circuit
from acdc.export.palette import COLOURS
from acdc.export.record import EDGE_TYPES, NODE_TYPES, Saved, Value, from_record, parsed, place, shown, to_record
from acdc.export.xml_text import local_name, parse_xml, tag

NAMESPACE, VIZ = "http://www.gexf.net/1.2draft", "http://www.gexf.net/1.2draft/viz"


def to_gexf(circuit: Circuit, roles: Mapping[str, str] | None = None, *, all_edges: bool = False) -> str:
    """The kept edges, or all; layers upward, edges coloured by channel. `from_gexf` reads it.

    GEXF has no attributes of a graph, so the header is in the description.
    """
    record = to_record(circuit, roles, all_edges=all_edges)
    lines = ['<?xml version="1.0" encoding="UTF-8"?>',
             tag("gexf", {"xmlns": NAMESPACE, "xmlns:viz": VIZ, "version": "1.2"}, close=False),
             f"<meta><creator>acdc</creator><description>{escape(record.header)}</description></meta>",
             tag("graph", {"defaultedgetype": "directed", "mode": "static"}, close=False)]
    for owner, types in (("node", NODE_TYPES), ("edge", EDGE_TYPES)):
        lines.append(tag("attributes", {"class": owner, "mode": "static"}, close=False))
        kinds = {"int": "integer"}
        lines += [tag("attribute", {"id": name, "title": name, "type": kinds.get(kind, kind)})
                  for name, kind in types.items() if name not in ("label", "weight")]
        lines.append("</attributes>")
    lines.append("<nodes>")
    for row in record.nodes:
        x, y = place(row, circuit.graph)
        lines.append(
            tag("node", {"id": str(row["id"]), "label": str(row["label"])}, close=False)
            + _values(row, NODE_TYPES) + tag("viz:position", {"x": f"{x:g}", "y": f"{y:g}", "z": "0"}) + "</node>"
        )
    lines += ["</nodes>", "<edges>"]
    for row in record.edges:
        ends = {name: str(row[name]) for name in ("id", "source", "target")}
        weight = {"weight": shown(row["weight"])} if row.get("weight") else {}
        red, green, blue = bytes.fromhex(COLOURS[str(row["channel"])][1:])
        colour = tag("viz:color", {"r": str(red), "g": str(green), "b": str(blue)})
        lines.append(tag("edge", {**ends, **weight}, close=False) + _values(row, EDGE_TYPES) + colour + "</edge>")
    return "\n".join([*lines, "</edges>", "</graph>", "</gexf>"]) + "\n"


def from_gexf(text: str, source: str = "the text") -> Saved:
    """The circuit and the roles that `to_gexf` wrote. `source` names the text in errors."""
    root = parse_xml(text, source)
    header = next((element.text or "" for element in root.iter() if local_name(element) == "description"), "null")
    edges = []
    for element in root.iter():
        if local_name(element) == "edge":
            row: dict[str, Any] = {"source": element.get("source"), "target": element.get("target")}
            for value in element.iter():
                name = value.get("for")
                if local_name(value) == "attvalue" and name in EDGE_TYPES:
                    row[name] = parsed(name, value.get("value") or "", EDGE_TYPES, source)
            edges.append(row)
    return from_record(header, edges, source)


def _values(row: Mapping[str, Value], types: Mapping[str, str]) -> str:
    values = (tag("attvalue", {"for": name, "value": shown(row[name])}) for name in types
              if name in row and name not in ("label", "weight"))
    return f"<attvalues>{''.join(values)}</attvalues>"


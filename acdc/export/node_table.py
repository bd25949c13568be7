"""A circuit's nodes as a table for a spreadsheet or pandas: CSV, one row a node; and the roles read back."""

import csv
import io
from collections.abc import Mapping

import numpy as np

from acdc.circuit import Circuit
from acdc.export.edge_table import rows_of
from acdc.export.paths import edge_strengths
from acdc.export.record import checked_roles
from acdc.graph import Graph

COLUMNS = ("node", "kind", "layer", "index", "role", "edges_in", "edges_out", "strength_in", "strength_out")


def node_table(circuit: Circuit, roles: Mapping[str, str] | None = None) -> str:
    """The nodes that a kept edge touches, and those with a role, in the order of the forward pass.

    `strength_in` and `strength_out` are summed |score| of the kept edges; empty without scores.
    """
    graph, roles = circuit.graph, checked_roles(circuit.graph, roles or {})
    strengths, kept = edge_strengths(circuit), np.nonzero(circuit.kept)[0]
    ends = {"in": [graph.channels[c].node.name for c in graph.edge_channel[kept]],
            "out": [graph.srcs[s].name for s in graph.edge_src[kept]]}
    counts: dict[str, dict[str, int]] = {"in": {}, "out": {}}
    sums: dict[str, dict[str, float]] = {"in": {}, "out": {}}
    for side, names in ends.items():
        for name, strength in zip(names, strengths[kept].tolist(), strict=True):
            counts[side][name] = counts[side].get(name, 0) + 1
            sums[side][name] = sums[side].get(name, 0.0) + strength
    text = io.StringIO()
    writer = csv.writer(text)  # lines end in \r\n, as RFC 4180 has it, so that either in a name is quoted
    writer.writerow(COLUMNS)
    scored = circuit.scores is not None
    for node in (*graph.srcs, *dict.fromkeys(c.node for c in graph.channels if c.node.name not in graph.src_index)):
        name = node.name
        if name in counts["in"] or name in counts["out"] or name in roles:
            writer.writerow([name, node.kind, node.layer, node.index, roles.get(name, ""),
                             counts["in"].get(name, 0), counts["out"].get(name, 0),
                             *(repr(sums[side].get(name, 0.0)) if scored else "" for side in ("in", "out"))])
    return text.getvalue()


def roles_from_table(text: str, graph: Graph, source: str = "the text") -> dict[str, str]:
    """The roles in a table with columns node and role; nodes without one are left out."""
    rows = rows_of(text, {"node", "role"}, source)
    return checked_roles(graph, {row["node"]: row["role"] for row in rows if row["role"]})

"""The strongest edges of a circuit as a table for a paper: LaTeX with booktabs' rules, or Markdown."""

from collections.abc import Mapping

import numpy as np

from acdc.circuit import Circuit
from acdc.errors import AcdcError
from acdc.export.latex_text import latex
from acdc.export.paths import edge_strengths
from acdc.export.record import checked_roles
from acdc.export.report import code, escaped, table


def latex_table(circuit: Circuit, roles: Mapping[str, str] | None = None, *, n_edges: int = 20) -> str:
    """A `tabular` of the `n_edges` strongest kept edges, for `\\input`; needs `\\usepackage{booktabs}`.

    Characters that plain pdflatex cannot set are written as their code points.
    """
    columns, rows, note = _rows(circuit, roles, n_edges)
    sides = {"Score": "r"}
    lines = [f"% {note}", rf"\begin{{tabular}}{{{''.join(sides.get(name, 'l') for name in columns)}}}", r"\toprule",
             " & ".join(columns) + r" \\", r"\midrule"]
    for row in rows:
        cells = [f"${cell}$" if name == "Score" and cell else latex(cell)
                 for name, cell in zip(columns, row, strict=True)]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def markdown_table(circuit: Circuit, roles: Mapping[str, str] | None = None, *, n_edges: int = 20) -> str:
    """The `n_edges` strongest kept edges in GitHub's Markdown, and how many there are."""
    columns, rows, note = _rows(circuit, roles, n_edges)
    cells = [[code(cell) if name == "Edge" and cell else escaped(cell)
              for name, cell in zip(columns, row, strict=True)] for row in rows]
    return f"{table(columns, cells)}\n\n{escaped(note)}\n"



def _rows(circuit: Circuit, roles: Mapping[str, str] | None, n_edges: int) -> tuple[list[str], list[list[str]], str]:
    if n_edges < 1:
        raise AcdcError(f"a table of {n_edges} edges: it must be 1 or more")
    graph, roles = circuit.graph, checked_roles(circuit.graph, roles or {})
    kept = np.nonzero(circuit.kept)[0]
    shown = kept[np.argsort(-edge_strengths(circuit)[kept], kind="stable")[:n_edges]].tolist()
    columns = ["Score"] * (circuit.scores is not None) + ["Edge"] + ["From", "To"] * bool(roles)
    rows = []
    for edge in shown:
        row = [graph.edge_name(edge)]
        if circuit.scores is not None:
            value = float(circuit.scores.values[edge])
            row.insert(0, f"{value:+.3g}" if np.isfinite(value) else "")
        if roles:
            ends = graph.srcs[graph.edge_src[edge]].name, graph.channels[graph.edge_channel[edge]].node.name
            row += [roles.get(name, "") for name in ends]
        rows.append(row)
    which = "strongest" if circuit.scores is not None else "first"
    note = f"The {len(shown):,} {which} of {circuit.n_edges:,} kept edges, of {graph.n_edges:,} in the model"
    return columns, rows, note

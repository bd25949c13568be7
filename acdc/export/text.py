"""What a circuit is, in words and columns: what `acdc show` says."""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from acdc.circuit import Annotation, Circuit
from acdc.errors import AcdcError
from acdc.export.paths import Path, edge_strengths, strongest_paths

MAX_NAMED = 6  # positions, in a list of them
HEADER = ("model", "task", "metric", "ablation", "method", "selection", "faithfulness")


def describe(circuit: Circuit, *, n_edges: int = 20, n_paths: int = 10, n_nodes: int = 20) -> str:
    """The circuit's origin, its size, and its strongest nodes, edges and paths (see `acdc.export.paths`).

    A node is as strong as the summed |score| of its kept edges. Without scores, edges are listed in the order of the
    graph, nodes by how many edges they have, and paths from the shortest. A number of 0 leaves the list out.
    """
    record = full_provenance(circuit)
    header = [(key, number(record[key])) for key in HEADER if record.get(key) is not None]
    lines = aligned([*header, *size_rows(circuit)], "<<")
    scored = circuit.scores is not None
    if n_nodes and circuit.n_edges:
        rows = node_rows(circuit)
        columns = ["node", "edges in", "edges out", *(["|score| in", "|score| out"] if scored else [])]
        columns += ["positions"] if circuit.graph.positions else []
        lines += ["", _heading("nodes" if not scored else "strongest nodes", n_nodes, len(rows))]
        lines += aligned([columns, *rows[:n_nodes]], "<>>>><" if scored else "<>><")
    if n_edges and circuit.n_edges:
        lines += ["", _heading("strongest edges" if scored else "edges", n_edges, circuit.n_edges)]
        lines += aligned(edge_rows(circuit, n_edges), "><" if scored else "<")
    if n_paths and circuit.n_edges:
        paths = strongest_paths(circuit, n_paths)
        what = "strongest paths, with the least |score| along each" if scored else "shortest paths"
        lines += ["", what if paths else "no kept path from the input to the logits"]
        lines += [f"  {number(path.strength) + '  ' if scored else ''}{path_text(circuit, path)}" for path in paths]
    return "\n".join(lines) + "\n"


def describe_annotations(circuit: Circuit, annotations: Sequence[Annotation], *, n_nodes: int = 10) -> str:
    """Which nodes have which role, the highest score first; and all that is known of the strongest nodes, see
    `node_rows`. Nodes that the circuit has not come last."""
    of_node: dict[str, list[Annotation]] = {}
    of_role: dict[str, list[Annotation]] = {}
    for annotation in annotations:
        of_node.setdefault(annotation.node, []).append(annotation)
        if annotation.kind == "role":
            of_role.setdefault(annotation.text, []).append(annotation)
    lines = []
    if of_role:
        rows = [(visible(role), ", ".join(_scored(one) for one in sorted(found, key=lambda one: -(one.value or 0))))
                for role, found in sorted(of_role.items())]
        lines += ["roles, with their scores", *aligned(rows, "<<"), ""]
    order = [row[0] for row in node_rows(circuit) if row[0] in of_node]
    order += [node for node in of_node if node not in order]
    lines.append(_heading("annotated nodes", min(n_nodes, len(order)), len(order)))
    rows = [(node * (i == 0), visible(annotation.kind), number("" if annotation.value is None else annotation.value),
             visible(_annotation_text(annotation)))
            for node in order[:n_nodes] for i, annotation in enumerate(of_node[node])]
    return "\n".join([*lines, *aligned(rows, "<<><")]) + "\n"


def _scored(annotation: Annotation) -> str:
    return annotation.node + ("" if annotation.value is None else f" {annotation.value:.2f}")


def _annotation_text(annotation: Annotation) -> str:
    """Its text and what says how sure it is, such as `name mover (baseline 0.1, p 1e-08)`."""
    known = [(key, annotation.data.get(key)) for key in ("baseline", "low", "high", "p")]
    numbers = [f"{key} {number(value)}" for key, value in known if isinstance(value, int | float)]
    return annotation.text + (f" ({', '.join(numbers)})" if numbers else "")


def visible(text: str) -> str:
    """On one line, without what a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in text)


@contextmanager
def told(field: str) -> Iterator[None]:
    """What a file says of a circuit can be anything: where it cannot be shown, the error names the field."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise AcdcError(f"the circuit's provenance.{field} cannot be read ({type(error).__name__}: {error}); leave it "
                        "out, or find the circuit again") from error


def with_codes(text: str) -> str:
    """The text with what would not be seen, or would reorder what is, as its code: U+202E for a bidi override."""
    return "".join(
        f"⟨U+{ord(char):04X}⟩" if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") else char
        for char in text
    )


def full_provenance(circuit: Circuit) -> dict[str, Any]:
    """What is known of the circuit, including of its scores."""
    scored: Mapping[str, Any] = circuit.scores.provenance if circuit.scores is not None else {}
    return {**scored, **circuit.provenance}


def size_rows(circuit: Circuit) -> list[tuple[str, str]]:
    """How much is kept of how much: edges, heads, MLPs, and edges by channel.

    Where edges are told apart by position, also pairs of a src and a channel, and edges by position.
    """
    graph = circuit.graph
    kinds = Counter(node.kind for node in circuit.nodes)
    heads, mlps = graph.n_layers * graph.n_heads, graph.n_layers
    rows = [
        ("edges", f"{circuit.n_edges:,} of {graph.n_edges:,} ({circuit.n_edges / graph.n_edges:.3%})"),
        ("heads", f"{kinds['head']:,} of {heads:,}"),
        ("MLPs", f"{kinds['mlp']:,} of {mlps:,}"),
    ]
    if graph.kv == "group":
        rows.insert(2, ("KV heads", f"{kinds['kv']:,} of {graph.n_layers * graph.n_kv_heads:,}"))
    if graph.positions:
        rows[1:1] = _position_rows(circuit)
    channels = [graph.channels[c] for c in graph.edge_channel[circuit.kept]]
    letters = Counter(channel.letter or channel.node.kind for channel in channels)
    names = {"q": "q", "k": "k", "v": "v", "mlp": "MLP", "logits": "logits"}
    return [*rows, ("channels", ", ".join(f"{name} {letters[key]:,}" for key, name in names.items()))]


def _position_rows(circuit: Circuit) -> list[tuple[str, str]]:
    """How many edges are left if positions are taken together; how many there are at each position that has any."""
    graph = circuit.graph
    pairs = set(zip(graph.edge_src[circuit.kept].tolist(), graph.edge_channel[circuit.kept].tolist(), strict=True))
    n_all = graph.at_all_positions.n_edges
    counts = np.bincount(graph.edge_position[circuit.kept], minlength=graph.n_positions).tolist()
    shares = [f"{count:,} at {name}" for name, count in zip(graph.positions, counts, strict=True) if count]
    return [
        ("src, channel", f"{len(pairs):,} pairs of {n_all:,} ({len(pairs) / n_all:.3%}), at one position or more"),
        ("positions", f"{len(shares):,} of {graph.n_positions:,}" + (": " if shares else "") + ", ".join(shares)),
    ]


def node_rows(circuit: Circuit) -> list[list[str]]:
    """Name, edges in, edges out (and summed |score| in and out) of each node, the strongest first.

    Where edges are told apart by position, also the positions of these edges.
    """
    graph, strengths = circuit.graph, edge_strengths(circuit)
    kept = np.nonzero(circuit.kept)[0]
    index = {node: i for i, node in enumerate(circuit.nodes)}
    src = [index[graph.srcs[s]] for s in graph.edge_src[kept]]
    dst = [index[graph.channels[c].node] for c in graph.edge_channel[kept]]
    n_in, n_out = (np.bincount(ends, minlength=len(index)) for ends in (dst, src))
    sum_in, sum_out = (np.bincount(ends, strengths[kept], len(index)) for ends in (dst, src))
    takes_part = np.zeros((len(index), graph.n_positions), dtype=bool)
    takes_part[src, graph.edge_position[kept]] = True
    takes_part[dst, graph.edge_position[kept]] = True
    rows = []
    for i in np.argsort(-(sum_in + sum_out), kind="stable"):
        sums = [] if circuit.scores is None else [number(float(sum_in[i])), number(float(sum_out[i]))]
        at = [some_names([graph.positions[p] for p in np.nonzero(takes_part[i])[0]])] if graph.positions else []
        rows.append([circuit.nodes[i].name, f"{n_in[i]:,}", f"{n_out[i]:,}", *sums, *at])
    return rows


def some_names(names: Sequence[str]) -> str:
    """The names of a few positions, or how many they are."""
    return ", ".join(names) if len(names) <= MAX_NAMED else f"{len(names):,} positions"


def edge_rows(circuit: Circuit, n: int) -> list[list[str]]:
    """(Signed score and) name of the `n` strongest kept edges."""
    kept = np.nonzero(circuit.kept)[0]
    if circuit.scores is None:
        return [[circuit.graph.edge_name(int(edge))] for edge in kept[:n]]
    order = kept[np.argsort(-edge_strengths(circuit)[kept], kind="stable")[:n]]
    values = circuit.scores.values
    return [
        [f"{values[e]:+.4g}" if np.isfinite(values[e]) else "not tried", circuit.graph.edge_name(int(e))]
        for e in order
    ]


def path_text(circuit: Circuit, path: Path) -> str:
    """`input -> a5.h5<k> -> m9 -> logits`; a KV node names the query head that goes on: `a3.g0<k> (a3.h1)`.

    Where edges are told apart by position, each step says where it is read, as edges' names do:
    `input -> a5.h5<k>@S2 -> m9@end -> logits@end`. Between the first two, attention carried it from S2 to end.
    """
    graph = circuit.graph
    parts = ["input"]
    for i, edge in enumerate(path.edges):
        channel = graph.channels[graph.edge_channel[edge]]
        via = ""
        if channel.node.kind == "kv":
            via = f" ({graph.srcs[graph.edge_src[path.edges[i + 1]]].name})"
        at = f"@{graph.positions[graph.edge_position[edge]]}" if graph.positions else ""
        parts.append(channel.name + at + via)
    return " -> ".join(parts)


def number(value: Any) -> str:
    """Four significant digits of a float; anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def aligned(rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Rows as indented columns; `sides` aligns each column to the left (<) or the right (>)."""
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=False)]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines


def _heading(what: str, shown: int, total: int) -> str:
    return f"{what} ({shown:,} of {total:,})" if shown < total else f"{what} (all {total:,})"

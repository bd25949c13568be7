"""How a circuit becomes a page for the browser: one HTML file that needs no server and no network.

The page is drawn by a bundle of JavaScript and CSS (sources in `web/src`, built by `npm run build` into `web/bundle`).
Here the circuit is put beside it, as data that nothing in it can escape from, under a content-security policy that
lets only this bundle run and nothing be loaded.
"""

import base64
import hashlib
import html
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import Int

from acdc.circuit import Annotation, Circuit
from acdc.errors import AcdcError
from acdc.evaluation.curve import Curve, curves_of
from acdc.export.circuit_drawing import default_title
from acdc.export.page_state import check_state
from acdc.export.paths import edge_strengths
from acdc.export.text import full_provenance, number, with_codes

MAX_EDGES = 20_000
LETTERS = ("q", "k", "v", "")
SHOWN = {
    "model": "Model", "task": "Task", "task_description": "What it is", "method": "Method", "metric": "Metric",
    "ablation": "Cut edges carry", "selection": "Selection", "faithfulness": "Faithfulness", "n_prompts": "Prompts",
    "seed": "Seed", "command": "Command",
}
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<!-- The script holds parts of d3 (ISC licence):
{licence}
-->
<style>{style}</style>
</head>
<body>
<noscript>This page draws a circuit with JavaScript, which is switched off.</noscript>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def to_html(circuit: Circuit, annotations: Sequence[Annotation] = (), *, curves: Sequence[Curve] | None = None,
            state: Mapping[str, Any] | None = None, title: str | None = None, max_edges: int = MAX_EDGES) -> str:
    """The page, as the text of one file.

    It holds the `max_edges` edges of the highest |score|, kept or not, so that other circuits can be chosen on it, and
    as many kept edges besides; it says what it leaves out. `curves` are faithfulness over size, by default those that
    the circuit's provenance holds. `state` is how the page opens: what the page saved, as
    `acdc.export.page_state.read_state` reads it. `title` is by default what was found in which model.

    The file is the same for the same circuit. Errors: an annotation of a node that the graph lacks, or `max_edges`
    below 1.
    """
    if max_edges < 1:
        raise AcdcError(f"max_edges is {max_edges}: the page must hold at least one edge")
    if state is not None:
        check_state(state, circuit.graph, "the state")
    title = default_title(circuit) if title is None else title
    data = circuit_data(circuit, title, _record(circuit), max_edges)
    return document({
        **data,
        "faithfulness": _finite(circuit.provenance.get("faithfulness")),
        "curves": [_curve(curve) for curve in (curves_of(circuit.provenance) if curves is None else curves)],
        "annotations": _annotations(circuit, annotations),
        "state": None if state is None else dict(state),
    })


def circuit_data(circuit: Circuit, title: str, record: list[list[str]], max_edges: int) -> dict[str, Any]:
    """What the page is told of a circuit: its graph and its strongest edges. `record`: rows of labels and texts."""
    return {
        "title": title,
        "record": record,
        "graph": {"layers": circuit.graph.n_layers, "heads": circuit.graph.n_heads,
                  "kvHeads": circuit.graph.n_kv_heads, "kv": circuit.graph.kv, "parallel": circuit.graph.parallel,
                  "positions": list(circuit.graph.positions), "edges": circuit.graph.n_edges},
        "edges": _edges(circuit, max_edges),
        "faithfulness": None, "curves": [], "annotations": {}, "diff": None, "state": None,
    }


def document(data: Mapping[str, Any]) -> str:
    """The page with its data in it."""
    bundle = resources.files("acdc.export") / "web" / "bundle"
    script, style, licence = ((bundle / name).read_text(encoding="utf-8")
                              for name in ("page.js", "page.css", "LICENSES.txt"))
    policy = "; ".join([
        "default-src 'none'", f"script-src {_hash(script)}", f"style-src {_hash(style)}", "img-src blob: data:",
        "base-uri 'none'", "form-action 'none'", "require-trusted-types-for 'script'", "trusted-types 'none'",
    ])
    return PAGE.format(policy=html.escape(policy), title=html.escape(with_codes(data["title"])),
                       licence=licence.strip(), style=style, data=_embedded(data), script=script)


def _embedded(data: Any) -> str:
    """As ASCII JSON without the characters that mean something in HTML, so that no text ends the script element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _hash(text: str) -> str:
    """How a content-security policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _record(circuit: Circuit) -> list[list[str]]:
    """What the provenance says, as labels and texts."""
    known = full_provenance(circuit)
    rows = [[label, number(known[key])] for key, label in SHOWN.items() if known.get(key) is not None]
    example = known.get("example")
    if isinstance(example, Mapping):
        rows += [[f"Example: {key}", str(example[key])] for key in ("clean", "corrupted", "answer", "wrong")
                 if example.get(key) is not None]
    return rows


def edges_on_page(circuit: Circuit, max_edges: int) -> tuple[Int[np.ndarray, " shown"], int]:
    """The numbers of the edges on the page in its order, and how many of them are the strongest of all."""
    values = np.ones(circuit.graph.n_edges) if circuit.scores is None else circuit.scores.values
    tried = np.isfinite(values)
    order = np.argsort(np.where(tried, -edge_strengths(circuit), np.inf), kind="stable")
    ranked = order[: min(max_edges, int(tried.sum()))] if circuit.scores is not None else order[:0]
    rest = order[len(ranked):]
    return np.concatenate([ranked, rest[circuit.kept[rest]][:max_edges]]), len(ranked)


def _edges(circuit: Circuit, max_edges: int) -> dict[str, Any]:
    """The edges on the page, strongest first, as arrays in base64. The first `ranked` of them are the first of all."""
    graph, strengths = circuit.graph, edge_strengths(circuit)
    values = circuit.scores.values.astype(np.float64) if circuit.scores is not None else np.ones(graph.n_edges)
    tried = np.isfinite(values)
    n_tried = int(tried.sum())
    edges, n_ranked = edges_on_page(circuit, max_edges)
    index = {node: i for i, node in enumerate(_nodes(circuit))}
    src = np.array([index[node.name] for node in graph.srcs])[graph.edge_src[edges]]
    dst = np.array([index[channel.node.name] for channel in graph.channels])[graph.edge_channel[edges]]
    letter = np.array([LETTERS.index(channel.letter) for channel in graph.channels])[graph.edge_channel[edges]]
    n_signed = int((values[tried] > 0).sum())
    return {
        "count": len(edges), "ranked": n_ranked, "tried": n_tried, "scored": circuit.scores is not None,
        "positive": n_signed, "kept": circuit.n_edges,
        "total": float(strengths[tried].sum()), "totalKept": float(strengths[circuit.kept].sum()),
        "src": in_base64(src, "<u4"), "dst": in_base64(dst, "<u4"), "letter": in_base64(letter, "u1"),
        "position": in_base64(graph.edge_position[edges], "<u2"),
        "score": in_base64(np.where(np.isfinite(values[edges]), values[edges], np.nan), "<f8"),
        "isKept": in_base64(circuit.kept[edges], "u1"),
    }


def _nodes(circuit: Circuit) -> list[str]:
    """The names of all nodes as the page numbers them: the input; per layer KV nodes, heads and MLP; the logits."""
    graph = circuit.graph
    groups = range(graph.n_kv_heads) if graph.kv == "group" else range(0)
    layers = [
        name for layer in range(graph.n_layers)
        for name in (*(f"a{layer}.g{i}" for i in groups), *(f"a{layer}.h{i}" for i in range(graph.n_heads)),
                     f"m{layer}")
    ]
    return ["input", *layers, "logits"]


def in_base64(values: np.ndarray, dtype: str) -> str:
    """As the page decodes it."""
    return base64.b64encode(np.ascontiguousarray(values.astype(dtype)).tobytes()).decode()


def _curve(curve: Curve) -> dict[str, Any]:
    return {"by": curve.by, "metric": curve.metric, "full": curve.full, "empty": curve.empty,
            "prompts": curve.n_prompts,
            "points": [[point.n_edges, point.metric, point.faithfulness] for point in curve.points]}


def _annotations(circuit: Circuit, annotations: Sequence[Annotation]) -> dict[str, list[dict[str, Any]]]:
    known = set(_nodes(circuit))
    of_node: dict[str, list[dict[str, Any]]] = {}
    for annotation in annotations:
        if annotation.node not in known:
            raise AcdcError(f"an annotation is of {annotation.node!r}, which the circuit's graph lacks; its nodes are "
                            f"input, a0.h0 ... m{circuit.graph.n_layers - 1} and logits")
        of_node.setdefault(annotation.node, []).append(annotation.as_record())
    return of_node


def _finite(value: Any) -> float | None:
    return value if isinstance(value, float) and math.isfinite(value) else None

"""A circuit as EAP-IG and MIB's circuit track keep it in JSON, written and read.

    {"cfg": {"n_layers", "n_heads", "parallel_attn_mlp", "d_model"},
     "nodes": {"a0.h0": {"in_graph": true}, ...},
     "edges": {"input->a0.h0<q>": {"score": 0.5, "in_graph": true}, ...}}

Nodes and edges have the names that they have here, with k and v of each query head, and scores the same sign: EAP-IG's
attribution takes the gradient of a loss, so a positive score helps the task. Files in PyTorch's format (`.pt`) hold the
same as tensors; they are pickles, which can run code when read, so they are neither read nor written: where MIB's track
takes a `.pt` it takes this JSON as well.

What only acdc knows (KV heads, edges never tried, provenance) is under a key of its own, `acdc`, which their readers
pass over, so that what is exported is imported as it was, with `d_model` in its provenance. Source of the format:
`Graph.to_json` and `Graph.from_json` of EAP-IG.
"""

import json
import math
from typing import Any

import numpy as np

from acdc.circuit import Circuit, EdgeScores
from acdc.errors import AcdcError
from acdc.export.json_file import check_fields, check_record, dump_record, parse_json, read_graph, wrong_field
from acdc.graph import Graph

OWN = {"n_kv_heads", "untried", "provenance", "scores_provenance"}
FEW = 20  # times as long as in a table of all takes it to find one edge by itself
ONLY_EDGES = ("acdc has circuits of edges; convert the file in EAP-IG (apply_topn, then drop the scores of nodes or "
              "neurons), or score edges there")


def circuit_to_mib(circuit: Circuit, *, d_model: int | None = None) -> str:
    """The circuit as a file for EAP-IG, MIB's evaluation and its leaderboard.

    `d_model`: the width of the model's residual stream, which their reader asks for; default: the circuit's
    provenance. A circuit without scores is one of several that MIB evaluates at their own sizes: its edges have
    no score, which MIB's reader takes and EAP-IG's own does not.

    An edge that was never tried (-inf) gets the score 0, because -inf has the highest absolute value there: it then
    ranks last by magnitude, but by signed score before edges that hurt. A node is in the graph if kept edges lead into
    it (or it is the input) and out of it. Their evaluation first drops edges on no path from input to logits: here
    `drop_dangling`.

    Raises `AcdcError` for circuits that have no place in the format: by position, or with k and v by KV group.
    """
    graph = circuit.graph
    if graph.kv != "head" or graph.positions:
        what = "positions told apart" if graph.positions else "one k and v channel for each KV group"
        remedy = "--positions all" if graph.positions else "--kv head"
        raise AcdcError(f"a circuit with {what} cannot be written in MIB's format, which has each query head's k and v "
                        f"channel at all positions together; discover it with {remedy}")
    width = circuit.provenance.get("d_model") if d_model is None else d_model
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise AcdcError(f"MIB's format needs the width of the model's residual stream, a whole number; given: "
                        f"{width!r}. Give d_model (--d-model), such as 768 for GPT-2 small")
    scores = None if circuit.scores is None else circuit.scores.values
    untried = np.zeros(graph.n_edges, dtype=bool) if scores is None else np.isinf(scores)
    edges = {}
    for edge, (name, kept) in enumerate(zip(graph.edge_names, circuit.kept.tolist(), strict=True)):
        score = {} if scores is None else {"score": 0.0 if untried[edge] else float(scores[edge])}
        edges[name] = {**score, "in_graph": kept}
    fields = {
        "cfg": json.dumps({"n_layers": graph.n_layers, "n_heads": graph.n_heads, "parallel_attn_mlp": graph.parallel,
                           "d_model": width}),
        "nodes": json.dumps({name: {"in_graph": kept} for name, kept in _nodes(circuit).items()}),
        "edges": json.dumps(edges, allow_nan=False),
        "acdc": "{" + ",\n ".join(f'"{name}": {text}' for name, text in {
            "n_kv_heads": json.dumps(graph.n_kv_heads),
            "untried": json.dumps([graph.edge_name(edge) for edge in np.nonzero(untried)[0].tolist()]),
            "provenance": dump_record(circuit.provenance, "provenance"),
            "scores_provenance": "null" if circuit.scores is None
            else dump_record(circuit.scores.provenance, "scores_provenance"),
        }.items()) + "}",
    }
    return "{\n" + ",\n".join(f' "{name}": {text}' for name, text in fields.items()) + "\n}\n"


def _nodes(circuit: Circuit) -> dict[str, bool]:
    """Which nodes are in the graph, as EAP-IG has it: all but the logits need an edge out, all but the input one in."""
    graph, kept = circuit.graph, circuit.kept
    writes = {graph.srcs[src].name for src in graph.edge_src[kept]}
    reads = {graph.channels[channel].node.name for channel in graph.edge_channel[kept]} | {"input"}
    return {**{node.name: node.name in writes and node.name in reads for node in graph.srcs}, "logits": True}


def is_mib(data: Any) -> bool:
    """Whether parsed JSON looks like such a file rather than one of acdc."""
    return isinstance(data, dict) and {"cfg", "edges"} <= set(data) and "format" not in data


def circuit_from_mib(text: str, source: str = "the text", *, n_kv_heads: int | None = None) -> Circuit:
    """The circuit in a file of EAP-IG or MIB. `source` names the text in errors: the file's path.

    The format does not say how many KV heads a model has; give `n_kv_heads` for one with fewer than heads, or the
    circuit does not fit it. Default: what acdc has written there, else as many as heads. Scores are read as they are:
    0 may mean an edge that was never scored. A file with scores must have all edges; without, those that it lacks are
    not kept. The provenance is the file's where acdc wrote it; `d_model` is always in it.

    Raises `AcdcError` for what is not such a file, and for scores of nodes or neurons, which no circuit here has.
    """
    data = parse_json(text, source)
    if not is_mib(data):
        raise AcdcError(f'{source} is not a circuit of EAP-IG or MIB: it must be an object with "cfg", "nodes" and '
                        '"edges"')
    own = _read_own(data.get("acdc"), source)
    graph = _read_cfg(data["cfg"], n_kv_heads if n_kv_heads is not None else own.get("n_kv_heads"), source)
    _check_nodes(data.get("nodes"), graph, source)
    kept, values = _read_edges(data["edges"], graph, source)
    for name in own.get("untried", ()):
        if name not in data["edges"] or values is None:
            raise wrong_field(source, "acdc.untried", f"{name!r} is not an edge with a score")
        values[graph.edge(name)] = -np.inf
    provenance = {"d_model": data["cfg"]["d_model"], **(own.get("provenance") or {})}
    scores = None if values is None else EdgeScores(graph, values, own.get("scores_provenance") or {})
    return Circuit(graph, kept, scores, provenance)


def _read_own(data: Any, source: str) -> dict[str, Any]:
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise wrong_field(source, "acdc", "it must be an object")
    check_fields(data, OWN, source, "acdc.")
    if not isinstance(data["untried"], list) or not all(isinstance(name, str) for name in data["untried"]):
        raise wrong_field(source, "acdc.untried", "it must be a list of edge names")
    for name in ("provenance", "scores_provenance"):
        if data[name] is not None and not isinstance(data[name], dict):
            raise wrong_field(source, f"acdc.{name}", "it must be an object")
        check_record(data[name], f"{source}: acdc.{name}")
    return data


def _read_cfg(cfg: Any, n_kv_heads: Any, source: str) -> Graph:
    if not isinstance(cfg, dict):
        raise wrong_field(source, "cfg", "it must be an object")
    for name, kind in {"n_layers": int, "n_heads": int, "parallel_attn_mlp": bool, "d_model": int}.items():
        if type(cfg.get(name)) is not kind:
            raise wrong_field(source, f"cfg.{name}", f"{cfg.get(name)!r} is not of type {kind.__name__}")
    return read_graph({"n_layers": cfg["n_layers"], "n_heads": cfg["n_heads"], "parallel": cfg["parallel_attn_mlp"],
                       "n_kv_heads": cfg["n_heads"] if n_kv_heads is None else n_kv_heads, "kv": "head"}, source)


def _check_nodes(nodes: Any, graph: Graph, source: str) -> None:
    if not isinstance(nodes, dict):
        raise wrong_field(source, "nodes", "it must be an object")
    for name, node in nodes.items():
        if name not in graph.src_index and name != "logits":
            raise wrong_field(source, "nodes", f"the model has no node {name!r}")
        if not isinstance(node, dict) or type(node.get("in_graph")) is not bool:
            raise wrong_field(source, f"nodes.{name}", '"in_graph" must be true or false')
        for kind in ("neurons", "neurons_scores", "score"):
            if kind in node:
                raise wrong_field(source, f"nodes.{name}.{kind}", f"the file is of nodes or neurons. {ONLY_EDGES}")


def _read_edges(edges: Any, graph: Graph, source: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Which edges are kept, and their scores if the file has any."""
    if not isinstance(edges, dict):
        raise wrong_field(source, "edges", "it must be an object")
    index = _numbers(edges, graph, source)
    kept, values, scored = np.zeros(graph.n_edges, dtype=bool), np.zeros(graph.n_edges), 0
    for name, edge in edges.items():
        if not isinstance(edge, dict) or type(edge.get("in_graph")) is not bool:
            raise wrong_field(source, f"edges.{name}", '"in_graph" must be true or false')
        kept[index[name]] = edge["in_graph"]
        if "score" in edge:
            values[index[name]] = _read_score(edge["score"], name, source)
            scored += 1
    if scored not in (0, graph.n_edges):
        raise wrong_field(source, "edges", f"{scored:,} of {graph.n_edges:,} edges have a score; give all or none of "
                          "them one")
    return kept, values if scored else None


def _numbers(edges: dict[str, Any], graph: Graph, source: str) -> dict[str, int]:
    """The number of each edge by name. Where a file names few, no table of all is made: it may take far more than the
    file."""
    if len(edges) * FEW > graph.n_edges:
        index = {name: edge for edge, name in enumerate(graph.edge_names)}
        for name in edges.keys() - index.keys():
            raise wrong_field(source, "edges", f"the model has no edge {name!r}")
        return index
    try:
        return {name: graph.edge(name) for name in edges}
    except AcdcError as error:
        raise wrong_field(source, "edges", f"the model has no edge: {error}") from error


def _read_score(value: Any, name: str, source: str) -> float:
    try:
        score = float(value) if type(value) in (int, float) else math.nan
    except OverflowError:
        score = math.inf
    if not math.isfinite(score):
        raise wrong_field(source, f"edges.{name}.score", f"{str(value)[:40]} is not a finite number")
    return score

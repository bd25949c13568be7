"""How a circuit is kept in a file: strict JSON that reads back as the same circuit, to the last bit."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from acdc.circuit import Circuit, EdgeScores
from acdc.errors import AcdcError
from acdc.graph import MAX_POSITION_NAME, MAX_POSITIONS, Graph

FORMAT, VERSION = "acdc-circuit", 1
FIELDS = {"format", "version", "graph", "kept", "scores", "scores_provenance", "provenance"}
GRAPH_FIELDS: dict[str, type] = {
    "n_layers": int, "n_heads": int, "n_kv_heads": int, "parallel": bool, "kv": str, "positions": list
}
# Of the largest open models, of 126 layers of 128 heads, and somewhat more: a wrong digit must not fill the memory.
MAX_LAYERS, MAX_HEADS, MAX_EDGES = 10**3, 10**3, 5 * 10**8
MAX_DEPTH = 100  # of nesting in provenance


def circuit_to_json(circuit: Circuit) -> str:
    """The circuit as ASCII JSON: a line a kept edge, the scores of all edges on one line, null for -inf.

    Provenance must be what JSON can hold: text, finite numbers, booleans, None, lists, and mappings by text.
    Tuples are written as lists; everything else reads back equal.
    """
    graph, scores = circuit.graph, circuit.scores
    kept = ",".join(f"\n  {json.dumps(name)}" for name in circuit.edge_names)
    values = None
    scores_provenance = "null"
    if scores is not None:
        scores_provenance = dump_record(scores.provenance, "scores_provenance")
        values = [value if math.isfinite(value) else None for value in scores.values.tolist()]
    fields = {
        "format": json.dumps(FORMAT),
        "version": json.dumps(VERSION),
        "graph": json.dumps({name: getattr(graph, name) for name in GRAPH_FIELDS}),
        "provenance": dump_record(circuit.provenance, "provenance"),
        "kept": f"[{kept}\n ]" if kept else "[]",
        "scores_provenance": scores_provenance,
        "scores": json.dumps(values, allow_nan=False, separators=(",", ":")),
    }
    return "{\n" + ",\n".join(f' "{name}": {text}' for name, text in fields.items()) + "\n}\n"


def circuit_from_json(text: str, source: str = "the text") -> Circuit:
    """The circuit that `circuit_to_json` wrote. `source` names the text in errors: the file's path."""
    data = parse_json(text, source)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        theirs = isinstance(data, dict) and {"cfg", "edges"} <= set(data)
        raise AcdcError(f'{source} is not a circuit: the field "format" must be "{FORMAT}"'
                        + ". It looks like one of EAP-IG or MIB; convert it with `acdc import`" * theirs)
    if data.get("version") != VERSION or isinstance(data["version"], bool):
        raise AcdcError(
            f'{source}: field "version" is {data.get("version")!r}; this acdc reads version {VERSION}. '
            "Update acdc, or save the circuit again"
        )
    check_fields(data, FIELDS, source, "")
    graph = read_graph(data["graph"], source)
    for name in ("provenance", "scores_provenance"):
        if not isinstance(data[name], dict) and not (name == "scores_provenance" and data["scores"] is None):
            raise wrong_field(source, name, "it must be an object")
        check_record(data[name], f"{source}: {name}")
    scores = None
    if data["scores"] is not None:
        scores = EdgeScores(graph, _read_scores(data["scores"], graph, source), data["scores_provenance"])
    elif data["scores_provenance"] is not None:
        raise wrong_field(source, "scores_provenance", "it must be null where scores are null")
    return Circuit(graph, _read_kept(data["kept"], graph, source), scores, data["provenance"])


def parse_json(text: str, source: str) -> Any:
    """What strict JSON holds: finite numbers, and no name twice in an object. `source` names the text in errors."""
    def refuse_constant(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not a JSON number")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise ValueError(f"the field {twice!r} is given twice")
        return result

    try:
        return json.loads(text, parse_constant=refuse_constant, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise AcdcError(f"{source} is not JSON: {error}. It may be cut off or changed by hand") from error


def read_graph(data: Any, source: str) -> Graph:
    """The graph of that shape, unless it is larger than any model's: then nothing is allocated for it."""
    if not isinstance(data, dict):
        raise wrong_field(source, "graph", "it must be an object")
    data = {"positions": [], **data}  # a file need not say that positions are not told apart
    check_fields(data, set(GRAPH_FIELDS), source, "graph.")
    for name, kind in GRAPH_FIELDS.items():
        if type(data[name]) is not kind:
            raise wrong_field(source, f"graph.{name}", f"{data[name]!r} is not of type {kind.__name__}")
    if data["kv"] not in ("head", "group"):
        raise wrong_field(source, "graph.kv", f"{data['kv']!r} is neither 'head' nor 'group'")
    layers, heads, kv_heads = data["n_layers"], data["n_heads"], data["n_kv_heads"]
    nodes = 1 + layers * (heads + 1)
    edges = nodes * nodes * 3 // 2  # from above: up to three channels a node, each reading half of the nodes
    too_many = layers > MAX_LAYERS or max(heads, kv_heads) > MAX_HEADS or edges > MAX_EDGES
    if min(layers, heads) > 0 and too_many:
        raise wrong_field(source, "graph", f"{layers:,} layers of {heads:,} heads are more than any model has")
    positions = _read_positions(data["positions"], source)
    if min(layers, heads) > 0 and edges * len(positions) > MAX_EDGES:
        raise wrong_field(source, "graph", f"{layers:,} layers of {heads:,} heads at {len(positions):,} positions have "
                          f"more edges than the {MAX_EDGES:,} that are read")
    try:
        return Graph(**{**data, "positions": positions})
    except AcdcError as error:
        raise wrong_field(source, "graph", str(error)) from error


def _read_positions(names: list[Any], source: str) -> tuple[str, ...]:
    if len(names) > MAX_POSITIONS:
        raise wrong_field(source, "graph.positions", f"{len(names):,} names, of {MAX_POSITIONS:,} at most")
    for name in names:
        if not isinstance(name, str) or not 0 < len(name) <= MAX_POSITION_NAME:
            given = f"a text of {len(name):,} characters" if isinstance(name, str) else f"a {type(name).__name__}"
            raise wrong_field(source, "graph.positions", f"{given} where a name of 1 to {MAX_POSITION_NAME} is needed")
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise wrong_field(source, "graph.positions", f"the position {twice!r} is given twice")
    return tuple(names)


def _read_scores(data: Any, graph: Graph, source: str) -> np.ndarray:
    if not isinstance(data, list) or len(data) != graph.n_edges:
        given = f"{len(data):,}" if isinstance(data, list) else f"a {type(data).__name__}"
        raise wrong_field(source, "scores", f"{given} where {graph.n_edges:,} numbers are needed, one an edge")
    if not {type(value) for value in data} <= {int, float, type(None)}:
        edge = next(i for i, value in enumerate(data) if type(value) not in (int, float, type(None)))
        name = graph.edge_name(edge)
        raise wrong_field(source, "scores", f"{data[edge]!r}, for {name}, is neither a number nor null")
    try:
        values = np.array([-math.inf if value is None else value for value in data], dtype=np.float64)
    except OverflowError as error:
        raise wrong_field(source, "scores", "a number is too large for a float") from error
    if np.isinf(values).sum() != data.count(None):
        raise wrong_field(source, "scores", "a number is too large for a float")
    return values


def _read_kept(data: Any, graph: Graph, source: str) -> np.ndarray:
    if not isinstance(data, list) or not all(isinstance(name, str) for name in data):
        raise wrong_field(source, "kept", "it must be a list of edge names")
    if len(set(data)) < len(data):
        raise wrong_field(source, "kept", f"the edge {Counter(data).most_common(1)[0][0]!r} is given twice")
    try:
        return Circuit.from_edges(graph, data).kept
    except AcdcError as error:
        raise wrong_field(source, "kept", str(error)) from error


def check_fields(data: dict[str, Any], expected: set[str], source: str, prefix: str) -> None:
    """Refuses a field that is missing or unknown."""
    for name in sorted(expected ^ set(data)):
        what = "is missing" if name in expected else "is not one that this version knows"
        raise AcdcError(f'{source}: field "{prefix}{name}" {what}')


def dump_record(record: Mapping[str, Any], name: str) -> str:
    """A record, such as provenance, as JSON."""
    plain = dict(record)
    check_record(plain, name)
    return json.dumps(plain, indent=2, allow_nan=False).replace("\n", "\n ")


def check_record(value: Any, where: str, depth: int = 0) -> None:
    """Refuses what JSON cannot hold, and what `json` would silently turn into something else."""
    if depth > MAX_DEPTH:
        raise AcdcError(f"{where[:60]}... is nested more than {MAX_DEPTH} deep. Flatten it")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise AcdcError(f"{where}: the key {key!r} is a {type(key).__name__}; use text as keys")
            check_record(item, f"{where}.{key}", depth + 1)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            check_record(item, f"{where}[{i}]", depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise AcdcError(f"{where} is {value}; JSON has only finite numbers. Leave it out, or use None (null)")
    elif not isinstance(value, str | int | float | type(None)):
        raise AcdcError(f"{where} is a {type(value).__name__}, which JSON lacks. Use text or plain numbers")


def wrong_field(source: str, field: str, what: str) -> AcdcError:
    """The error for a field of a file."""
    return AcdcError(f'{source}: field "{field}": {what}')

"""What carries most of a circuit: its strongest paths from input to logits, and the edges worth drawing.

An edge is as strong as its |score|, a path as strong as its weakest edge. Without scores all edges are
equally strong, and shorter paths come first.
"""

import heapq
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from acdc.circuit import Circuit


@dataclass(frozen=True)
class Path:
    """Edges by number, from the input to the logits; `strength` is the least |score| among them."""

    strength: float
    edges: tuple[int, ...]


@dataclass(frozen=True)
class Backbone:
    """The edges to draw, ascending: the `n_strongest` strongest, and those that join them to the two ends.

    `on_paths`: whether only edges on paths from the input to the logits were considered.
    """

    edges: Int[np.ndarray, " shown"]
    n_strongest: int
    on_paths: bool


class Step(NamedTuple):
    """One kept edge and a node that computes with it, as a place in `Graph.srcs`; the logits come last."""

    edge: int
    strength: float
    node: int


class Way(NamedTuple):
    """The strongest way between a node and an end: compares by width, then by having fewer edges."""

    width: float
    minus_length: int
    edges: tuple[int, ...]


def edge_strengths(circuit: Circuit) -> Float[np.ndarray, " edge"]:
    """|score| of each edge, 0 where it was never tried; 1 everywhere if the circuit has no scores."""
    if circuit.scores is None:
        return np.ones(circuit.graph.n_edges)
    values = circuit.scores.values.astype(np.float64)
    return np.where(np.isfinite(values), np.abs(values), 0.0)


def strongest_paths(circuit: Circuit, n: int) -> list[Path]:
    """The `n` strongest paths, exactly; of equally strong ones the shorter, then that of lower edge numbers.

    Best-first search over paths that start at the input. What is still to come is known exactly: `reach`, the
    strongest way from each node to the logits, bounds the strength, and `length`, the fewest edges along ways
    of that strength, the length. So only beginnings of paths that are returned are ever extended: at most n
    times the longest path, whatever the number of paths (there may be 10^30).
    """
    steps = _steps(circuit)
    logits = len(steps)
    reach = [-math.inf] * logits + [math.inf]
    for node in reversed(range(logits)):
        reach[node] = max((min(step.strength, reach[step.node]) for step in steps[node]), default=-math.inf)
    lengths: dict[float, list[int]] = {}

    def length(node: int, strength: float) -> int:
        if strength not in lengths:
            found = [len(steps) + 1] * logits + [0]
            for src in reversed(range(logits)):
                ways = (1 + found[step.node] for step in steps[src] if step.strength >= strength)
                found[src] = min(ways, default=len(steps) + 1)
            lengths[strength] = found
        return lengths[strength][node]

    # (-strength, length, edges, node, length is exact). Exact lengths are found for what comes to the top.
    heap: list[tuple[float, int, tuple[int, ...], int, bool]] = []
    if reach[0] >= 0:
        heap.append((-reach[0], 1, (), 0, False))
    paths: list[Path] = []
    while heap and len(paths) < n:
        minus_strength, _, edges, node, exact = heapq.heappop(heap)
        if node == logits:
            paths.append(Path(-minus_strength, edges))
        elif not exact:
            total = len(edges) + length(node, -minus_strength)
            heapq.heappush(heap, (minus_strength, total, edges, node, True))
        else:
            for step in steps[node]:
                strength = min(-minus_strength, step.strength, reach[step.node])
                if strength >= 0:
                    at_least = len(edges) + (1 if step.node == logits else 2)
                    longer = (*edges, step.edge)
                    heapq.heappush(heap, (-strength, at_least, longer, step.node, step.node == logits))
    return paths


def backbone(circuit: Circuit, max_edges: int) -> Backbone:
    """At most `max_edges` edges that show what a circuit does: all of them, if they are that few.

    Else the strongest edges that lie on a path, each with the strongest path that joins it to the input and
    to the logits, as many as fit. So what is drawn hangs together, and nothing on a path is left out that is
    stronger than the weakest of the `n_strongest`. If no path fits, simply the strongest edges.
    """
    if circuit.n_edges <= max_edges:
        return Backbone(np.nonzero(circuit.kept)[0], circuit.n_edges, on_paths=False)
    joined: dict[int, Way] = {}
    for step, way in _ways_through(circuit.drop_dangling()):
        joined[step.edge] = max(way, joined.get(step.edge, way))
    strengths = edge_strengths(circuit)
    ranking = sorted(joined, key=lambda e: (-strengths[e], -joined[e].minus_length, e))
    shown: set[int] = set()
    n_strongest = 0
    while n_strongest < len(ranking) and len(shown.union(joined[ranking[n_strongest]].edges)) <= max_edges:
        shown.update(joined[ranking[n_strongest]].edges)
        n_strongest += 1
    if shown:
        return Backbone(np.array(sorted(shown)), n_strongest, on_paths=True)
    kept = np.nonzero(circuit.kept)[0]
    strongest = kept[np.argsort(-strengths[kept], kind="stable")[:max_edges]]
    return Backbone(np.sort(strongest), max_edges, on_paths=False)


def _ways_through(circuit: Circuit) -> list[tuple[Step, Way]]:
    """For each edge on a path, and each node it leads to, the strongest path through it."""
    steps = _steps(circuit)
    logits = len(steps)
    into: dict[int, Way] = {0: Way(math.inf, 0, ())}
    out: dict[int, Way] = {logits: Way(math.inf, 0, ())}

    def joined(before: Way, step: Step, after: Way) -> Way:
        edges = (*before.edges, step.edge, *after.edges)
        return Way(min(before.width, step.strength, after.width), -len(edges), edges)

    nothing = Way(math.inf, 0, ())
    for src in range(logits):
        for step in steps[src] if src in into else ():
            way = joined(into[src], step, nothing)
            into[step.node] = max(way, into.get(step.node, way))
    for src in reversed(range(logits)):
        ways = [joined(nothing, step, out[step.node]) for step in steps[src] if step.node in out]
        if ways:
            out[src] = max(ways)
    return [
        (step, joined(into[src], step, out[step.node]))
        for src in range(logits) if src in into
        for step in steps[src] if step.node in out
    ]


def _steps(circuit: Circuit) -> list[list[Step]]:
    """The kept edges by src. An edge to a KV node is one step to each query head that reads it."""
    graph = circuit.graph
    place = {node: i for i, node in enumerate(graph.srcs)}
    readers: list[list[int]] = [[] for _ in graph.channels]
    for channel, c in zip(graph.per_head.channels, graph.channel_of_per_head, strict=True):
        readers[c].append(place.get(channel.node, len(graph.srcs)))
    strengths = edge_strengths(circuit)
    steps: list[list[Step]] = [[] for _ in graph.srcs]
    for edge in np.nonzero(circuit.kept)[0].tolist():
        for node in readers[graph.edge_channel[edge]]:
            steps[graph.edge_src[edge]].append(Step(edge, float(strengths[edge]), node))
    return steps

"""What carries most of a circuit: its strongest paths from input to logits, and the edges worth drawing.

An edge is as strong as its |score|, a path as strong as its weakest edge. Without scores all edges are
equally strong, and shorter paths come first.

Where edges are told apart by position, a path is one that information can take: an MLP, a q channel and the logits use
at a position what they read there, while the output of a head can have what its k or v channel read at any position.
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
    """One kept edge and the state that it leads to: which node has computed with it, and where the output has it."""

    edge: int
    strength: float
    state: int


class Steps(NamedTuple):
    """The kept edges as steps between states, a list for each state. They lead from lower to higher states.

    Each src has one state for each position and, where there are several, one more for "at any". Paths begin at the
    input at any position, state `start`, and end at the logits, state `end`, which has no steps.
    """

    of: list[list[Step]]
    start: int
    end: int


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
    strongest way from each state to the logits, bounds the strength, and `length`, the fewest edges along ways
    of that strength, the length. So only beginnings of paths that are returned are ever extended: at most n
    times the longest path, whatever the number of paths (there may be 10^30).
    """
    steps = _steps(circuit)
    reach = [-math.inf] * steps.end + [math.inf]
    for state in reversed(range(steps.end)):
        reach[state] = max((min(step.strength, reach[step.state]) for step in steps.of[state]), default=-math.inf)
    lengths: dict[float, list[int]] = {}

    def length(state: int, strength: float) -> int:
        if strength not in lengths:
            found = [steps.end + 1] * steps.end + [0]
            for src in reversed(range(steps.end)):
                ways = (1 + found[step.state] for step in steps.of[src] if step.strength >= strength)
                found[src] = min(ways, default=steps.end + 1)
            lengths[strength] = found
        return lengths[strength][state]

    # (-strength, length, edges, state, length is exact). Exact lengths are found for what comes to the top.
    heap: list[tuple[float, int, tuple[int, ...], int, bool]] = []
    if reach[steps.start] >= 0:
        heap.append((-reach[steps.start], 1, (), steps.start, False))
    paths: list[Path] = []
    while heap and len(paths) < n:
        minus_strength, _, edges, state, exact = heapq.heappop(heap)
        if state == steps.end:
            paths.append(Path(-minus_strength, edges))
        elif not exact:
            total = len(edges) + length(state, -minus_strength)
            heapq.heappush(heap, (minus_strength, total, edges, state, True))
        else:
            for step in steps.of[state]:
                strength = min(-minus_strength, step.strength, reach[step.state])
                if strength >= 0:
                    last = step.state == steps.end
                    at_least = len(edges) + (1 if last else 2)
                    heapq.heappush(heap, (-strength, at_least, (*edges, step.edge), step.state, last))
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
    """For each edge on a path, and each state it joins, the strongest path through it."""
    steps = _steps(circuit)
    nothing = Way(math.inf, 0, ())
    into: dict[int, Way] = {steps.start: nothing}
    out: dict[int, Way] = {steps.end: nothing}

    def joined(before: Way, step: Step, after: Way) -> Way:
        edges = (*before.edges, step.edge, *after.edges)
        return Way(min(before.width, step.strength, after.width), -len(edges), edges)

    for src in range(steps.end):
        for step in steps.of[src] if src in into else ():
            way = joined(into[src], step, nothing)
            into[step.state] = max(way, into.get(step.state, way))
    for src in reversed(range(steps.end)):
        ways = [joined(nothing, step, out[step.state]) for step in steps.of[src] if step.state in out]
        if ways:
            out[src] = max(ways)
    return [
        (step, joined(into[src], step, out[step.state]))
        for src in range(steps.end) if src in into
        for step in steps.of[src] if step.state in out
    ]


def _steps(circuit: Circuit) -> Steps:
    """An edge to a KV node is one step to each query head that reads it, an edge to k or v one to "at any position".

    From there, all edges of the node lead on. So there are at most twice as many steps as edges (and readers).
    """
    graph = circuit.graph
    anywhere = graph.n_positions if graph.n_positions > 1 else 0  # among the states of a src
    first = {node: i * (anywhere + 1) for i, node in enumerate(graph.srcs)}
    end = len(graph.srcs) * (anywhere + 1)
    readers: list[list[int]] = [[] for _ in graph.channels]
    for channel, c in zip(graph.per_head.channels, graph.channel_of_per_head, strict=True):
        readers[c].append(first.get(channel.node, end))
    strengths = edge_strengths(circuit)
    steps: list[list[Step]] = [[] for _ in range(end)]
    stays = np.array([channel.letter not in ("k", "v") for channel in graph.channels])
    to = np.where(stays[graph.edge_channel], graph.edge_position, anywhere)
    to[graph.edge_channel == len(graph.channels) - 1] = 0  # the logits have one state
    kept = np.nonzero(circuit.kept)[0]
    columns = (strengths, graph.edge_src, graph.edge_channel, graph.edge_position, to)
    for edge, strength, src, c, position, at in zip(kept.tolist(), *(column[kept].tolist() for column in columns),
                                                    strict=True):
        leads = [Step(edge, strength, reader + at) for reader in readers[c]]
        for state in {position, anywhere}:
            steps[src * (anywhere + 1) + state] += leads
    return Steps(steps, anywhere, end)

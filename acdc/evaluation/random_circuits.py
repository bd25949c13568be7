"""Random circuits of a circuit's size: what it must beat, and how it is drawn.

- matched: as many edges into each layer and kind of channel (q, k, v, MLP, logits) as the circuit has, else at random.
  Most lie on no path from the input to the logits.
- connected: edges in random order until as many lie on such a path as the circuit has, or a few more; the others are
  left out. Stricter, where the circuit was cleaned in the same way.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from acdc.circuit import Circuit
from acdc.evaluation.bench import Bench, Gains
from acdc.evaluation.significance import ALPHA, share_interval
from acdc.evaluation.verdict import TestResult, Verdict, together
from acdc.graph import Graph


def matched(circuit: Circuit, rng: np.random.Generator) -> Circuit:
    """A random circuit with as many edges into each layer and kind of channel."""
    graph = circuit.graph
    stratum = _strata(graph)
    kept = np.zeros(graph.n_edges, dtype=bool)
    for s, n in zip(*np.unique(stratum[circuit.kept], return_counts=True), strict=True):
        kept[rng.choice(np.nonzero(stratum == s)[0], n, replace=False)] = True
    return Circuit(graph, kept)


def _strata(graph: Graph) -> Int[np.ndarray, " edge"]:
    """A number for each edge: the layer and kind of what it leads into."""
    kinds = {"q": 0, "k": 1, "v": 2, "": 3}
    of_channel = [4 * channel.node.layer + kinds[channel.letter] if channel.node.kind != "logits" else -1
                  for channel in graph.channels]
    return np.array(of_channel)[graph.edge_channel]


def connected(circuit: Circuit, rng: np.random.Generator) -> Circuit:
    """A random circuit of at least as many edges, all on a path from the input to the logits."""
    graph, order = circuit.graph, rng.permutation(circuit.graph.n_edges)

    def first(n: int) -> Circuit:
        kept = np.zeros(graph.n_edges, dtype=bool)
        kept[order[:n]] = True
        return Circuit(graph, kept).drop_dangling()

    low, high = circuit.n_edges, graph.n_edges  # more edges never leave fewer on a path
    guess = min(high, 2 * low)
    while low < high:
        if first(guess).n_edges >= circuit.n_edges:
            high = guess
        else:
            low = guess + 1
        guess = min(2 * guess, (low + high) // 2) if high == graph.n_edges else (low + high) // 2
    return first(high)


KINDS: dict[str, Callable[[Circuit, np.random.Generator], Circuit]] = {"matched": matched, "connected": connected}


def draw(circuit: Circuit, kind: str, n: int, seed: int) -> list[Circuit]:
    """`n` random circuits of a kind in `KINDS`."""
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    return [KINDS[kind](circuit, rng) for _ in range(n)]


def against_random(bench: Bench, circuit: Circuit, gains: Gains, *, n: int = 20) -> TestResult:
    """Is the circuit closer to the full model than random circuits of its size?

    H0: the circuit is one of them. Its distance is |1 - f|; p = (1 + those at most as far) / (1 + n), for each kind.
    pass: p <= 0.05. fail: the share of random circuits at most as far is above 0.05, by the exact interval. `gains`:
    the circuit's own. Cost: `n` circuit runs a kind.
    """
    own = abs(1 - float(bench.values(gains)[0]))
    verdicts: list[Verdict] = []
    numbers, words = {}, []
    for kind in KINDS:
        circuits = draw(circuit, kind, n, bench.seed)
        values = bench.values(bench.gains(circuits))
        n_closer = int((np.abs(1 - values) <= own).sum())
        p = (1 + n_closer) / (1 + n)
        verdicts.append("pass" if p <= ALPHA else "fail" if share_interval(n_closer, n)[0] > ALPHA else "undecided")
        numbers[kind] = {"n": n, "n_closer": n_closer, "p": p, "faithfulness": values.tolist(),
                         "n_edges": [random.n_edges for random in circuits]}
        words.append(f"{n_closer} of {n} {kind} random circuits come as close to 1 (p {p:.3f}; their median "
                     f"faithfulness is {np.median(values):.3f})")
    return TestResult("random circuits", together(verdicts), "; ".join(words), numbers)


def inflated(circuit: Circuit, rng: np.random.Generator) -> tuple[Circuit, int]:
    """The circuit with a random path from the input to the logits added, and one of the edges that it lacked.

    The path is walked back from the logits: a src among those that are read, then a channel of that src, until the
    input is reached; one that adds nothing is drawn again.
    """
    graph = circuit.graph
    while True:
        path = _path(graph, rng)
        new = [edge for edge in path if not circuit.kept[edge]]
        if new:
            kept = circuit.kept.copy()
            kept[new] = True
            return Circuit(graph, kept), int(rng.choice(new))


def _path(graph: Graph, rng: np.random.Generator) -> list[int]:
    """The edges of a random path, from the logits back."""
    channel, position, path = len(graph.channels) - 1, graph.n_positions - 1, []
    while True:
        into = np.nonzero((graph.edge_channel == channel) & (graph.edge_position == position))[0]
        path.append(int(rng.choice(into)))
        src = graph.srcs[graph.edge_src[path[-1]]]
        if src.kind == "input":
            return path
        channel = int(rng.choice([c for c, candidate in enumerate(graph.channels) if candidate.node == src
                                  or src.kind == "head" and graph.feeds(candidate, src.layer, src.index)]))
        if graph.channels[channel].letter in ("k", "v"):
            position = int(rng.integers(position + 1))

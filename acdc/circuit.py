"""The records everyone exchanges: a score for every edge, the set of edges kept, what is known of a node."""

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from acdc.errors import AcdcError, unknown_name
from acdc.graph import Channel, Graph, Node

Rank = Literal["signed", "magnitude"]


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """One number an edge: the estimated increase of the loss if that edge alone is cut (ACDC: after its earlier cuts).

    Positive: the edge helps the task. `-inf`: the edge was never tried, because nothing reads its dst.
    `provenance` says what computed them and with which options. `per_prompt`, where the method can give it: what each
    prompt alone would score, whose mean over prompts `values` is; `acdc.export.prompt_scores` keeps it in a file of its
    own, and it is not compared.
    """

    graph: Graph
    values: Float[np.ndarray, " edge"]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    per_prompt: Float[np.ndarray, "prompt edge"] | None = None

    def __post_init__(self) -> None:
        if self.values.shape != (self.graph.n_edges,):
            raise AcdcError(f"scores of shape {self.values.shape} for a graph of {self.graph.n_edges:,} edges")
        bad = np.isnan(self.values) | (self.values == np.inf)
        if bad.any():
            raise AcdcError(
                f"{int(bad.sum()):,} of {self.graph.n_edges:,} scores are NaN or +inf, the first at "
                f"{self.graph.edge_name(int(np.argmax(bad)))}. Check the model's weights and the metric"
            )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, EdgeScores)
            and self.graph == other.graph
            and np.array_equal(self.values, other.values)
            and self.provenance == other.provenance
        )

    def __getitem__(self, edge: str) -> float:
        return float(self.values[self.graph.edge(edge)])

    def of_nodes(self) -> dict[str, float]:
        """The score of each node that writes: the sum over the edges out of it, in the unit of the edges' scores.

        For scores that are linear in what the src changes by, such as those of `eap`, it is what the same method would
        score the node: the estimated effect of replacing all that it writes. With positions, `a0.h1@end` is the node
        there; the last node's edges all lie at the last one. Edges that were never tried count nothing; a node of whose
        edges none was tried is at -inf.
        """
        totals = self.node_totals()
        at = [f"@{position}" for position in self.graph.positions] or [""]
        return {f"{node.name}{place}": float(totals[s, p]) for s, node in enumerate(self.graph.srcs)
                for p, place in enumerate(at)}

    def node_totals(self) -> Float[np.ndarray, "src position"]:
        """The sum over the edges out of each src, at each position; see `of_nodes`."""
        tried = np.isfinite(self.values)
        totals = self.graph.to_matrix(np.where(tried, self.values, 0)).sum(1)
        untried = self.graph.exists.any(1) & ~self.graph.to_matrix(tried).any(1)
        return np.where(untried, -np.inf, totals)

    def ranked_values(self, by: Rank) -> Float[np.ndarray, " edge"]:
        """What selection sorts by: the score itself, or its absolute value. Untried edges stay at -inf."""
        if by not in ("signed", "magnitude"):
            raise unknown_name("ranking", by, ["signed", "magnitude"])
        return self.values if by == "signed" else np.where(np.isfinite(self.values), np.abs(self.values), -np.inf)

    def top(self, n: int, *, by: Rank) -> "Circuit":
        """The `n` edges that rank highest. Ties go to the edge that comes first in the graph.

        `by` is explicit because the two differ: "signed" keeps what helps (MIB's CPR), "magnitude" also keeps what
        hurts (MIB's CMD, and what makes a circuit behave as the model does).
        """
        self._check_size(n)
        return self._circuit(np.argsort(-self.ranked_values(by), kind="stable")[:n], f"top {n} by {by}")

    def above(self, threshold: float, *, by: Rank) -> "Circuit":
        """The edges that rank strictly above `threshold`."""
        return self._circuit(np.nonzero(self.ranked_values(by) > threshold)[0], f"above {threshold} by {by}")

    def greedy(self, n: int, *, by: Rank) -> "Circuit":
        """`n` edges grown from the logits: of all edges into nodes already in the circuit, the highest is added.

        Every edge then lies on a kept path to the logits. Fewer than `n` edges result only where no more can be
        reached. Source: EAP-IG's greedy selection (Hanna et al. 2024, arXiv 2403.17806).
        """
        self._check_size(n)
        graph, values = self.graph, self.ranked_values(by)
        ends = np.append(graph.first_edge[1:], graph.n_edges)
        incoming: dict[Node, list[int]] = {}
        for c, channel in enumerate(graph.channels):
            incoming.setdefault(channel.node, []).extend(range(graph.first_edge[c], ends[c]))
        heap: list[tuple[float, int]] = []
        entered: set[Node] = set()

        def enter(node: Node) -> None:
            if node not in entered:
                entered.add(node)
                for edge in incoming.get(node, []):
                    if np.isfinite(values[edge]):
                        heapq.heappush(heap, (-values[edge], edge))
                if node.kind == "head" and graph.kv == "group":
                    enter(Node("kv", node.layer, node.index // (graph.n_heads // graph.n_kv_heads)))

        enter(Node("logits"))
        chosen: list[int] = []
        while heap and len(chosen) < n:
            edge = heapq.heappop(heap)[1]
            chosen.append(edge)
            enter(graph.srcs[graph.edge_src[edge]])
        return self._circuit(np.array(chosen, dtype=int), f"greedy {n} by {by}")

    def _check_size(self, n: int) -> None:
        tried = int(np.isfinite(self.values).sum())
        if not 0 <= n <= tried:
            what = "edges" if tried == self.graph.n_edges else f"edges with a score (of {self.graph.n_edges:,})"
            raise AcdcError(f"cannot keep {n:,} edges: the graph has {tried:,} {what}. Ask for 0 to {tried:,}")

    def _circuit(self, edges: Int[np.ndarray, " kept"], selection: str) -> "Circuit":
        kept = np.zeros(self.graph.n_edges, dtype=bool)
        kept[edges] = True
        return Circuit(self.graph, kept, self, {**self.provenance, "selection": selection})


@dataclass(frozen=True, eq=False)
class Circuit:
    """A set of kept edges: True = the edge carries what src computes now, False = its replacement."""

    graph: Graph
    kept: Bool[np.ndarray, " edge"]
    scores: EdgeScores | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kept.shape != (self.graph.n_edges,) or self.kept.dtype != bool:
            raise AcdcError(
                f"kept must be {self.graph.n_edges:,} booleans, one an edge; got {self.kept.dtype} of shape "
                f"{self.kept.shape}"
            )
        if self.scores is not None and self.scores.graph != self.graph:
            raise AcdcError(f"the scores are of another graph, {self.scores.graph}, than the circuit, {self.graph}")

    @staticmethod
    def from_edges(graph: Graph, names: list[str], **record: Any) -> "Circuit":
        """The circuit of the edges called `names`, such as `["input->a0.h1<q>", "a0.h1->logits"]`."""
        kept = np.zeros(graph.n_edges, dtype=bool)
        kept[[graph.edge(name) for name in names]] = True
        return Circuit(graph, kept, **record)

    def complement(self) -> "Circuit":
        """The edges that this circuit leaves out."""
        return Circuit(self.graph, ~self.kept, self.scores, self.provenance)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Circuit)
            and self.graph == other.graph
            and np.array_equal(self.kept, other.kept)
            and self.scores == other.scores
            and self.provenance == other.provenance
        )

    @property
    def n_edges(self) -> int:
        return int(self.kept.sum())

    @cached_property
    def edge_names(self) -> tuple[str, ...]:
        return tuple(self.graph.edge_name(edge) for edge in np.nonzero(self.kept)[0].tolist())

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes at either end of a kept edge, in the order of the forward pass."""
        ends = {self.graph.srcs[s] for s in self.graph.edge_src[self.kept]}
        ends |= {self.graph.channels[c].node for c in self.graph.edge_channel[self.kept]}
        order = {"input": -1, "head": 1, "kv": 0, "mlp": 2, "logits": 3}
        return tuple(sorted(ends, key=lambda n: (n.kind == "logits", n.layer, order[n.kind], n.index)))

    def drop_dangling(self) -> "Circuit":
        """Without the edges that lie on no kept path from the input to the logits.

        With resample ablation such edges change nothing: what no kept path reaches from the input *is* its
        replacement. (In models with post-norms, a head that is dropped can still change the norm of its layer.) With
        mean or zero ablation, a node that reads only replacements computes a value of its own, so dropping its edges
        does change the run.
        """
        graph, matrix = self.graph, self.graph.to_matrix(self.kept)
        index = {node: i for i, node in enumerate(graph.srcs)}
        fed = [[index[node] for node in self._heads_fed(channel.node) if node.kind != "logits"]
               for channel in graph.channels]
        from_input = np.zeros((len(graph.srcs), graph.n_positions), dtype=bool)
        from_input[0] = True
        for c, channel in enumerate(graph.channels):
            from_input[fed[c]] |= _moved(channel, np.asarray((matrix[:, c] & from_input).any(0)))
        to_logits = np.zeros_like(from_input)
        useful = np.zeros((len(graph.channels), graph.n_positions), dtype=bool)
        for c, channel in reversed(list(enumerate(graph.channels))):
            useful[c] = channel.node.kind == "logits" or _moved(channel, np.asarray(to_logits[fed[c]].any(0)))
            to_logits |= matrix[:, c] & useful[c]
        kept = graph.from_matrix(matrix & from_input[:, None] & useful[None, :])
        return Circuit(graph, kept, self.scores, self.provenance)

    def _heads_fed(self, node: Node) -> list[Node]:
        """The nodes that compute with what a channel of `node` reads: itself, or the query heads of a KV node."""
        if node.kind != "kv":
            return [node]
        size = self.graph.n_heads // self.graph.n_kv_heads
        return [Node("head", node.layer, h) for h in range(node.index * size, (node.index + 1) * size)]


def _moved(channel: Channel, at: Bool[np.ndarray, " position"]) -> Bool[np.ndarray, " position"]:
    """The positions that a value read at some positions can reach, or come from: all, through a key or a value."""
    return np.full_like(at, at.any()) if channel.letter in ("k", "v") else at


@dataclass(frozen=True)
class Annotation:
    """One thing that is known of one node, such as its role, or what an attention pattern looked like.

    `kind` says what it is: "role", "evidence", "attention", "lens", "tokens", "probe", "feature" or any other word.
    `text` says it in words, `value` as a number, `data` in whatever more there is (what JSON can hold); see
    `docs/page.md` for what each kind holds.
    """

    node: str
    kind: str
    text: str = ""
    value: float | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Node.parse(self.node)
        if not self.kind:
            raise AcdcError(f"an annotation of {self.node} has no kind; give one, such as role")
        if self.value is not None and not math.isfinite(self.value):
            raise AcdcError(f"the {self.kind} of {self.node} is {self.value}; it must be a finite number or None")

    def as_record(self) -> dict[str, Any]:
        """What a file holds of it beside the node: what is not empty."""
        record = {"kind": self.kind, "text": self.text, "value": self.value, "data": dict(self.data)}
        return {key: value for key, value in record.items() if value not in ("", None, {})}

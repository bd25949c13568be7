"""ACDC, exactly and fast: try to remove each edge, from the logits back; keep it if the loss rises too much.

The decisions are those of `acdc_sequential`, edge by edge. When a channel is visited, everything upstream is still as
at the start, so what each src writes is known, and removing edges moves what the channel reads by known amounts.
Phases: the state of every node is computed and kept (`LiveState`); a channel that no kept edge reads is cut untried;
else many cumulative removals are tried at once, of which those up to the first that must stay are accepted; only nodes
downstream along kept edges are computed, at the positions that the logits depend on.
Source: Conmy et al. 2023 (arXiv 2304.14997); the incremental evaluation is our own.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from acdc.ablation import prepare_ablation
from acdc.circuit import Circuit, EdgeScores
from acdc.discovery.acdc_sequential import assumed
from acdc.discovery.journal import Journal, hash_of, hash_of_prompts
from acdc.errors import AcdcError, unknown_name
from acdc.fitting import Halving, over_batches
from acdc.graph import KV, Graph
from acdc.live_state import LiveState, Trial, find_needed
from acdc.metrics import METRICS, Metric
from acdc.models import weights_hash
from acdc.task import Batch, position_names
from acdc.transformer import Transformer, frozen

Matrix = Bool[np.ndarray, "src channel position"]
LOGITS_AT_ONCE = 2**18
FIRST_ROWS = 12  # cumulative removals in the first trial of a stage; doubled while all are accepted


def acdc(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric = METRICS["kl_divergence"],
    *,
    threshold: float = 0.01,
    effect: str = "signed",
    order: str = "latest",
    shortlist: Circuit | None = None,
    ablation: str = "resample",
    kv: KV = "head",
    positions: str = "all",
    memory_gib: float = 1.0,
    journal: str | Path | None = None,
    progress: bool = False,
) -> EdgeScores:
    """s(edge) = L(without it) - L(with it), mean over prompts, at the moment when ACDC tries the edge.

    An edge is removed iff s < `threshold` (`effect="absolute"`: iff |s| < `threshold`), so the circuit is
    `scores.above(threshold, by="signed")` (absolute: `by="magnitude"`); a kept score equal to the threshold is moved
    out by one ulp. Edges whose dst no kept edge reads (where a norm follows attention: no edge from any head of its
    layer) are never tried and score -inf. L is the metric as a loss, in its units.

    Channels go in reverse order of the forward pass, logits first (heads of a layer: v, k, q, each from the last head).
    `order`: srcs of a channel, and positions of a src, from the latest, as in the paper, or from the earliest.
    `shortlist`: only its edges are tried; all others are removed at the start, untested, and score -inf.

    `memory_gib` bounds what a trial takes, and so how many removals are tried at once. `journal`: a file that decisions
    are written to as they are made; a run that is killed goes on from it and ends in the same circuit. Cost: for each
    edge tried, a forward pass of the nodes downstream of it along kept edges.
    """
    return acdc_sweep(
        model, batches, metric, thresholds=[threshold], effect=effect, order=order, shortlist=shortlist,
        ablation=ablation, kv=kv, positions=positions, memory_gib=memory_gib, journals=[journal], progress=progress,
    )[0]


def acdc_sweep(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric = METRICS["kl_divergence"],
    *,
    thresholds: Sequence[float],
    effect: str = "signed",
    order: str = "latest",
    shortlist: Circuit | None = None,
    ablation: str = "resample",
    kv: KV = "head",
    positions: str = "all",
    memory_gib: float = 1.0,
    journals: Sequence[str | Path | None] | None = None,
    progress: bool = False,
) -> list[EdgeScores]:
    """What `acdc` finds at each of several thresholds, in their order; `journals`: a file for each.

    The runs share the clean and replacement runs and, of a search, all stages before the first decision that differs
    between two thresholds. After that each goes its own way, as an edge that is cut changes what follows.
    """
    journals = [None] * len(thresholds) if journals is None else journals
    if not thresholds or len(journals) != len(thresholds):
        counts = f"{len(thresholds)} thresholds, {len(journals)} journals"
        raise AcdcError(f"{counts}; give at least one threshold, and a journal for each")
    for threshold in thresholds:
        if not np.isfinite(threshold):
            raise AcdcError(
                f"threshold {threshold}: it must be a finite number, in units of the metric {metric.name!r}"
            )
    if effect not in ("signed", "absolute"):
        raise unknown_name("effect", effect, ["signed", "absolute"])
    if order not in ("latest", "earliest"):
        raise unknown_name("order", order, ["latest", "earliest"])
    if not memory_gib > 0:
        raise AcdcError(f"memory_gib={memory_gib}: it must be above 0")
    graph = model.graph(kv, position_names(batches, positions))
    if shortlist is not None and shortlist.graph != graph:
        raise AcdcError(f"the shortlist is of another graph, {shortlist.graph}, than the search, {graph}")
    options = {"effect": effect, "order": order, "shortlist": None if shortlist is None else assumed(shortlist)}
    header = {"method": "acdc", **options, "metric": metric.name, "ablation": ablation, "kv": kv,
              "positions": positions, "memory_gib": memory_gib}
    if any(journals):
        header |= {"model": weights_hash(model), "dtype": str(model.dtype),
                   "prompts": hash_of_prompts(batches, positions),
                   "edges": hash_of(np.ones(0) if shortlist is None else shortlist.kept)}
    start = np.ones(graph.n_edges, dtype=bool) if shortlist is None else shortlist.kept
    found: list[EdgeScores] = []
    searched: list[tuple[_Rule, list[dict[str, Any]]]] = []
    with torch.no_grad(), frozen(model):
        search = _Search(model, batches, metric, graph, ablation, memory_gib, order)
        for threshold, journal in zip(thresholds, journals, strict=True):
            rule, own = _Rule(threshold, effect == "absolute"), {"threshold": threshold, **options}
            with Journal(journal, {**header, **own}) as log:
                for earlier, records in searched:
                    log.extend(_agreed(records, earlier, rule))
                scores = search.run(rule, start, log, progress)
                searched.append((rule, log.records))
            provenance = {"method": "acdc", "method_options": own, "metric": metric.name, "ablation": ablation}
            found.append(EdgeScores(graph, scores, provenance))
    return found


def _row_losses(metric: Metric, rows: Float[Tensor, "row batch vocab"], batch: Batch,
                reference: Float[Tensor, "batch vocab"]) -> Float[Tensor, "row batch"]:
    """The loss of every row and prompt: many small rows at once, large ones one by one, as they fill the cache."""
    size = max(1, LOGITS_AT_ONCE // reference.numel())
    losses = []
    for some in rows.split(size):
        n = len(some)
        tensors = (batch.clean, batch.corrupted, batch.answer, batch.wrong, reference)
        *tokens, references = (x.expand(n, *x.shape).flatten(0, 1) for x in tensors)
        of_all = metric.loss(some.flatten(0, 1), Batch(*tokens, examples=batch.examples * n), references)
        losses.append(of_all.unflatten(0, some.shape[:2]))
    return torch.cat(losses)


@dataclass(frozen=True)
class _Rule:
    threshold: float
    absolute: bool

    def keeps(self, effect: float) -> bool:
        return not (abs(effect) if self.absolute else effect) < self.threshold

    def score(self, effect: float) -> float:
        """The effect, moved beyond the threshold if the edge is kept: selection is strict."""
        size = abs(effect) if self.absolute else effect
        if size != self.threshold:
            return effect
        return float(np.nextafter(effect, -np.inf if effect < 0 and self.absolute else np.inf))


def _agreed(records: Sequence[dict[str, Any]], rule: _Rule, other: _Rule) -> list[dict[str, Any]]:
    """The first records of a search, up to where another rule would have decided otherwise."""
    return list(takewhile(lambda record: all(rule.keeps(e) == other.keeps(e) for e in record["effects"]), records))


def _decided(log: Journal, record: Any) -> list[int]:
    """The edges of a record, if it is one: as many effects as edges, all finite."""
    edges, effects = (record.get(name) for name in ("edges", "effects")) if isinstance(record, dict) else (None, None)
    if not (isinstance(edges, list) and isinstance(effects, list) and edges and len(edges) == len(effects)
            and all(type(edge) is int for edge in edges)
            and all(type(effect) is float and math.isfinite(effect) for effect in effects)):
        raise log.damaged("a record does not hold edges and the effect of each")
    return edges


class _Search:
    def __init__(self, model: Transformer, batches: Sequence[Batch], metric: Metric, graph: Graph, ablation: str,
                 memory_gib: float, order: str) -> None:
        self.model, self.metric, self.graph, self.order = model, metric, graph, order
        self.bytes = memory_gib * 2**30
        replace = prepare_ablation(model, batches, ablation)
        self.states = [state for _, state in over_batches(
            batches, lambda batch: LiveState(model, batch, replace(batch), graph.positions))]
        self.fits = Halving("removals")
        self.n_evaluated = 0
        self.references = [model.logits(state.clean.final[:, -1]) for state in self.states]

    def run(self, rule: _Rule, start: Bool[np.ndarray, " edge"], log: Journal, progress: bool
            ) -> Float[np.ndarray, " edge"]:
        """The scores of a search that starts with the edges of `start` kept. Whole stages of decisions that the journal
        holds are taken over; of a stage that it holds in part, all is decided again, so that every trial is the one of
        an uninterrupted run, to the last bit."""
        matrix = self.graph.to_matrix(start)
        scores = np.full(self.graph.n_edges, -np.inf)
        n_taken = n_done = 0
        with tqdm(total=self.graph.n_edges, desc="trying edges", unit="edge", disable=not progress) as bar:
            for stage in self._stages():
                needed = find_needed(self.model, self._per_head(matrix)).src
                pending = [c for c in stage if needed[self._nodes(c)].any() or c == len(self.graph.channels) - 1]
                matrix[:, [c for c in stage if c not in pending]] = False
                n = self._n_records_of(pending, matrix, log, n_taken)
                if n is None:
                    log.keep(n_taken)
                    self._decide(rule, matrix, pending, log, bar)
                    n = len(log.records) - n_taken
                for record in log.records[n_taken : n_taken + n]:
                    edges, effects = record["edges"], record["effects"]
                    scores[edges] = [rule.score(effect) for effect in effects]
                    matrix[self._places(edges)] = [rule.keeps(effect) for effect in effects]
                n_taken += n
                n_done += int(self.graph.exists[:, stage].sum())
                bar.update(n_done - bar.n)
        return scores

    def _stages(self) -> Iterator[list[int]]:
        """Channels in the order in which they are visited; after each stage, decisions are forced to the disk."""
        yield [len(self.graph.channels) - 1]
        for index in map(self.graph.layer, reversed(range(self.graph.n_layers))):
            yield [index.mlp_channel]
            for channels in (index.v, index.k, index.q):
                yield list(range(channels.start, channels.stop))[::-1]

    def _places(self, edges: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where edges stand in a matrix (src, channel, position)."""
        graph, which = self.graph, list(edges)
        return graph.edge_src[which], graph.edge_channel[which], graph.edge_position[which]

    def _edges(self, matrix: Matrix, c: int) -> list[int]:
        """The kept edges of a channel, in the order in which they are tried."""
        first = self.graph.first_edge[c]
        edges = (first + np.nonzero(matrix[:, c][self.graph.exists[:, c]])[0]).tolist()
        return edges[::-1] if self.order == "latest" else edges

    def _per_head(self, matrix: Matrix) -> Bool[np.ndarray, "src channel_per_head position"]:
        return matrix[:, self.graph.channel_of_per_head]

    def _nodes(self, c: int) -> list[int]:
        """The srcs that compute with what a channel reads."""
        per_head = [self.graph.per_head.channels[i] for i in np.nonzero(self.graph.channel_of_per_head == c)[0]]
        return [self.graph.src_index[channel.node.name] for channel in per_head if channel.node.kind != "logits"]

    def _n_records_of(self, channels: Sequence[int], matrix: Matrix, log: Journal, first: int) -> int | None:
        """How many of the records from the `first` on decide these channels in full; None if they do not.

        Raises `AcdcError` where they are of other edges than those that are tried next: then the file is damaged.
        """
        n = 0
        for c in channels:
            left = self._edges(matrix, c)
            while left and first + n < len(log.records):
                edges = _decided(log, log.records[first + n])
                if edges != left[: len(edges)]:
                    raise log.damaged(f"record {first + n + 1} is not of the edges that are tried there")
                left = left[len(edges) :]
                n += 1
            if left:
                return None
        return n

    def _decide(self, rule: _Rule, matrix: Matrix, channels: Sequence[int], log: Journal,
                bar: tqdm) -> None:
        """Tries the edges of one stage, and appends what each effect is to the journal."""
        if not channels:
            return
        per_head = self._per_head(matrix)
        logits = [state.refresh(per_head)[None] for state in self.states]
        current = float(self._losses(logits)[0])
        rows = FIRST_ROWS
        for c in channels:
            into = np.nonzero(self.graph.channel_of_per_head == c)[0].tolist()
            edges = self._edges(matrix, c)
            limit = max(1, int(self.bytes // sum(state.row_bytes(into[0]) for state in self.states)))
            while edges:
                part, (trials, losses) = next(self.fits.over(
                    min(rows, limit, len(edges)), lambda part, into=into, edges=edges: self._try(into, edges[part])))
                tried = edges[part]
                srcs, _, at = self._places(tried)
                effects = np.diff(losses, prepend=current).tolist()
                n_cut = next((i for i, effect in enumerate(effects) if rule.keeps(effect)), len(tried))
                if n_cut:
                    current = float(losses[n_cut - 1])
                    for state, trial in zip(self.states, trials, strict=True):
                        state.commit(trial, n_cut - 1)
                        state.cut(into, srcs[:n_cut], at[:n_cut])
                decided = tried[: n_cut + 1]
                log.append({"edges": decided, "effects": effects[: len(decided)]})
                edges = edges[len(decided) :]
                rows = max(FIRST_ROWS // 2, rows // 2) if n_cut < len(tried) else 2 * len(tried)
                self.n_evaluated += len(tried)
                bar.update(len(decided))
                bar.set_postfix(evaluated=self.n_evaluated, loss=f"{current:.4g}", at=self.graph.channels[c].name)
        log.sync()

    def _try(self, into: Sequence[int], edges: Sequence[int]) -> tuple[list[Trial], Float[np.ndarray, " row"]]:
        """Cumulative removals from some channels, one more in each row; and the mean loss of each."""
        srcs, _, at = self._places(edges)
        trials = [state.trial(into, srcs, at) for state in self.states]
        return trials, self._losses([trial.logits for trial in trials])

    def _losses(self, logits: Sequence[Float[Tensor, "row _ vocab"]]) -> Float[np.ndarray, " row"]:
        """The mean loss over all prompts, row by row."""
        columns = [_row_losses(self.metric, rows, state.batch, reference).double()
                   for rows, state, reference in zip(logits, self.states, self.references, strict=True)]
        return torch.cat(columns, dim=1).mean(1).cpu().numpy()

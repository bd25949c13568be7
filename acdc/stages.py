"""What small run stands for each part of a run, for `acdc.planning` to measure."""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from acdc.ablation import prepare_ablation
from acdc.annotation.effects import node_effects
from acdc.circuit import Circuit, EdgeScores
from acdc.discovery import METHODS
from acdc.discovery.acdc import FIRST_ROWS
from acdc.discovery.exact import exact_effects
from acdc.graph import Graph
from acdc.live_state import LiveState
from acdc.metrics import METRICS, Metric
from acdc.optimal_ablation import learn_ablation
from acdc.patching import run_circuit
from acdc.planning import GIB, Stage
from acdc.task import Batch, position_names
from acdc.transformer import Transformer, frozen

Sample = Callable[[Sequence[Batch]], float]
SPARSE, DENSE = 0.02, 0.5  # shares of the edges in circuits that stand for those on a curve
N_SPARSE, N_DENSE = 6, 3  # how many of MIB's ten sizes are like either; all edges and none take nothing
KEPT = 0.02  # the share of the edges that a search is taken to keep
REPEATED = 1.3  # of the edges that a search tries, those that it tries again


def stages_of_method(
    model: Transformer, method: str, batches: Sequence[Batch], metric: Metric, options: Mapping[str, Any],
    scoring: Mapping[str, Any],
) -> list[Stage]:
    """Of finding edges by a method. `options`: its own; `scoring`: ablation, kv and positions."""
    scoring = {**scoring, "ablation": _of_few(scoring["ablation"]), "progress": False}
    options = {key: value for key, value in options.items() if key not in ("journal", "checkpoint")}
    function = METHODS[method]
    taken = inspect.signature(function).parameters
    graph = model.graph(scoring["kv"], position_names(batches, scoring["positions"]))
    if "sparsity" in taken:
        return _learned(model, method, batches, metric, options, scoring)
    if "memory_gib" in taken:
        return [_search(model, graph, batches, metric, options, scoring)]
    if "threshold" in taken:
        tried = _n_tried(graph, options.get("shortlist"))
        return [Stage(method, _times(tried, _circuit(model, graph, metric, KEPT, scoring["ablation"])))]
    if method == "exact":
        edges = _some_edges(graph)
        return [Stage(method, _times(graph.n_edges / len(edges), lambda few: exact_effects(
            model, few, metric, edges, ablation=scoring["ablation"], graph=graph)))]
    kept = 8.0 * graph.n_edges if options.get("per_prompt") else 0.0  # of each prompt, and once more as they are joined
    return [Stage(method, _times(1, lambda few: function(model, few, metric, **options, **scoring)),
                  more=lambda n, at_once: kept * n)]


def stages_of_curves(model: Transformer, graph: Graph, metric: Metric, ablation: Any, n_curves: int) -> list[Stage]:
    """Of measuring circuits of MIB's ten sizes."""
    of = {SPARSE: N_SPARSE * n_curves, DENSE: N_DENSE * n_curves}
    ablation = _of_few(ablation)
    return [Stage(f"circuits of {share:.0%} of the edges", _times(n, _circuit(model, graph, metric, share, ablation)))
            for share, n in of.items()]


def stage_of_circuit(model: Transformer, circuit: Circuit, metric: Metric, ablation: Any) -> Stage:
    return Stage("the circuit", _times(1, _run_of(model, circuit, metric, _of_few(ablation))))


def stage_of_calibration(model: Transformer, graph: Graph, metric: Metric, ablation: str, n: int) -> Stage:
    edges = np.linspace(0, graph.n_edges - 1, min(12, graph.n_edges)).astype(int)
    return Stage("exact effects", _times(n / len(edges), lambda few: exact_effects(
        model, few, metric, edges, ablation=_of_few(ablation), graph=graph)))


def stage_of_effects(model: Transformer, circuit: Circuit, metric: Metric) -> Stage:
    """Of what takes most of the time of annotating."""
    nodes = [node.name for node in circuit.nodes if node.kind in ("input", "head", "mlp")]
    some = nodes[:: max(1, len(nodes) // 12)]
    return Stage("effects of nodes", _times(len(nodes) / max(1, len(some)), lambda few: node_effects(
        model, few if len(few[0]) > 1 else [*few, *few], metric, some)))


def stage_of_constants(model: Transformer, circuit: Circuit, batches: Sequence[Batch]) -> Stage:
    """Of learning the constants of optimal ablation, on as many prompts as these."""
    taken = inspect.signature(learn_ablation).parameters
    return _of_steps(model, "optimal ablation", batches, partial(learn_ablation, model, circuit=circuit),
                     taken["steps"].default, taken["prompts_per_step"].default)


def _of_few(ablation: Any) -> Any:
    """What a mean over prompts, or learned constants, take is what a corrupted run does; of a single prompt there is no
    mean."""
    return "resample" if ablation in ("mean", "optimal") else ablation


def _times(n: int | float, run: Callable[[Sequence[Batch]], Any]) -> Sample:
    def sample(few: Sequence[Batch]) -> float:
        run(few)
        return float(n)

    return sample


def _random(graph: Graph, share: float) -> Circuit:
    """As good as any for what running it takes."""
    values = np.random.default_rng(0).uniform(size=graph.n_edges)
    return EdgeScores(graph, values).top(int(share * graph.n_edges), by="signed")


def _circuit(model: Transformer, graph: Graph, metric: Metric, share: float, ablation: Any
             ) -> Callable[[Sequence[Batch]], Any]:
    return _run_of(model, _random(graph, share), metric, ablation)


def _run_of(model: Transformer, circuit: Circuit, metric: Metric, ablation: Any) -> Callable[[Sequence[Batch]], Any]:
    def run(few: Sequence[Batch]) -> None:
        replace = prepare_ablation(model, few, ablation)
        for batch in few:
            logits = run_circuit(model, batch, circuit, replace(batch))
            metric(logits, batch, logits)

    return run


def _some_edges(graph: Graph) -> np.ndarray:
    """All edges into an MLP and a key at two thirds of the depth, which as much lies downstream of as of most."""
    index = graph.layer(2 * graph.n_layers // 3)
    keys = index.k.start
    return np.nonzero(np.isin(graph.edge_channel, [index.mlp_channel, keys]))[0]


def _n_tried(graph: Graph, shortlist: int | None) -> float:
    """How many edges a search tries: those of its shortlist, or those into what so small a circuit reads."""
    if shortlist is not None:
        return REPEATED * shortlist
    kept = _random(graph, KEPT).kept
    writes = set(graph.edge_src[kept].tolist())
    read = [channel.node.name not in graph.src_index or graph.src_index[channel.node.name] in writes
            for channel in graph.channels]
    return REPEATED * float(np.array(read)[graph.edge_channel].sum())


def _search(model: Transformer, graph: Graph, batches: Sequence[Batch], metric: Metric, options: Mapping[str, Any],
            scoring: Mapping[str, Any]) -> Stage:
    """Trials in the midst of a search: below, all edges are kept, above, few."""
    index = graph.at_all_positions.layer(graph.n_layers // 2)
    few_kept = graph.to_matrix(_random(graph, KEPT).kept)
    matrix = graph.exists.copy()
    matrix[:, index.q.start :] &= few_kept[:, index.q.start :]
    matrix[:, index.q] = graph.exists[:, index.q]
    matrix[index.heads.start, -1] = graph.exists[index.heads.start, -1]  # so that what is tried is needed
    tried = _n_tried(graph, options.get("shortlist"))
    own = np.nonzero(graph.edge_channel == index.q.start)[0][:FIRST_ROWS]

    def sample(few: Sequence[Batch]) -> float:
        first, replace = time.perf_counter(), prepare_ablation(model, few, scoring["ablation"])
        with torch.no_grad(), frozen(model):
            state = LiveState(model, few[0], replace(few[0]), graph.positions)
            reference = state.refresh(matrix[:, graph.channel_of_per_head])
            ready = time.perf_counter()
            trial = state.trial([index.q.start], graph.edge_src[own].tolist(), graph.edge_position[own].tolist())
            for logits in trial.logits:
                metric.loss(logits, few[0], reference)
        done = time.perf_counter()
        return tried / len(own) * (done - ready) / (done - first)

    with torch.no_grad(), frozen(model):
        one = max(batches, key=lambda batch: batch.clean.shape[1]).rows(slice(0, 1))
        state = LiveState(model, one, prepare_ablation(model, [one], scoring["ablation"])(one), graph.positions)
        state.refresh(matrix[:, graph.channel_of_per_head])
        row = state.row_bytes(index.q.start)
    most = float(min(2 * tried / len(graph.channels), np.bincount(graph.edge_channel).max()))  # removals at once
    at_most = options.get("memory_gib", 1.0) * GIB
    return Stage("acdc", sample, of_all=True, more=lambda n, _: max(n * row, min(at_most, n * row * most)))


def _learned(model: Transformer, method: str, batches: Sequence[Batch], metric: Metric, options: Mapping[str, Any],
             scoring: Mapping[str, Any]) -> list[Stage]:
    """Steps of masks, and what says where they start."""
    function = METHODS[method]
    taken = inspect.signature(function).parameters

    def option(name: str) -> Any:
        return options.get(name, taken[name].default)

    stages = []
    start = option("start") if "start" in taken and option("constraint") != "lagrangian" else None
    if isinstance(start, str):
        stages += stages_of_method(model, start, batches, metric, {}, scoring)
    few_options = {**options, **({"start": None} if "start" in taken else {}), **scoring}
    learn = partial(function, model, metric=metric, **few_options)
    return [*stages, _of_steps(model, method, batches, learn, option("steps"), option("prompts_per_step"))]


def _of_steps(model: Transformer, name: str, batches: Sequence[Batch], learn: Callable[..., Any], steps: int,
              prompts_per_step: int) -> Stage:
    """Of what is learned in steps, each of some of the prompts. What is done once, before them, is told from a step by
    doing one and then three."""
    drawn = min(prompts_per_step, sum(map(len, batches)))
    stored = _stored(model, max(batch.clean.shape[1] for batch in batches))

    def sample(few: Sequence[Batch]) -> float:
        size = min(drawn, sum(map(len, few)))
        times = [time.perf_counter()]
        for n in (1, 3):
            learn(few, steps=n, prompts_per_step=size)
            times.append(time.perf_counter())
        one, three = np.diff(times)
        a_step = max(0.0, three - one) / 2
        return float((max(0.0, one - a_step) + steps * drawn / size * a_step) / (one + three))

    return Stage(name, sample, more=lambda n, at_once: stored * max(0, n - at_once), per_prompt=False)


def _stored(model: Transformer, length: int) -> float:
    """Bytes that a prompt of this length takes while masks are learned: its base run, all positions counted."""
    d_model, d_head = model.unembedding.shape[1], model.blocks[0].attention.q.d_head
    a_token = (3 * model.n_layers + 2) * d_model + model.n_layers * (model.n_heads + 2 * model.n_kv_heads) * d_head
    return float(model.unembedding.element_size() * (length * a_token + model.unembedding.shape[0]))


def loss_of(method: str, metric: Metric, given: str | None) -> Metric:
    """What a method minimises: the metric `given`, else KL for those that look for what does as the model does."""
    parameter = inspect.signature(METHODS[method]).parameters.get("metric")
    own = parameter.default.name if parameter is not None else ""
    return METRICS[given or (own if own == "kl_divergence" else metric.name)]


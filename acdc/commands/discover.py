"""`acdc discover`: finds a circuit and writes it, its pictures and a report to a folder."""

import argparse
import importlib.metadata
import inspect
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from acdc.arguments import add_cluster, add_measuring, add_memory, check_calibration, choose, size_of
from acdc.errors import AcdcError
from acdc.output_folder import OutputFolder, beside, output_folder, remove, set_aside, write_file

from .loading import goes_on, load, planned, spread
from .printing import curve_lines, exceeds_text, say

HELP = "find a circuit and write it, its pictures and a report to a folder"
OUTPUTS = ("circuit.json", "circuit.svg", "circuit.png", "curve.png", "edges.csv", "report.md", "report.html")
OF_A_CIRCUIT = ("annotations.json", "tests.json", "tests.md")  # what other commands find in the folder and show with it
MOST_PROMPT_SCORES = 2**29  # bytes; several times as much is used on the way


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2", help="packaged model, hub name or local folder")
    parser.add_argument("--task", default="ioi", help="a built-in task, a .json, .jsonl or .csv file of "
                        "prompts, or a .py file that makes them (and is run)")
    parser.add_argument("--method", default="eap_ig", help="eap, eap_ig, eap_ig_activations, "
                          "eap_clean_corrupted, relp, gim, node_attribution, hisp, ifr, exact, acdc, acdc_sequential, "
                          "edge_pruning, subnetwork_probing, ugs, ensemble or random")
    add_measuring(parser, from_circuit=False)
    add_memory(parser)
    parser.add_argument("--kv", default="head", help="k and v channels of each query head, or of each KV group: "
                          "head or group")
    parser.add_argument("--positions", default="all", help="edges for all token positions together (all), for each, "
                          "or for the roles that the task names (roles)")
    parser.add_argument("--loss", help="the metric that discovery works with (default: the --metric, "
                          "if one is given; else kl_divergence for acdc and learned masks, the task's for the others)")
    parser.add_argument("--steps", type=int, help="eap_ig, eap_ig_activations: points on the path (default 5); "
                          "node_attribution: as eap_ig (default: the gradient on the clean run); learned masks: steps "
                          "of training")
    parser.add_argument("--gradients", help="eap_ig_activations: from the runs of an edge's own sublayer (own, "
                          "default), or of all (all)")
    parser.add_argument("--normalise", action=argparse.BooleanOptionalAction, help="hisp: importances within a layer "
                          "(default), or in the metric's units")
    parser.add_argument("--sparsity", type=float, help="learned masks: the share that is to be cut (default 0.985 of "
                          "the edges, subnetwork_probing: 0.8 of the nodes)")
    parser.add_argument("--learning-rate", type=float, help="learned masks: of Adam")
    parser.add_argument("--prompts-per-step", type=int, help="learned masks: prompts drawn in each step")
    parser.add_argument("--warmup", type=float, help="learned masks: the share of the steps over which the target "
                          "sparsity rises")
    parser.add_argument("--constraint", help="edge_pruning: budget (default), or lagrangian as in the paper")
    parser.add_argument("--start", help="edge_pruning: the method whose scores say with which edges to begin "
                          "(default eap_ig)")
    parser.add_argument("--checkpoint", type=Path, help="learned masks: the file that a run is saved to as it goes, "
                          "from which one that was killed goes on (default: the --out folder's name + .checkpoint, "
                          "gone at the end)")
    parser.add_argument("--methods", help="ensemble: the methods that are combined (default eap,eap_ig)")
    parser.add_argument("--combine", help="ensemble: how they are made comparable, zscore (default) or rank")
    parser.add_argument("--threshold", type=float, help="acdc: keep an edge if the loss rises by this much without "
                          "it (default 0.01)")
    parser.add_argument("--effect", help="acdc: signed (default), or absolute to keep also what hurts")
    parser.add_argument("--pattern", help="relp: gradient at attention patterns, derivative (default) or constant")
    parser.add_argument("--temperature", type=float, help="gim: of the softmax whose gradient is taken (default 2)")
    parser.add_argument("--gate", type=float, help="gim: factor of the gradient in gated MLPs (default 0.5)")
    parser.add_argument("--order", help="acdc: try the srcs of a channel from the latest (default) or the earliest")
    parser.add_argument("--shortlist", help="acdc: try only so many edges (500) or such a share (2%%), those of the "
                          "highest |eap_ig score|; all others are removed untested")
    parser.add_argument("--journal", type=Path, help="acdc: the file that decisions are written to, from which a "
                          "run that was killed goes on (default: the --out folder's name + .journal, gone at the end)")
    parser.add_argument("--by", default="magnitude", help="rank edges by score (signed) or its size (magnitude)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--size", help="keep so many edges (500) or such a share (2%%); default: the smallest on the "
                      "curve with faithfulness within 10%% of 1")
    size.add_argument("--above", type=float, help="keep the edges that rank above this score")
    parser.add_argument("--greedy", action="store_true", help="with --size: grow the circuit from the logits")
    parser.add_argument("--drop-dangling", action="store_true", help="then drop edges on no path from input to "
                          "logits")
    parser.add_argument("--resamples", type=int, default=1000, help="draw the prompts anew so often, to see how much "
                          "the circuit owes to them, where the method has scores of single prompts; 0: never")
    parser.add_argument("--keep-prompt-scores", action="store_true", help="also write what each prompt alone scores, "
                        "from which `acdc diff` has its interval for other prompts: 4 bytes a prompt and edge")
    parser.add_argument("--calibrate", type=int, default=60, metavar="EDGES", help="then patch so many edges "
                          "exactly, to see how far their scores can be trusted; 0: none")
    parser.add_argument("--out", type=Path, help="folder to write (default: circuits/MODEL-TASK-METHOD)")
    parser.add_argument("--overwrite", action="store_true", help="replace the circuit that is there")
    add_cluster(parser, "scores, circuits and single edges are computed")


def run(arguments: argparse.Namespace) -> None:
    from acdc.circuit import Circuit
    from acdc.discovery import METHODS
    from acdc.discovery.journal import hash_of_prompts
    from acdc.evaluation.bootstrap import bootstrap
    from acdc.evaluation.calibration import calibrate
    from acdc.evaluation.faithfulness import faithfulness, faithfulness_curve, measure
    from acdc.export.prompt_scores import FILE as PROMPT_SCORES
    from acdc.export.prompt_scores import prompt_scores_bytes
    from acdc.metrics import METRICS
    from acdc.stages import loss_of
    from acdc.task import position_names

    method = choose("method", arguments.method, METHODS)
    options = method_options(arguments, method)
    check_selection(arguments)
    if arguments.loss is not None:
        choose("metric", arguments.loss, METRICS)
    name = f"{Path(arguments.model).resolve().name}-{Path(arguments.task).stem}-{arguments.method}"
    seconds: dict[str, float] = {}
    out = arguments.out or Path("circuits") / name
    taken = inspect.signature(method).parameters
    saves = [kind for kind in ("journal", "checkpoint") if kind in taken and kind not in options]
    options |= {kind: beside(out, kind) for kind in saves}
    outputs = (*OUTPUTS, *["masks.png"] * ("checkpoint" in taken), *[PROMPT_SCORES] * arguments.keep_prompt_scores)
    with output_folder(out, outputs, arguments.overwrite) as folder, ExitStack() as work:
        with _timed(seconds, "load"):
            model, task, batches = load(arguments)
        metric = task_metric(arguments, task)
        loss = loss_of(arguments.method, metric, arguments.loss or arguments.metric)
        example = task.examples[0]
        say(f"{len(task)} {'pairs' if len(task) > 1 else 'pair'} of prompts such as {example.clean!r} -> "
            f"{example.answer!r}")
        measured: dict[str, Any] = {"ablation": arguments.ablation, "progress": sys.stderr.isatty()}
        measure(model, [], batches, metric, **measured)  # refuses a task that the model cannot do, before the work
        graph = model.graph(arguments.kv, position_names(batches, arguments.positions))
        size = None if arguments.size is None else size_of(arguments.size, graph.n_edges)
        scoring = {**measured, "kv": arguments.kv, "positions": arguments.positions}
        if _per_prompt(arguments, method, task, graph):
            options["per_prompt"] = True
        batches = planned(arguments, model, batches, partial(stages, arguments, model, batches, metric, options), out,
                          folder.spent)
        model = work.enter_context(spread(arguments, model))
        folder.spent.extend(options[kind] for kind in saves)
        work.enter_context(goes_on(arguments, out, folder.spent, model, batches))
        with _timed(seconds, "discover"):
            if "shortlist" in options:
                n = size_of(options["shortlist"], graph.n_edges, "--shortlist")
                options["shortlist"] = METHODS["eap_ig"](model, batches, metric, **scoring).top(n, by="magnitude")
            scores = method(model, batches, loss, **options, **scoring)
        with _timed(seconds, "evaluate"):
            curves = [faithfulness_curve(model, scores, batches, metric, by=by, **measured)
                      for by in ("magnitude", "signed")]
            circuit, by, chosen = _choose(arguments, scores, curves, size)
            selection = circuit.provenance["selection"]
            size = circuit.n_edges
            if arguments.drop_dangling:
                circuit, selection = circuit.drop_dangling(), f"{selection}, dangling edges dropped"
            result = faithfulness(model, circuit, batches, metric, **measured)
        trusted: dict[str, Any] = {}
        uncertainty = None
        if scores.per_prompt is not None and arguments.resamples:
            with _timed(seconds, "resample"):
                uncertainty = bootstrap(scores, size=size, by=by, n_resamples=arguments.resamples, seed=arguments.seed,
                                        templates=[example.template for batch in batches for example in batch.examples])
            trusted["uncertainty"] = uncertainty.summary()
        if arguments.calibrate:
            with _timed(seconds, "calibrate"):
                found = calibrate(model, scores, batches, loss, n=arguments.calibrate, size=size, seed=arguments.seed,
                                  **measured)
            trusted["calibration"] = found.summary()
        provenance = {
            **circuit.provenance,
            "selection": selection,
            **_model_and_task(arguments, model, task),
            "prompts_sha256": hash_of_prompts(batches),
            "metric": metric.name,
            "loss": loss.name,
            "clean_metric": result.full,
            "corrupted_metric": result.empty,
            "circuit_metric": result.circuit,
            "faithfulness": result.faithfulness,
            "curves": [curve.as_record() for curve in curves],
            **trusted,
            "command": arguments.command_line,
            "seconds": {stage: round(value, 2) for stage, value in seconds.items()},
        }
        circuit = Circuit(circuit.graph, circuit.kept, circuit.scores, provenance)
        _write_outputs(folder, circuit, curves, chosen, uncertainty)
        if arguments.keep_prompt_scores and scores.per_prompt is not None:
            write_file(folder.path / PROMPT_SCORES, prompt_scores_bytes(scores.per_prompt))
    if arguments.overwrite:  # what was there was of another circuit
        for stale in {PROMPT_SCORES, "masks.png"} - set(outputs):
            remove(out / stale)
        for path in (out / name for name in OF_A_CIRCUIT):
            if aside := set_aside(path, "before"):
                say(f"note: {path} was of the circuit that is replaced, and is now {aside.name}")
    print(_summary(circuit, curves))
    print(f"\nwritten to {folder.target}: {', '.join(outputs)}")


def method_options(arguments: argparse.Namespace, method: Callable[..., Any]) -> dict[str, Any]:
    """The options given for this method; one that it does not take is an error."""
    from acdc.discovery import METHODS
    from acdc.discovery.ensemble import COMBINE, choose_methods
    from acdc.discovery.relp import PATTERN
    from acdc.planning import gib

    names = ("steps", "gradients", "normalise", "methods", "combine", "pattern", "temperature", "gate", "threshold",
             "effect", "order", "shortlist", "journal", "sparsity", "learning_rate", "prompts_per_step",
             "warmup", "constraint", "start", "checkpoint")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    taken = inspect.signature(method).parameters
    for name in given:
        if name not in taken:
            option = name.replace("_", "-")
            raise AcdcError(f"method {arguments.method!r} takes no --{option}; leave it out or choose another method")
    if arguments.keep_prompt_scores and "per_prompt" not in taken:
        raise AcdcError(f"method {arguments.method!r} has no scores of single prompts; leave out --keep-prompt-scores")
    if "seed" in taken:  # the one seed of the command line, which always has a value
        given["seed"] = arguments.seed
        if arguments.seed < 0:
            raise AcdcError(f"--seed {arguments.seed}: method {arguments.method!r} needs one of 0 or more")
    if given.get("steps", 1) < 1:
        raise AcdcError(f"--steps {given['steps']}: it must be at least 1")
    if not math.isfinite(given.get("threshold", 0)):
        raise AcdcError(f"--threshold {given['threshold']}: it must be a finite number")
    if "memory_gib" in taken and arguments.memory is not None:
        given["memory_gib"] = min(1.0, gib(arguments.memory) / 8)  # of itself, so that a journal goes on
    choose("effect", given.get("effect", "signed"), {"signed": None, "absolute": None})
    choose("order", given.get("order", "latest"), {"latest": None, "earliest": None})
    choose("gradients", given.get("gradients", "own"), {"own": None, "all": None})
    choose("combine", given.get("combine", "zscore"), COMBINE)
    choose("pattern", given.get("pattern", "derivative"), dict.fromkeys(PATTERN))
    if not 0 < given.get("temperature", 1) < math.inf:
        raise AcdcError(f"--temperature {given['temperature']}: it must be a number above 0")
    if "start" in given:
        choose("method", given["start"], METHODS)
    if "methods" in given:
        given["methods"] = [name.strip() for name in given["methods"].split(",")]
        choose_methods(given["methods"])
    if "shortlist" in given:
        size_of(given["shortlist"], option="--shortlist")
    return given


def task_metric(arguments: argparse.Namespace, task: Any) -> Any:
    from acdc.metrics import METRICS

    return choose("metric", arguments.metric or task.metric, METRICS)


def stages(arguments: argparse.Namespace, model: Any, batches: Sequence[Any], metric: Any, options: Mapping[str, Any]
           ) -> list[Any]:
    """What a run consists of, to be planned."""
    from acdc.stages import loss_of, stage_of_calibration, stages_of_curves, stages_of_method
    from acdc.task import position_names

    graph = model.graph(arguments.kv, position_names(batches, arguments.positions))
    loss = loss_of(arguments.method, metric, arguments.loss or arguments.metric)
    scoring = {"ablation": arguments.ablation, "kv": arguments.kv, "positions": arguments.positions}
    if "shortlist" in options:
        options = {**options, "shortlist": size_of(options["shortlist"], graph.n_edges, "--shortlist")}
    found = [*stages_of_method(model, arguments.method, batches, loss, options, scoring),
             *stages_of_curves(model, graph, metric, arguments.ablation, 2)]
    if "shortlist" in options:
        found = [*stages_of_method(model, "eap_ig", batches, metric, {}, scoring), *found]
    if arguments.calibrate:
        found.append(stage_of_calibration(model, graph, loss, arguments.ablation, arguments.calibrate))
    return found


def check_selection(arguments: argparse.Namespace) -> None:
    """Refuses what can be seen to be wrong before anything is computed."""
    from acdc.task import POSITIONS

    choose("ranking", arguments.by, {"signed": None, "magnitude": None})
    choose("kv", arguments.kv, {"head": None, "group": None})
    choose("positions", arguments.positions, dict.fromkeys(POSITIONS))
    if arguments.resamples < 0:
        raise AcdcError(f"--resamples {arguments.resamples}: it must be 0 or more")
    if arguments.size is not None:
        size_of(arguments.size)
    if arguments.above is not None and not math.isfinite(arguments.above):
        raise AcdcError(f"--above {arguments.above}: it must be a finite number")
    if arguments.calibrate:
        check_calibration("--calibrate", arguments.calibrate)
    if arguments.greedy and arguments.size is None:
        raise AcdcError("--greedy grows a circuit to a --size; give that too")


def _choose(arguments: argparse.Namespace, scores: Any, curves: Sequence[Any], size: int | None
            ) -> tuple[Any, Any, Any]:
    """The circuit that the arguments select, by which ranking, and the point of the curve that it is, if it is one."""
    threshold = scores.provenance["method_options"].get("threshold")
    if arguments.above is not None:
        return scores.above(arguments.above, by=arguments.by), arguments.by, None
    if size is None and threshold is not None:
        by = "magnitude" if scores.provenance["method_options"].get("effect") == "absolute" else "signed"
        return scores.above(threshold, by=by), by, None
    chosen = None
    if size is None:
        curve = next(curve for curve in curves if curve.by == arguments.by)
        chosen = curve.smallest_faithful() or curve.points[-1]
        size = chosen.n_edges
    return (scores.greedy if arguments.greedy else scores.top)(size, by=arguments.by), arguments.by, chosen


def _per_prompt(arguments: argparse.Namespace, method: Any, task: Any, graph: Any) -> bool:
    """Whether to keep what each prompt scores. Methods without such scores, and one prompt, cannot be resampled."""
    keep, size = arguments.keep_prompt_scores, 4 * len(task) * graph.n_edges
    if keep and (len(task) < 2 or size > MOST_PROMPT_SCORES):
        why = "there is one prompt" if len(task) < 2 else f"they would take {size / 2**30:.1f} GiB"
        raise AcdcError(f"--keep-prompt-scores: {why}; give {'more' if len(task) < 2 else 'fewer'} --prompts")
    takes_it = "per_prompt" in inspect.signature(method).parameters
    if not takes_it or len(task) < 2 or not (arguments.resamples or keep):
        return False
    if size > MOST_PROMPT_SCORES:
        say(f"note: the scores of all prompts would take {size / 2**30:.1f} GiB, so nothing is resampled")
    return size <= MOST_PROMPT_SCORES


def _model_and_task(arguments: argparse.Namespace, model: Any, task: Any) -> dict[str, Any]:
    """What a circuit must remember to be measured again."""
    import torch

    from acdc.models import weights_hash
    from acdc.tasks import TASKS  # pyright: ignore[reportMissingImports]

    is_file = arguments.task not in TASKS
    example = task.examples[0]
    return {
        "model": arguments.model,
        "model_sha256": weights_hash(model),
        "dtype": arguments.dtype,
        "d_model": model.hf.get_input_embeddings().weight.shape[1],
        "task": task.name,
        "task_source": str(Path(arguments.task).resolve()) if is_file else arguments.task,
        "task_description": task.description,
        "example": {key: getattr(example, key) for key in ("clean", "corrupted", "answer", "wrong")},
        "task_sha256": task.provenance.get("sha256"),
        "n_prompts": len(task),
        "split": task.provenance.get("split"),
        "split_by": task.provenance.get("by"),
        "seed": arguments.seed,
        "batch_size": arguments.batch_size,
        "device": arguments.device,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(),
                     **{p: importlib.metadata.version(p) for p in ("acdc", "torch", "transformers", "numpy")}},
    }


def _write_outputs(folder: OutputFolder, circuit: Any, curves: Sequence[Any], chosen: Any, uncertainty: Any) -> None:
    from acdc.export.curve_figure import curve_figure
    from acdc.export.edge_table import edge_table
    from acdc.export.figure import circuit_figure, save_figure
    from acdc.export.history_figure import mask_history_figure
    from acdc.export.json_file import circuit_to_json
    from acdc.export.report import report
    from acdc.export.report_page import report_page

    provenance = circuit.provenance
    title = f"{provenance['task']} in {Path(provenance['model']).name} by {provenance['method']}"
    write_file(folder.path / "circuit.json", circuit_to_json(circuit))
    drawing = circuit_figure(circuit, title=title)
    save_figure(drawing, folder.path / "circuit.svg")
    save_figure(drawing, folder.path / "circuit.png")
    save_figure(curve_figure(curves, chosen=chosen, title=title), folder.path / "curve.png")
    if history := circuit.scores.provenance.get("history"):
        save_figure(mask_history_figure(history, title=f"{title}: learning the masks"), folder.path / "masks.png")
    write_file(folder.path / "edges.csv", edge_table(circuit, uncertainty))
    text = report(circuit, curves, uncertainty)
    write_file(folder.path / "report.md", text)
    pictures = {path.name: path.read_bytes() for path in folder.path.iterdir() if path.suffix in (".svg", ".png")}
    write_file(folder.path / "report.html", report_page(text, pictures, title=title))


def _summary(circuit: Any, curves: Sequence[Any]) -> str:
    known, total = circuit.provenance, circuit.graph.n_edges
    return (
        f"{known['metric']}: {known['clean_metric']:.4f} clean, {known['corrupted_metric']:.4f} with all edges cut\n"
        f"circuit: {circuit.n_edges:,} of {total:,} edges ({circuit.n_edges / total:.1%}; {known['selection']}), "
        f"faithfulness {known['faithfulness']:.4f}{exceeds_text(known['faithfulness'])}\n{''.join(curve_lines(curves))}"
        f"{''.join(_trust_lines(known))}"
    ).rstrip()


def _trust_lines(known: Mapping[str, Any]) -> Iterator[str]:
    from acdc.export.report import agreement_text, resampling_text

    if "uncertainty" in known:
        yield f"\nother prompts: {resampling_text(known['uncertainty'])}\n"
    if "calibration" in known:
        yield f"exact effects: {agreement_text(known['calibration']['overall'])}\n"


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start

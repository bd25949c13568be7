"""The command line: `acdc discover`, `evaluate`, `calibrate`, `show`, `tasks`, `models`. The only prints are here."""

import argparse
import importlib.metadata
import inspect
import json
import logging
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from acdc.arguments import (
    build_parser,
    check_calibration,
    check_measuring,
    check_selection,
    choose,
    method_options,
    size_of,
)
from acdc.errors import AcdcError
from acdc.output_folder import OutputFolder, output_folder, write_file

OUTPUTS = ("circuit.json", "circuit.svg", "circuit.png", "curve.png", "edges.csv", "report.md")
MOST_PROMPT_SCORES = 2**29  # bytes; several times as much is used on the way
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # how PyTorch says it, by device


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status. A user's mistake is one line on stderr and status 1 (2 where the
    command line itself is wrong, as argparse has it)."""
    given = sys.argv[1:] if argv is None else list(argv)
    command_line = argparse.Namespace(command_line=shlex.join(["acdc", *given]))
    arguments = build_parser(COMMANDS).parse_args(given, command_line)
    try:
        with _log_shown():
            arguments.run(arguments)
            sys.stdout.flush()
    except AcdcError as error:
        return _fail(str(error))
    except BrokenPipeError:  # whoever read what we print has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(f"{error.strerror or error}: {error.filename or 'no file named'}")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        return _fail("out of memory; give a smaller --batch-size, fewer --prompts, or --dtype bfloat16")
    except KeyboardInterrupt:
        return _fail("interrupted; no result was written", status=130)
    return 0


def _fail(message: str, status: int = 1) -> int:
    print(f"acdc: {' '.join(message.splitlines())}", file=sys.stderr)
    return status


@contextmanager
def _log_shown() -> Iterator[None]:
    """What `acdc` logs, such as a download that begins, goes to stderr."""
    logger, handler = logging.getLogger("acdc"), logging.StreamHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _discover(arguments: argparse.Namespace) -> None:
    from acdc.circuit import Circuit
    from acdc.discovery import METHODS
    from acdc.evaluation.bootstrap import bootstrap
    from acdc.evaluation.calibration import calibrate
    from acdc.evaluation.faithfulness import faithfulness, faithfulness_curve, measure
    from acdc.metrics import METRICS
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
    options |= {kind: out.with_name(f"{out.name}.{kind}") for kind in saves}
    outputs = (*OUTPUTS, "masks.png") if "checkpoint" in taken else OUTPUTS
    with output_folder(out, outputs, arguments.overwrite) as folder:
        with _timed(seconds, "load"):
            model, task, batches = _load(arguments)
        metric = choose("metric", arguments.metric or task.metric, METRICS)
        own = taken["metric"].default.name if "metric" in taken else ""
        usual = own if own == "kl_divergence" else metric.name  # KL for those that look for what does as the model does
        loss = METRICS[arguments.loss or arguments.metric or usual]
        example = task.examples[0]
        _say(f"{len(task)} {'pairs' if len(task) > 1 else 'pair'} of prompts such as {example.clean!r} -> "
             f"{example.answer!r}")
        measured: dict[str, Any] = {"ablation": arguments.ablation, "progress": sys.stderr.isatty()}
        measure(model, [], batches, metric, **measured)  # refuses a task that the model cannot do, before the work
        graph = model.graph(arguments.kv, position_names(batches, arguments.positions))
        size = None if arguments.size is None else size_of(arguments.size, graph.n_edges)
        scoring = {**measured, "kv": arguments.kv, "positions": arguments.positions}
        with _timed(seconds, "discover"):
            if "shortlist" in options:
                n = size_of(options["shortlist"], graph.n_edges, "--shortlist")
                options["shortlist"] = METHODS["eap_ig"](model, batches, metric, **scoring).top(n, by="magnitude")
            if _resamples(arguments, method, task, graph):
                options["per_prompt"] = True
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
        if scores.per_prompt is not None:
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
            "metric": metric.name,
            "loss": loss.name,
            "clean_metric": result.full,
            "corrupted_metric": result.empty,
            "circuit_metric": result.circuit,
            "faithfulness": result.faithfulness,
            **trusted,
            "command": arguments.command_line,
            "seconds": {stage: round(value, 2) for stage, value in seconds.items()},
        }
        circuit = Circuit(circuit.graph, circuit.kept, circuit.scores, provenance)
        _write_outputs(folder, circuit, curves, chosen, uncertainty)
    for kind in saves:
        options[kind].unlink(missing_ok=True)
    print(_summary(circuit, curves))
    print(f"\nwritten to {folder.target}: {', '.join(outputs)}")


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


def _resamples(arguments: argparse.Namespace, method: Any, task: Any, graph: Any) -> bool:
    """Whether to keep what each prompt scores. Methods without such scores, and one prompt, cannot be resampled."""
    if not arguments.resamples or "per_prompt" not in inspect.signature(method).parameters or len(task) < 2:
        return False
    size = 4 * len(task) * graph.n_edges
    if size > MOST_PROMPT_SCORES:
        _say(f"note: the scores of all prompts would take {size / 2**30:.1f} GiB, so nothing is resampled")
    return size <= MOST_PROMPT_SCORES


def _evaluate(arguments: argparse.Namespace) -> None:
    from acdc.evaluation.faithfulness import faithfulness, faithfulness_curve
    from acdc.metrics import METRICS

    circuit = _read_circuit(arguments.circuit)
    if arguments.curve and circuit.scores is None:
        raise AcdcError(f"{arguments.circuit} has no scores, so there is no curve over sizes; leave out --curve")
    model, task, batches = _load_again(arguments, circuit, circuit.provenance)
    metric = choose("metric", arguments.metric, METRICS)
    ablation = _learned(arguments, circuit, model, task) if arguments.ablation == "optimal" else arguments.ablation
    measured: dict[str, Any] = {"ablation": ablation, "progress": sys.stderr.isatty()}
    result = faithfulness(model, circuit, batches, metric, **measured)
    curves = [faithfulness_curve(model, circuit.scores, batches, metric, by=by, **measured)
              for by in ("magnitude", "signed")] if arguments.curve and circuit.scores else []
    print(f"{result.n_edges:,} of {circuit.graph.n_edges:,} edges on {result.n_prompts} prompts of {task.name} "
          f"(seed {arguments.seed}), {arguments.ablation} ablation")
    print(f"{metric.name}: {result.full:.4f} full, {result.circuit:.4f} circuit, {result.empty:.4f} all cut")
    print(f"faithfulness {result.faithfulness:.4f}{_exceeds(result.faithfulness)}")
    print("".join(_curve_lines(curves)), end="")
    if arguments.out:
        record = {**vars(result), "metric": metric.name, "ablation": arguments.ablation, "seed": arguments.seed,
                  "curves": [{"by": curve.by, "cpr": curve.cpr, "cmd": curve.cmd,
                              "points": [vars(point) for point in curve.points]} for curve in curves]}
        write_file(arguments.out, json.dumps(record, indent=1, allow_nan=False).encode())
        print(f"written to {arguments.out}")


def _learned(arguments: argparse.Namespace, circuit: Any, model: Any, measured: Any) -> Any:
    """The constants with which the circuit does best on the prompts that it was found with."""
    from acdc.models import check_prompts
    from acdc.optimal_ablation import learn_ablation
    from acdc.tasks import load_task  # pyright: ignore[reportMissingImports]

    known = circuit.provenance
    for key, kind in (("task_source", str), ("n_prompts", int), ("seed", int)):
        if not isinstance(known.get(key), kind):
            raise AcdcError(f"{arguments.circuit} does not say by its {key} which prompts it was found with, on which "
                            "the constants would be learned; in Python, learn_ablation takes any prompts")
    task = load_task(known["task_source"], model.tokenizer, n=known["n_prompts"], seed=known["seed"])
    batches = task.batches(model.tokenizer, batch_size=arguments.batch_size, device=arguments.device)
    check_prompts(model, batches)
    others = "; give --seed or --task to measure on others" if task.examples == measured.examples else ""
    print("optimal ablation: one constant a node, learned by kl_divergence on the "
          f"{len(task)} prompts that the circuit was found with{others}")
    return learn_ablation(model, batches, circuit=circuit, progress=sys.stderr.isatty())


def _calibrate(arguments: argparse.Namespace) -> None:
    from acdc.evaluation.calibration import calibrate
    from acdc.metrics import METRICS

    circuit = _read_circuit(arguments.circuit)
    if circuit.scores is None:
        raise AcdcError(f"{arguments.circuit} has no scores, so there is nothing to calibrate")
    check_calibration("--edges", arguments.edges)
    scored = circuit.scores.provenance  # its metric is what discovery worked with: the circuit's "loss"
    known = {**circuit.provenance, **{key: scored[key] for key in ("metric", "ablation") if key in scored}}
    model, task, batches = _load_again(arguments, circuit, known)
    metric = choose("metric", arguments.metric, METRICS)
    result = calibrate(model, circuit.scores, batches, metric, n=arguments.edges, size=circuit.n_edges,
                       seed=arguments.seed, ablation=arguments.ablation, progress=sys.stderr.isatty())
    print(f"{metric.name} when an edge alone is cut, measured, against its score"
          f"{' by ' + scored['method'] if 'method' in scored else ''}; {result.n_prompts} prompts of {task.name}, "
          f"seed {arguments.seed}, {arguments.ablation} ablation")
    print("".join(_calibration_lines(result)), end="")
    if arguments.out:
        sample, names = result.sample, circuit.graph.edge_name
        edges = [{"edge": names(int(edge)), "score": score, "effect": effect, "error": error, "weight": weight}
                 for edge, score, effect, error, weight in zip(
                     sample.edge, sample.score.tolist(), sample.effect.tolist(),
                     [error if math.isfinite(error) else None for error in sample.error.tolist()],
                     sample.weight.tolist(), strict=True)]
        record = {**result.summary(), "metric": metric.name, "ablation": arguments.ablation, "edges": edges}
        write_file(arguments.out, json.dumps(record, indent=1, allow_nan=False).encode())
        print(f"written to {arguments.out}")


def _load_again(arguments: argparse.Namespace, circuit: Any, known: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """The model, the task and its batches for a saved circuit; what was not given is taken from `known`."""
    from acdc.models import weights_hash
    from acdc.patching import check_graph

    _complete(arguments, known)
    if arguments.out and (arguments.out.is_dir() or not arguments.out.parent.is_dir()):
        what = "that is a folder" if arguments.out.is_dir() else f"{arguments.out.parent} is not a folder"
        raise AcdcError(f"cannot write to {arguments.out}: {what}; give --out a file in a folder that exists")
    model, task, batches = _load(arguments)
    check_graph(model, circuit.graph)
    if "model_sha256" in known and not arguments.other_weights and weights_hash(model) != known["model_sha256"]:
        raise AcdcError(
            f"the circuit was found in {known.get('model')!r} ({known.get('dtype')}) with other weights than "
            f"{arguments.model!r} ({arguments.dtype}) has: their sha256 is not {known['model_sha256']!r}. Give that "
            "model, or --other-weights to compare checkpoints"
        )
    if arguments.task == known.get("task_source") and known.get("task_sha256") != task.provenance.get("sha256"):
        _say(f"note: {arguments.task} is not as it was when the circuit was found")
    return model, task, batches


def _complete(arguments: argparse.Namespace, known: Mapping[str, Any]) -> None:
    """Takes what was not given from the circuit. How many prompts holds for its own task only."""
    if arguments.task is not None and getattr(arguments, "prompts", None) is None:
        known = {**known, "n_prompts": None}
    for name, key in (("model", "model"), ("task", "task_source"), ("metric", "metric"), ("ablation", "ablation"),
                      ("prompts", "n_prompts"), ("seed", "seed"), ("dtype", "dtype")):
        if getattr(arguments, name, None) is None:
            if key not in known:
                raise AcdcError(f"{arguments.circuit} does not say its {name}; give --{name}")
            kind = int if name in ("prompts", "seed") else str
            if not isinstance(known[key], kind) and not (name == "prompts" and known[key] is None):
                raise AcdcError(f"{arguments.circuit}: {key} is {known[key]!r}, not {kind.__name__}; give --{name}")
            setattr(arguments, name, known[key])


def _show(arguments: argparse.Namespace) -> None:
    from acdc.export.text import describe

    for name in ("edges", "paths"):
        if getattr(arguments, name) < 0:
            raise AcdcError(f"--{name} {getattr(arguments, name)}: it must be 0 or more")
    print(describe(_read_circuit(arguments.circuit), n_edges=arguments.edges, n_paths=arguments.paths))


def _tasks(arguments: argparse.Namespace) -> None:
    from acdc.tasks import TASKS  # pyright: ignore[reportMissingImports]

    for name, builder in TASKS.items():
        print(f"{name:<12} {(inspect.getdoc(builder) or '').splitlines()[0]}")
    print("\nor the path of a .json, .jsonl or .csv file of clean, corrupted, answer, wrong")


def _models(arguments: argparse.Namespace) -> None:
    from acdc.architectures import ARCHITECTURES
    from acdc.packaged import PACKAGED

    for name, packaged in PACKAGED.items():
        print(f"{name:<12} {packaged.description}")
    print(f"\nor a hub name or local folder of one of these architectures: {', '.join(ARCHITECTURES)}")


def _load(arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    """The model, the task and its batches that the arguments ask for."""
    import transformers

    from acdc.models import check_prompts, load_model
    from acdc.tasks import load_task  # pyright: ignore[reportMissingImports]

    check_measuring(arguments)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    _say(f"loading {arguments.model}")
    model = load_model(arguments.model, dtype=arguments.dtype, device=arguments.device)
    task = load_task(arguments.task, model.tokenizer, n=arguments.prompts, seed=arguments.seed)
    batches = task.batches(model.tokenizer, batch_size=arguments.batch_size, device=arguments.device)
    check_prompts(model, batches)
    return model, task, batches


def _model_and_task(arguments: argparse.Namespace, model: Any, task: Any) -> dict[str, Any]:
    """What a circuit must remember to be measured again."""
    from acdc.models import weights_hash
    from acdc.tasks import TASKS  # pyright: ignore[reportMissingImports]

    is_file = arguments.task not in TASKS
    example = task.examples[0]
    return {
        "model": arguments.model,
        "model_sha256": weights_hash(model),
        "dtype": arguments.dtype,
        "task": task.name,
        "task_source": str(Path(arguments.task).resolve()) if is_file else arguments.task,
        "task_description": task.description,
        "example": {key: getattr(example, key) for key in ("clean", "corrupted", "answer", "wrong")},
        "task_sha256": task.provenance.get("sha256"),
        "n_prompts": len(task),
        "seed": arguments.seed,
        "batch_size": arguments.batch_size,
        "versions": {"python": platform.python_version(),
                     **{p: importlib.metadata.version(p) for p in ("acdc", "torch", "transformers", "numpy")}},
    }


def _read_circuit(path: Path) -> Any:
    from acdc.export.json_file import circuit_from_json

    path = path / "circuit.json" if path.is_dir() else path
    try:
        return circuit_from_json(path.read_text(encoding="utf-8"), source=str(path))
    except FileNotFoundError as error:
        remedy = "give the circuit.json, or the folder, that discover wrote"
        raise AcdcError(f"no circuit file {str(path)!r}; {remedy}") from error
    except UnicodeDecodeError as error:
        raise AcdcError(f"{path} is not a circuit file: it is not UTF-8 text") from error


def _write_outputs(folder: OutputFolder, circuit: Any, curves: Sequence[Any], chosen: Any, uncertainty: Any) -> None:
    from acdc.export.curve_figure import curve_figure
    from acdc.export.edge_table import edge_table
    from acdc.export.figure import circuit_figure, save_figure
    from acdc.export.history_figure import mask_history_figure
    from acdc.export.json_file import circuit_to_json
    from acdc.export.report import report

    provenance = circuit.provenance
    title = f"{provenance['task']} in {Path(provenance['model']).name} by {provenance['method']}"
    (folder.path / "circuit.json").write_text(circuit_to_json(circuit), encoding="utf-8")
    drawing = circuit_figure(circuit, title=title)
    save_figure(drawing, folder.path / "circuit.svg")
    save_figure(drawing, folder.path / "circuit.png")
    save_figure(curve_figure(curves, chosen=chosen, title=title), folder.path / "curve.png")
    if history := circuit.scores.provenance.get("history"):
        save_figure(mask_history_figure(history, title=f"{title}: learning the masks"), folder.path / "masks.png")
    (folder.path / "edges.csv").write_text(edge_table(circuit, uncertainty), encoding="utf-8")
    (folder.path / "report.md").write_text(report(circuit, curves, uncertainty), encoding="utf-8")


def _summary(circuit: Any, curves: Sequence[Any]) -> str:
    known, total = circuit.provenance, circuit.graph.n_edges
    return (
        f"{known['metric']}: {known['clean_metric']:.4f} clean, {known['corrupted_metric']:.4f} with all edges cut\n"
        f"circuit: {circuit.n_edges:,} of {total:,} edges ({circuit.n_edges / total:.1%}; {known['selection']}), "
        f"faithfulness {known['faithfulness']:.4f}{_exceeds(known['faithfulness'])}\n{''.join(_curve_lines(curves))}"
        f"{''.join(_trust_lines(known))}"
    ).rstrip()


def _trust_lines(known: Mapping[str, Any]) -> Iterator[str]:
    from acdc.export.report import agreement_text, resampling_text

    if "uncertainty" in known:
        yield f"\nother prompts: {resampling_text(known['uncertainty'])}\n"
    if "calibration" in known:
        yield f"exact effects: {agreement_text(known['calibration']['overall'])}\n"


def _curve_lines(curves: Sequence[Any]) -> Iterator[str]:
    from acdc.evaluation.curve import exceeds

    if not curves:
        return
    yield f"\n{'edges kept':>20}" + "".join(f"{'f, ' + curve.by:>14}" for curve in curves) + "\n"
    for points in zip(*(curve.points for curve in curves), strict=True):
        yield f"{points[0].n_edges:>11,} ({points[0].fraction:>5.1%})" + "".join(
            f"{point.faithfulness:>13.3f}{'*' if exceeds(point.faithfulness) else ' '}" for point in points) + "\n"
    yield f"{'CPR':>20}" + "".join(f"{curve.cpr:>13.3f} " for curve in curves) + "\n"
    yield f"{'CMD':>20}" + "".join(f"{curve.cmd:>13.3f} " for curve in curves) + "\n"
    if any(exceeds(point.faithfulness) for curve in curves for point in curve.points):
        yield "* f > 1: the circuit exceeds the full model, because what it leaves out works against the task\n"


def _calibration_lines(result: Any) -> Iterator[str]:
    def cell(value: float | None, spec: str) -> str:
        return "-" if value is None else format(value, spec)

    yield f"{'edges into':<10} {'scored':>9} {'patched':>8} {'Pearson':>8} {'Spearman':>9} {'sign agrees':>17} missed\n"
    for row in (*result.kinds, result.overall):
        sign = f"{cell(row.sign_agreement, '.1%')} of {row.n_distinguishable:,}"
        missed = "-" if row.missed is None else f"{row.missed:.1%} ({row.missed_low:.1%} to {row.missed_high:.1%})"
        yield (f"{row.kind:<10} {row.n_edges:>9,} {row.n_sampled:>8,} {cell(row.pearson, '.3f'):>8} "
               f"{cell(row.spearman, '.3f'):>9} {sign:>17} {missed}\n")
    yield "sign agrees: among the patched edges whose effect is distinguishable from 0 over the prompts\n"
    if result.threshold is not None:
        yield (f"missed: of the edges with |effect| >= {result.threshold:.4g}, the share that the top {result.size:,} "
               "by |score| leaves out, with a 95% interval\n")
    if result.n_untried:
        yield f"left out: {result.n_untried:,} edges that were never tried\n"


def _exceeds(value: float) -> str:
    from acdc.evaluation.curve import exceeds

    return "  (f > 1: the circuit exceeds the full model)" if exceeds(value) else ""


def _say(text: str) -> None:
    print(text, file=sys.stderr)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


COMMANDS = {
    "discover": _discover, "evaluate": _evaluate, "calibrate": _calibrate, "show": _show, "tasks": _tasks,
    "models": _models,
}


if __name__ == "__main__":
    sys.exit(main())

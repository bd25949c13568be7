"""The command line: `acdc discover`, `evaluate`, `show`, `tasks`, `models`. The only prints are here."""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from acdc.errors import AcdcError, unknown_name
from acdc.output_folder import OutputFolder, output_folder, write_file

OUTPUTS = ("circuit.json", "circuit.svg", "circuit.png", "curve.png", "report.md")
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # how PyTorch says it, by device


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status. A user's mistake is one line on stderr and status 1 (2 where the
    command line itself is wrong, as argparse has it)."""
    given = sys.argv[1:] if argv is None else list(argv)
    arguments = _parser().parse_args(given, argparse.Namespace(command_line=shlex.join(["acdc", *given])))
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


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as every other is reported: in one line."""

    def error(self, message: str) -> NoReturn:
        sys.exit(_fail(f"{message}. `{self.prog} --help` lists the options", status=2))


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that the help does not tell in words."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="acdc", description="Automated circuit discovery for transformers.")
    parser.add_argument("--version", action="version", version=f"acdc {importlib.metadata.version('acdc')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, formatter_class=_Help)
        sub.set_defaults(run=run)
        return sub

    discover = command("discover", _discover, "find a circuit and write it, its pictures and a report to a folder")
    discover.add_argument("--model", default="smollm2", help="packaged model, hub name or local folder")
    discover.add_argument("--task", default="ioi", help="a built-in task, or a .json, .jsonl or .csv file of prompts")
    discover.add_argument("--method", default="eap_ig", help="eap, eap_ig, exact, acdc or acdc_sequential")
    _add_measuring(discover, from_circuit=False)
    discover.add_argument("--kv", default="head", help="k and v channels of each query head, or of each KV group: "
                          "head or group")
    discover.add_argument("--loss", help="the metric that discovery works with (default: the --metric)")
    discover.add_argument("--steps", type=int, help="eap_ig: points on the path (default 5)")
    discover.add_argument("--threshold", type=float, help="acdc: keep an edge if the loss rises by this much without "
                          "it (default 0.01)")
    discover.add_argument("--effect", help="acdc: signed (default), or absolute to keep also what hurts")
    discover.add_argument("--order", help="acdc: try the srcs of a channel from the latest (default) or the earliest")
    discover.add_argument("--shortlist", help="acdc: try only so many edges (500) or such a share (2%%), those of the "
                          "highest |eap_ig score|; all others are removed untested")
    discover.add_argument("--memory", type=float, dest="memory_gib", help="acdc: GiB for removals tried at once "
                          "(default 1)")
    discover.add_argument("--journal", type=Path, help="acdc: the file that decisions are written to, from which a "
                          "run that was killed goes on (default: the --out folder's name + .journal, gone at the end)")
    discover.add_argument("--by", default="magnitude", help="rank edges by score (signed) or its size (magnitude)")
    size = discover.add_mutually_exclusive_group()
    size.add_argument("--size", help="keep so many edges (500) or such a share (2%%); default: the smallest on the "
                      "curve with faithfulness within 10%% of 1")
    size.add_argument("--above", type=float, help="keep the edges that rank above this score")
    discover.add_argument("--greedy", action="store_true", help="with --size: grow the circuit from the logits")
    discover.add_argument("--drop-dangling", action="store_true", help="then drop edges on no path from input to "
                          "logits")
    discover.add_argument("--out", type=Path, help="folder to write (default: circuits/MODEL-TASK-METHOD)")
    discover.add_argument("--overwrite", action="store_true", help="replace the circuit that is there")

    evaluate = command("evaluate", _evaluate, "measure a saved circuit, on its own prompts or on others")
    evaluate.add_argument("circuit", type=Path, help="circuit.json, or the folder that holds it")
    evaluate.add_argument("--model", help="default: the circuit's")
    evaluate.add_argument("--task", help="default: the circuit's; of another, 32 prompts are taken, or all of a file")
    _add_measuring(evaluate, from_circuit=True)
    evaluate.add_argument("--curve", action="store_true", help="also the curve over sizes, with CPR and CMD")
    evaluate.add_argument("--other-weights", action="store_true", help="allow a model of other weights, such as "
                          "another checkpoint")
    evaluate.add_argument("--out", type=Path, help="also write the numbers to this JSON file")

    show = command("show", _show, "describe a saved circuit: nodes, strongest edges and paths")
    show.add_argument("circuit", type=Path, help="circuit.json, or the folder that holds it")
    show.add_argument("--edges", type=int, default=20, help="how many edges")
    show.add_argument("--paths", type=int, default=10, help="how many paths")

    command("tasks", _tasks, "list the built-in tasks")
    command("models", _models, "list the packaged models and the supported architectures")
    return parser


def _add_measuring(parser: argparse.ArgumentParser, *, from_circuit: bool) -> None:
    """Options that say on what and how a circuit is measured; `evaluate` takes them from the circuit."""

    def add(name: str, default: Any, help: str, otherwise: str = "", **kwargs: Any) -> None:
        """`otherwise`: the default in words."""
        parser.add_argument(name, default=argparse.SUPPRESS if from_circuit else default,
                            help=f"{help} (default: the circuit's)" if from_circuit else help + otherwise, **kwargs)

    add("--metric", None, "logit_difference, probability_difference, kl_divergence, ...", " (default: the task's)")
    add("--ablation", "resample", "what cut edges carry: resample, mean, mean_over_positions or zero")
    add("--prompts", None, "how many pairs of prompts", " (default: 32, or all of a file)", type=int)
    add("--seed", 0, "which prompts are drawn", type=int)
    add("--dtype", "float32", "float32, bfloat16 or float64")
    parser.add_argument("--batch-size", type=int, default=32, help="prompts a forward pass")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")


def _discover(arguments: argparse.Namespace) -> None:
    from acdc.circuit import Circuit
    from acdc.discovery import METHODS
    from acdc.evaluation.faithfulness import faithfulness, faithfulness_curve, measure
    from acdc.metrics import METRICS

    method = _choose("method", arguments.method, METHODS)
    options = _method_options(arguments, method)
    _check_selection(arguments)
    if arguments.loss is not None:
        _choose("metric", arguments.loss, METRICS)
    name = f"{Path(arguments.model).resolve().name}-{Path(arguments.task).stem}-{arguments.method}"
    seconds: dict[str, float] = {}
    out = arguments.out or Path("circuits") / name
    keeps_journal = "journal" in options
    if "journal" in inspect.signature(method).parameters:
        options.setdefault("journal", out.with_name(f"{out.name}.journal"))
    with output_folder(out, OUTPUTS, arguments.overwrite) as folder:
        with _timed(seconds, "load"):
            model, task, batches = _load(arguments)
        metric = _choose("metric", arguments.metric or task.metric, METRICS)
        loss = _choose("metric", arguments.loss or metric.name, METRICS)
        _say(f"{len(task)} pairs of prompts such as {task.examples[0].clean!r} -> {task.examples[0].answer!r}")
        measured: dict[str, Any] = {"ablation": arguments.ablation, "progress": sys.stderr.isatty()}
        measure(model, [], batches, metric, **measured)  # refuses a task that the model cannot do, before the work
        size = None if arguments.size is None else _size(arguments.size, model.graph(arguments.kv).n_edges)
        with _timed(seconds, "discover"):
            if "shortlist" in options:
                n = _size(options["shortlist"], model.graph(arguments.kv).n_edges, "--shortlist")
                candidates = METHODS["eap_ig"](model, batches, metric, kv=arguments.kv, **measured)
                options["shortlist"] = candidates.top(n, by="magnitude")
            scores = method(model, batches, loss, kv=arguments.kv, **options, **measured)
        with _timed(seconds, "evaluate"):
            curves = [faithfulness_curve(model, scores, batches, metric, by=by, **measured)
                      for by in ("magnitude", "signed")]
            chosen = None
            threshold = scores.provenance["method_options"].get("threshold")
            if arguments.above is not None:
                circuit = scores.above(arguments.above, by=arguments.by)
            elif size is None and threshold is not None:
                absolute = scores.provenance["method_options"].get("effect") == "absolute"
                circuit = scores.above(threshold, by="magnitude" if absolute else "signed")
            else:
                curve = next(curve for curve in curves if curve.by == arguments.by)
                if size is None:
                    chosen = curve.smallest_faithful() or curve.points[-1]
                    size = chosen.n_edges
                circuit = (scores.greedy if arguments.greedy else scores.top)(size, by=arguments.by)
            selection = circuit.provenance["selection"]
            if arguments.drop_dangling:
                circuit, selection = circuit.drop_dangling(), f"{selection}, dangling edges dropped"
            result = faithfulness(model, circuit, batches, metric, **measured)
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
            "command": arguments.command_line,
            "seconds": {stage: round(value, 2) for stage, value in seconds.items()},
        }
        circuit = Circuit(circuit.graph, circuit.kept, circuit.scores, provenance)
        _write_outputs(folder, circuit, curves, chosen)
    if "journal" in options and not keeps_journal:
        options["journal"].unlink(missing_ok=True)
    print(_summary(circuit, curves))
    print(f"\nwritten to {folder.target}: {', '.join(OUTPUTS)}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from acdc.evaluation.faithfulness import faithfulness, faithfulness_curve
    from acdc.metrics import METRICS
    from acdc.models import weights_hash
    from acdc.patching import check_graph

    circuit = _read_circuit(arguments.circuit)
    known = circuit.provenance
    _complete(arguments, known)
    if arguments.curve and circuit.scores is None:
        raise AcdcError(f"{arguments.circuit} has no scores, so there is no curve over sizes; leave out --curve")
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
    metric = _choose("metric", arguments.metric, METRICS)
    measured: dict[str, Any] = {"ablation": arguments.ablation, "progress": sys.stderr.isatty()}
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

    _check_measuring(arguments)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    _say(f"loading {arguments.model}")
    model = load_model(arguments.model, dtype=arguments.dtype, device=arguments.device)
    task = load_task(arguments.task, model.tokenizer, n=arguments.prompts, seed=arguments.seed)
    batches = task.batches(model.tokenizer, batch_size=arguments.batch_size, device=arguments.device)
    check_prompts(model, batches)
    return model, task, batches


def _check_measuring(arguments: argparse.Namespace) -> None:
    """Refuses what can be seen to be wrong before a model is loaded, which takes seconds or minutes."""
    import torch

    from acdc.ablation import ABLATIONS
    from acdc.metrics import METRICS
    from acdc.models import DTYPES
    from acdc.tasks import TASKS  # pyright: ignore[reportMissingImports]

    if arguments.task not in TASKS and not Path(arguments.task).is_file():
        known = unknown_name("task", arguments.task, TASKS)
        raise AcdcError(f"{known}. It may be a .json, .jsonl or .csv file too, but there is no file of this name")
    if arguments.metric is not None:
        _choose("metric", arguments.metric, METRICS)
    _choose("ablation", arguments.ablation, dict.fromkeys(ABLATIONS))
    _choose("dtype", arguments.dtype, DTYPES)
    for name in ("prompts", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise AcdcError(f"--{name.replace('_', '-')} {value}: it must be at least 1")
    try:
        torch.zeros(1, device=arguments.device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise AcdcError(f"cannot use device {arguments.device!r}: {str(error).splitlines()[0]}") from error


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


def _choose(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    if name not in table:
        raise unknown_name(kind, name, table)
    return table[name]


def _method_options(arguments: argparse.Namespace, method: Callable[..., Any]) -> dict[str, Any]:
    """The options given for this method; one that it does not take is an error."""
    names = ("steps", "threshold", "effect", "order", "shortlist", "memory_gib", "journal")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    taken = inspect.signature(method).parameters
    for name in given:
        if name not in taken:
            option = name.removesuffix("_gib")
            raise AcdcError(f"method {arguments.method!r} takes no --{option}; leave it out or choose another method")
    if given.get("steps", 1) < 1:
        raise AcdcError(f"--steps {given['steps']}: it must be at least 1")
    if not math.isfinite(given.get("threshold", 0)):
        raise AcdcError(f"--threshold {given['threshold']}: it must be a finite number")
    if not 0 < given.get("memory_gib", 1) < math.inf:
        raise AcdcError(f"--memory {given['memory_gib']}: it must be a number of GiB above 0")
    _choose("effect", given.get("effect", "signed"), {"signed": None, "absolute": None})
    _choose("order", given.get("order", "latest"), {"latest": None, "earliest": None})
    if "shortlist" in given:
        _size(given["shortlist"], option="--shortlist")
    return given


def _check_selection(arguments: argparse.Namespace) -> None:
    """Refuses what can be seen to be wrong before anything is computed."""
    _choose("ranking", arguments.by, {"signed": None, "magnitude": None})
    _choose("kv", arguments.kv, {"head": None, "group": None})
    if arguments.size is not None:
        _size(arguments.size)
    if arguments.above is not None and not math.isfinite(arguments.above):
        raise AcdcError(f"--above {arguments.above}: it must be a finite number")
    if arguments.greedy and arguments.size is None:
        raise AcdcError("--greedy grows a circuit to a --size; give that too")


def _size(text: str, n_edges: int | None = None, option: str = "--size") -> int:
    """How many edges `500` or `2%` means; without `n_edges`, only whether it can mean any."""
    is_share = text.endswith("%")
    try:
        number = float(text[:-1]) if is_share else int(text)
    except ValueError:
        number = -1
    if not 0 <= number <= (100 if is_share else math.inf):
        raise AcdcError(f"{option} {text!r} is neither a number of edges (500) nor a share of them (2%, 0% to 100%)")
    size = int(number / 100 * (n_edges or 0) if is_share else number)
    if n_edges is not None and size > n_edges:
        raise AcdcError(f"{option} {text}: the graph has {n_edges:,} edges; ask for 0 to {n_edges:,}, or 0% to 100%")
    return size


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


def _write_outputs(folder: OutputFolder, circuit: Any, curves: Sequence[Any], chosen: Any) -> None:
    from acdc.export.curve_figure import curve_figure
    from acdc.export.figure import circuit_figure, save_figure
    from acdc.export.json_file import circuit_to_json
    from acdc.export.report import report

    provenance = circuit.provenance
    title = f"{provenance['task']} in {Path(provenance['model']).name} by {provenance['method']}"
    (folder.path / "circuit.json").write_text(circuit_to_json(circuit), encoding="utf-8")
    drawing = circuit_figure(circuit, title=title)
    save_figure(drawing, folder.path / "circuit.svg")
    save_figure(drawing, folder.path / "circuit.png")
    save_figure(curve_figure(curves, chosen=chosen, title=title), folder.path / "curve.png")
    (folder.path / "report.md").write_text(report(circuit, curves), encoding="utf-8")


def _summary(circuit: Any, curves: Sequence[Any]) -> str:
    known, total = circuit.provenance, circuit.graph.n_edges
    return (
        f"{known['metric']}: {known['clean_metric']:.4f} clean, {known['corrupted_metric']:.4f} with all edges cut\n"
        f"circuit: {circuit.n_edges:,} of {total:,} edges ({circuit.n_edges / total:.1%}; {known['selection']}), "
        f"faithfulness {known['faithfulness']:.4f}{_exceeds(known['faithfulness'])}\n{''.join(_curve_lines(curves))}"
    ).rstrip()


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


if __name__ == "__main__":
    sys.exit(main())

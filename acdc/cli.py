"""The command line: `acdc discover`, `evaluate`, `show`, `tasks`, `models`. The only prints are here."""

import argparse
import importlib.metadata
import inspect
import json
import logging
import os
import platform
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from acdc.errors import AcdcError, unknown_name

OUTPUTS = ("circuit.json", "circuit.svg", "circuit.png", "curve.png", "report.md")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status. A user's mistake is one line on stderr and status 1."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("acdc").setLevel(logging.INFO)
    try:
        arguments.run(arguments)
    except AcdcError as error:
        print(f"acdc: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"acdc: {error.strerror or error}: {error.filename or 'no file named'}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("acdc: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="acdc", description="Automated circuit discovery for transformers.")
    parser.add_argument("--version", action="version", version=f"acdc {importlib.metadata.version('acdc')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help,
                                  formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        sub.set_defaults(run=run)
        return sub

    discover = command("discover", _discover, "find a circuit and write it, its pictures and a report to a folder")
    discover.add_argument("--model", default="smollm2", help="packaged model, hub name or local folder")
    discover.add_argument("--task", default="ioi", help="a built-in task, or a .json, .jsonl or .csv file of prompts")
    discover.add_argument("--method", default="eap_ig", help="eap, eap_ig, exact or acdc")
    _add_measuring(discover, from_circuit=False)
    discover.add_argument("--kv", default="head", help="k and v channels of each query head, or of each KV group: "
                          "head or group")
    discover.add_argument("--steps", type=int, help="eap_ig: points on the path (default 5)")
    discover.add_argument("--threshold", type=float, help="acdc: keep an edge if the loss rises by this much without "
                          "it (default 0.01)")
    discover.add_argument("--by", default="magnitude", help="rank edges by score (signed) or its size (magnitude)")
    size = discover.add_mutually_exclusive_group()
    size.add_argument("--size", help="keep so many edges (500) or such a share (2%%); default: the smallest on the "
                      "curve with faithfulness within 10%% of 1")
    size.add_argument("--above", type=float, help="keep the edges that rank above this score")
    discover.add_argument("--greedy", action="store_true", help="with --size: grow the circuit from the logits")
    discover.add_argument("--drop-dangling", action="store_true", help="then drop edges on no path from input to logits")
    discover.add_argument("--out", type=Path, help="folder to write (default: circuits/MODEL-TASK-METHOD)")
    discover.add_argument("--overwrite", action="store_true", help="replace the circuit that is there")

    evaluate = command("evaluate", _evaluate, "measure a saved circuit, on its own prompts or on others")
    evaluate.add_argument("circuit", type=Path, help="circuit.json, or the folder that holds it")
    evaluate.add_argument("--model", help="default: the circuit's")
    evaluate.add_argument("--task", help="default: the circuit's")
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

    def add(name: str, default: Any, help: str, **kwargs: Any) -> None:
        parser.add_argument(name, default=argparse.SUPPRESS if from_circuit else default,
                            help=f"{help} (default: the circuit's)" if from_circuit else help, **kwargs)

    add("--metric", None, "logit_difference, probability_difference, kl_divergence, ...; default: the task's")
    add("--ablation", "resample", "what cut edges carry: resample, mean, mean_over_positions or zero")
    add("--prompts", None, "how many pairs of prompts; default: 32, or all of a file", type=int)
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
    _choose("ranking", arguments.by, {"signed": None, "magnitude": None})
    name = f"{Path(arguments.model).name}-{Path(arguments.task).stem}-{arguments.method}"
    seconds: dict[str, float] = {}
    with _output_folder(arguments.out or Path("circuits") / name, arguments.overwrite) as folder:
        with _timed(seconds, "load"):
            model, task, batches = _load(arguments)
        metric = _choose("metric", arguments.metric or task.metric, METRICS)
        _say(f"{len(task)} pairs of prompts such as {task.examples[0].clean!r} -> {task.examples[0].answer!r}")
        measured: dict[str, Any] = {"ablation": arguments.ablation, "progress": sys.stderr.isatty()}
        measure(model, [], batches, metric, **measured)  # refuses a task that the model cannot do, before the work
        size = _size(arguments.size, model.graph(arguments.kv).n_edges)
        with _timed(seconds, "discover"):
            scores = method(model, batches, metric, kv=arguments.kv, **options, **measured)
        with _timed(seconds, "evaluate"):
            curves = [faithfulness_curve(model, scores, batches, metric, by=by, **measured)
                      for by in ("magnitude", "signed")]
            chosen = None
            threshold = scores.provenance["method_options"].get("threshold")
            if arguments.above is not None:
                circuit = scores.above(arguments.above, by=arguments.by)
            elif size is None and threshold is not None:
                circuit = scores.above(threshold, by="signed")
            else:
                curve = next(curve for curve in curves if curve.by == arguments.by)
                if size is None:
                    chosen = curve.smallest_faithful() or curve.points[-1]
                    size = chosen.n_edges
                circuit = (scores.greedy if arguments.greedy else scores.top)(size, by=arguments.by)
            if arguments.drop_dangling:
                circuit = circuit.drop_dangling()
            result = faithfulness(model, circuit, batches, metric, **measured)
        provenance = {
            **circuit.provenance,
            **_model_and_task(arguments, model, task),
            "metric": metric.name,
            "clean_metric": result.full,
            "corrupted_metric": result.empty,
            "circuit_metric": result.circuit,
            "faithfulness": result.faithfulness,
            "command": shlex.join(["acdc", *sys.argv[1:]]),
            "seconds": {stage: round(value, 2) for stage, value in seconds.items()},
        }
        circuit = Circuit(circuit.graph, circuit.kept, circuit.scores, provenance)
        _write_outputs(folder, circuit, curves, chosen)
    print(_summary(circuit, curves))
    print(f"\nwritten to {folder.target}: {', '.join(OUTPUTS)}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from acdc.evaluation.faithfulness import faithfulness, faithfulness_curve
    from acdc.metrics import METRICS
    from acdc.models import weights_hash

    circuit = _read_circuit(arguments.circuit)
    known = circuit.provenance
    for name, key in (("model", "model"), ("task", "task_source"), ("metric", "metric"), ("ablation", "ablation"),
                      ("prompts", "n_prompts"), ("seed", "seed"), ("dtype", "dtype")):
        if getattr(arguments, name, None) is None:
            if key not in known:
                raise AcdcError(f"{arguments.circuit} does not say its {name}; give --{name}")
            setattr(arguments, name, known[key])
    model, task, batches = _load(arguments)
    if "model_sha256" in known and not arguments.other_weights and weights_hash(model) != known["model_sha256"]:
        raise AcdcError(
            f"the circuit was found in {known['model']!r} with other weights than {arguments.model!r} has (sha256 "
            f"{known['model_sha256'][:12]}...). Give that model, or --other-weights to compare checkpoints"
        )
    metric = _choose("metric", arguments.metric, METRICS)
    measured: dict[str, Any] = {"ablation": arguments.ablation, "progress": sys.stderr.isatty()}
    result = faithfulness(model, circuit, batches, metric, **measured)
    if arguments.curve and circuit.scores is None:
        raise AcdcError(f"{arguments.circuit} has no scores, so there is no curve over sizes; leave out --curve")
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
        _write_file(arguments.out, json.dumps(record, indent=1, allow_nan=False).encode())
        print(f"written to {arguments.out}")


def _show(arguments: argparse.Namespace) -> None:
    from acdc.export.text import describe

    print(describe(_read_circuit(arguments.circuit), n_edges=arguments.edges, n_paths=arguments.paths))


def _tasks(arguments: argparse.Namespace) -> None:
    from acdc.tasks import TASKS

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
    import torch
    import transformers

    from acdc.ablation import ABLATIONS
    from acdc.models import DTYPES, load_model
    from acdc.tasks import load_task

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    _choose("ablation", arguments.ablation, dict.fromkeys(ABLATIONS))
    _choose("dtype", arguments.dtype, DTYPES)
    try:
        device = torch.device(arguments.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise AcdcError(f"cannot use device {arguments.device!r}: {str(error).splitlines()[0]}") from error
    _say(f"loading {arguments.model}")
    model = load_model(arguments.model, dtype=arguments.dtype, device=device)
    task = load_task(arguments.task, model.tokenizer, n=arguments.prompts, seed=arguments.seed)
    return model, task, task.batches(model.tokenizer, batch_size=arguments.batch_size, device=device)


def _model_and_task(arguments: argparse.Namespace, model: Any, task: Any) -> dict[str, Any]:
    """What a circuit must remember to be measured again."""
    from acdc.models import weights_hash

    is_file = Path(arguments.task).exists() and Path(arguments.task).is_file()
    example = task.examples[0]
    return {
        "model": arguments.model,
        "model_sha256": weights_hash(model),
        "dtype": arguments.dtype,
        "task": task.name,
        "task_source": str(Path(arguments.task).resolve()) if is_file else arguments.task,
        "task_description": task.description,
        "example": {key: getattr(example, key) for key in ("clean", "corrupted", "answer", "wrong")},
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
    given = {name: getattr(arguments, name) for name in ("steps", "threshold") if getattr(arguments, name) is not None}
    taken = inspect.signature(method).parameters
    for name in given:
        if name not in taken:
            raise AcdcError(f"method {arguments.method!r} takes no --{name}; leave it out or choose another method")
    return given


def _size(text: str | None, n_edges: int) -> int | None:
    """How many edges `500` or `2%` means."""
    if text is None:
        return None
    try:
        size = int(float(text[:-1]) / 100 * n_edges) if text.endswith("%") else int(text)
    except (ValueError, OverflowError) as error:
        raise AcdcError(f"--size {text!r} is neither a number of edges (500) nor a share of them (2%)") from error
    if not 0 <= size <= n_edges:
        raise AcdcError(f"--size {text}: the graph has {n_edges:,} edges; ask for 0 to {n_edges:,}, or 0% to 100%")
    return size


def _read_circuit(path: Path) -> Any:
    from acdc.export.json_file import circuit_from_json

    path = path / "circuit.json" if path.is_dir() else path
    try:
        return circuit_from_json(path.read_text(encoding="utf-8"), source=str(path))
    except FileNotFoundError as error:
        raise AcdcError(f"no circuit file {str(path)!r}; give the circuit.json, or the folder, that discover wrote") from error
    except UnicodeDecodeError as error:
        raise AcdcError(f"{path} is not a circuit file: it is not UTF-8 text") from error


def _write_outputs(folder: "OutputFolder", circuit: Any, curves: Sequence[Any], chosen: Any) -> None:
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
    if not curves:
        return
    yield f"\n{'edges kept':>20}" + "".join(f"{'f, ' + curve.by:>14}" for curve in curves) + "\n"
    for points in zip(*(curve.points for curve in curves), strict=True):
        yield f"{points[0].n_edges:>11,} ({points[0].fraction:>5.1%})" + "".join(
            f"{point.faithfulness:>13.3f}{'*' if point.faithfulness > 1.05 else ' '}" for point in points) + "\n"
    yield f"{'CPR':>20}" + "".join(f"{curve.cpr:>13.3f} " for curve in curves) + "\n"
    yield f"{'CMD':>20}" + "".join(f"{curve.cmd:>13.3f} " for curve in curves) + "\n"
    if any(point.faithfulness > 1.05 for curve in curves for point in curve.points):
        yield "* f > 1: the circuit exceeds the full model, because what it leaves out works against the task\n"


def _exceeds(value: float) -> str:
    return "  (f > 1: the circuit exceeds the full model)" if value > 1.05 else ""


def _say(text: str) -> None:
    print(text, file=sys.stderr)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


class OutputFolder:
    """`target`, the folder that a command writes, and `path`, where it is built until it is complete."""

    def __init__(self, target: Path, path: Path) -> None:
        self.target, self.path = target, path


@contextmanager
def _output_folder(target: Path, overwrite: bool) -> Iterator[OutputFolder]:
    """A folder that appears whole at the end, or not at all. Other files in an existing folder are left alone."""
    if target.exists() and not target.is_dir():
        raise AcdcError(f"cannot write to {target}: it is a file; --out must name a folder")
    there = [name for name in OUTPUTS if (target / name).exists()]
    if there and not overwrite:
        raise AcdcError(f"{target} already holds {there[0]}; give another --out, or --overwrite to replace it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise AcdcError(f"cannot write to {target}: {error.strerror}; give an --out that can be written") from error
    try:
        yield OutputFolder(target, path)
        target.mkdir(exist_ok=True)
        for name in OUTPUTS:
            _sync(path / name)
            os.replace(path / name, target / name)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _write_file(path: Path, content: bytes) -> None:
    """Writes a file whole, or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        file.write(content)
    _sync(Path(file.name))
    os.replace(file.name, path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


if __name__ == "__main__":
    sys.exit(main())

"""What the command line takes, and which values are refused before anything is loaded or computed."""

import argparse
import importlib.metadata
import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from acdc.errors import AcdcError, unknown_name


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as every other is reported: in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"acdc: {' '.join(message.splitlines())}. `{self.prog} --help` lists the options\n")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that the help does not tell in words."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def build_parser(run: Mapping[str, Callable[[argparse.Namespace], None]]) -> argparse.ArgumentParser:
    """The commands and their options; `run` says what does a command's work."""
    parser = _Parser(prog="acdc", description="Automated circuit discovery for transformers.")
    parser.add_argument("--version", action="version", version=f"acdc {importlib.metadata.version('acdc')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, formatter_class=_Help)
        sub.set_defaults(run=run[name])
        return sub

    discover = command("discover", "find a circuit and write it, its pictures and a report to a folder")
    discover.add_argument("--model", default="smollm2", help="packaged model, hub name or local folder")
    discover.add_argument("--task", default="ioi", help="a built-in task, or a .json, .jsonl or .csv file of prompts")
    discover.add_argument("--method", default="eap_ig", help="eap, eap_ig, eap_ig_activations, "
                          "eap_clean_corrupted, relp, gim, node_attribution, hisp, ifr, exact, acdc, acdc_sequential, "
                          "edge_pruning, subnetwork_probing, ugs, ensemble or random")
    _add_measuring(discover, from_circuit=False)
    discover.add_argument("--kv", default="head", help="k and v channels of each query head, or of each KV group: "
                          "head or group")
    discover.add_argument("--positions", default="all", help="edges for all token positions together (all), for each, "
                          "or for the roles that the task names (roles)")
    discover.add_argument("--loss", help="the metric that discovery works with (default: the --metric, "
                          "if one is given; else kl_divergence for acdc and learned masks, the task's for the others)")
    discover.add_argument("--steps", type=int, help="eap_ig, eap_ig_activations: points on the path (default 5); "
                          "node_attribution: as eap_ig (default: the gradient on the clean run); learned masks: steps "
                          "of training")
    discover.add_argument("--gradients", help="eap_ig_activations: from the runs of an edge's own sublayer (own, "
                          "default), or of all (all)")
    discover.add_argument("--normalise", action=argparse.BooleanOptionalAction, help="hisp: importances within a layer "
                          "(default), or in the metric's units")
    discover.add_argument("--sparsity", type=float, help="learned masks: the share that is to be cut (default 0.985 of "
                          "the edges, subnetwork_probing: 0.8 of the nodes)")
    discover.add_argument("--learning-rate", type=float, help="learned masks: of Adam")
    discover.add_argument("--prompts-per-step", type=int, help="learned masks: prompts drawn in each step")
    discover.add_argument("--warmup", type=float, help="learned masks: the share of the steps over which the target "
                          "sparsity rises")
    discover.add_argument("--constraint", help="edge_pruning: budget (default), or lagrangian as in the paper")
    discover.add_argument("--start", help="edge_pruning: the method whose scores say with which edges to begin "
                          "(default eap_ig)")
    discover.add_argument("--checkpoint", type=Path, help="learned masks: the file that a run is saved to as it goes, "
                          "from which one that was killed goes on (default: the --out folder's name + .checkpoint, "
                          "gone at the end)")
    discover.add_argument("--methods", help="ensemble: the methods that are combined (default eap,eap_ig)")
    discover.add_argument("--combine", help="ensemble: how they are made comparable, zscore (default) or rank")
    discover.add_argument("--threshold", type=float, help="acdc: keep an edge if the loss rises by this much without "
                          "it (default 0.01)")
    discover.add_argument("--effect", help="acdc: signed (default), or absolute to keep also what hurts")
    discover.add_argument("--pattern", help="relp: gradient at attention patterns, derivative (default) or constant")
    discover.add_argument("--temperature", type=float, help="gim: of the softmax whose gradient is taken (default 2)")
    discover.add_argument("--gate", type=float, help="gim: factor of the gradient in gated MLPs (default 0.5)")
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
    discover.add_argument("--resamples", type=int, default=1000, help="draw the prompts anew so often, to see how much "
                          "the circuit owes to them, where the method has scores of single prompts; 0: never")
    discover.add_argument("--calibrate", type=int, default=60, metavar="EDGES", help="then patch so many edges "
                          "exactly, to see how far their scores can be trusted; 0: none")
    discover.add_argument("--out", type=Path, help="folder to write (default: circuits/MODEL-TASK-METHOD)")
    discover.add_argument("--overwrite", action="store_true", help="replace the circuit that is there")

    evaluate = command("evaluate", "measure a saved circuit, on its own prompts or on others")
    _add_saved(evaluate)
    evaluate.add_argument("--curve", action="store_true", help="also the curve over sizes, with CPR and CMD")

    calibrate = command("calibrate", "compare a saved circuit's scores with exact effects of some edges")
    _add_saved(calibrate)
    calibrate.add_argument("--edges", type=int, default=400, help="how many edges to patch; --seed draws them too")

    show = command("show", "describe a saved circuit: nodes, strongest edges and paths")
    show.add_argument("circuit", type=Path, help="circuit.json, or the folder that holds it")
    show.add_argument("--edges", type=int, default=20, help="how many edges")
    show.add_argument("--paths", type=int, default=10, help="how many paths")

    command("tasks", "list the built-in tasks")
    command("models", "list the packaged models and the supported architectures")
    return parser


def _add_saved(parser: argparse.ArgumentParser) -> None:
    """What the commands that measure a saved circuit share."""
    parser.add_argument("circuit", type=Path, help="circuit.json, or the folder that holds it")
    parser.add_argument("--model", help="default: the circuit's")
    parser.add_argument("--task", help="default: the circuit's; of another, 32 prompts are taken, or all of a file")
    _add_measuring(parser, from_circuit=True)
    parser.add_argument("--other-weights", action="store_true", help="allow a model of other weights, such as "
                        "another checkpoint")
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")


def _add_measuring(parser: argparse.ArgumentParser, *, from_circuit: bool) -> None:
    """Options that say on what and how a circuit is measured; `evaluate` takes them from the circuit."""

    def add(name: str, default: Any, help: str, otherwise: str = "", **kwargs: Any) -> None:
        """`otherwise`: the default in words."""
        parser.add_argument(name, default=argparse.SUPPRESS if from_circuit else default,
                            help=f"{help} (default: the circuit's)" if from_circuit else help + otherwise, **kwargs)

    add("--metric", None, "logit_difference, probability_difference, kl_divergence, ...", " (default: the task's)")
    add("--ablation", "resample", "what cut edges carry: resample, mean, mean_over_positions or zero"
        + "; evaluate: optimal too" * from_circuit)
    add("--prompts", None, "how many pairs of prompts", " (default: 32, or all of a file)", type=int)
    add("--seed", 0, "which prompts are drawn" + ("" if from_circuit else ", and which scores by random"), type=int)
    add("--dtype", "float32", "float32, bfloat16 or float64")
    parser.add_argument("--batch-size", type=int, default=32, help="prompts a forward pass")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")


def check_measuring(arguments: argparse.Namespace) -> None:
    """Refuses what can be seen to be wrong before a model is loaded, which takes seconds or minutes."""
    import torch

    from acdc.ablation import check_name
    from acdc.metrics import METRICS
    from acdc.models import DTYPES
    from acdc.tasks import TASKS  # pyright: ignore[reportMissingImports]

    if arguments.task not in TASKS and not Path(arguments.task).is_file():
        known = unknown_name("task", arguments.task, TASKS)
        raise AcdcError(f"{known}. It may be a .json, .jsonl or .csv file too, but there is no file of this name")
    if arguments.metric is not None:
        choose("metric", arguments.metric, METRICS)
    if arguments.ablation != "optimal" or arguments.command != "evaluate":
        check_name(arguments.ablation)
    elif arguments.curve:
        raise AcdcError("--curve with --ablation optimal: each size would need constants of its own. Leave out "
                        "--curve, or give another --ablation")
    choose("dtype", arguments.dtype, DTYPES)
    for name in ("prompts", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise AcdcError(f"--{name.replace('_', '-')} {value}: it must be at least 1")
    try:
        torch.zeros(1, device=arguments.device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise AcdcError(f"cannot use device {arguments.device!r}: {str(error).splitlines()[0]}") from error


def choose(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    if name not in table:
        raise unknown_name(kind, name, table)
    return table[name]


def method_options(arguments: argparse.Namespace, method: Callable[..., Any]) -> dict[str, Any]:
    """The options given for this method; one that it does not take is an error."""
    from acdc.discovery import METHODS
    from acdc.discovery.ensemble import COMBINE, choose_methods
    from acdc.discovery.relp import PATTERN

    names = ("steps", "gradients", "normalise", "methods", "combine", "pattern", "temperature", "gate", "threshold",
             "effect", "order", "shortlist", "memory_gib", "journal", "sparsity", "learning_rate", "prompts_per_step",
             "warmup", "constraint", "start", "checkpoint")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    taken = inspect.signature(method).parameters
    for name in given:
        if name not in taken:
            option = name.removesuffix("_gib").replace("_", "-")
            raise AcdcError(f"method {arguments.method!r} takes no --{option}; leave it out or choose another method")
    if "seed" in taken:  # the one seed of the command line, which always has a value
        given["seed"] = arguments.seed
        if arguments.seed < 0:
            raise AcdcError(f"--seed {arguments.seed}: method {arguments.method!r} needs one of 0 or more")
    if given.get("steps", 1) < 1:
        raise AcdcError(f"--steps {given['steps']}: it must be at least 1")
    if not math.isfinite(given.get("threshold", 0)):
        raise AcdcError(f"--threshold {given['threshold']}: it must be a finite number")
    if not 0 < given.get("memory_gib", 1) < math.inf:
        raise AcdcError(f"--memory {given['memory_gib']}: it must be a number of GiB above 0")
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


def check_calibration(option: str, n: int) -> None:
    from acdc.evaluation.calibration import LEAST_EDGES

    if n < LEAST_EDGES:
        raise AcdcError(f"{option} {n}: patch at least {LEAST_EDGES} edges, two for each kind and rank")


def size_of(text: str, n_edges: int | None = None, option: str = "--size") -> int:
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

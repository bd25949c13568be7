"""What several commands take, and which values are refused before anything is loaded or computed."""

import argparse
import importlib.metadata
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
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


def build_parser(commands: Mapping[str, ModuleType]) -> argparse.ArgumentParser:
    """The parser of the command line: each command's `HELP` and `add_options`, and `run` to be called."""
    parser = _Parser(prog="acdc", description="Automated circuit discovery for transformers.")
    parser.add_argument("--version", action="version", version=f"acdc {importlib.metadata.version('acdc')}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in commands.items():
        sub = subparsers.add_parser(name, help=command.HELP, description=command.HELP, formatter_class=_Help)
        command.add_options(sub)
        sub.set_defaults(run=command.run)
    return parser


def add_saved(parser: argparse.ArgumentParser, out: str = "also write the numbers to this JSON file") -> None:
    """What the commands that measure a saved circuit share."""
    parser.add_argument("circuit", type=Path, help="circuit.json, or the folder that holds it")
    parser.add_argument("--model", help="default: the circuit's")
    parser.add_argument("--task", help="default: the circuit's; of another, 32 prompts are taken, or all of a file")
    add_measuring(parser, from_circuit=True)
    parser.add_argument("--other-weights", action="store_true", help="allow a model of other weights, such as "
                        "another checkpoint")
    parser.add_argument("--out", type=Path, help=out)


def add_measuring(parser: argparse.ArgumentParser, *, from_circuit: bool) -> None:
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
    add("--split", None, "take the prompts of one part of the task, train or test", " (default: all)")
    add("--split-by", None, "what its two parts do not share: template or word",
        " (default: template, where the task has templates)")
    add("--dtype", "float32", "float32, bfloat16 or float64")
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=int, default=32, help="prompts a forward pass, at most")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--device-map", help="spread a large model over devices, the CPU and the disk: auto, balanced "
                        "or sequential (in place of --device)")


def add_memory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--memory", help="what the run may have in use at most, such as 8GiB: as many prompts are run "
                        "at once as fit in it")


def add_cluster(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--ray", nargs="?", const="", metavar="ADDRESS", help=f"{what} by workers of a Ray cluster, "
                        "with the same results: HOST:PORT of its head, auto or local (default: the one of RAY_ADDRESS "
                        "or of this machine, else local)")
    parser.add_argument("--workers", type=int, help="with --ray: how many (default: one for each CPU, or each GPU if "
                        "--device is one)")


def check_cluster(arguments: argparse.Namespace) -> None:
    if arguments.ray is None:
        if arguments.workers is not None:
            raise AcdcError("--workers are those of --ray; give that too")
        return
    from acdc.ray_workers import check_address, find_ray

    if arguments.workers is not None and arguments.workers < 1:
        raise AcdcError(f"--workers {arguments.workers}: it must be at least 1")
    check_address(arguments.ray)
    find_ray()


def check_measuring(arguments: argparse.Namespace) -> None:
    """Refuses what can be seen to be wrong before a model is loaded, which takes seconds or minutes."""
    from acdc.ablation import check_name
    from acdc.metrics import METRICS
    from acdc.models import DTYPES
    from acdc.planning import gib
    from acdc.tasks import TASKS  # pyright: ignore[reportMissingImports]

    if arguments.task not in TASKS and not Path(arguments.task).is_file():
        known = unknown_name("task", arguments.task, TASKS)
        raise AcdcError(f"{known}. It may be a .json, .jsonl, .csv or .py file too, but there is no file of this name")
    if arguments.metric is not None:
        choose("metric", arguments.metric, METRICS)
    if arguments.ablation != "optimal" or arguments.command != "evaluate":
        check_name(arguments.ablation)
    elif arguments.curve:
        raise AcdcError("--curve with --ablation optimal: each size would need constants of its own. Leave out "
                        "--curve, or give another --ablation")
    choose("dtype", arguments.dtype, DTYPES)
    if getattr(arguments, "seed", 0) < 0:
        raise AcdcError(f"--seed {arguments.seed}: it must be 0 or more")
    if hasattr(arguments, "ray"):
        check_cluster(arguments)
    if getattr(arguments, "memory", None) is not None:
        gib(arguments.memory)
    for name in ("prompts", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise AcdcError(f"--{name.replace('_', '-')} {value}: it must be at least 1")
    check_placement(arguments)


def check_placement(arguments: argparse.Namespace) -> None:
    """Of a command that need not have --device-map."""
    given, elsewhere = getattr(arguments, "device_map", None), getattr(arguments, "ray", None) is not None
    if given is None:
        check_device(arguments.device, here=arguments.command != "benchmark" or not elsewhere)
        return
    choose("device map", given, dict.fromkeys(("auto", "balanced", "balanced_low_0", "sequential")))
    if arguments.device != "cpu":
        raise AcdcError(f"--device-map with --device {arguments.device}: it says itself where the model goes; leave "
                        "out --device")
    if elsewhere:
        raise AcdcError("--device-map with --ray: each worker holds a whole model on one device; leave one out")


def placement(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `load_model` is told about where the model goes."""
    given = getattr(arguments, "device_map", None)
    return {"device": arguments.device} if given is None else {"device_map": given}


def check_device(device: str, *, here: bool = True) -> None:
    """`here`: it must be on this machine, not only on others."""
    import torch

    try:
        torch.device(device)
        if here:
            torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise AcdcError(f"cannot use device {device!r}: {str(error).splitlines()[0]}") from error


def check_out(arguments: argparse.Namespace) -> None:
    """Refuses an --out that is a file which the command reads, such as the circuit or its prompts. Annotations may be
    added to their own file."""
    out = getattr(arguments, "out", None)
    if out is None or not os.path.isfile(out):
        return
    given = {name: value for name, value in vars(arguments).items() if name not in ("out", "annotations")}
    for name, value in given.items():
        for one in value if isinstance(value, list) else [value]:
            path = one / "circuit.json" if isinstance(one, Path) and one.is_dir() else one
            if isinstance(path, str | Path) and os.path.isfile(path) and os.path.samefile(path, out):
                raise AcdcError(f"--out {out} is the {name} that is read, and would replace it; give another --out")


def choose(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    if name not in table:
        raise unknown_name(kind, name, table)
    return table[name]


def choose_some(kind: str, only: str | None, table: Mapping[str, Any]) -> tuple[str, ...]:
    """The names in `only`, with commas between them, or all of the table's."""
    names = tuple(table) if only is None else tuple(filter(None, only.split(",")))
    for name in names:
        choose(kind, name, table)
    if not names:
        raise AcdcError(f"--only {only!r} names no {kind}; name some of {', '.join(table)}")
    return names


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

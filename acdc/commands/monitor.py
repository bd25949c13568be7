"""`acdc monitor`: directions, nodes and edges watched while a model generates, as JSON lines."""

import argparse
import json
from pathlib import Path
from typing import Any

from acdc.arguments import check_device
from acdc.errors import AcdcError
from acdc.output_folder import write_file

from .steer import add_generating, coder_and_index, load_with_prompt

HELP = "watch directions, probes, nodes or edges while a model generates: a JSON line a token, with alarms"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_generating(parser)
    parser.add_argument("--watch", nargs="+", required=True, help="directions (safetensors files), features of sparse "
                        "coders (CODER:INDEX), nodes such as a3.h1 or edges such as 'a3.h1->m4'")
    parser.add_argument("--threshold", nargs="+", type=float, help="a value above it is an alarm: one for all, or one "
                        "for each watch")
    parser.add_argument("--stop-on-alarm", action="store_true", help="generate no further after an alarm")
    parser.add_argument("--out", "-o", type=Path, help="write the lines to this file when it ends; without "
                        "it they are printed as they come")


def run(arguments: argparse.Namespace) -> None:
    from acdc.intervention.monitor import monitor

    n, thresholds = len(arguments.watch), arguments.threshold or [None]
    if len(thresholds) not in (1, n):
        raise AcdcError(f"{len(thresholds)} thresholds for {n} watches; give one for all, or one for each")
    if arguments.stop_on_alarm and arguments.threshold is None:
        raise AcdcError("--stop-on-alarm without --threshold: nothing is an alarm; give a threshold")
    if arguments.out and not arguments.out.parent.is_dir():
        raise AcdcError(f"cannot write to {arguments.out}: {arguments.out.parent} is not a folder")
    check_device(arguments.device)
    model, prompt = load_with_prompt(arguments)
    each = thresholds * n if len(thresholds) == 1 else thresholds
    watches = [_watch(model, name, threshold) for name, threshold in zip(arguments.watch, each, strict=True)]
    readings = monitor(model, prompt, watches, arguments.tokens, stop_on_alarm=arguments.stop_on_alarm,
                       temperature=arguments.sample, seed=arguments.seed)
    lines = []
    try:
        for reading in readings:
            lines.append(json.dumps(reading.as_record()))
            if not arguments.out:
                print(lines[-1], flush=True)
    finally:  # what was read before it was stopped is not lost
        if arguments.out:
            write_file(arguments.out, "".join(f"{line}\n" for line in lines))


def _watch(model: Any, name: str, threshold: float | None) -> Any:
    from acdc.intervention.direction import load_direction
    from acdc.intervention.monitor import watch_direction, watch_edge, watch_feature, watch_node

    if "->" in name:
        return watch_edge(model, name, threshold)
    if name in model.graph().src_index:
        return watch_node(model, name, threshold)
    path, _, index = name.rpartition(":")
    if not Path(name).exists() and index.isdigit() and Path(path).exists():
        coder, feature = coder_and_index("--watch", name, None)
        return watch_feature(name, coder.site, coder.encode, feature, threshold)
    if not Path(name).exists():
        raise AcdcError(f"cannot watch {name!r}: it is no file, no feature of a coder, no node that writes, such as "
                        "a3.h1 or m3, and no edge")
    return watch_direction(model, load_direction(Path(name)), threshold)

"""`acdc probe`: what a linear probe reads off places of a model, beside its controls, and what erasing it does."""

import argparse
import json
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from acdc.arguments import add_measuring, choose
from acdc.output_folder import output_folder, write_file

from .loading import goes_on, load
from .printing import say

HELP = "probe places of a model for a variable, with control tasks, and erase it to see whether the task needs it"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2", help="packaged model, hub name or local folder")
    parser.add_argument("--task", default="ioi", help="a built-in task, or a file of prompts")
    parser.add_argument("--site", nargs="+", default=["resid*"], help="where: resid5, resid5.mid, a5.h1, m5, m5.in, "
                        "...; * stands for every layer")
    parser.add_argument("--variable", help="answer, wrong, order (which of the two names comes first), template, "
                        "corrupted or role (default: order)")
    parser.add_argument("--labels", type=Path, help="a .csv or .json file of labels instead")
    parser.add_argument("--numeric", action="store_true", help="the labels of the file are numbers")
    parser.add_argument("--position", default="end", help="where in the prompt: end, a role that the task names, or a "
                        "number")
    parser.add_argument("--group", default="prompt", help="what a probe never sees both in fitting and testing: "
                        "prompt, word or template")
    parser.add_argument("--controls", type=int, default=20, help="control tasks, and random moves beside each erasure")
    add_measuring(parser, from_circuit=False)
    parser.add_argument("--out", "-o", type=Path, help="folder to write: probes.json, and a probe for each site that "
                        "steer and monitor take")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def run(arguments: argparse.Namespace) -> None:
    from acdc.annotation.erasure import clean_run, erasable, erasure
    from acdc.annotation.probe_notes import probed_sites
    from acdc.annotation.probes import fit, probe
    from acdc.annotation.sites import site
    from acdc.annotation.variables import gather
    from acdc.export.text import aligned
    from acdc.metrics import METRICS
    from acdc.pieces import piece_of_json

    metric = choose("metric", arguments.metric or "logit_difference", METRICS)
    model, task, batches = load(arguments)
    sites = probed_sites(model, arguments.site)
    for name in sites:
        site(model, name)
    labels = _labels(arguments, task, batches)
    say(f"probing {len(sites)} places for {labels.name} on {len(labels)} rows of {task.name}")
    activations = gather(model, batches, sites, labels)
    runs = [clean_run(model, batch) for batch in batches] if any(erasable(model, name) for name in sites) else None

    def of_site(name: str) -> dict[str, Any]:
        x = activations[name]
        found = probe(x, labels, n_controls=arguments.controls, seed=arguments.seed)
        erased = erasure(model, batches, metric, name, labels, x=x, runs=runs, n_draws=arguments.controls,
                         seed=arguments.seed) if erasable(model, name) else None
        if sys.stderr.isatty():
            say(f"{name}: {found}")
        return {"site": name, **found.record(), "erasure": None if erased is None else vars(erased)}

    files = ["probes.json", *(f"{name}.safetensors" for name in sites)]
    with _written(arguments, files) as folder, goes_on(arguments, arguments.out, folder.spent if folder else [], model,
                                                       batches):
        record = [piece_of_json(f"probe of {name}", partial(of_site, name)) for name in sites]
        if folder:
            write_file(folder.path / "probes.json", json.dumps(record, indent=1) + "\n")
            for name in sites:
                about = {"site": name, "variable": labels.name, "position": arguments.position,
                         "model": arguments.model}
                fit(activations[name], labels, about=about).save(folder.path / f"{name}.safetensors")
    print("\n".join(aligned([_heads(record), *map(_row, record)], "<>>>>>>>>")))
    print(f"majority {record[0]['majority']:.2f}; {record[0]['n_rows']} rows of {record[0]['n_words']} word types; "
          f"erased: what {metric.name} loses, in its unit as a loss; at random: for moves as large elsewhere")
    if record[0]["shuffled"]:
        print("words do not tell these labels: p is against labels shuffled within words, selectivity says little")
    if arguments.out:
        print(f"written to {arguments.out}")


def _written(arguments: argparse.Namespace, files: list[str]) -> Any:
    """The folder that is asked for, if one is."""
    return output_folder(arguments.out, files, arguments.overwrite) if arguments.out else nullcontext()


def _heads(record: list[dict[str, Any]]) -> list[str]:
    return ["site", record[0]["measure"], "95%", "control", "selectivity", "p", "erased", "at random", "p"]


def _row(found: dict[str, Any]) -> list[str]:
    erased = found["erasure"]
    return [found["site"], f"{found['accuracy']:.2f}", f"{found['low']:.2f} to {found['high']:.2f}",
            f"{found['control']:.2f}", f"{found['selectivity']:+.2f}", f"{found['p']:.2g}",
            *(("", "", "") if erased is None else
              (f"{erased['effect']:+.3f}", f"{erased['null']:+.3f}", f"{erased['p']:.2g}"))]


def _labels(arguments: argparse.Namespace, task: Any, batches: Any) -> Any:
    from acdc.annotation.variables import read_labels, variable
    from acdc.errors import AcdcError

    if arguments.labels is None:
        return variable(batches, arguments.variable or "order", arguments.position, group=arguments.group)
    if arguments.variable is not None:
        raise AcdcError("give --variable or --labels, not both")
    return read_labels(arguments.labels, task.examples, batches, position=arguments.position,
                       numeric=arguments.numeric, group=arguments.group)

"""`acdc patch`: what each layer and position, or each head, does to a task, by activation patching."""

import argparse
import sys
from contextlib import ExitStack
from typing import Any

from acdc.arguments import choose, choose_some
from acdc.output_folder import output_folder

from .loading import goes_on
from .printing import say
from .prompts import add_prompts, as_json, load_prompts, table, texts, write

HELP = "activation patching of the residual stream, attention, MLPs and heads, with heat maps"
FILES = ("patch.json", "patch.csv", "patch.png")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_prompts(parser, 32, corrupted=True)
    parser.add_argument("--metric", default="logit_difference", help="what is measured")
    parser.add_argument("--direction", default="denoising", help="denoising: clean activations into the corrupted run; "
                        "noising: the other way round")
    parser.add_argument("--positions", default="each", help="each: a column a token, for prompts of one length; roles: "
                        "a column a role of tokens")
    parser.add_argument("--only", help="residual, attention, mlp or head alone, with commas between (default: all)")


def run(arguments: argparse.Namespace) -> None:
    from acdc.annotation.patching_sweep import PLACES, sweep
    from acdc.export.figure import figure_bytes
    from acdc.export.heat_map import heat_map
    from acdc.metrics import METRICS

    places = choose_some("place", arguments.only, dict.fromkeys(PLACES))
    metric = choose("metric", arguments.metric, METRICS)
    with output_folder(arguments.out, FILES, arguments.overwrite) as folder, ExitStack() as work:
        model, batches, name = load_prompts(arguments)
        work.enter_context(goes_on(arguments, arguments.out, folder.spent, model, batches))
        say(f"patching {name}, {arguments.direction}")
        found = [sweep(model, batches, metric, place=place, direction=arguments.direction,
                       positions=arguments.positions, progress=sys.stderr.isatty()) for place in places]
        first, shares = found[0], [one.share for one in found]
        title = f"{arguments.direction}, {name}: {metric.name} {first.clean:.3f} clean, {first.corrupted:.3f} corrupted"
        write(folder, {
            "patch.json": as_json({
                "model": arguments.model, "prompts": name, "metric": metric.name, "direction": arguments.direction,
                "clean": first.clean, "corrupted": first.corrupted,
                "sweeps": {one.place: {"rows": one.rows, "columns": one.columns, "values": one.values.tolist(),
                                       "share": share.tolist()} for one, share in zip(found, shares, strict=True)}}),
            "patch.csv": table(("place", "row", "column", "value", "share"), (
                (one.place, row, column, float(one.values[r, c]), float(share[r, c]))
                for one, share in zip(found, shares, strict=True)
                for r, row in enumerate(one.rows) for c, column in enumerate(one.columns))),
            "patch.png": figure_bytes(heat_map([_panel(model, batches, *pair)
                                                for pair in zip(found, shares, strict=True)], title), "png"),
        })
    print(f"{metric.name}: {first.clean:.3f} clean, {first.corrupted:.3f} corrupted")
    for one, share in zip(found, shares, strict=True):
        row, column = divmod(int(abs(share).argmax()), len(one.columns))
        print(f"{one.place:>10}: most at {one.rows[row]}, {one.columns[column]}: {share[row, column]:+.1%}")
    print(f"written to {arguments.out}: {', '.join(FILES)}")


def _panel(model: Any, batches: list[Any], found: Any, share: Any) -> Any:
    """Layers as columns, so that tokens can be read; of one prompt, the tokens themselves."""
    from acdc.export.heat_map import Panel

    names = list(found.columns)
    if sum(map(len, batches)) == 1 and found.place != "head":
        names = [f"{i}: {token}" for i, token in enumerate(texts(model, batches[0].clean[0]))]
    what = "restored" if found.direction == "denoising" else "lost"
    return Panel(found.place, share.T, names, list(found.rows), f"share {what}")

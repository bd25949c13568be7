"""`acdc lens`: what a model would predict at each layer, and what each node adds to the answer."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acdc.output_folder import output_folder

from .printing import say
from .prompts import add_prompts, as_json, load_prompts, table, texts, write

HELP = "read each layer by the logit lens or a tuned lens, and attribute the answer's logit to nodes"
FILES = ("lens.json", "lens.csv", "lens.png", "attribution.csv", "attribution.png")
N_SHOWN = 8


def add_options(parser: argparse.ArgumentParser) -> None:
    add_prompts(parser, 32)
    parser.add_argument("--tuned", type=Path, help="read by this tuned lens, a folder that tune-lens wrote")
    parser.add_argument("--top", type=int, default=5, help="tokens named at each place")


def run(arguments: argparse.Namespace) -> None:
    from acdc.annotation.lens import attribute_answers
    from acdc.annotation.tuned_lens import load_tuned_lens
    from acdc.export.figure import figure_bytes
    from acdc.export.heat_map import heat_map

    with output_folder(arguments.out, FILES, arguments.overwrite) as folder:
        model, batches, name = load_prompts(arguments)
        lens = None if arguments.tuned is None else load_tuned_lens(model, arguments.tuned)
        say(f"reading {model.n_layers} layers of {arguments.model} on {name}")
        first, means = _readings(model, batches, lens, arguments.top)
        found = attribute_answers(model, batches, seed=arguments.seed)
        tokens = texts(model, batches[0].clean[0])
        kind = "logit lens" if lens is None else "tuned lens"
        write(folder, {
            "lens.json": as_json({"model": arguments.model, "prompts": name, "lens": kind, "mean_at_end": means,
                                  "soft_cap": model.anatomy.logit_softcap, "constant": found.constant,
                                  "logit_difference": found.total,
                                  "attribution": {node: vars(one) for node, one in found.nodes.items()}}),
            "lens.csv": table(("position", "token", "place", "rank_in_top", "top", "logit", "probability", "kl"),
                              _rows(model, first, tokens)),
            "lens.png": figure_bytes(heat_map(_panels(model, first, tokens), f"{kind} on {''.join(tokens)!r}"), "png"),
            "attribution.csv": table(("node", "value", "low", "high"), (
                (node, one.value, one.low, one.high) for node, one in found.nodes.items())),
            "attribution.png": figure_bytes(heat_map([_by_layer(model, found)], name), "png"),
        })
    print("".join(_summary(means, found, kind)), end="")
    print(f"written to {arguments.out}: {', '.join(FILES)}")


def _readings(model: Any, batches: list[Any], lens: Any, k: int) -> tuple[Any, dict[str, dict[str, float]]]:
    """Of the first prompt at every position; and means over prompts at the last one, by place."""
    import torch

    from acdc.annotation.lens import logit_lens

    first = logit_lens(model, batches[0].clean[:1], k=k, translate=lens)
    readings = [logit_lens(model, batch.clean, targets=torch.stack([batch.answer, batch.wrong], 1), positions=[-1],
                           translate=lens) for batch in batches]
    kl, logit, rank = (torch.cat([getattr(one, field)[:, :, 0] for one in readings], 1).double().mean(1)
                       for field in ("kl", "logit", "rank"))
    return first, {place: {"kl": float(kl[i]), "logit_difference": float(logit[i, 0] - logit[i, 1]),
                           "answer_rank": float(rank[i, 0])} for i, place in enumerate(first.places)}


def _rows(model: Any, reading: Any, tokens: list[str]) -> Iterator[tuple]:
    for position, token in enumerate(tokens):
        for i, place in enumerate(reading.places):
            there = (i, 0, position)
            for rank, top in enumerate(texts(model, reading.top[there])):
                yield (position, token, place, rank + 1, top, float(reading.top_logit[there][rank]),
                       float(reading.top_probability[there][rank]), float(reading.kl[there]))


def _panels(model: Any, reading: Any, tokens: list[str]) -> list[Any]:
    """The top token and its probability at what each block and the final norm read, the last layer at the top."""
    from acdc.export.heat_map import Panel

    rows = [i for i, place in enumerate(reading.places) if not place.endswith(".mid")][::-1]
    columns = [f"{i}: {token}" for i, token in enumerate(tokens)]
    names = [reading.places[i] for i in rows]
    values = reading.top_probability[rows, 0, :, 0].double().numpy()
    words = [texts(model, reading.top[i, 0, :, 0]) for i in rows]
    return [Panel("the likeliest token at each place", values, names, columns, "its probability", False, words)]


def _by_layer(model: Any, found: Any) -> Any:
    """What each head and MLP adds, the last layer at the top; the input is in the table alone."""
    import numpy as np

    from acdc.export.heat_map import Panel

    layers = range(model.n_layers - 1, -1, -1)
    columns = [*(f"h{head}" for head in range(model.n_heads)), "MLP"]
    values = np.array([[found.nodes[f"a{layer}.{name}" if name != "MLP" else f"m{layer}"].value for name in columns]
                       for layer in layers])
    return Panel("direct attribution of nodes at the last token", values, [str(layer) for layer in layers], columns,
                 "logit(answer) - logit(wrong)")


def _summary(means: dict[str, dict[str, float]], found: Any, kind: str) -> Iterator[str]:
    yield f"{kind} at the last token, mean over prompts\n{'place':>12} {'KL':>8} {'answer - wrong':>15} {'rank':>9}\n"
    for place, mean in means.items():
        if not place.endswith(".mid"):
            yield (f"{place:>12} {mean['kl']:>8.3f} {mean['logit_difference']:>15.3f} {mean['answer_rank']:>9,.1f}\n")
    yield (f"direct attribution: {found.total:.3f} = {found.total - found.constant:.3f} by nodes + "
           f"{found.constant:.3f} by biases; the largest\n")
    strongest = sorted(found.nodes.items(), key=lambda item: -abs(item[1].value))[:N_SHOWN]
    yield from (f"{node:>12} {one}\n" for node, one in strongest)

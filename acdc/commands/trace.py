"""`acdc trace`: which places hold what the answer needs, by causal tracing."""

import argparse
import sys
from contextlib import ExitStack
from typing import Any

from acdc.arguments import choose_some
from acdc.errors import AcdcError
from acdc.output_folder import output_folder

from .loading import goes_on
from .printing import say
from .prompts import add_prompts, as_json, load_prompts, table, texts, write

HELP = "causal tracing: put clean activations back, place by place, into runs whose subject is noise"
FILES = ("trace.json", "trace.csv", "trace.png")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_prompts(parser, 8)
    parser.add_argument("--subject", required=True, help="the part of --prompt that noise is added to; of a task the "
                        "roles of such tokens, such as S1,S2")
    parser.add_argument("--only", help="hidden, mlp or attention alone, with commas between (default: all)")
    parser.add_argument("--window", type=int, default=10, help="layers whose MLPs or attention are restored at once")
    parser.add_argument("--samples", type=int, default=10, help="of the noise")
    parser.add_argument("--noise", type=float, help="its standard deviation (default: 3 times that of the embeddings "
                        "of all subjects)")


def run(arguments: argparse.Namespace) -> None:
    from acdc.annotation.causal_tracing import KINDS, Noise, noise_scale, trace
    from acdc.export.figure import figure_bytes
    from acdc.export.heat_map import Panel, heat_map

    kinds = choose_some("kind of place", arguments.only, dict.fromkeys(KINDS))
    with output_folder(arguments.out, FILES, arguments.overwrite) as folder, ExitStack() as work:
        model, batches, name = load_prompts(arguments)
        work.enter_context(goes_on(arguments, arguments.out, folder.spent, model, batches))
        rows = [(batch.clean[i], int(batch.answer[i]), example)
                for batch in batches for i, example in enumerate(batch.examples)]
        subjects = [_subject(model, arguments, tokens, example) for tokens, _, example in rows]
        scale = arguments.noise
        if scale is None:
            scale = noise_scale(model, [row[0][at] for row, at in zip(rows, subjects, strict=True)])
        noise = Noise(scale, arguments.samples, arguments.seed)
        say(f"tracing {name}; noise {scale:.3g}")
        traces = [trace(model, tokens, answer, at, noise, kinds=kinds, window=arguments.window,
                        progress=sys.stderr.isatty())
                  for (tokens, answer, _), at in zip(rows, subjects, strict=True)]
        maps = {kind: _map(model, rows, traces, kind) for kind in kinds}
        clean, corrupted = (sum(getattr(one, side) for one in traces) / len(traces) for side in ("clean", "corrupted"))
        layers = [str(layer) for layer in range(model.n_layers)]
        panels = [Panel(_title(kind, arguments.window), values.T, columns, layers, "indirect effect on p(answer)")
                  for kind, (columns, values) in maps.items()]
        title = f"causal tracing, {name}: p(answer) {clean:.3f} clean, {corrupted:.3f} corrupted"
        write(folder, {
            "trace.json": as_json({
                "model": arguments.model, "prompts": name, "noise": scale, "samples": arguments.samples,
                "seed": arguments.seed, "window": arguments.window, "clean": clean, "corrupted": corrupted,
                "indirect": {kind: {"columns": columns, "by_layer": values.tolist()}
                             for kind, (columns, values) in maps.items()},
                "traces": [{"tokens": texts(model, tokens), "subject": list(one.subject), "clean": one.clean,
                            "corrupted": one.corrupted,
                            "restored": {kind: values.tolist() for kind, values in one.restored.items()}}
                           for (tokens, _, _), one in zip(rows, traces, strict=True)]}),
            "trace.csv": table(("kind", "layer", "tokens", "indirect_effect"), (
                (kind, layer, column, float(values[layer, i])) for kind, (columns, values) in maps.items()
                for layer in range(model.n_layers) for i, column in enumerate(columns))),
            "trace.png": figure_bytes(heat_map(panels, title), "png"),
        })
    print(f"p(answer): {clean:.3f} clean, {corrupted:.3f} corrupted, total effect {clean - corrupted:.3f}")
    for kind, (columns, values) in maps.items():
        layer, column = divmod(int(values.argmax()), len(columns))
        print(f"{kind:>10}: most at layer {layer}, {columns[column]!r}: {values.max():+.3f}")
    print(f"written to {arguments.out}: {', '.join(FILES)}")


def _title(kind: str, window: int) -> str:
    return "hidden states restored" if kind == "hidden" else f"{kind} restored in {window} layers around each"


def _subject(model: Any, arguments: argparse.Namespace, tokens: Any, example: Any) -> list[int]:
    from acdc.annotation.causal_tracing import subject_positions

    if arguments.task is None:
        return subject_positions(model.tokenizer, example.clean, arguments.subject)
    roles = [role for role in arguments.subject.split(",") if role]
    unknown = [role for role in roles if role not in example.roles]
    if unknown or not roles:
        raise AcdcError(f"--subject {arguments.subject}: {example.clean!r} has no token of role "
                        f"{(unknown or [''])[0]!r}; its roles are {', '.join(example.roles) or 'none'}")
    return [example.roles[role] % len(tokens) for role in roles]


def _map(model: Any, rows: list[Any], traces: list[Any], kind: str) -> tuple[list[str], Any]:
    """The indirect effects, and what their columns are: tokens of one prompt, or where tokens stand to the subject."""
    from acdc.annotation.causal_tracing import averaged

    if len(traces) > 1:
        return averaged(traces, kind)
    marks = ["*" if i in traces[0].subject else "" for i in range(len(rows[0][0]))]
    return [f"{token}{mark}" for token, mark in zip(texts(model, rows[0][0]), marks, strict=True)], (
        traces[0].indirect(kind))

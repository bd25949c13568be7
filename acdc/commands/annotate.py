"""`acdc annotate`: what the nodes of a saved circuit do."""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from acdc.arguments import add_memory, add_saved, choose, choose_some
from acdc.output_folder import output_file, write_file

from .loading import goes_on, load_again, planned, read_circuit, read_text
from .printing import say

HELP = ("say what the nodes of a saved circuit do: effects, roles of heads, attention, composition, lens, probes, "
        "features of coders, pictures")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_saved(parser, out="write the annotations to this JSON file (default: annotations.json beside the circuit, "
              "where show and view find it)")
    add_memory(parser)
    parser.add_argument("--only", help="these annotators alone, such as roles,attention (default: all that apply)")
    parser.add_argument("--coder", type=Path, action="append", default=[], help="a sparse autoencoder or transcoder of "
                        "a node, or a folder of transcoders of all layers, whose features are to be scored; may be "
                        "given again for others")
    parser.add_argument("--overwrite", action="store_true", help="forget what the file already holds; without it, "
                        "only what is made anew is replaced")


def run(arguments: argparse.Namespace) -> None:
    from acdc.annotation.annotate import ANNOTATORS, annotate, merge, those_that_apply
    from acdc.export.annotations_file import annotations_from_json, annotations_to_json
    from acdc.export.text import describe_annotations
    from acdc.metrics import METRICS
    from acdc.sae.formats import load_coders
    from acdc.sae.on_model import check_on_model
    from acdc.stages import stage_of_effects

    coders = [coder for path in arguments.coder for coder in load_coders(path)]
    named = None if arguments.only is None else choose_some("annotator", arguments.only, ANNOTATORS)
    only = those_that_apply(named, coders)
    circuit = read_circuit(arguments.circuit)
    out = arguments.out or _beside(arguments.circuit)
    keeps = out.exists() and not arguments.overwrite
    old = annotations_from_json(read_text(out), str(out)) if keeps else []
    with output_file(out) as spent, ExitStack() as work:
        model, task, batches = load_again(arguments, circuit, circuit.provenance)
        for coder in coders:
            check_on_model(model, coder)
        metric = choose("metric", arguments.metric, METRICS)
        batches = planned(arguments, model, batches, lambda: [stage_of_effects(model, circuit, metric)], out,
                          spent)
        work.enter_context(goes_on(arguments, out, spent, model, batches))
        say(f"annotating {len(circuit.nodes)} nodes on {len(task)} prompts of {task.name}")
        found = annotate(model, circuit, batches, metric, only=only, coders=coders, seed=arguments.seed,
                         progress=sys.stderr.isatty())
        write_file(out, annotations_to_json(merge(old, found, only)))
        if any("made" in annotation.data for annotation in found if annotation.kind == "picture"):
            from acdc.export.figure import save_figure
            from acdc.export.pictures import pictures_figure

            save_figure(pictures_figure(found), out.with_name("pictures.png"))
            print(f"pictures of what excites the nodes: {out.with_name('pictures.png')}")
        print(describe_annotations(circuit, found), end="")
        print(f"written to {out}")


def _beside(circuit: Path) -> Path:
    return (circuit if circuit.is_dir() else circuit.parent) / "annotations.json"

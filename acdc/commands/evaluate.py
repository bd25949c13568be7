"""`acdc evaluate`: measures a saved circuit, on its own prompts or on others."""

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from acdc.arguments import add_cluster, add_memory, add_saved, choose
from acdc.errors import AcdcError
from acdc.output_folder import output_file, write_file

from .loading import goes_on, load_again, planned, read_circuit, refuse_python, spread
from .printing import curve_lines, exceeds_text

HELP = "measure a saved circuit, on its own prompts or on others"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_saved(parser)
    add_memory(parser)
    parser.add_argument("--curve", action="store_true", help="also the curve over sizes, with CPR, CMD and areas over "
                        "log size and of small circuits")
    add_cluster(parser, "circuits are run")


def run(arguments: argparse.Namespace) -> None:
    from acdc.evaluation.faithfulness import faithfulness, faithfulness_curve
    from acdc.metrics import METRICS
    from acdc.optimal_ablation import learn_ablation
    from acdc.stages import stage_of_circuit, stage_of_constants, stages_of_curves

    circuit = read_circuit(arguments.circuit)
    if arguments.curve and circuit.scores is None:
        raise AcdcError(f"{arguments.circuit} has no scores, so there is no curve over sizes; leave out --curve")
    with output_file(arguments.out) as spent, ExitStack() as work:
        model, task, batches = load_again(arguments, circuit, circuit.provenance)
        metric = choose("metric", arguments.metric, METRICS)
        optimal = arguments.ablation == "optimal"
        batches = planned(arguments, model, batches, lambda: [
            *([stage_of_constants(model, circuit, batches)] if optimal else ()),
            stage_of_circuit(model, circuit, metric, arguments.ablation),
            *(stages_of_curves(model, circuit.graph, metric, arguments.ablation, 2) if arguments.curve else ())],
            arguments.out, spent)
        to_learn = _found_with(arguments, circuit, model, task) if optimal else []
        work.enter_context(goes_on(arguments, arguments.out, spent, model, [*batches, *to_learn]))
        ablation: Any = arguments.ablation
        if optimal:  # the constants with which the circuit does best
            ablation = learn_ablation(model, to_learn, circuit=circuit, progress=sys.stderr.isatty())
        model = work.enter_context(spread(arguments, model))
        measured: dict[str, Any] = {"ablation": ablation, "progress": sys.stderr.isatty()}
        result = faithfulness(model, circuit, batches, metric, **measured)
        curves = [faithfulness_curve(model, circuit.scores, batches, metric, by=by, **measured)
                  for by in ("magnitude", "signed")] if arguments.curve and circuit.scores else []
        if arguments.out:
            record = {**vars(result), "metric": metric.name, "ablation": arguments.ablation, "seed": arguments.seed,
                      "split": arguments.split, "curves": [curve.summary() for curve in curves]}
            write_file(arguments.out, json.dumps(record, indent=1, allow_nan=False))
        print(f"{result.n_edges:,} of {circuit.graph.n_edges:,} edges on {result.n_prompts} prompts of {task.name} "
              f"(seed {arguments.seed}{f', split {arguments.split}' if arguments.split else ''}), {arguments.ablation} "
              "ablation")
        print(f"{metric.name}: {result.full:.4f} full, {result.circuit:.4f} circuit, {result.empty:.4f} all cut")
        print(f"faithfulness {result.faithfulness:.4f}{exceeds_text(result.faithfulness)}")
        print("".join(curve_lines(curves)), end="")
        if arguments.out:
            print(f"written to {arguments.out}")


def _found_with(arguments: argparse.Namespace, circuit: Any, model: Any, measured: Any) -> list[Any]:
    """The prompts that the circuit was found with, on which constants are learned."""
    from acdc.models import check_prompts
    from acdc.tasks import load_task  # pyright: ignore[reportMissingImports]

    known = circuit.provenance
    for key, kind in (("task_source", str), ("n_prompts", int), ("seed", int)):
        if not isinstance(known.get(key), kind):
            raise AcdcError(f"{arguments.circuit} does not say by its {key} which prompts it was found with, on which "
                            "the constants would be learned; in Python, learn_ablation takes any prompts")
    if known["task_source"] != str(Path(arguments.task).resolve()):
        refuse_python(known["task_source"])
    task = load_task(known["task_source"], model.tokenizer, n=known["n_prompts"], seed=known["seed"],
                     split=known.get("split"), by=known.get("split_by"))
    batches = task.batches(model.tokenizer, batch_size=arguments.batch_size, device=model.device)
    check_prompts(model, batches)
    others = "; give --seed or --task to measure on others" if task.examples == measured.examples else ""
    print("optimal ablation: one constant a node, learned by kl_divergence on the "
          f"{len(task)} prompts that the circuit was found with{others}")
    return batches

"""`acdc test`: whether a saved circuit is what it is taken for, by a battery of tests."""

import argparse
import json
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from acdc.arguments import add_saved, choose, choose_some
from acdc.errors import AcdcError
from acdc.output_folder import output_file, write_file

from .loading import goes_on, load_again, read_circuit

HELP = "test whether a saved circuit suffices, is needed, complete, minimal, and better than random ones"
SETTINGS = ("tolerance", "edges", "nodes", "random", "subsets", "inflated", "permutations", "epsilon")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_saved(parser)
    parser.description = f"{HELP}. The exit status is 0 whatever the verdict: it is a measurement"
    parser.add_argument("--only", help="run these tests alone, such as sufficiency,random (default: all)")
    parser.add_argument("--tolerance", type=float, default=0.1, help="how far faithfulness may be from 1, and the "
                        "complement's from 0, in shares of what the full model does")
    parser.add_argument("--edges", type=int, default=100, help="how many edges of the circuit are cut alone, drawn at "
                        "random")
    parser.add_argument("--nodes", type=int, default=50, help="how many nodes")
    parser.add_argument("--random", type=int, default=20, help="random circuits of the same size, of each kind")
    parser.add_argument("--subsets", type=int, default=6, help="random sets of edges cut in circuit and model alike")
    parser.add_argument("--inflated", type=int, default=30, help="random edges, added to the circuit, that its own "
                        "edges are compared with")
    parser.add_argument("--permutations", type=int, default=1000, help="of prompts, in the test of independence")
    parser.add_argument("--epsilon", type=float, default=0.1, help="of the test of equivalence: how far the chance of "
                        "outdoing the model may be from 1/2")
    parser.add_argument("--resamples", type=int, default=2000, help="draws of the prompts, for the intervals")
    parser.add_argument("--other-task", metavar="TASK", help="also whether the circuit is less faithful on this task")
    parser.add_argument("--other-circuit", type=Path, metavar="CIRCUIT", help="also whether the task needs this "
                        "circuit less than its own")


def run(arguments: argparse.Namespace) -> None:
    from acdc.evaluation.battery import TESTS, Settings, run_battery
    from acdc.evaluation.bench import prepare_bench
    from acdc.export.battery_page import battery_page
    from acdc.export.text import visible
    from acdc.metrics import METRICS

    settings = Settings(**{name: getattr(arguments, name) for name in SETTINGS})
    only = choose_some("test", arguments.only, TESTS)
    _check_out(arguments.out)
    circuit = read_circuit(arguments.circuit)
    other_circuit = None if arguments.other_circuit is None else read_circuit(arguments.other_circuit)
    with output_file(arguments.out) as spent, ExitStack() as work:
        model, task, batches = load_again(arguments, circuit, circuit.provenance)
        other, other_batches = (None, []) if arguments.other_task is None else _other_task(arguments, model)
        work.enter_context(goes_on(arguments, arguments.out, spent, model, [*batches, *other_batches]))
        metric = choose("metric", arguments.metric, METRICS)
        shared: dict[str, Any] = {"ablation": arguments.ablation, "n_resamples": arguments.resamples,
                                  "seed": arguments.seed, "progress": sys.stderr.isatty()}
        bench = prepare_bench(model, batches, metric, **shared)
        other_task = other and (other.name, prepare_bench(model, other_batches, METRICS[other.metric], **shared))
        battery = run_battery(bench, circuit, settings, only=only, other_task=other_task, other_circuit=other_circuit)
        on = f"prompts of {task.name} (seed {arguments.seed}), {metric.name}, {arguments.ablation} ablation"
        page = partial(battery_page, battery, name=str(arguments.circuit), on=on)
        if arguments.out:
            record = {"circuit": str(arguments.circuit), "task": task.name, "ablation": arguments.ablation,
                      "seed": arguments.seed, "n_resamples": arguments.resamples, **battery.summary()}
            write_file(arguments.out, json.dumps(record, indent=1, allow_nan=False))
            write_file(arguments.out.with_suffix(".md"), page())
        print(page(text=visible), end="")
        if arguments.out:
            print(f"written to {arguments.out} and {arguments.out.with_suffix('.md')}")


def _check_out(out: Path | None) -> None:
    if out is not None and out.suffix == ".md":
        raise AcdcError(f"--out {out}: give the name of the JSON file, such as {out.with_suffix('.json')}; the page is "
                        "written beside it, as .md")


def _other_task(arguments: argparse.Namespace, model: Any) -> tuple[Any, Any]:
    """The other task's prompts, as many and of the same seed; a file's all."""
    from acdc.models import check_prompts
    from acdc.tasks import TASKS, load_task  # pyright: ignore[reportMissingImports]

    n = arguments.prompts if arguments.other_task in TASKS else None
    task = load_task(arguments.other_task, model.tokenizer, n=n, seed=arguments.seed)
    batches = task.batches(model.tokenizer, batch_size=arguments.batch_size, device=model.device)
    check_prompts(model, batches)
    return task, batches

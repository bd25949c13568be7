"""`acdc plan`: what `acdc discover` would take with the same options: passes, seconds, memory, prompts at once."""

import argparse

from acdc.arguments import choose

from . import discover
from .loading import load

HELP = "say what discover would take, without running it: passes, seconds, peak memory, prompts at once"
add_options = discover.add_options


def run(arguments: argparse.Namespace) -> None:
    from acdc.discovery import METHODS
    from acdc.planning import described, duration, gib, make_plan

    options = discover.method_options(arguments, choose("method", arguments.method, METHODS))
    discover.check_selection(arguments)
    model, task, batches = load(arguments)
    metric = discover.task_metric(arguments, task)
    stages = discover.stages(arguments, model, batches, metric, options)
    plan = make_plan(model, batches, stages, memory=None if arguments.memory is None else gib(arguments.memory))
    print(f"{len(task)} prompts of {task.name}\n")
    print(f"{'':<28}{'passes':>9}{'time':>10}{'peak GiB':>10}")
    for name, passes, seconds, peak in described(plan):
        print(f"{name:<28}{passes:>9,.0f}{duration(seconds):>10}{peak:>10.2f}")
    print(plan.line())

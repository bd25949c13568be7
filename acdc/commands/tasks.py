"""`acdc tasks`: lists the built-in tasks."""

import argparse
import inspect

HELP = "list the built-in tasks"


def add_options(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(arguments: argparse.Namespace) -> None:
    from acdc.tasks import TASKS  # pyright: ignore[reportMissingImports]

    for name, builder in TASKS.items():
        print(f"{name:<12} {(inspect.getdoc(builder) or '').splitlines()[0]}")
    print("\nor the path of a .json, .jsonl or .csv file of clean, corrupted, answer, wrong")

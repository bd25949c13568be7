"""`acdc show`: describes a saved circuit."""

import argparse
from pathlib import Path

from acdc.errors import AcdcError

from .loading import read_circuit

HELP = "describe a saved circuit: nodes, strongest edges and paths"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("circuit", type=Path, help="circuit.json, or the folder that holds it")
    parser.add_argument("--edges", type=int, default=20, help="how many edges")
    parser.add_argument("--paths", type=int, default=10, help="how many paths")


def run(arguments: argparse.Namespace) -> None:
    from acdc.export.text import describe

    for name in ("edges", "paths"):
        if getattr(arguments, name) < 0:
            raise AcdcError(f"--{name} {getattr(arguments, name)}: it must be 0 or more")
    print(describe(read_circuit(arguments.circuit), n_edges=arguments.edges, n_paths=arguments.paths))

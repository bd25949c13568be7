"""`acdc show`: describes a saved circuit."""

import argparse
from pathlib import Path

from acdc.errors import AcdcError

from .loading import read_annotations, read_circuit

HELP = "describe a saved circuit: nodes, strongest edges and paths"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("circuit", type=Path, help="circuit.json, or the folder that holds it")
    parser.add_argument("--edges", type=int, default=20, help="how many edges")
    parser.add_argument("--paths", type=int, default=10, help="how many paths")
    parser.add_argument("--annotated", type=int, default=10, help="how many nodes with what is known of them, the "
                        "strongest first")
    parser.add_argument("--annotations", type=Path, help="what is known of the nodes (default: annotations.json "
                        "beside the circuit, if there is one)")


def run(arguments: argparse.Namespace) -> None:
    from acdc.export.text import describe, describe_annotations

    for name in ("edges", "paths", "annotated"):
        if getattr(arguments, name) < 0:
            raise AcdcError(f"--{name} {getattr(arguments, name)}: it must be 0 or more")
    circuit = read_circuit(arguments.circuit)
    annotations = read_annotations(arguments) if arguments.annotated else []
    print(describe(circuit, n_edges=arguments.edges, n_paths=arguments.paths))
    if annotations:
        print(describe_annotations(circuit, annotations, n_nodes=arguments.annotated))

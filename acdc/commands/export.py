"""`acdc export`: writes a saved circuit in another format."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acdc.arguments import choose
from acdc.errors import AcdcError
from acdc.output_folder import write_file

from .loading import read_circuit

HELP = "write a saved circuit in another format"


@dataclass(frozen=True)
class Format:
    """What a file in the format is for, and how its content comes from a circuit and the arguments."""

    description: str
    content: Callable[[Any, argparse.Namespace], bytes]


def _json(circuit: Any, arguments: argparse.Namespace) -> bytes:
    from acdc.export.json_file import circuit_to_json

    return circuit_to_json(circuit).encode()


def _mib(circuit: Any, arguments: argparse.Namespace) -> bytes:
    from acdc.export.mib import circuit_to_mib

    return circuit_to_mib(circuit, d_model=arguments.d_model).encode()


FORMATS = {
    "json": Format("acdc's own, such as circuit.json", _json),
    "mib": Format("JSON of EAP-IG and MIB's circuit track, to be evaluated and submitted there", _mib),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("circuit", type=Path, help="circuit.json, or the folder that holds it")
    parser.add_argument("--to", required=True, help="; ".join(f"{name}: {format.description}"
                                                               for name, format in FORMATS.items()))
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--d-model", type=int, help="mib: the width of the model's residual stream (default: the "
                        "circuit's)")


def run(arguments: argparse.Namespace) -> None:
    format = choose("format", arguments.to, FORMATS)
    if arguments.out.is_dir():
        raise AcdcError(f"cannot write to {arguments.out}: that is a folder; give --out a file")
    circuit = read_circuit(arguments.circuit)
    write_file(arguments.out, format.content(circuit, arguments))
    print(f"written to {arguments.out}: {circuit.n_edges:,} of {circuit.graph.n_edges:,} edges"
          f"{'' if circuit.scores is None else ', and the scores of all'}")

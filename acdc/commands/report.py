"""`acdc report`: the report of a saved circuit, as Markdown and as a page, with what lies beside it."""

import argparse
import os
from pathlib import Path
from typing import Any

from acdc.errors import AcdcError
from acdc.input_file import read_bytes
from acdc.output_folder import output_folder, write_file

from .loading import read_annotations, read_circuit, read_text

HELP = "write the report of a saved circuit: report.md and report.html, with tests, a methods paragraph and BibTeX"
FILES = ("report.md", "report.html")
PICTURES = ("circuit.svg", "curve.png", "masks.png")
PNG = b"\x89PNG\r\n\x1a\n"  # how every one begins


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("circuit", type=Path, help="the folder that discover wrote, or the circuit.json in it")
    parser.add_argument("--tests", type=Path, help="what `acdc test --out` wrote (default: tests.json beside the "
                        "circuit, if there is one)")
    parser.add_argument("--annotations", type=Path, help="what is known of the nodes (default: annotations.json "
                        "beside the circuit, if there is one)")
    parser.add_argument("--out", type=Path, help="the folder to write to; default: that of the circuit")
    parser.add_argument("--overwrite", action="store_true", help="replace a report that is there")


def run(arguments: argparse.Namespace) -> None:
    from acdc.evaluation.curve import curves_of
    from acdc.export.circuit_drawing import circuit_drawing, default_title
    from acdc.export.classes import roles_of
    from acdc.export.figure import figure_bytes, figure_of
    from acdc.export.report import report
    from acdc.export.report_page import report_page

    circuit = read_circuit(arguments.circuit)
    folder = arguments.circuit if arguments.circuit.is_dir() else arguments.circuit.parent
    tests = _tests(arguments, folder)
    roles = roles_of(read_annotations(arguments))
    drawing = figure_bytes(figure_of(circuit_drawing(circuit, roles=roles)), "svg")
    pictures = {name: _picture(folder / name) for name in PICTURES[1:] if os.path.lexists(folder / name)}
    images = {"circuit.svg": drawing, **pictures}
    curve, masks = (name if name in images else None for name in PICTURES[1:])
    text = report(circuit, curves_of(circuit.provenance), roles=roles, tests=tests, curve_image=curve,
                  history_image=masks)
    with output_folder(arguments.out or folder, FILES, arguments.overwrite) as written:
        write_file(written.path / "report.md", text)
        page = report_page(text, images, title=default_title(circuit))
        write_file(written.path / "report.html", page)
    print(f"written to {arguments.out or folder}: {', '.join(FILES)}")


def _picture(path: Path) -> bytes:
    """A picture beside the circuit. A link could lead to any file of the user, which the report would then hold."""
    content = b"" if path.is_symlink() else read_bytes(path)
    if not content.startswith(PNG):
        what = "is a symbolic link" if path.is_symlink() else "is not a PNG picture"
        raise AcdcError(f"{path} {what}, and is not put into a report; delete it, or put the picture there")
    return content


def _tests(arguments: argparse.Namespace, folder: Path) -> dict[str, Any] | None:
    from acdc.export.json_file import parse_json

    path = arguments.tests or folder / "tests.json"
    if not arguments.tests and not path.exists():
        return None
    data = parse_json(read_text(path), str(path))
    if not isinstance(data, dict) or not isinstance(data.get("tests"), list):
        raise AcdcError(f'{path} does not hold the results of `acdc test`: it lacks a list of "tests"')
    return data

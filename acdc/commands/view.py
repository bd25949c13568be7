"""`acdc view`: a saved circuit as a page for the browser."""

import argparse
import webbrowser
from pathlib import Path

from acdc.errors import AcdcError
from acdc.output_folder import write_file

from .loading import read_annotations, read_circuit, read_text

HELP = "a saved circuit as a page to explore in the browser: one file, no server, no network"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("circuit", type=Path, help="circuit.json, or the folder that holds it")
    parser.add_argument("--out", type=Path, help="file to write (default: circuit.html beside the circuit)")
    parser.add_argument("--state", type=Path, help="open as it was saved on the page (Save state)")
    parser.add_argument("--annotations", type=Path, help="what is known of the nodes (default: annotations.json "
                        "beside the circuit, if there is one)")
    parser.add_argument("--title", help="default: what was found in which model")
    parser.add_argument("--max-edges", type=int, default=20_000, help="how many of the strongest edges the page "
                        "holds, to choose from (default 20000)")
    parser.add_argument("--open", action="store_true", help="then open it in the browser")


def run(arguments: argparse.Namespace) -> None:
    from acdc.export.page import to_html
    from acdc.export.page_state import read_state

    if arguments.max_edges < 1:
        raise AcdcError(f"--max-edges {arguments.max_edges}: it must be at least 1")
    circuit = read_circuit(arguments.circuit)
    folder = arguments.circuit if arguments.circuit.is_dir() else arguments.circuit.parent
    out = arguments.out or folder / "circuit.html"
    if out.is_dir() or not out.parent.is_dir():
        what = "that is a folder" if out.is_dir() else f"{out.parent} is not a folder"
        raise AcdcError(f"cannot write to {out}: {what}; give --out a file in a folder that exists")
    annotations = read_annotations(arguments)
    state = None
    if arguments.state:
        state = read_state(read_text(arguments.state), circuit.graph, str(arguments.state))
    page = to_html(circuit, annotations, state=state, title=arguments.title, max_edges=arguments.max_edges)
    write_file(out, page)
    print(f"written to {out}")
    if arguments.open:
        webbrowser.open(out.resolve().as_uri())

"""`acdc export`: writes a saved circuit in another format, or draws it."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from acdc.errors import AcdcError
from acdc.input_file import LARGE, read_bytes
from acdc.output_folder import write_file

from .loading import read_annotations, read_circuit, read_text
from .printing import say

HELP = "draw a saved circuit, or write it for other programs"
TALL_PAGE = 9.0  # inches


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("circuit", type=Path, help="circuit.json, or the folder that holds it; with --from, a file of "
                        "that format")
    parser.add_argument("--to", required=True, help="html, pdf, svg, png, tikz, tikzpicture, dot, graphml, gexf, "
                        "cytoscape, csv, csv-nodes, latex, markdown, mib, attribution-graph or json")
    parser.add_argument("--from", dest="from_format", default="json", help="json, dot, graphml, gexf or cytoscape")
    parser.add_argument("--out", type=Path, help="the file to write; default: the circuit's, with the format's ending")
    parser.add_argument("--edges", type=int, help="how many edges a figure (default: 60, single: 30) or a table for a "
                        "paper (20) shows at most")
    parser.add_argument("--width", default="page", help="of a figure: single (3.3 inches), double (6.9) or page (6.5)")
    parser.add_argument("--title", help="of a figure; '' for none, as in columns of print by default")
    parser.add_argument("--groups", type=Path, help='draw classes of nodes, as in {"name mover": ["a9.h9", "a9.h6"]}')
    parser.add_argument("--classes", action="store_true", help="draw classes of nodes: a class a role in the "
                        "annotations; --groups names classes of your own")
    parser.add_argument("--annotations", type=Path, help="what is known of the nodes: figures tint and tag them by "
                        "their roles (default: annotations.json beside the circuit, if there is one)")
    parser.add_argument("--d-model", type=int, help="mib: the width of the model's residual stream (default: the "
                        "circuit's)")
    parser.add_argument("--all-edges", action="store_true", help="in files of graphs, edges that are not kept too")


def run(arguments: argparse.Namespace) -> None:
    from acdc.export.circuit_drawing import SMALLEST
    from acdc.export.classes import roles_of
    from acdc.export.formats import FORMATS, Wanted, format_of, read_export

    chosen = format_of(arguments.to)
    if arguments.from_format == "json":
        circuit, roles = read_circuit(arguments.circuit), {}
    else:
        format_of(arguments.from_format)
        content = read_bytes(arguments.circuit, LARGE)
        circuit, roles = read_export(content, arguments.from_format, str(arguments.circuit))
    if arguments.edges is not None and arguments.edges < 1:
        raise AcdcError(f"--edges {arguments.edges}: it must be 1 or more")
    annotations = read_annotations(arguments)
    roles = {**roles, **roles_of(annotations)}
    wanted = Wanted(roles, annotations, _groups(arguments, roles), arguments.width,
                    arguments.title, arguments.edges, arguments.all_edges, arguments.d_model)
    out = _target(arguments, chosen.suffix)
    write_file(out, FORMATS[arguments.to].write(circuit, wanted))
    print(f"written to {out}")
    if chosen.is_figure:
        drawing = wanted.drawing(circuit)
        if drawing.fewer:
            say("note: fewer edges are drawn than asked for, and the figure says how many: with more, letters would be "
                f"printed smaller than {SMALLEST:g} points. --width double has room for more")
        if drawing.height > TALL_PAGE:
            say(f"note: the figure is {drawing.height:.1f} inches tall, more than most pages; draw fewer --edges")


def _target(arguments: argparse.Namespace, suffix: str) -> Path:
    if arguments.out:
        if arguments.out.is_dir() or not arguments.out.parent.is_dir():
            what = "that is a folder" if arguments.out.is_dir() else f"{arguments.out.parent} is not a folder"
            raise AcdcError(f"cannot write to {arguments.out}: {what}; give --out a file in a folder that exists")
        return arguments.out
    source = arguments.circuit / "circuit.json" if arguments.circuit.is_dir() else arguments.circuit
    name = {"csv-nodes": "nodes", "attribution-graph": "attribution_graph", "latex": "table",
            "mib": "importances"}.get(arguments.to)
    target = source.with_name(f"{name}.{suffix}") if name else source.with_suffix(f".{suffix}")
    if target.exists():
        raise AcdcError(f"{target} is there already; say with --out which file to write")
    return target


def _groups(arguments: argparse.Namespace, roles: Mapping[str, str]) -> dict[str, list[str]] | None:
    from acdc.export.classes import groups_of_roles, read_groups

    if arguments.classes and arguments.groups:
        raise AcdcError("--classes takes classes from roles, --groups from a file; give one of them")
    if arguments.classes:
        groups = groups_of_roles(roles)
        if not groups:
            raise AcdcError("--classes: no node has a role; `acdc annotate` finds roles, or name classes with --groups")
        return groups
    return read_groups(read_text(arguments.groups), str(arguments.groups)) if arguments.groups else None

"""`acdc diff`: what two saved circuits share, and where they differ."""

import argparse
import json
from pathlib import Path

from acdc.errors import AcdcError
from acdc.output_folder import output_folder, write_file

from .loading import read_circuit

HELP = "compare two saved circuits: shared edges, overlap against chance, score changes, a figure, a page"
FILES = ("diff.md", "diff.html", "diff.csv", "diff.json", "diff.svg", "diff.png", "diff.pdf")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", type=Path, help="circuit.json, or the folder that holds it")
    parser.add_argument("second", type=Path, help="the circuit to compare it with")
    parser.add_argument("--names", nargs=2, metavar=("A", "B"), help="what to call them; default: their folders")
    parser.add_argument("--out", type=Path, help=f"a folder for {', '.join(FILES)}")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the page for the browser alone")
    parser.add_argument("--edges", type=int, help="how many edges the figure shows at most")
    parser.add_argument("--width", default="page", help="of the figure: single (3.3 inches), double (6.9), page (6.5)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in --out")


def run(arguments: argparse.Namespace) -> None:
    from acdc.evaluation.difference import difference
    from acdc.export.difference_drawing import difference_drawing
    from acdc.export.difference_page import difference_page
    from acdc.export.difference_report import difference_report, difference_table, interval_text, summary
    from acdc.export.figure import figure_bytes, figure_of

    if arguments.edges is not None and arguments.edges < 1:
        raise AcdcError(f"--edges {arguments.edges}: it must be 1 or more")
    if arguments.html and (arguments.html.is_dir() or not arguments.html.parent.is_dir()):
        what = "that is a folder" if arguments.html.is_dir() else f"{arguments.html.parent} is not a folder"
        raise AcdcError(f"cannot write to {arguments.html}: {what}; give --html a file in a folder that exists")
    names = tuple(arguments.names) if arguments.names else _names(arguments.first, arguments.second)
    found = difference(*(read_circuit(path, with_prompts=True) for path in (arguments.first, arguments.second)))
    print(f"{names[0]}: {found.first.n_edges:,} edges; {names[1]}: {found.second.n_edges:,}; "
          f"both: {int(found.shared.sum()):,}")
    for at, chance in zip(found.overlaps, found.chances, strict=True):
        jaccard = "undefined" if at.jaccard is None else f"{at.jaccard:.3f}"
        print(f"{at.level:>5}: Jaccard {jaccard}; {at.n_both:,} shared, {chance.low:,} to {chance.high:,} by chance "
              f"(p {chance.p_text})")
    if found.pearson is not None:
        print(f"scores: Pearson {found.pearson:.3f}, Spearman {found.spearman:.3f}")
    print(interval_text(found, names))
    if arguments.html:
        write_file(arguments.html, difference_page(found, names))
        print(f"written to {arguments.html}")
    if arguments.out:
        with output_folder(arguments.out, FILES, arguments.overwrite) as folder:
            write_file(folder.path / "diff.md", difference_report(found, names))
            write_file(folder.path / "diff.html", difference_page(found, names))
            write_file(folder.path / "diff.csv", difference_table(found))
            write_file(folder.path / "diff.json", json.dumps(summary(found), indent=1, allow_nan=False))
            figure = figure_of(difference_drawing(found, names, max_edges=arguments.edges, width=arguments.width))
            for kind in ("svg", "png", "pdf"):
                write_file(folder.path / f"diff.{kind}", figure_bytes(figure, kind))
        print(f"written to {arguments.out}: {', '.join(FILES)}")


def _names(first: Path, second: Path) -> tuple[str, str]:
    """The folders' or files' names; whole paths where these are the same."""
    names = tuple((path if path.is_dir() or path.stem != "circuit" else path.resolve().parent).name or str(path)
                  for path in (first, second))
    return (str(first), str(second)) if names[0] == names[1] else (names[0], names[1])

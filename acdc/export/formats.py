"""Which formats a circuit can be written in, and which of them read back: one table.

A format is one line here and one module of its own. Its writer gets a circuit and what is wanted of it, and gives the
bytes of a file; its reader gets a file's text and its name for errors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from acdc.circuit import Annotation, Circuit
from acdc.errors import AcdcError, unknown_name
from acdc.export.attribution_graph import to_attribution_graph
from acdc.export.circuit_drawing import circuit_drawing
from acdc.export.class_drawing import class_drawing
from acdc.export.cytoscape import from_cytoscape, to_cytoscape
from acdc.export.dot import from_dot, to_dot
from acdc.export.drawing import Drawing
from acdc.export.edge_table import edge_table
from acdc.export.figure import figure_bytes, figure_of
from acdc.export.gexf import from_gexf, to_gexf
from acdc.export.graphml import from_graphml, to_graphml
from acdc.export.json_file import circuit_from_json, circuit_to_json
from acdc.export.mib import circuit_to_mib
from acdc.export.node_table import node_table
from acdc.export.page import to_html
from acdc.export.paper_table import latex_table, markdown_table
from acdc.export.record import Saved
from acdc.export.tikz import to_tikz


@dataclass(frozen=True)
class Wanted:
    """What an export is to show. Each format takes what it has a use for.

    `roles`: what nodes are said to do. `annotations`: all that is known of them, for the page. `groups`: classes that a
    figure draws instead of nodes. `width`, `title` and `max_edges` are of figures, `max_edges` also the rows of a table
    for a paper. `all_edges`: write edges that are not kept too, so that a file of a graph reads back whole. `d_model`:
    the width of the residual stream, for a circuit whose provenance does not say it.
    """

    roles: Mapping[str, str] = field(default_factory=dict)
    annotations: Sequence[Annotation] = ()
    groups: Mapping[str, list[str]] | None = None
    width: str = "page"
    title: str | None = None
    max_edges: int | None = None
    all_edges: bool = False
    d_model: int | None = None

    def drawing(self, circuit: Circuit) -> Drawing:
        """The figure: of classes where there are groups, else of nodes."""
        if self.groups is not None:
            return class_drawing(circuit, self.groups, title=self.title, width=self.width)
        return circuit_drawing(circuit, title=self.title, max_edges=self.max_edges, width=self.width, roles=self.roles)


class Format(NamedTuple):
    """A file's ending, what it is, how it is written and, where it can be, read; whether it is a figure."""

    suffix: str
    what: str
    write: Callable[[Circuit, Wanted], bytes]
    read: Callable[[str, str], Saved] | None = None
    is_figure: bool = False


def _figure(kind: str) -> Callable[[Circuit, Wanted], bytes]:
    return lambda circuit, wanted: figure_bytes(figure_of(wanted.drawing(circuit)), kind)


def _tikz(document: bool) -> Callable[[Circuit, Wanted], bytes]:
    return lambda circuit, wanted: to_tikz(wanted.drawing(circuit), document=document).encode()


def _graph(write: Callable[..., str]) -> Callable[[Circuit, Wanted], bytes]:
    return lambda circuit, wanted: write(circuit, wanted.roles, all_edges=wanted.all_edges).encode()


def _table(write: Callable[..., str]) -> Callable[[Circuit, Wanted], bytes]:
    return lambda circuit, wanted: write(
        circuit, wanted.roles, n_edges=20 if wanted.max_edges is None else wanted.max_edges).encode()


def _text(write: Callable[..., str]) -> Callable[[Circuit, Wanted], bytes]:
    return lambda circuit, wanted: write(circuit, wanted.roles).encode("utf-8", "backslashreplace")


FORMATS: dict[str, Format] = {
    "json": Format("json", "acdc's own: everything, exactly", lambda circuit, wanted: circuit_to_json(circuit).encode(),
                   lambda text, source: Saved(circuit_from_json(text, source), {})),
    "pdf": Format("pdf", "a figure for a paper, fonts embedded", _figure("pdf"), is_figure=True),
    "svg": Format("svg", "a figure for a web page", _figure("svg"), is_figure=True),
    "png": Format("png", "a figure in pixels, 300 an inch", _figure("png"), is_figure=True),
    "html": Format("html", "a page for the browser, to look around in",
                   lambda circuit, wanted: to_html(circuit, wanted.annotations, title=wanted.title).encode()),
    "tikz": Format("tex", "the figure as a document for pdflatex", _tikz(True), is_figure=True),
    "tikzpicture": Format("tex", "the figure to \\input in a paper", _tikz(False), is_figure=True),
    "dot": Format("dot", "for Graphviz", _graph(to_dot), from_dot),
    "graphml": Format("graphml", "for networkx, Gephi, yEd, igraph", _graph(to_graphml), from_graphml),
    "gexf": Format("gexf", "for Gephi", _graph(to_gexf), from_gexf),
    "cytoscape": Format("cyjs", "for Cytoscape and Cytoscape.js", _graph(to_cytoscape), from_cytoscape),
    "csv": Format("csv", "the edges as a table for a spreadsheet or pandas",
                  lambda circuit, wanted: edge_table(circuit).encode("utf-8", "backslashreplace")),
    "csv-nodes": Format("csv", "the nodes as such a table", _text(node_table)),
    "latex": Format("tex", "the strongest edges as a table for a paper", _table(latex_table)),
    "markdown": Format("md", "the strongest edges as a table for GitHub", _table(markdown_table)),
    "mib": Format("json", "for EAP-IG and MIB's circuit track, to be evaluated and submitted there",
                  lambda circuit, wanted: circuit_to_mib(circuit, d_model=wanted.d_model).encode()),
    "attribution-graph": Format("json", "for the pages of circuit-tracer and Neuronpedia", _text(to_attribution_graph)),
}


def format_of(name: str) -> Format:
    """The format called `name`."""
    if name not in FORMATS:
        raise unknown_name("format", name, FORMATS)
    return FORMATS[name]


def read_export(content: bytes, name: str, source: str) -> Saved:
    """The circuit in a file of the format `name`. `source` names the file in errors."""
    known = format_of(name)
    if known.read is None:
        readable: list[Any] = [other for other, candidate in FORMATS.items() if candidate.read]
        raise AcdcError(f"{source}: a circuit cannot be read from {name}, only from {', '.join(readable)}")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise AcdcError(f"{source} is not UTF-8 text") from error
    return known.read(text, source)

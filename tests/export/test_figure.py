"""A figure is deterministic, says what it hides, and draws as many edges as it says, apart from one another."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from acdc.circuit import Circuit, EdgeScores
from acdc.errors import AcdcError
from acdc.export.circuit_drawing import DOTS, circuit_drawing
from acdc.export.columns import in_columns
from acdc.export.drawing import Patch, Stroke
from acdc.export.figure import circuit_figure, save_figure
from acdc.export.layout import BOX_HEIGHT, Layout, carried, label, layered
from acdc.export.paths import backbone
from acdc.graph import Graph, Node


def made_up(graph: Graph, seed: int = 0) -> EdgeScores:
    values = np.random.default_rng(seed).normal(size=graph.n_edges) ** 3
    return EdgeScores(graph, values, {"model": "gpt2", "task": "ioi"})


ROLES = ("IO", "S1", "S1+1", "S2", "other", "end")
CIRCUITS = {
    "large": made_up(Graph(12, 12, 12)).top(4000, by="magnitude"),
    "group": made_up(Graph(6, 4, 2, kv="group")).top(200, by="magnitude"),
    "parallel": made_up(Graph(6, 4, 4, parallel=True)).top(50, by="signed"),
    "unscored": Circuit.from_edges(Graph(2, 2, 2), ["input->a0.h1<v>", "a0.h1->m1", "m1->logits"]),
    "one": Circuit.from_edges(Graph(12, 12, 12), ["input->logits"]),
    "empty": Circuit.from_edges(Graph(12, 12, 12), []),
}
BY_POSITION = {
    "roles": made_up(Graph(12, 12, 12, positions=ROLES)).top(4000, by="magnitude"),
    "places": made_up(Graph(4, 4, 4, positions=tuple(map(str, range(14))))).top(700, by="signed"),
    "group by position": made_up(Graph(4, 4, 2, kv="group", positions=ROLES)).top(300, by="magnitude"),
    "parallel by position": made_up(Graph(6, 4, 4, parallel=True, positions=ROLES)).top(58, by="magnitude"),
    "one position": made_up(Graph(2, 4, 2, kv="group", positions=("end",))).top(40, by="magnitude"),
    "empty by position": Circuit.from_edges(Graph(12, 12, 12, positions=ROLES), []),
    "long name": Circuit.from_edges(Graph(2, 2, 2, positions=("x" * 100, "end")), [f"input->a0.h1<v>@{'x' * 100}"]),
}
CIRCUITS |= BY_POSITION
MOST = {"places": 30}  # edges to draw; of fourteen columns more would not be legible


def svg(circuit: Circuit, folder: Path, **options) -> tuple[list[str], list[str]]:
    """The texts in the drawing, and the names of the edges drawn."""
    save_figure(circuit_figure(circuit, **options), folder / "circuit.svg")
    root = ET.parse(folder / "circuit.svg").getroot()
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    ids = [element.get("id", "") for element in root.iter()]
    return texts, [name.removeprefix("edge:") for name in ids if name.startswith("edge:")]


@pytest.mark.parametrize("name", CIRCUITS)
def test_what_is_drawn_is_what_is_said(name, tmp_path):
    circuit, most = CIRCUITS[name], MOST.get(name, 60)
    texts, edges = svg(circuit, tmp_path, max_edges=most)
    graph = circuit.graph
    shown = backbone(circuit, most)
    assert sorted(edges) == sorted(graph.edge_name(edge) for edge in shown.edges.tolist())
    nodes = {graph.srcs[graph.edge_src[e]] for e in shown.edges}
    nodes |= {graph.channels[graph.edge_channel[e]].node for e in shown.edges}
    assert {label(node) for node in nodes} | {"input", "logits"} <= set(texts)
    note = " ".join(texts)
    if len(edges) < circuit.n_edges:
        assert f"shown: {len(edges)} of {circuit.n_edges:,} kept edges" in note
        strongest, joining = re.search(r"the (\d+) strongest.*?and (\d+) that", note).groups()  # type: ignore[union-attr]
        assert int(strongest) + int(joining) == len(edges)
    elif circuit.n_edges:
        at = f" at {graph.n_positions} positions" if graph.positions else ""
        assert f"shown: all {circuit.n_edges} kept edges (of the model's {graph.n_edges:,}{at})" in note
    else:
        assert "no edge is kept" in note


@pytest.mark.parametrize("circuit", ["group", "group by position"])
@pytest.mark.parametrize("kind", ["svg", "png", "pdf"])
def test_the_same_circuit_gives_the_same_bytes(circuit, kind, tmp_path):
    for name in ("first", "second"):
        save_figure(circuit_figure(CIRCUITS[circuit]), tmp_path / f"{name}.{kind}")
    assert (tmp_path / f"first.{kind}").read_bytes() == (tmp_path / f"second.{kind}").read_bytes()


def laid_out(circuit: Circuit, max_edges: int) -> Layout:
    graph, places = circuit.graph, set()
    for e in backbone(circuit, max_edges).edges.tolist():
        position = int(graph.edge_position[e])
        places |= {(graph.srcs[graph.edge_src[e]], position), (graph.channels[graph.edge_channel[e]].node, position)}
    if graph.positions:
        return in_columns(graph, places, head_room=0.5, foot_room=0.6)
    return layered(graph, {node for node, _ in places}, head_room=0.5, foot_room=0.6)


@pytest.mark.parametrize("name", BY_POSITION)
def test_boxes_and_edges_are_in_the_column_of_their_position(name):
    circuit, most = BY_POSITION[name], MOST.get(name, 60)
    graph, layout = circuit.graph, laid_out(circuit, most)
    shown = backbone(circuit, most).edges
    assert sorted(layout.columns) == sorted({*graph.edge_position[shown].tolist(), graph.n_positions - 1})
    ends = [end for position in sorted(layout.columns) for end in layout.columns[position]]
    assert ends == sorted(ends)
    for (_, position), box in layout.boxes.items():
        left, right = layout.columns[position]
        assert left < box.x - box.width / 2 and box.x + box.width / 2 < right
    heights: dict[Node, set[float]] = {}
    for (node, _), box in layout.boxes.items():
        heights.setdefault(node, set()).add(box.y)
    assert all(len(y) == 1 for y in heights.values())
    figure = circuit_figure(circuit, max_edges=most)
    drawn = {patch.get_gid(): patch for patch in figure.axes[0].patches if patch.get_gid()}
    assert len(drawn) == len(shown)
    for edge in shown.tolist():
        left, right = layout.columns[graph.edge_position[edge]]
        line = drawn[f"edge:{graph.edge_name(edge)}"].get_path().get_extents()
        printed = 6.5 / layout.width
        assert left - 0.02 <= line.x0 / printed and line.x1 / printed <= right + 0.02


@pytest.mark.parametrize("name", BY_POSITION)
def test_links_join_where_attention_reads_to_where_its_output_is_read(name):
    circuit, most = BY_POSITION[name], MOST.get(name, 60)
    graph, edges = circuit.graph, backbone(circuit, most).edges.tolist()
    expected = set()
    for a in edges:
        channel, start = graph.channels[graph.edge_channel[a]], int(graph.edge_position[a])
        for b in edges if channel.letter in ("k", "v") else []:
            head, end = graph.srcs[graph.edge_src[b]], int(graph.edge_position[b])
            if head.kind == "head" and graph.feeds(channel, head.layer, head.index):
                expected.add(((channel.node, start), (head, end)))
    expected = {(a, b) for a, b in expected if a != b}
    found = carried(graph, np.array(edges, dtype=int))
    assert len(found) == len(set(found)) and set(found) == expected
    shapes = circuit_drawing(circuit, max_edges=most).shapes
    links = [shape for shape in shapes if isinstance(shape, Stroke) and shape.depth == 1 and shape.dashes == DOTS]
    assert len(links) == len(expected)
    assert sum(shape.curved for shape in links) == sum(a[1] != b[1] for a, b in expected)
    assert sum(isinstance(shape, Patch) for shape in shapes) == sum(a[1] != b[1] for a, b in expected)


def test_columns_are_named_and_those_left_out_too(tmp_path):
    graph = Graph(2, 2, 2, positions=("IO", "S1", "S2", "end"))
    made = Circuit.from_edges(graph, ["input->a0.h1<v>@S2", "a0.h1->logits@end"])
    texts, _ = svg(made, tmp_path)
    assert {"S2", "end"} <= set(texts) and not {"IO", "S1"} & set(texts)
    assert any(text.endswith("none at IO, S1") for text in texts)
    assert texts.count("input") == 2 and texts.count("logits") == 1 and texts.count("0.1") == 2
    long, _ = svg(BY_POSITION["long name"], tmp_path)
    assert any(text.startswith("xxx") and text.endswith("…") for text in long)


@pytest.mark.parametrize("name", CIRCUITS)
def test_nothing_overlaps_and_nothing_is_cut_off(name):
    layout = laid_out(CIRCUITS[name], 200)
    boxes = list(layout.boxes.values())
    for i, box in enumerate(boxes):
        assert box.x - box.width / 2 > 0 and box.x + box.width / 2 < layout.width
        assert box.y - BOX_HEIGHT / 2 > 0 and box.y + BOX_HEIGHT / 2 < layout.height
        for other in boxes[:i]:
            apart_x = abs(box.x - other.x) >= (box.width + other.width) / 2
            assert apart_x or abs(box.y - other.y) >= BOX_HEIGHT


@pytest.mark.parametrize("name", ["large", *BY_POSITION])
def test_all_text_fits_the_page_and_none_overlaps(name):
    figure = circuit_figure(CIRCUITS[name], max_edges=200)
    figure.draw_without_rendering()
    page = figure.bbox
    extents = [text.get_window_extent() for text in figure.axes[0].texts if text.get_visible()]
    for i, extent in enumerate(extents):
        assert page.x0 <= extent.x0 and extent.x1 <= page.x1 and page.y0 <= extent.y0 and extent.y1 <= page.y1
        assert not any(extent.overlaps(other) for other in extents[:i])


def test_full_rows_of_a_wide_model_stay_apart():
    graph = Graph(1, 32, 8, kv="group")
    layout = layered(graph, {*graph.srcs, *(c.node for c in graph.channels)}, head_room=0.0, foot_room=0.0)
    heads = [layout.boxes[Node("head", 0, i), 0] for i in range(32)]
    assert len({box.y for box in heads}) == 4


def test_settings_are_untouched(tmp_path):
    before = dict(mpl.rcParams)
    save_figure(circuit_figure(CIRCUITS["one"]), tmp_path / "one.svg")
    assert dict(mpl.rcParams) == before


def test_a_title_is_plain_text(tmp_path):
    texts, _ = svg(CIRCUITS["one"], tmp_path, title="costs $3 & <4> $x_1")
    assert "costs $3 & <4> $x_1" in texts


def test_wrong_wishes_are_refused(tmp_path):
    with pytest.raises(AcdcError, match="at least one edge"):
        circuit_figure(CIRCUITS["one"], max_edges=0)
    figure = circuit_figure(CIRCUITS["one"])
    with pytest.raises(AcdcError, match="unknown kind of figure 'jpg'"):
        save_figure(figure, tmp_path / "circuit.jpg")
    with pytest.raises(AcdcError, match="there is no folder"):
        save_figure(figure, tmp_path / "none" / "circuit.svg")

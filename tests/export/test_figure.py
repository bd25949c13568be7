"""A figure is deterministic, says what it hides, and draws as many edges as it says, apart from one another."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from acdc.circuit import Circuit, EdgeScores
from acdc.errors import AcdcError
from acdc.export.figure import circuit_figure, save_figure
from acdc.export.layout import BOX_HEIGHT, label, layered
from acdc.export.paths import backbone
from acdc.graph import Graph, Node


def made_up(graph: Graph, seed: int = 0) -> EdgeScores:
    values = np.random.default_rng(seed).normal(size=graph.n_edges) ** 3
    return EdgeScores(graph, values, {"model": "gpt2", "task": "ioi"})


CIRCUITS = {
    "large": made_up(Graph(12, 12, 12)).top(4000, by="magnitude"),
    "group": made_up(Graph(6, 4, 2, kv="group")).top(200, by="magnitude"),
    "parallel": made_up(Graph(6, 4, 4, parallel=True)).top(50, by="signed"),
    "unscored": Circuit.from_edges(Graph(2, 2, 2), ["input->a0.h1<v>", "a0.h1->m1", "m1->logits"]),
    "one": Circuit.from_edges(Graph(12, 12, 12), ["input->logits"]),
    "empty": Circuit.from_edges(Graph(12, 12, 12), []),
}


def svg(circuit: Circuit, folder: Path, **options) -> tuple[list[str], list[str]]:
    """The texts in the drawing, and the names of the edges drawn."""
    save_figure(circuit_figure(circuit, **options), folder / "circuit.svg")
    root = ET.parse(folder / "circuit.svg").getroot()
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    ids = [element.get("id", "") for element in root.iter()]
    return texts, [name.removeprefix("edge:") for name in ids if name.startswith("edge:")]


@pytest.mark.parametrize("name", CIRCUITS)
def test_what_is_drawn_is_what_is_said(name, tmp_path):
    circuit = CIRCUITS[name]
    texts, edges = svg(circuit, tmp_path)
    graph = circuit.graph
    shown = backbone(circuit, 60)
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
        assert f"shown: all {circuit.n_edges} kept edges (of the model's {graph.n_edges:,})" in note
    else:
        assert "no edge is kept" in note


@pytest.mark.parametrize("kind", ["svg", "png", "pdf"])
def test_the_same_circuit_gives_the_same_bytes(kind, tmp_path):
    for name in ("first", "second"):
        save_figure(circuit_figure(CIRCUITS["group"]), tmp_path / f"{name}.{kind}")
    assert (tmp_path / f"first.{kind}").read_bytes() == (tmp_path / f"second.{kind}").read_bytes()


@pytest.mark.parametrize("name", CIRCUITS)
def test_nothing_overlaps_and_nothing_is_cut_off(name):
    circuit = CIRCUITS[name]
    graph, edges = circuit.graph, backbone(circuit, 200).edges
    nodes = {graph.srcs[graph.edge_src[e]] for e in edges}
    nodes |= {graph.channels[graph.edge_channel[e]].node for e in edges}
    layout = layered(graph, nodes, head_room=0.5, foot_room=0.6)
    boxes = list(layout.boxes.values())
    for i, box in enumerate(boxes):
        assert box.x - box.width / 2 > 0 and box.x + box.width / 2 < layout.width
        assert box.y - BOX_HEIGHT / 2 > 0 and box.y + BOX_HEIGHT / 2 < layout.height
        for other in boxes[:i]:
            apart_x = abs(box.x - other.x) >= (box.width + other.width) / 2
            assert apart_x or abs(box.y - other.y) >= BOX_HEIGHT


def test_labels_fit_their_boxes_and_all_text_the_page():
    figure = circuit_figure(CIRCUITS["large"], max_edges=200)
    figure.draw_without_rendering()
    page = figure.bbox
    boxes = {text.get_text(): text.get_window_extent() for text in figure.axes[0].texts}
    legend = figure.legends[0].get_window_extent()
    for extent in (*boxes.values(), legend):
        assert page.x0 <= extent.x0 and extent.x1 <= page.x1 and page.y0 <= extent.y0 and extent.y1 <= page.y1
    assert legend.y1 < boxes["input"].y0


def test_full_rows_of_a_wide_model_stay_apart():
    graph = Graph(1, 32, 8, kv="group")
    layout = layered(graph, {*graph.srcs, *(c.node for c in graph.channels)}, head_room=0.0, foot_room=0.0)
    heads = [layout.boxes[Node("head", 0, i)] for i in range(32)]
    assert len({box.y for box in heads}) == 3


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

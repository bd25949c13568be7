"""Drawings fit the columns of print, name what they tint, count what they hide, and TikZ sets the same shapes."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from made_circuits import HOSTILE, hostile

from acdc.circuit import Circuit, EdgeScores
from acdc.errors import AcdcError
from acdc.export.circuit_drawing import circuit_drawing
from acdc.export.class_drawing import bundles, class_drawing
from acdc.export.classes import classes_of_groups, classes_of_roles, read_groups
from acdc.export.drawing import Drawing, Panel, Stroke, Words
from acdc.export.figure import figure_bytes, figure_of
from acdc.export.palette import CLASSES, COLOURS
from acdc.export.tikz import NARROW, to_tikz
from acdc.graph import Graph, Node

WIDTHS = {"single": 3.3, "double": 6.9, "page": 6.5}
ROLES = {"a9.h9": "name mover", "a9.h6": "name mover", "a7.h3": "S-inhibition", "m0": "early MLP"}
GROUPS = {"name mover": ["a9.h9", "a9.h6", "a10.h0"], "S-inhibition": ["a7.h3", "a7.h9", "a8.h6"],
          "duplicate token": ["a0.h1", "a0.h10", "a3.h0"], "first MLP": ["m0"]}


def scored(graph: Graph, n: int, seed: int = 0) -> Circuit:
    values = np.random.default_rng(seed).normal(size=graph.n_edges) ** 3
    return EdgeScores(graph, values, {"task": "ioi"}).top(n, by="magnitude")


def gpt2_sized(n: int, positions: tuple[str, ...] = ()) -> Circuit:
    return scored(Graph(12, 12, 12, positions=positions), n)


def words(drawing: Drawing) -> list[str]:
    return [shape.text for shape in drawing.shapes if isinstance(shape, Words)]


@pytest.mark.parametrize("width", ["single", "double"])
@pytest.mark.parametrize(("n", "max_edges"), [(20, None), (100, 100), (500, None)])
@pytest.mark.parametrize(("positions", "roles"), [((), ROLES), (("S1", "S2", "end"), ROLES), (("S1", "end"), {})])
def test_labels_fit_the_page_are_apart_and_can_be_read(width, n, max_edges, positions, roles):
    """Of the default number of edges, and of all that were asked for, in the figure and in TikZ."""
    graph = Graph(10, 10, 5, positions=positions) if roles else Graph(12, 4, 2, positions=positions)
    drawing = circuit_drawing(scored(graph, n), width=width, roles=roles, max_edges=max_edges)
    check_labels(drawing, WIDTHS[width])


def check_labels(drawing: Drawing, width: float) -> None:
    assert drawing.width == width and drawing.smallest_text >= 5
    tikz = [float(scale) for scale in re.findall(r"\\node\[anchor=[a-z ]+,scale=([\d.]+)", to_tikz(drawing))]
    assert len(tikz) == len(words(drawing)) and min(tikz) * 10 / NARROW >= 4.99
    figure = figure_of(drawing)
    figure.draw_without_rendering()
    extents = [text.get_window_extent() for text in figure.axes[0].texts]
    for i, extent in enumerate(extents):
        assert figure.bbox.x0 <= extent.x0 and extent.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= extent.y0 and extent.y1 <= figure.bbox.y1
        assert not any(extent.overlaps(other) for other in extents[:i])


def test_nodes_are_tinted_and_tagged_by_role_and_the_legend_says_how():
    circuit = Circuit.from_edges(Graph(12, 12, 12), ["input->a9.h9<v>", "a9.h9->logits", "input->a7.h3<q>",
                                                     "a7.h3->m8", "input->m0"])
    drawing = circuit_drawing(circuit, roles=ROLES)
    expected = {"9.9 NM", "7.3 SI", "m0 EM", "m8", "NM: name mover", "SI: S-inhibition", "EM: early MLP"}
    assert expected <= set(words(drawing))
    tints = {shape.fill for shape in drawing.shapes if isinstance(shape, Panel)}
    assert {CLASSES[0], CLASSES[1], CLASSES[2]} <= tints
    assert not [text for text in words(circuit_drawing(circuit)) if text.startswith("NM")]


def seen_with(rgb: np.ndarray, eyes: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of an sRGB colour, seen with eyes that mix linear light so."""
    linear = np.clip(eyes @ np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92), 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ linear / [0.9505, 1.0, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eyes", [
    [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
], ids=["all cones", "no red cones", "no green cones", "no blue cones"])
@pytest.mark.parametrize(("colours", "least"), [(CLASSES, 9.0), (tuple(COLOURS.values()), 15.0)])
def test_colours_are_told_apart_by_all_eyes(colours, least, eyes):
    """Colour blindness as Machado et al. 2009 simulate it; a difference of 2.3 can just be seen."""
    seen = [seen_with(np.array(list(bytes.fromhex(colour[1:]))) / 255, np.array(eyes)) for colour in colours]
    assert all(np.linalg.norm(a - b) > least for i, a in enumerate(seen) for b in seen[:i])


def test_lines_behind_boxes_are_broken_and_those_that_end_there_touch():
    circuit = Circuit.from_edges(Graph(12, 12, 12), ["input->a9.h9<v>", "a9.h9->logits"])
    shapes = circuit_drawing(circuit, width="single").shapes
    boxes = [s for s in shapes if isinstance(s, Panel) and s.depth == 3]
    (halo,) = [s for s in shapes if isinstance(s, Panel) and s.depth == 2.3]
    box = next(box for box in boxes if halo.x < box.x and halo.y < box.y < halo.y + halo.height)
    ends = [s.points for s in shapes if isinstance(s, Stroke) and s.depth == 2.6]
    edges = [s.points for s in shapes if isinstance(s, Stroke) and s.name]
    assert len(edges) == 2 and len(ends) == 4
    assert {tuple(e[0]) for e in ends} == {tuple(p) for e in edges for p in (e[0], e[3])}
    for points in ends:
        if np.isclose(points[0, 1], [box.y, box.y + box.height]).any():
            assert not halo.y + 1e-6 < points[3, 1] < halo.y + halo.height - 1e-6


def test_fewer_edges_are_drawn_where_letters_would_be_too_small():
    circuit = scored(Graph(3, 4, 4, positions=tuple(map(str, range(14)))), 100)
    drawing = circuit_drawing(circuit, width="single", max_edges=100)
    drawn = sum(isinstance(shape, Stroke) and bool(shape.name) for shape in drawing.shapes)
    assert drawing.fewer and drawing.smallest_text >= 5 and 0 < drawn < 100
    assert f"shown: {drawn} of 100 kept edges" in " ".join(words(drawing))
    assert not circuit_drawing(circuit, max_edges=3).fewer


def test_a_remark_on_a_role_is_a_star_of_the_same_tint():
    graph = Graph(12, 12, 12)
    classes = classes_of_roles(graph, {"a9.h9": "name mover", "a1.h0": "name mover (seen, alone)",
                                       "a11.h2": "negative mover", "a3.h3": "attention sink (seen)"})
    tags = {name: tag for tag, name, _ in classes.legend()}
    assert tags == {"name mover": "NM", "name mover (seen)": "NM*", "negative mover": "NEM",
                    "attention sink (seen)": "AS*"}
    tints = {name: tint for _, name, tint in classes.legend()}
    assert tints["name mover"] == tints["name mover (seen)"] and len(set(tints.values())) == 3


def test_tags_differ_and_groups_are_checked():
    graph = Graph(12, 12, 12)
    groups = {"name mover": ["a9.h9"], "negative mover": ["a10.h7"], "nothing more": ["a1.h1"]}
    classes = classes_of_groups(graph, groups)
    tags = [classes.tag(Node.parse(name)) for name in ("a9.h9", "a10.h7", "a1.h1")]
    assert len(set(tags)) == 3 and "" not in tags and classes.tag(Node("mlp", 3)) == ""
    assert classes_of_roles(graph, {"a9.h9": "", "a0.h0": "x"}).names == ("x",)
    with pytest.raises(AcdcError, match="in two groups"):
        classes_of_groups(graph, {"a": ["a9.h9"], "b": ["a9.h9"]})
    with pytest.raises(AcdcError, match="lacks"):
        classes_of_groups(graph, {"a": ["a12.h0"]})
    assert read_groups('{"a": ["m0"]}') == {"a": ["m0"]}
    for text in ("[]", '{"a": "m0"}', '{"a": [0]}', "{"):
        with pytest.raises(AcdcError):
            read_groups(text, "groups.json")


def test_arrows_between_classes_sum_what_is_between_them_and_hidden_edges_are_counted():
    graph = Graph(2, 2, 2)
    names = ["input->a0.h0<v>", "a0.h0->a1.h0<v>", "a0.h1->a1.h0<v>", "a0.h0->a1.h1<v>", "a0.h0->m0", "m0->a1.h0<q>",
             "a1.h0->logits", "a0.h0->logits"]
    values = np.zeros(graph.n_edges)
    for i, name in enumerate(names):
        values[graph.edge(name)] = (-2.0) ** i
    circuit = Circuit(graph, Circuit.from_edges(graph, names).kept, EdgeScores(graph, values))
    groups = {"early": ["a0.h0", "a0.h1"], "late": ["a1.h0", "a1.h1"]}
    found, within, outside = bundles(circuit, classes_of_groups(graph, groups))
    assert (within, outside) == (0, 2)
    assert {(b.src, b.dst, b.letter): (b.n_edges, b.total) for b in found} == {
        ("input", "early", "v"): (1, 1.0), ("early", "late", "v"): (3, -2.0 + 4.0 - 8.0),
        ("late", "logits", ""): (1, 64.0), ("early", "logits", ""): (1, -128.0),
    }
    drawing = class_drawing(circuit, groups)
    note = " ".join(words(drawing))
    assert "6 of 8 kept edges" in note and "2 from or to nodes of no class" in note
    assert sum(isinstance(shape, Stroke) and bool(shape.name) for shape in drawing.shapes) == 4
    with pytest.raises(AcdcError, match="no group"):
        class_drawing(circuit, {})
    with pytest.raises(AcdcError, match="always drawn"):
        class_drawing(circuit, {"logits": ["m0"]})


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("positions", [(), ("S1", "S2", "end")])
def test_classes_do_not_overlap(width, positions):
    drawing = class_drawing(gpt2_sized(400, positions), GROUPS, width=width)
    assert drawing.width == WIDTHS[width]
    boxes = [shape for shape in drawing.shapes if isinstance(shape, Panel) and shape.depth == 3]
    assert len(boxes) == len(GROUPS) + 2
    for i, a in enumerate(boxes):
        assert a.x > 0 and a.x + a.width < drawing.width
        for b in boxes[:i]:
            assert a.x + a.width <= b.x or b.x + b.width <= a.x or a.y + a.height <= b.y or b.y + b.height <= a.y


def test_pdfs_hold_truetype_fonts_and_no_dates():
    content = figure_bytes(figure_of(circuit_drawing(gpt2_sized(20), width="single")), "pdf")
    assert b"/Type3" not in content and b"/FontFile2" in content and b"/CreationDate" not in content


def test_wrong_widths_are_refused():
    with pytest.raises(AcdcError, match="unknown width 'singel'. Did you mean 'single'"):
        circuit_drawing(gpt2_sized(3), width="singel")


def test_tikz_has_the_shapes_of_the_drawing():
    drawing = circuit_drawing(gpt2_sized(60), roles=ROLES)
    text = to_tikz(drawing)
    assert text.count(r"\node[") == len(words(drawing))
    assert text.count(" rectangle ") == 1 + sum(isinstance(shape, Panel) for shape in drawing.shapes)
    assert text.count(".. controls ") == sum(isinstance(s, Stroke) and s.curved for s in drawing.shapes)
    assert to_tikz(drawing, document=False).startswith(r"\begin{tikzpicture}")


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed (Debian: apt install "
                    "texlive-latex-base texlive-pictures)")
@pytest.mark.parametrize("name", ["flat", "hostile", "classes"])
def test_tikz_compiles_to_one_page_of_the_same_size(name, tmp_path):
    roles = {"a0.h0": HOSTILE[4], "m0": HOSTILE[1], "a1.h1": "é漢字 ^~<>|"}
    drawing = {"flat": lambda: circuit_drawing(gpt2_sized(60), width="double", roles=ROLES),
               "hostile": lambda: circuit_drawing(hostile(), roles=roles, title=HOSTILE[4]),
               "classes": lambda: class_drawing(gpt2_sized(300), GROUPS, width="single")}[name]()
    (tmp_path / "figure.tex").write_text(to_tikz(drawing), encoding="utf-8")
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "figure.tex"], cwd=tmp_path,
                          capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "figure.log").read_text(errors="replace")
    assert "(1 page" in log and "Overfull" not in log
    box = re.search(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", (tmp_path / "figure.pdf").read_bytes())
    if box:
        assert np.allclose([float(side) / 72 for side in box.groups()], [drawing.width, drawing.height], atol=0.01)

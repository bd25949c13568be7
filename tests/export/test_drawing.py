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
from acdc.export.palette import CLASSES
from acdc.export.tikz import to_tikz
from acdc.graph import Graph, Node

WIDTHS = {"single": 3.3, "double": 6.9, "page": 6.5}
ROLES = {"a9.h9": "name mover", "a9.h6": "name mover", "a7.h3": "S-inhibition", "m0": "early MLP"}
GROUPS = {"name mover": ["a9.h9", "a9.h6", "a10.h0"], "S-inhibition": ["a7.h3", "a7.h9", "a8.h6"],
          "duplicate token": ["a0.h1", "a0.h10", "a3.h0"], "first MLP": ["m0"]}


def gpt2_sized(n: int, positions: tuple[str, ...] = ()) -> Circuit:
    graph = Graph(12, 12, 12, positions=positions)
    values = np.random.default_rng(0).normal(size=graph.n_edges) ** 3
    return EdgeScores(graph, values, {"task": "ioi"}).top(n, by="magnitude")


def words(drawing: Drawing) -> list[str]:
    return [shape.text for shape in drawing.shapes if isinstance(shape, Words)]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("n", [20, 500])
@pytest.mark.parametrize("positions", [(), ("S2", "end")])
def test_a_figure_is_as_wide_as_its_column_with_letters_that_can_be_read(width, n, positions):
    drawing = circuit_drawing(gpt2_sized(n, positions), width=width, roles=ROLES)
    assert drawing.width == WIDTHS[width] and drawing.smallest_text >= 5
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

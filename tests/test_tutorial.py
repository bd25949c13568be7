"""The tutorial runs from top to bottom on the packaged model, and stores what it prints and draws; so do the pictures
of the concepts."""

import ast
import base64
import re
import xml.etree.ElementTree as ElementTree
from io import BytesIO

import pictures
import pytest
import tutorial
from matplotlib.image import imread
from test_docs import LINK, ROOT, without_decimals

from acdc.export.figure import figure_bytes

NOTEBOOK = tutorial.read()


def of_kind(kind):
    return [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == kind]


def text_of(output):
    return "".join(output.get("text") or output["data"]["text/plain"])


def picture_of(output):
    return imread(BytesIO(base64.b64decode(output["data"]["image/png"])))


@pytest.mark.parametrize("cell", of_kind("code"), ids=lambda cell: cell["id"])
def test_cells_are_python(cell):
    ast.parse("".join(cell["source"]).replace("%matplotlib", "# %matplotlib"))


def test_outputs_are_those_that_are_stored():
    for cell, outputs in zip(of_kind("code"), tutorial.run(NOTEBOOK), strict=True):
        assert [output["output_type"] for output in outputs] == [output["output_type"] for output in cell["outputs"]]
        for new, stored in zip(outputs, cell["outputs"], strict=True):
            assert without_decimals(text_of(new)) == without_decimals(text_of(stored)), cell["id"]
            assert set(new.get("data", ())) == set(stored.get("data", ()))
            if "image/png" in new.get("data", ()):
                assert picture_of(new).shape == picture_of(stored).shape and picture_of(new).std() > 0.05


def test_what_it_says_in_words_is_so():
    printed = "\n".join(text_of(output) for cell in of_kind("code") for output in cell["outputs"])
    by_size = {float(share): float(f) for share, f in re.findall(r"\(([\d.]+)%\): faithfulness ([\d.]+)", printed)}
    other, chance = (float(re.search(rf"{name}: faithfulness (-?[\d.]+)", printed)[1])
                     for name in ("other words", "random edges"))
    assert by_size[1.0] > 0.8 and other > 0.8 and abs(chance) < 0.1  # "one percent does most of it", also reworded


def test_links_lead_somewhere():
    links = [link for cell in of_kind("markdown") for link in LINK.finditer("".join(cell["source"]))]
    assert links and all((ROOT / "docs" / link["file"]).exists() for link in links)


def test_the_form_of_the_notebook():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    for cell in of_kind("code"):
        assert set(cell) == {"cell_type", "id", "metadata", "execution_count", "outputs", "source"}


def words(svg):
    return sorted("".join(element.itertext()).strip() for element in ElementTree.fromstring(svg).iter()
                  if element.tag.endswith("}text"))


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_pictures_of_the_concepts_are_those_that_are_stored(name):
    drawn = figure_bytes(pictures.PICTURES[name](), "svg")
    assert words(drawn) == words((ROOT / "docs" / name).read_bytes())
    assert f"({name})" in (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")

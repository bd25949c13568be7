"""The page in a real browser, on a circuit of the real model: each thing that can be done there, by hand and by key.

What it shows is compared with what Python computes from the same circuit.
"""

import base64
import json
import os
import re
import shutil
import statistics
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from acdc.circuit import Annotation, Circuit, EdgeScores
from acdc.discovery.eap import eap
from acdc.evaluation.difference import Difference, difference, places
from acdc.evaluation.faithfulness import faithfulness_curve
from acdc.export.difference_drawing import relative_to_mean
from acdc.export.difference_page import difference_page
from acdc.export.page import to_html
from acdc.export.page_state import read_state
from acdc.export.palette import BOTH, ONLY_FIRST, ONLY_SECOND
from acdc.export.paths import strongest_paths
from acdc.graph import Graph
from acdc.models import load_model
from acdc.tasks.ioi import ioi

HOSTILE = "</script><img src=x onerror=\"hacked=1\">\u202eevil\u2066\u2028<b>&amp;\x00"
ROLES = {"a23.h3": "name mover", "a24.h4": "name mover", "a20.h0": "S-inhibition", "a17.h4": "S-inhibition"}


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[test]'")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        if os.environ.get("ACDC_REQUIRE_BROWSER"):
            pytest.fail("no chromium on the path, and ACDC_REQUIRE_BROWSER asks for one: apt-get install chromium")
        pytest.skip("no chromium on the path; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def circuit() -> Circuit:
    """The strongest 400 edges of IOI in SmolLM2, with the curve beside them."""
    model = load_model("smollm2")
    batches = ioi(model.tokenizer, n=2).batches(model.tokenizer)
    scores = eap(model, batches)
    curve = faithfulness_curve(model, scores, batches, by="magnitude", fractions=(0.002, 0.02, 0.05))
    chosen = scores.top(400, by="magnitude")
    record = {"model": "smollm2", "task": "ioi", "faithfulness": 0.125, "curves": [curve.as_record()]}
    return Circuit(chosen.graph, chosen.kept, scores, {**chosen.provenance, **record})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


def annotations() -> list[Annotation]:
    tokens = ["At", " the", " bank", ",", " Mary"]
    weights = [[1 / (row + 1) if column <= row else 0.0 for column in range(5)] for row in range(5)]
    examples = [{"tokens": tokens, "activations": [0.0, 0.5, 2.0, 0.0, 1.0]}]
    return [
        *(Annotation(node, "role", role, 0.9) for node, role in ROLES.items()),
        Annotation("a23.h3", "evidence", "copies names", 0.87, {"baseline": 0.1}),
        Annotation("a23.h3", "attention", "first prompt", None, {"tokens": tokens, "weights": weights}),
        Annotation("a23.h3", "lens", "", None, {"promotes": [[" Mary", 3.5], [" John", 2.5]]}),
        Annotation("a23.h3", "tokens", "", None, {"promotes": [[" Kenneth", 3.0]], "suppresses": [[" the", -1.0]]}),
        Annotation("a23.h3", "probe", "the indirect object", 0.93, {"low": 0.9, "high": 0.96}),
        Annotation("a23.h3", "feature", "names", 1.5, {"index": 12, "examples": examples}),
        Annotation("a23.h3", "something new", "said in words", 2.0, {"detail": "and more"}),
    ]


@pytest.fixture(scope="module")
def url(circuit: Circuit, folder: Path) -> str:
    return write(folder / "circuit.html", to_html(circuit, annotations()))


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def open_page(browser):
    """Opens pages, and at the end says what went wrong in them: errors, and requests of anything but the page."""
    contexts, wrong = [], []

    def opened(url: str, **options):
        context = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: None if allowed(request.url, url) else wrong.append(request.url))
        page.goto(url)
        page.wait_for_selector("html[data-ready]")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong


def allowed(requested: str, url: str) -> bool:
    return requested.split("#")[0] == url.split("#")[0] or requested.startswith("blob:")


def summary(page) -> dict:
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    shown = page.evaluate("acdcSummary()")
    return {**shown, "view": [round(value, 3) for value in shown["view"]]}


def node(page, key: str):
    return page.locator(f'.node[data-node="{key}"]')


def answer(page, text: str) -> None:
    """Fills in the dialog that is open; the page goes on when it has closed, a moment later."""
    dialog = page.get_by_role("dialog")
    dialog.locator("input").fill(text)
    page.keyboard.press("Enter")
    dialog.wait_for(state="detached")


def set_size(page, n: int) -> dict:
    field = page.get_by_label("Edges kept, as a number")
    field.fill(str(n))
    field.press("Enter")
    return summary(page)


def slide(page, label: str, value: int) -> dict:
    page.get_by_label(label, exact=True).evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', {bubbles: true})) }", value)
    return summary(page)


def download(page, name: str) -> bytes:
    page.get_by_text("Save", exact=True).click()
    with page.expect_download() as started:
        page.get_by_role("button", name=name).click()
    return Path(started.value.path()).read_bytes()


def joined(circuit: Circuit, name: str) -> tuple[set[str], set[str]]:
    """The names of all edges on a path to or from a node, by networkx."""
    graph = circuit.graph.to_networkx(circuit.kept)
    after = nx.descendants(graph, name) | {name}
    before = nx.ancestors(graph, name) | {name}
    to_name = lambda s, d, key: f"{s}->{d}<{key}>" if key else f"{s}->{d}"  # noqa: E731
    return ({to_name(s, d, k) for s, d, k in graph.edges(keys=True) if s in after},
            {to_name(s, d, k) for s, d, k in graph.edges(keys=True) if d in before})


def test_it_opens_and_says_what_it_hides(open_page, url, circuit):
    page = open_page(url)
    shown = summary(page)
    assert set(shown["edges"]) == set(circuit.edge_names)
    assert set(shown["nodes"]) == {n.name for n in circuit.nodes} | {"input", "logits"}
    note = page.locator("#hidden-note").inner_text()
    assert "Drawn: 400 of the circuit’s 400 edges, of 123,211 in the model." in note
    assert "20,000 strongest of 123,211" in note
    strengths = np.abs(circuit.scores.values)
    share = strengths[circuit.kept].sum() / strengths.sum()
    assert f"{share:.1%} of all |score|" in note
    assert page.locator('meta[http-equiv="Content-Security-Policy"]').count() == 1


@pytest.mark.parametrize("by", ["magnitude", "signed"])
def test_sizes_recompute_the_circuit(open_page, url, circuit, by):
    page = open_page(url)
    page.get_by_label("Ranking").select_option(by)
    for n in (1, 77, 1500):
        assert set(set_size(page, n)["edges"]) == set(circuit.scores.top(n, by=by).edge_names)
    shown = slide(page, "Threshold of the score", 600)
    least = min(abs(circuit.scores[name]) for name in shown["edges"])
    assert 0 < len(shown["edges"]) < 5000
    assert set(shown["edges"]) == set(circuit.scores.above(least * (1 - 1e-9), by=by).edge_names)
    n = slide(page, "Edges kept", 500)["nCircuit"]
    assert set(summary(page)["edges"]) == set(circuit.scores.top(n, by=by).edge_names)
    page.get_by_role("button", name="Saved circuit").click()
    assert set(summary(page)["edges"]) == set(circuit.edge_names)


def test_the_curve_is_beside_the_sliders(open_page, url, circuit):
    page = open_page(url)
    said = page.locator(".faithfulness")
    assert "0.125" in said.inner_text()
    points = circuit.provenance["curves"][0]["points"]
    set_size(page, points[1]["n_edges"])
    assert said.inner_text().startswith(f"{points[1]['faithfulness']:.3f}")
    assert "measured on 2 prompts" in said.inner_text()
    set_size(page, points[1]["n_edges"] + 100)
    assert said.inner_text().startswith("≈")
    set_size(page, 3)
    assert "not measured below 246 edges" in said.inner_text()
    page.locator(".curve .point").nth(2).click()
    assert summary(page)["nCircuit"] == points[2]["n_edges"]


def test_search_finds_nodes_edges_and_roles(open_page, url):
    page = open_page(url)
    page.keyboard.press("/")
    page.keyboard.type("a23.h3")
    assert page.locator(".node.found").count() == 1
    page.keyboard.press("Enter")
    assert summary(page)["chosen"] == ["a23.h3"]
    page.get_by_label("Search nodes, edges and roles").fill("name mover")
    assert {"a23.h3", "a24.h4"} <= set(page.locator(".results bdi").all_inner_texts())
    page.get_by_label("Search nodes, edges and roles").fill("a23.h3->logits")
    assert page.locator(".results bdi").all_inner_texts() == ["a23.h3->logits"]
    page.get_by_label("Search nodes, edges and roles").fill("no such thing")
    assert "nothing found" in page.locator(".results").inner_text()


def test_pointing_traces_the_paths(open_page, url, circuit):
    page = open_page(url)
    node(page, "m20").hover()
    lit = summary(page)["lit"]
    after, before = joined(circuit, "m20")
    assert set(lit["edges"]) == after | before
    way = [circuit.graph.edge(name) for name in lit["main"]]
    through = [path for path in strongest_paths(circuit, 3000)
               if any(circuit.graph.srcs[circuit.graph.edge_src[e]].name == "m20" for e in path.edges)]
    if through:
        assert min(abs(circuit.scores.values[way])) == pytest.approx(through[0].strength)
    page.mouse.move(5, 300)
    assert summary(page)["lit"] is None


def test_a_click_opens_the_panel(open_page, url, circuit):
    page = open_page(url)
    node(page, "a23.h3").click()
    panel = page.locator(".panel")
    graph = circuit.graph
    for title, ends in (("Edges in", [graph.channels[c].node.name for c in graph.edge_channel]),
                        ("Edges out", [graph.srcs[s].name for s in graph.edge_src])):
        own = [e for e in np.nonzero(circuit.kept)[0] if ends[e] == "a23.h3"]
        own.sort(key=lambda e: -abs(circuit.scores.values[e]))
        expected = [graph.edge_name(int(e)) for e in own][:40]
        rows = panel.locator(f'[data-list="{title}"] .edges button')
        assert rows.evaluate_all("all => all.map(row => row.title)") == expected
    assert panel.locator("[data-kind]").evaluate_all("all => all.map(section => section.dataset.kind)") == [
        "role", "evidence", "attention", "lens", "tokens", "probe", "feature", "something new"]
    text = panel.inner_text()
    for said in ("name mover", "copies names", "0.87", "␣Mary", "␣Kenneth", "0.93 (0.9 to 0.96)",
                 "said in words", "and more"):
        assert said in text
    assert panel.locator(".attention td").count() == 25
    assert panel.locator(".example bdi").all_inner_texts() == ["At", " the", " bank", ",", " Mary"]
    panel.locator('[data-list="Edges in"] button').first.click()
    assert summary(page)["chosen"] != ["a23.h3"]


def test_supernodes(open_page, url, circuit):
    page = open_page(url)
    node(page, "a23.h3").click()
    node(page, "a24.h4").click(modifiers=["Shift"])
    page.keyboard.press("g")
    page.get_by_label("Group of 2 nodes").locator("input").fill("Movers")
    page.keyboard.press("Enter")
    shown = summary(page)
    assert "group:Movers" in shown["nodes"]
    assert not {"a23.h3", "a24.h4"} & set(shown["nodes"])
    members = {"a23.h3", "a24.h4"}
    into = [circuit.scores[e] for e in circuit.edge_names if e.split("->")[0] in members and e.endswith("->logits")]
    arc = next(a for a in shown["arcs"] if a["src"] == "group:Movers" and a["dst"] == "logits")
    assert (arc["n"], arc["score"]) == (len(into), pytest.approx(sum(into)))
    assert sum(a["n"] for a in shown["arcs"]) == len(shown["edges"]) <= 400
    page.get_by_role("button", name="Rename").click()
    answer(page, "Name movers")
    assert summary(page)["chosen"] == ["group:Name movers"]
    page.get_by_role("button", name="Take a24.h4 out").click()
    assert "a24.h4" in summary(page)["nodes"]
    page.get_by_role("button", name="Ungroup", exact=True).click()
    assert "a23.h3" in summary(page)["nodes"]
    for _ in range(3):
        page.keyboard.press("Control+z")
    assert summary(page)["state"]["groups"] == [{"name": "Movers", "members": ["a23.h3", "a24.h4"]}]
    page.keyboard.press("Control+z")
    page.get_by_role("button", name="Group by role").click()
    assert {"group:name mover", "group:S-inhibition"} <= set(summary(page)["nodes"])


def test_pin_hide_relabel_undo_and_redo(open_page, url, circuit):
    page = open_page(url)
    node(page, "a23.h3").click()
    page.get_by_role("button", name="Pin", exact=True).click()
    page.get_by_role("button", name="Relabel").click()
    answer(page, "mover <1>")
    assert node(page, "a23.h3").locator(".label").text_content() == "mover <1>"
    assert "a23.h3" in set_size(page, 0)["nodes"]  # pinned: there without an edge
    page.get_by_role("button", name="Undo").click()
    node(page, "a20.h0").click()
    page.get_by_role("button", name="Hide", exact=True).click()
    shown = summary(page)
    assert "a20.h0" not in shown["nodes"]
    assert set(shown["edges"]) == {e for e in circuit.edge_names if "a20.h0" not in re.split("->|<", e)}
    hidden = 400 - len(shown["edges"])
    assert f"{hidden} at hidden nodes" in page.locator("#hidden-note").inner_text()
    page.keyboard.press("Control+z")
    assert "a20.h0" in summary(page)["nodes"]
    page.keyboard.press("Control+Shift+z")
    assert "a20.h0" not in summary(page)["nodes"]
    page.get_by_role("button", name="Show a20.h0").click()
    assert set(summary(page)["edges"]) == set(circuit.edge_names)
    for _ in range(2):
        page.get_by_role("button", name="Undo").click()
    state = summary(page)["state"]
    assert (state["labels"], state["pinned"]) == ({"a23.h3": "mover <1>"}, ["a23.h3"])
    page.get_by_role("button", name="Undo").click()
    assert "labels" not in summary(page)["state"]
    page.get_by_role("button", name="Redo").click()
    assert "labels" in summary(page)["state"]


def test_everything_by_keyboard(open_page, url):
    page = open_page(url)
    page.keyboard.press("ArrowUp")  # into the circuit
    focused = "() => document.activeElement.dataset.node"
    assert page.evaluate(focused) == "input"
    page.keyboard.press("ArrowUp")
    first = page.evaluate(focused)
    assert first not in ("input", None)
    assert summary(page)["lit"]["nodes"]  # focus traces as the pointer does
    page.keyboard.press("Enter")
    assert summary(page)["chosen"] == [first]
    page.keyboard.press("o")
    second = page.evaluate(focused)
    assert second != first
    page.keyboard.press("x")
    assert summary(page)["chosen"] == [first, second]
    page.keyboard.press("p")
    assert summary(page)["state"]["pinned"] == [second]
    page.keyboard.press("r")
    page.keyboard.type("by hand")
    page.keyboard.press("Enter")
    assert summary(page)["state"]["labels"] == {second: "by hand"}
    node(page, second).focus()
    page.keyboard.press("g")
    page.keyboard.type("together")
    page.keyboard.press("Enter")
    assert "group:together" in summary(page)["nodes"]
    assert page.evaluate(focused) == "group:together"
    page.keyboard.press("u")
    assert "group:together" not in summary(page)["nodes"]
    node(page, second).focus()
    page.keyboard.press("h")
    assert second not in summary(page)["nodes"]
    page.keyboard.press("Shift+H")
    assert second in summary(page)["nodes"]
    page.keyboard.press("Escape")
    assert summary(page)["chosen"] == []
    before = summary(page)
    page.keyboard.press("]")
    assert summary(page)["nCircuit"] == 500
    page.keyboard.press("[")
    assert summary(page)["nCircuit"] == 400
    page.keyboard.press("+")
    assert summary(page)["view"][2] == pytest.approx(1.25 * before["view"][2], abs=0.002)
    page.keyboard.press("0")
    page.keyboard.press("?")
    assert page.get_by_role("dialog", name="Keyboard shortcuts").is_visible()
    page.keyboard.press("Escape")
    slider = page.get_by_label("Edges kept", exact=True)
    slider.focus()
    page.keyboard.press("Home")
    assert summary(page)["edges"] == []
    page.keyboard.press("s")
    assert len(summary(page)["edges"]) == 400


def test_every_control_has_a_name(open_page, url):
    page = open_page(url)
    node(page, "a23.h3").click()
    nameless = page.evaluate("""() =>
      [...document.querySelectorAll('button, input:not([hidden]), select, summary, .node')]
        .filter(e => !(e.getAttribute('aria-label') || e.textContent.trim() || e.closest('label')?.textContent.trim()))
        .map(e => e.outerHTML)""")
    assert nameless == []
    assert "head 3 of layer 23; role name mover" in node(page, "a23.h3").get_attribute("aria-label")
    assert page.locator('.node[tabindex="0"]').count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(open_page, url, scheme):
    page = open_page(url, color_scheme=scheme)
    light = page.evaluate(LUMINANCE, "--surface")
    assert (light > 0.5) == (scheme == "light")
    for text, ground in (("--text", "--surface"), ("--soft", "--surface"), ("--faint", "--surface"),
                         ("--node-text", "--head"), ("--node-text", "--mlp"), ("--node-text", "--group"),
                         ("--end-text", "--end"), ("--accent-text", "--accent")):
        low, high = sorted(page.evaluate(LUMINANCE, name) for name in (text, ground))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)
    page.keyboard.press("t")
    page.keyboard.press("t")
    assert summary(page)["state"]["theme"] == "dark"
    assert page.evaluate(LUMINANCE, "--surface") < 0.1


LUMINANCE = """name => {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim().slice(1);
  const parts = [0, 2, 4].map(i => parseInt(hex.slice(i, i + 2), 16) / 255)
    .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
}"""


def test_state_in_the_address_and_in_a_file(open_page, url, circuit, folder):
    page = open_page(url)
    set_size(page, 300)
    node(page, "a23.h3").click()
    page.keyboard.press("p")
    page.keyboard.press("Escape")
    page.get_by_label("Layout").select_option("compact")
    page.get_by_label("into q").uncheck()
    page.mouse.move(700, 400)
    page.mouse.wheel(0, -200)
    page.wait_for_function("() => location.hash.includes('compact') && location.hash.includes('view')")
    page.wait_for_timeout(400)
    before = summary(page)
    again = open_page(page.url)
    assert summary(again) == before
    saved = download(page, "State, JSON").decode()
    assert json.loads(saved) == before["state"]
    state = read_state(saved, circuit.graph)
    opened = open_page(write(folder / "state.html", to_html(circuit, state=state)))
    assert summary(opened) == before
    fresh = open_page(url)
    (folder / "state.json").write_text(saved)
    fresh.get_by_label("State to open").set_input_files(folder / "state.json")
    fresh.wait_for_function("() => acdcSummary().nCircuit === 300")
    assert summary(fresh) == before
    fresh.keyboard.press("Control+z")
    assert summary(fresh)["nCircuit"] == 400
    (folder / "other.json").write_text("[1, 2")
    fresh.get_by_label("State to open").set_input_files(folder / "other.json")
    fresh.get_by_text("is not a state that this page saved").wait_for()


def test_a_wrong_address_is_told(open_page, url):
    page = open_page(url + "#%7Bhello")
    assert "no state" in page.locator(".status").inner_text()
    record = json.dumps({"pinned": ["a99.h0", "a23.h3"], "n": 10**9, "by": "luck"})
    page = open_page(url + "#" + record.replace('"', "%22"))
    shown = summary(page)
    assert (shown["state"]["pinned"], shown["nCircuit"]) == (["a23.h3"], 20_000)


def test_pan_zoom_and_drag(open_page, url):
    page = open_page(url)
    x, y, k = summary(page)["view"]
    page.mouse.move(420, 640)
    page.mouse.down()
    page.mouse.move(480, 600, steps=4)
    page.mouse.up()
    assert summary(page)["view"] == pytest.approx([x + 60, y - 40, k], abs=0.01)
    page.mouse.wheel(0, -300)
    assert summary(page)["view"][2] > k
    page.get_by_role("button", name="Fit").click()
    assert summary(page)["view"] == pytest.approx([x, y, k], abs=0.01)
    box = node(page, "a23.h3").locator(".box").bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 8)
    page.mouse.down()
    page.mouse.move(box["x"] + 50, box["y"] + 28, steps=4)
    page.mouse.up()
    moved = summary(page)["state"]["moved"]["a23.h3"]
    assert moved == pytest.approx([40 / k, 20 / k], abs=1)
    page.keyboard.press("Control+z")
    assert "moved" not in summary(page)["state"]


def test_an_arc_tells_its_name(open_page, url, circuit):
    page = open_page(url)
    set_size(page, 1)
    name = summary(page)["edges"][0]
    middle = page.evaluate("""() => { const [x, y, k] = acdcSummary().view, c = acdcSummary().arcs[0].curve;
        return [0, 1].map(i => (i ? y : x) + k * (c[i] + 3 * c[i + 2] + 3 * c[i + 4] + c[i + 6]) / 8); }""")
    box = page.locator(".stage").bounding_box()
    page.mouse.move(box["x"] + middle[0] + 1, box["y"] + middle[1])
    assert name in page.locator(".tip").inner_text()


def test_pictures_of_what_is_seen(open_page, url, folder):
    page = open_page(url)
    node(page, "a23.h3").click()
    page.mouse.move(700, 400)
    page.mouse.wheel(0, -400)
    page.mouse.move(5, 500)
    shown = summary(page)
    x, y, k = shown["view"]
    stage = page.locator(".stage").bounding_box()
    boxes = page.locator(".node .box").evaluate_all(
        "all => all.map(e => [e.closest('.node').dataset.node, e.getBoundingClientRect().toJSON()])")
    inside = {key for key, box in boxes if box["right"] > stage["x"] and box["left"] < stage["x"] + stage["width"]
              and box["bottom"] > stage["y"] and box["top"] < stage["y"] + stage["height"]}
    assert 5 < len(inside) < len(boxes)
    text = download(page, "Picture, SVG").decode()
    svg = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert {g.get("data-node") for g in svg.iter(f"{space}g") if g.get("data-node")} == inside
    assert (svg.get("width"), svg.get("height")) == (str(round(stage["width"])), str(round(stage["height"])))
    assert float(re.search(r"scale\(([0-9.]+)\)", text).group(1)) == pytest.approx(k, abs=0.001)
    drawn = [p for p in svg.iter(f"{space}path") if p.get("stroke-opacity")]
    assert len(drawn) > len(shown["lit"]["edges"]) / 4
    png = download(page, "Picture, PNG")
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    size = (int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big"))
    assert size == (2 * round(stage["width"]), 2 * round(stage["height"]))
    assert len(png) > 50_000
    tikz = download(page, "Picture, TikZ").decode("ascii")
    assert tikz.count("\\filldraw") == len(inside)
    assert tikz.count("controls") == len(drawn)
    if shutil.which("pdflatex"):
        (folder / "view.tex").write_text(tikz)
        done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "view.tex"], cwd=folder, capture_output=True,
                              text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:]


def test_hostile_text_is_only_text(open_page, folder):
    graph = Graph(2, 2, 2, positions=("0", HOSTILE[:40], "end"))
    values = np.random.default_rng(0).normal(size=graph.n_edges)
    record = {"task": HOSTILE, "model": HOSTILE, "command": HOSTILE, "example": {"clean": HOSTILE, "answer": HOSTILE}}
    circuit = Circuit(graph, values > 0.2, EdgeScores(graph, values), record)
    notes = [Annotation("a1.h0", kind, HOSTILE, 1.0, {HOSTILE: HOSTILE, "tokens": [HOSTILE], "weights": [[1.0]],
                        "promotes": [[HOSTILE, 1.0]], "examples": [{"tokens": [HOSTILE], "activations": [1.0]}]})
             for kind in ("role", "attention", "feature", "tokens", HOSTILE)]
    state = {"format": "acdc-view", "version": 1, "labels": {"a1.h0": HOSTILE},
             "groups": [{"name": HOSTILE, "members": ["a0.h0", "a0.h1"]}]}
    page = open_page(write(folder / "hostile.html", to_html(circuit, notes, state=state)))
    node(page, "a1.h0@end").click()
    page.get_by_label("Search nodes, edges and roles").fill("<img")
    for name in ("Picture, SVG", "Picture, TikZ", "State, JSON"):
        download(page, name)
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.locator("img").count() == 0
    text = page.locator("body").inner_text()
    assert "</script><img src=x onerror=" in text
    assert "⟨U+202E⟩" in text
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u2028]", text + page.title())


def test_positions_are_columns(open_page, folder):
    graph = Graph(3, 3, 3, positions=("S1", "S2", "end"))
    scores = EdgeScores(graph, np.zeros(graph.n_edges))
    names = ["input->a0.h1<k>@S1", "a0.h1->a1.h0<q>@end", "a0.h1->m1@S2", "a1.h0->m2@end", "m2->logits@end",
             "m1->a2.h2<v>@S2"]
    for i, name in enumerate(names):
        scores.values[graph.edge(name)] = 6 - i
    page = open_page(write(folder / "positions.html", to_html(Circuit.from_edges(graph, names, scores=scores))))
    assert page.locator(".column").all_text_contents() == ["S1", "S2", "end"]
    node(page, "a0.h1@S1").hover()  # what it reads there, attention carries to S2 and to the end
    assert set(summary(page)["lit"]["edges"]) == set(names)
    node(page, "a1.h0@end").hover()
    lit = summary(page)["lit"]
    assert set(lit["edges"]) == {names[0], names[1], names[3], names[4]}
    assert lit["main"] == [names[0], names[1], names[3], names[4]]
    x = [node(page, key).bounding_box()["x"] for key in ("a0.h1@S1", "a0.h1@S2", "a0.h1@end")]
    assert x == sorted(x)


def test_only_paths_and_only_pinned(open_page, url, circuit):
    page = open_page(url)
    page.get_by_label("only on a path from input to logits").check()
    assert set(summary(page)["edges"]) == set(circuit.drop_dangling().edge_names)
    page.get_by_label("only on a path from input to logits").uncheck()
    for key in ("a23.h3", "m0"):
        node(page, key).click()
        page.get_by_role("button", name="Pin", exact=True).click()
    page.get_by_label("only between pinned nodes").check()
    assert set(summary(page)["edges"]) == {e for e in circuit.edge_names if e.startswith("m0->a23.h3")}


@pytest.fixture(scope="module")
def compared() -> Difference:
    """Two rankings of one graph, in other units, of which the second has hostile text for a name."""
    graph = Graph(6, 4, 4)
    rng = np.random.default_rng(0)
    values = rng.normal(size=graph.n_edges) ** 3
    first = EdgeScores(graph, values, {"method": "eap"}).top(60, by="magnitude")
    others = EdgeScores(graph, 40 * (values + 2.5 * rng.normal(size=graph.n_edges)), {"method": "eap_ig"})
    return difference(first, others.top(80, by="magnitude"))


def test_a_difference_shows_whose_each_edge_is(open_page, folder, compared):
    url = write(folder / "difference.html", difference_page(compared, ("A", HOSTILE)))
    page = open_page(url)
    names = compared.first.graph.edge_names
    sets = [{names[i] for i in np.nonzero(edges)[0]}
            for edges in (compared.shared, compared.only_first, compared.only_second)]
    assert all(sets)

    def drawn() -> list[set[str]]:
        shown = summary(page)
        return [{name for name, arc in zip(shown["edges"], shown["arcs"], strict=True) if arc["side"] == side}
                for side in range(3)]

    assert drawn() == sets
    labels = page.locator(".checks").first.locator("label")
    labels.nth(0).click()
    assert drawn() == [set(), *sets[1:]]
    assert f"{len(sets[0])} of circuits that are switched off" in page.locator("#hidden-note").inner_text()
    labels.nth(2).click()
    assert drawn() == [set(), sets[1], set()]
    again = open_page(page.evaluate("new Promise(done => setTimeout(() => done(location.href), 400))"))
    assert set(summary(again)["edges"]) == sets[1]
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    assert drawn() == sets
    size = {name: max(relative_to_mean(circuit)[names.index(name)] for circuit in (compared.first, compared.second))
            for name in set.union(*sets)}
    assert set(set_size(page, 30)["edges"]) == set(sorted(size, key=lambda name: -size[name])[:30])
    assert page.evaluate("typeof hacked") == "undefined"


def test_a_difference_has_its_overlaps_and_both_scores_as_tables(open_page, folder, compared):
    page = open_page(write(folder / "difference.html", difference_page(compared, ("A", "B"))))
    overlap = [row.split("\t") for row in page.locator('[data-table="overlap"]').inner_text().splitlines()]
    at = compared.overlaps[0]
    assert [row[1] for row in overlap[1:5]] == [str(at.n_circuit), str(at.n_truth), str(at.n_both), f"{at.jaccard:.3f}"]
    assert "No interval for other prompts" in page.locator(".panel").inner_text()
    table, choice = page.locator('[data-table="edges"]'), page.get_by_label("Edges in the table")
    names, at_places = compared.first.graph.edge_names, (places(compared.first), places(compared.second))
    for option, edges in enumerate((compared.shared, compared.only_first, compared.only_second)):
        choice.select_option(str(option))
        assert set(table.locator("tr[data-edge]").evaluate_all("rows => rows.map(row => row.dataset.edge)")) == {
            names[i] for i in np.nonzero(edges)[0]}
    choice.select_option("3")
    either = np.nonzero(compared.first.kept | compared.second.kept)[0]
    most = either[np.argmax(np.abs(np.log(at_places[0][either] / at_places[1][either])))]
    first = table.locator("tr[data-edge]").first
    cells = first.locator("td").all_inner_texts()
    assert [cells[0], cells[2], cells[4]] == [names[most], f"{at_places[0][most]:,}", f"{at_places[1][most]:,}"]
    for circuit, text in zip((compared.first, compared.second), (cells[1], cells[3]), strict=True):
        assert float(text.replace("−", "-")) == pytest.approx(circuit.scores.values[most], rel=6e-3)
    first.get_by_role("button").click()
    dst = names[most].split("->")[1].partition("<")[0]
    assert summary(page)["chosen"] == [dst]
    with page.expect_download() as saved:
        page.get_by_text("Save", exact=True).click()
        page.get_by_role("button", name="Picture, SVG").click()
    picture = Path(saved.value.path()).read_text()
    assert "A only" in picture and all(colour in picture for colour in (BOTH, ONLY_FIRST, ONLY_SECOND))


def test_it_is_fast_with_5000_edges(browser, circuit, folder):
    """First paint, and what a slider takes from its event to the finished drawing.

    Processor time of the page's thread does not depend on what else the machine does; time on the clock is looked at
    too where nothing else runs.
    """
    quiet = os.getloadavg()[0] < (os.cpu_count() or 1)
    url = write(folder / "large.html", to_html(circuit.scores.top(5000, by="magnitude")))
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def worked() -> float:
        return {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}["TaskDuration"]

    page.goto(url)
    page.wait_for_selector("html[data-ready]")
    until_drawn = worked()
    assert len(summary(page)["edges"]) == 5000
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    before = worked()
    taken = page.evaluate(SLIDE)
    each = (worked() - before) / len(taken)
    assert len(summary(page)["edges"]) > 3000
    page.close()
    assert until_drawn < 2
    assert each < 0.1
    if quiet:
        assert paint < 2000
        assert statistics.median(taken) < 100, taken


SLIDE = """async () => {
  const slider = document.querySelector('input[aria-label="Edges kept"]'), taken = [];
  const frame = () => new Promise(done => requestAnimationFrame(done));
  for (let i = 0; i < 12; i++) {
    await frame();
    const start = performance.now();
    slider.value = 840 + i;
    slider.dispatchEvent(new Event('input', {bubbles: true}));
    await frame();
    taken.push(performance.now() - start);
  }
  return taken;
}"""


def test_the_data_is_not_markup(circuit):
    html = to_html(circuit, annotations())
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL).group(1)
    assert data.isascii() and not set("<>&") & set(data)
    decoded = json.loads(data)["edges"]
    scores = np.frombuffer(base64.b64decode(decoded["score"]), "<f8")
    values = circuit.scores.values
    np.testing.assert_array_equal(scores, values[np.argsort(-np.abs(values), kind="stable")][:20_000])

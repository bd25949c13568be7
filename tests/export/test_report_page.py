"""The page shows what the Markdown says, runs and loads nothing, and what to cite is known for every name."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from made_circuits import HOSTILE, circuits, hostile, texts

from acdc.ablation import ABLATIONS
from acdc.circuit import Circuit, EdgeScores
from acdc.discovery import METHODS
from acdc.export.citations import BIBTEX, OF_ABLATION, OF_METHOD, OF_METRIC, OF_TASK, bibliography, cited
from acdc.export.methods_paragraph import METHOD_WORDS, methods_paragraph
from acdc.export.path_words import path_words
from acdc.export.paths import strongest_paths
from acdc.export.report import escaped, report
from acdc.export.report_page import STYLE, inline, report_page
from acdc.export.text import with_codes
from acdc.graph import Graph
from acdc.metrics import METRICS

SAFE = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "h4", "p", "table", "thead", "tbody", "tr",
        "th", "td", "code", "pre", "strong", "em", "img", "ul", "li"}


class Reader(HTMLParser):
    """The tags, their attributes and the text of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict]] = []
        self.said: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.said.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def check_safe(page: str) -> Reader:
    reader = read(page)
    for tag, attributes in reader.tags:
        assert tag in SAFE, tag
        assert set(attributes) <= {"lang", "charset", "http-equiv", "content", "name", "alt", "src"}, attributes
        assert attributes.get("src", "data:image/").startswith("data:image/")
    policy = next(a["content"] for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-") and "unsafe" not in policy
    return reader


@settings(max_examples=15, deadline=None)
@given(circuit=circuits(), said=texts)
def test_nothing_in_a_circuit_becomes_markup(circuit, said):
    record = {**circuit.provenance, "task": said, "model": said, "command": said, "example": {"clean": said}}
    tests = {"verdict": said, "tests": [{"name": said, "verdict": said, "reason": said}]}
    text = report(Circuit(circuit.graph, circuit.kept, circuit.scores, record), tests=tests)
    check_safe(report_page(text, {"circuit.svg": b"<svg/>"}, title=said))


@given(said=texts)
def test_escaped_text_reads_as_it_was(said):
    assert "".join(read(f"<p>{inline(escaped(said))}</p>").said) == with_codes(" ".join(said.split()))


def test_the_page_says_what_the_report_says():
    circuit = hostile()
    text = report(circuit, roles={"a0.h0": HOSTILE[0]},
                  tests={"verdict": "fail", "tests": [{"name": "minimality", "verdict": "fail", "reason": "<b>3</b>"}]})
    page = report_page(text, {"circuit.svg": b"<svg/>", "other.png": b"x"}, title="t")
    reader = check_safe(page)
    said = "".join(reader.said)
    assert "minimality: <b>3</b>" in said and HOSTILE[0] in said
    assert page.count("<img") == 1 and "PHN2Zy8+" in page
    for edge in circuit.edge_names[:3]:
        assert edge.replace("\n", "") in said or not edge.isprintable() or circuit.n_edges > 20
    assert STYLE in page and "<script" not in page


def test_code_and_emphasis():
    assert inline("a `b|c` **d** *e* \\*f\\*") == (
        "a <code>b|c</code> <strong>d</strong> <em>e</em> *f*")
    assert inline("`` `x` ``") == "<code>`x`</code>"
    page = report_page("| a | b |\n| --- | --- |\n| `x\\|y` | z\\|w |", {}, title="")
    assert "<td><code>x|y</code></td><td>z|w</td>" in page


def test_each_name_has_its_citations_and_each_entry_is_bibtex():
    assert set(OF_METHOD) == set(METHODS) == set(METHOD_WORDS)
    assert set(OF_METRIC) == set(METRICS)
    assert set(OF_ABLATION) == {*ABLATIONS, "optimal"}
    used = {key for table in (OF_METHOD, OF_METRIC, OF_ABLATION, OF_TASK) for keys in table.values() for key in keys}
    assert used <= set(BIBTEX)
    for key, entry in BIBTEX.items():
        assert re.match(rf"@(misc|article)\{{{key},\n", entry) and entry.count("{") == entry.count("}")
        assert re.search(r"eprint = \{\d{4}\.\d{5}\}|doi = \{10\.", entry), key
    assert cited({"method": "eap", "metric": "accuracy"}) == ["syed2023attribution"]
    assert bibliography(["efron1979bootstrap"]).startswith("@article{efron1979bootstrap,")


@pytest.mark.parametrize("method", ["eap_ig", "acdc", "unknown_one"])
def test_the_paragraph_cites_what_is_in_the_bibliography(method):
    graph = Graph(2, 2, 2)
    record = {"method": method, "task": "ioi", "model": "a_b", "ablation": "optimal", "metric": "kl_divergence",
              "faithfulness": 0.5, "clean_metric": 1.0, "n_prompts": 8, "seed": 0,
              "uncertainty": {"overlap": 0.5, "n_resamples": 100}}
    circuit = EdgeScores(graph, np.arange(graph.n_edges, dtype=float), record).top(3, by="signed")
    text = methods_paragraph(circuit, tested=True)
    keys = {key for group in re.findall(r"\\citep\{([^}]*)\}", text) for key in group.split(",")}
    assert keys == set(cited(record, tested=True)) and r"a\_b" in text
    assert "3 (6.52\\%)" in text


def test_paths_are_sentences():
    graph = Graph(2, 4, 2, kv="group", positions=("S2", "end"))
    circuit = Circuit.from_edges(graph, ["input->m0@S2", "m0->a1.g0<v>@S2", "a1.h1->logits@end"])
    path = strongest_paths(circuit, 1)[0]
    assert path_words(circuit, path, {"a1.h1": "mover"}).startswith(
        "The input goes into MLP 0 at S2, whose output goes into the value of KV group 1.0 at S2, read by head 1.")
    plain = Circuit.from_edges(Graph(1, 2, 2), ["input->a0.h1<q>", "a0.h1->logits"])
    assert path_words(plain, strongest_paths(plain, 1)[0], {"a0.h1": "mover"}) == (
        "The input goes into the query of head 0.1 (mover), whose output goes into the logits.")

"""Each format reads back as the same circuit, is what other programs read, and no text in it breaks out."""

import csv
import io
import json
import re
import shutil
import subprocess
import time
import xml.etree.ElementTree as ET
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from made_circuits import HOSTILE, circuits, hostile, with_roles

from acdc.circuit import Circuit, EdgeScores
from acdc.errors import AcdcError
from acdc.export.attribution_graph import to_attribution_graph
from acdc.export.edge_table import circuit_from_table, edge_table
from acdc.export.formats import FORMATS, Wanted, read_export
from acdc.export.graphml import from_graphml, to_graphml
from acdc.export.latex_text import latex
from acdc.export.node_table import node_table, roles_from_table
from acdc.export.paper_table import latex_table, markdown_table
from acdc.graph import Graph, Node

GRAPHS = ["dot", "graphml", "gexf", "cytoscape"]


def flat(kv: str = "head") -> Circuit:
    graph = Graph(3, 4, 2, kv=kv)  # type: ignore[arg-type]
    return EdgeScores(graph, np.random.default_rng(1).normal(size=graph.n_edges), {"method": "eap"}).top(
        20, by="magnitude")


@pytest.mark.parametrize("name", GRAPHS)
@settings(max_examples=8, deadline=None)
@given(made=with_roles())
def test_with_all_edges_what_is_read_is_what_was_written(name, made):
    circuit, roles = made
    written = FORMATS[name].write(circuit, Wanted(roles=roles, all_edges=True))
    again = read_export(written, name, "file")
    assert again.circuit == circuit and again.roles == roles
    assert FORMATS[name].write(again.circuit, Wanted(roles=again.roles, all_edges=True)) == written


@pytest.mark.parametrize("name", GRAPHS)
@settings(max_examples=8, deadline=None)
@given(circuit=circuits())
def test_kept_edges_alone_read_back_with_their_scores(name, circuit):
    again = read_export(FORMATS[name].write(circuit, Wanted()), name, "file").circuit
    assert again.graph == circuit.graph and again.provenance == circuit.provenance
    assert np.array_equal(again.kept, circuit.kept)
    assert (again.scores is None) == (circuit.scores is None)
    if circuit.scores is not None and again.scores is not None:
        assert np.array_equal(again.scores.values, np.where(circuit.kept, circuit.scores.values, -np.inf))


@settings(max_examples=8, deadline=None)
@given(made=with_roles())
def test_tables_read_back(made):
    circuit, roles = made
    again = circuit_from_table(edge_table(circuit), circuit.graph)
    assert np.array_equal(again.kept, circuit.kept)
    if circuit.scores is not None:
        values = np.where(circuit.kept, circuit.scores.values, -np.inf)
        assert (again.scores is None) == (not np.isfinite(values).any())
        assert again.scores is None or np.array_equal(again.scores.values, values)
    assert roles_from_table(node_table(circuit, roles), circuit.graph) == {n: r for n, r in roles.items() if r}


def known_to(circuit: Circuit) -> set[tuple[str, str, str, float]]:
    """src, dst, channel and score of the kept edges."""
    graph, found = circuit.graph, set()
    for edge in np.nonzero(circuit.kept)[0].tolist():
        channel = graph.channels[graph.edge_channel[edge]]
        score = circuit.scores.values[edge] if circuit.scores else 0
        found.add((graph.srcs[graph.edge_src[edge]].name, channel.node.name, channel.letter, float(score)))
    return found


@pytest.mark.parametrize("circuit", [flat(), flat("group"), hostile()])
def test_networkx_reads_the_same_graph(circuit, tmp_path):
    files = {name: tmp_path / f"circuit.{FORMATS[name].suffix}" for name in GRAPHS}
    for name, path in files.items():
        path.write_bytes(FORMATS[name].write(circuit, Wanted(roles={"a0.h0": HOSTILE[0], "m1": HOSTILE[1]})))
    read = {"graphml": nx.read_graphml(files["graphml"], force_multigraph=True), "gexf": nx.read_gexf(files["gexf"]),
            "cytoscape": nx.cytoscape_graph(json.loads(files["cytoscape"].read_text()))}
    for name, graph in read.items():
        assert graph.is_directed(), name
        edges = [(a, b, data["channel"], data["score"]) for a, b, data in graph.edges(data=True)]
        assert set(edges) == known_to(circuit) and len(edges) == circuit.n_edges, name
        assert graph.nodes["m1"]["kind"] == "mlp" and graph.nodes["a0.h0"]["layer"] == 0
        assert graph.nodes["a0.h0"]["role"] == HOSTILE[0]
        assert all(data["kept"] is True for _, _, data in graph.edges(data=True))


@pytest.mark.skipif(not shutil.which("dot"), reason="Graphviz' `dot` is not installed (Debian: apt install graphviz)")
@pytest.mark.parametrize("circuit", [flat(), flat("group"), hostile()])
def test_graphviz_reads_the_same_graph(circuit):
    written = FORMATS["dot"].write(circuit, Wanted(roles={"a0.h0": HOSTILE[0], "m1": HOSTILE[1], "m0": HOSTILE[7]}))
    done = subprocess.run(["dot", "-Tdot_json"], input=written, capture_output=True, check=True)
    assert not done.stderr
    data = json.loads(done.stdout)
    names = [node["name"] for node in data["objects"] if "nodes" not in node]
    at = {node["_gvid"]: node["name"] for node in data["objects"]}
    edges = {(at[e["tail"]], at[e["head"]], e.get("channel", ""), float(e["score"])) for e in data["edges"]}
    assert edges == known_to(circuit) and len(data["edges"]) == circuit.n_edges
    assert "a0.h0" in names
    subprocess.run(["dot", "-Tsvg"], input=written, capture_output=True, check=True)


def test_node_tables_count_and_sum():
    circuit = Circuit.from_edges(Graph(2, 2, 2), ["input->a0.h1<v>", "input->a0.h1<q>", "a0.h1->logits"])
    scores = EdgeScores(circuit.graph, np.linspace(-1, 1, circuit.graph.n_edges))
    rows = {row["node"]: row for row in csv.DictReader(io.StringIO(node_table(
        Circuit(circuit.graph, circuit.kept, scores), {"m1": "idle"})))}
    assert list(rows) == ["input", "a0.h1", "m1", "logits"] and rows["m1"]["role"] == "idle"
    assert (rows["a0.h1"]["edges_in"], rows["a0.h1"]["edges_out"], rows["logits"]["edges_in"]) == ("2", "1", "1")
    into = abs(scores["input->a0.h1<v>"]) + abs(scores["input->a0.h1<q>"])
    assert float(rows["a0.h1"]["strength_in"]) == pytest.approx(into, abs=1e-15)


@settings(max_examples=8, deadline=None)
@given(made=with_roles())
def test_attribution_graphs_obey_the_pages_that_read_them(made):
    circuit, roles = made
    data = json.loads(to_attribution_graph(circuit, roles))
    assert {"slug", "scan", "prompt_tokens", "prompt"} <= set(data["metadata"]) and data["metadata"]["scan"]
    assert re.fullmatch(r"[a-z0-9-]+", data["metadata"]["slug"])
    tokens = data["metadata"]["prompt_tokens"]
    assert len(tokens) > 1 and all(isinstance(token, str) for token in tokens)
    nodes = {node["node_id"]: node for node in data["nodes"]}
    assert len(nodes) == len(data["nodes"]) == len({node["jsNodeId"] for node in data["nodes"]})
    inner = [node for node in data["nodes"] if node["feature_type"] != "logit"]
    assert any(node["layer"] != "E" and int(node["layer"]) >= 1 for node in inner)
    for node in data["nodes"]:
        assert {"feature", "layer", "ctx_idx", "clerp"} <= set(node) and 0 <= node["ctx_idx"] < len(tokens)
        assert node["feature_type"] in ("embedding", "logit", "unknown") and 0 <= node["influence"] <= 1
        if node["feature_type"] == "logit":
            assert re.search(r"\(p=\d\.\d+\)$", node["clerp"])
    for link in data["links"]:
        assert set(link) == {"source", "target", "weight"} and {link["source"], link["target"]} <= set(nodes)
    pairs = [(link["source"], link["target"]) for link in data["links"]]
    assert len(set(pairs)) == len(pairs)
    members = {name for _, *names in data["qParams"]["supernodes"] for name in names}
    assert members <= set(nodes) and set(data["qParams"]["pinnedIds"]) <= members


def test_links_are_sums_over_channels_and_what_attention_carries():
    graph = Graph(2, 2, 2, positions=("S2", "end"))
    circuit = Circuit.from_edges(graph, ["input->a1.h0<q>@end", "input->a1.h0<k>@S2", "input->a1.h0<v>@S2",
                                         "a1.h0->logits@end"])
    values = {"input->a1.h0<q>@end": 8.0, "input->a1.h0<k>@S2": 1.0, "input->a1.h0<v>@S2": 2.0,
              "a1.h0->logits@end": 4.0}
    scores = np.zeros(graph.n_edges)
    for name, value in values.items():
        scores[graph.edge(name)] = value
    data = json.loads(to_attribution_graph(Circuit(graph, circuit.kept, EdgeScores(graph, scores)), {"a1.h0": "mover"}))
    links = {(link["source"], link["target"]): link["weight"] for link in data["links"]}
    assert links == {("E_0_1", "1_0_1"): 8.0, ("E_0_0", "1_0_0"): 3.0, ("1_0_0", "1_0_1"): 3.0, ("1_0_1", "3_0_1"): 4.0}
    assert {node["clerp"] for node in data["nodes"] if node["node_id"].startswith("1_0")} == {"a1.h0: mover"}
    flat_data = json.loads(to_attribution_graph(flat("group")))
    assert len(flat_data["metadata"]["prompt_tokens"]) == 2 and len(flat_data["links"]) > 0


@pytest.mark.parametrize("name", GRAPHS)
def test_files_that_are_cut_off_or_changed_are_refused(name):
    written = FORMATS[name].write(hostile(), Wanted())
    for cut in range(0, len(written) - 3, max(1, len(written) // 40)):
        with pytest.raises(AcdcError):
            read_export(written[:cut], name, "cut.file")
    text = written.decode()
    for before, after in (("acdc-graph", "other"), ("a0.h0", "a9.h9"), ("n_layers", "layers")):
        if before in text:
            with pytest.raises(AcdcError, match=r"mine\.x"):
                read_export(text.replace(before, after).encode(), name, "mine.x")


def test_xml_with_entities_is_refused():
    bomb = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><graphml>&b;</graphml>'
    with pytest.raises(AcdcError, match="document type"):
        from_graphml(bomb, "bomb.graphml")
    with pytest.raises(AcdcError, match="is not XML"):
        from_graphml("<graphml>")
    with pytest.raises(AcdcError, match="holds no graph"):
        from_graphml("<graphml/>")


def test_an_edge_given_twice_is_refused():
    text = to_graphml(flat())
    line = next(line for line in text.splitlines() if line.startswith("<edge"))
    with pytest.raises(AcdcError, match="given twice"):
        from_graphml(text.replace(line, line + line))


def test_formats_that_cannot_be_read_say_which_can():
    with pytest.raises(AcdcError, match="only from json, dot, graphml, gexf, cytoscape"):
        read_export(b"", "pdf", "x.pdf")
    with pytest.raises(AcdcError, match="Did you mean 'graphml'"):
        read_export(b"", "grapml", "x")
    with pytest.raises(AcdcError, match="not UTF-8"):
        read_export(b"\xff\xfe", "dot", "x")
    with pytest.raises(AcdcError, match="lacks"):
        FORMATS["graphml"].write(flat(), Wanted(roles={"a9.h9": "mover"}))


def test_tables_for_papers_escape():
    circuit = hostile()
    text = latex_table(circuit, {"a0.h0": "$\\input{/etc/passwd}%"}, n_edges=30)
    assert text.count(r" \\") == 31 and "\\input" not in text
    assert latex("a_b%#&{}$^~\\") == r"a\_b\%\#\&\{\}\$\textasciicircum{}\textasciitilde{}\textbackslash{}"
    assert latex("漢é") == "[U+6F22]é"
    table = markdown_table(circuit, {"a0.h0": "|x|<b>"}, n_edges=30)
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 32 and "<b>" not in re.sub(r"`[^`]*`|\\.", "", table)


def not_json(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("pdf", "png")])
@pytest.mark.parametrize("some", [True, False], ids=["some are scored", "none is scored"])
def test_edges_never_tried_are_written_without_a_number(name, some):
    """ACDC keeps no score (-inf) for edges that nothing reads; a file has neither Infinity nor NaN for it."""
    graph = Graph(2, 2, 2)
    values = np.where(some & (np.arange(graph.n_edges) % 3 > 0), np.arange(graph.n_edges) - 4.5, -np.inf)
    circuit = Circuit(graph, np.ones(graph.n_edges, dtype=bool), EdgeScores(graph, values, {"method": "acdc"}))
    text = FORMATS[name].write(circuit, Wanted(all_edges=True, d_model=8)).decode()
    if name == "html":
        text = text.partition('id="data">')[2].partition("</script>")[0]
    if name in ("json", "cytoscape", "mib", "attribution-graph", "html"):
        json.loads(text, parse_constant=not_json)
    assert not re.search(r"(?i)(?<![a-z])-?(inf|infinity|nan)(?![a-z])", text)
    if FORMATS[name].read:
        again = read_export(text.encode(), name, "file").circuit
        assert again.scores and np.array_equal(again.scores.values, values)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["json", "mib", *GRAPHS])
def test_provenance_that_json_lacks_is_refused(name, value):
    circuit = replace(flat(), provenance={"d_model": 8, "found": [{"loss": float(value)}]})
    with pytest.raises(AcdcError, match=rf"provenance\.found\[0\]\.loss is {value}; JSON has only finite numbers"):
        FORMATS[name].write(circuit, Wanted())


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_scores_that_are_no_finite_number_are_refused(value):
    circuit = flat()
    assert circuit.scores
    score = repr(max(circuit.scores.values.tolist()))
    for name in GRAPHS:
        written = FORMATS[name].write(circuit, Wanted()).decode()
        assert score in written
        with pytest.raises(AcdcError, match=r"mine\.x"):
            read_export(written.replace(score, value).encode(), name, "mine.x")
    with pytest.raises(AcdcError, match=rf"mine\.csv: row \d+: the score is {value}"):
        circuit_from_table(edge_table(circuit).replace(score, value), circuit.graph, "mine.csv")


def test_gexf_declares_what_it_uses():
    """The rules of the GEXF 1.2 draft, whose schema has places and colours in the namespace viz."""
    circuit = hostile()
    root = ET.fromstring(FORMATS["gexf"].write(circuit, Wanted(roles={"a0.h0": HOSTILE[0]})))
    names = {"g": "http://www.gexf.net/1.2draft", "viz": "http://www.gexf.net/1.2draft/viz"}
    assert root.tag == f"{{{names['g']}}}gexf" and root.attrib == {"version": "1.2"}
    assert [child.tag.rpartition("}")[2] for child in root] == ["meta", "graph"]
    graph = root.find("g:graph", names)
    assert graph is not None and graph.attrib == {"defaultedgetype": "directed", "mode": "static"}
    assert [child.tag.rpartition("}")[2] for child in graph] == ["attributes", "attributes", "nodes", "edges"]
    kinds = {"string": str, "integer": int, "double": float, "boolean": {"true": True, "false": False}.__getitem__}
    things = {kind: graph.findall(f"g:{kind}s/g:{kind}", names) for kind in ("node", "edge")}
    ids = {node.get("id") for node in things["node"]}
    for kind, found in things.items():
        declared = graph.findall(f"g:attributes[@class='{kind}']/g:attribute", names)
        types = {a.get("id"): kinds[a.get("type", "")] for a in declared}
        assert found and len(types) == len(declared) and len({thing.get("id") for thing in found}) == len(found)
        for thing in found:
            for value in thing.findall("g:attvalues/g:attvalue", names):
                types[value.get("for")](value.get("value", ""))
            (look,) = [child for child in thing if child.tag.startswith(f"{{{names['viz']}}}")]
            numbers = [float(number) for number in look.attrib.values()]
            assert set(look.attrib) == set("xyz" if kind == "node" else "rgb") and np.isfinite(numbers).all()
    assert len(things["edge"]) == circuit.n_edges
    assert all({edge.get("source"), edge.get("target")} <= ids for edge in things["edge"])


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_deterministic_and_takes_hostile_texts(name):
    circuit = hostile()
    wanted = Wanted(roles={"a0.h0": HOSTILE[0], "m0": HOSTILE[1], "a1.h1": HOSTILE[4]}, max_edges=25)
    if name == "mib":  # its format knows neither positions nor KV groups
        graph = Graph(2, 2, 1)
        circuit = EdgeScores(graph, np.arange(graph.n_edges) - 9.5, circuit.provenance).top(10, by="signed")
        wanted = replace(wanted, d_model=8)
    first = FORMATS[name].write(circuit, wanted)
    assert first and FORMATS[name].write(circuit, wanted) == first
    if name in ("graphml", "gexf", "svg"):
        root = ET.fromstring(first)
        assert not [element for element in root.iter() if str(element.tag).rpartition("}")[2] in ("script", "img")]


def test_kv_nodes_join_their_heads_in_an_attribution_graph():
    graph = Graph(2, 4, 2, kv="group")
    circuit = Circuit.from_edges(graph, ["input->a1.g0<k>", "input->a1.g0<v>", "a1.h0->logits", "a1.h1->logits"])
    links = {(link["source"], link["target"]): link["weight"]
             for link in json.loads(to_attribution_graph(circuit))["links"]}
    group = "1_5_0"
    assert links[("E_0_0", group)] == 2 and links[(group, "1_0_0")] == links[(group, "1_1_0")] == 1
    assert Node.parse("a1.g0").kind == "kv"


@pytest.mark.parametrize("text", ["\n" * 100_000 + "}", "HEADER" + "\"input\" -> \"m0\" [" + "a" * 100_000 + "];\n}"])
def test_dot_is_read_in_a_time_that_grows_with_it(text):
    header = next(line for line in FORMATS["dot"].write(flat(), Wanted()).decode().splitlines() if "header" in line)
    start = time.process_time()
    with pytest.raises(AcdcError):
        read_export(text.replace("HEADER", f"{header}\n").encode(), "dot", "x")
    assert time.process_time() - start < 2

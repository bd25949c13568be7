"""Published circuits have the edges that their authors list, and the counts that are known under other conventions."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest

from acdc.benchmarks.known_circuits.load import FOLDER, KNOWN_CIRCUITS, load_known_circuit
from acdc.circuit import EdgeScores
from acdc.errors import AcdcError
from acdc.evaluation.comparison import overlap, roc
from acdc.graph import Graph, Node


def heads(text: str) -> list[tuple[int, int]]:
    return [(int(layer), int(head)) for layer, head in (name.split(".") for name in text.split())]


IOI = {
    "previous token": heads("2.2 4.11"), "duplicate token": heads("0.1 0.10 3.0"),
    "induction": heads("5.5 5.8 5.9 6.9"), "s2 inhibition": heads("7.3 7.9 8.6 8.10"),
    "name mover": heads("9.9 10.0 9.6"), "backup": heads("10.10 10.6 10.2 10.1 11.2 9.7 9.0 11.9"),
    "negative": heads("10.7 11.10"),
}
IOI_CONNECTIONS = [  # of heads, as ACDC's authors list them
    ("INPUT", "previous token", "qkv"), ("INPUT", "duplicate token", "qkv"), ("INPUT", "s2 inhibition", "q"),
    ("INPUT", "negative", "kv"), ("INPUT", "name mover", "kv"), ("INPUT", "backup", "kv"),
    ("previous token", "induction", "kv"), ("induction", "s2 inhibition", "kv"),
    ("duplicate token", "s2 inhibition", "kv"), ("s2 inhibition", "negative", "q"),
    ("s2 inhibition", "name mover", "q"), ("s2 inhibition", "backup", "q"), ("negative", "OUTPUT", ""),
    ("name mover", "OUTPUT", ""), ("backup", "OUTPUT", ""),
]


def ioi_by_hand(mlps) -> set[str]:
    """The edges between heads, and those of the MLPs that `mlps(inp, out)` says lie on a connection of two groups."""
    edges = set()
    for inp, out, letters in IOI_CONNECTIONS:
        srcs = [("input", -1.0)] if inp == "INPUT" else [(f"a{layer}.h{h}", layer) for layer, h in IOI[inp]]
        dsts = [(f"a{layer}.h{h}<{letter}>", layer) for layer, h in IOI.get(out, []) for letter in letters]
        dsts = dsts or [("logits", 12)]
        between = mlps(inp, out)
        srcs += [(f"m{layer}", layer + 0.5) for layer in between]
        dsts += [(f"m{layer}", layer + 0.4) for layer in between]
        edges |= {f"{src}->{dst}" for src, written in srcs for dst, read in dsts if written < read}
    return edges


def auto_circuits(layer_of_logits: int) -> set[str]:
    """The rule of auto-circuit: MLPs between the first layer of one group and the last of the other."""
    def between(inp, out):
        first = min((layer for layer, _ in IOI.get(inp, [])), default=0)
        return range(first, max((layer for layer, _ in IOI.get(out, [])), default=layer_of_logits))

    return ioi_by_hand(between)


def test_ioi_has_the_edges_of_its_authors():
    every_mlp = [f"m{layer}" for layer in range(12)]
    edges = ioi_by_hand(lambda inp, out: ())
    edges.add("input->logits")
    assert len(edges) == 183
    edges |= {f"input->{mlp}" for mlp in every_mlp} | {f"{mlp}->logits" for mlp in every_mlp}
    edges |= {f"m{i}->m{j}" for j in range(12) for i in range(j)}
    for layer, head in (head for group in IOI.values() for head in group):
        edges |= {f"m{i}->a{layer}.h{head}<{letter}>" for i in range(layer) for letter in "qkv"}
        edges |= {f"a{layer}.h{head}->m{i}" for i in range(layer, 12)}
    assert set(load_known_circuit("ioi").circuit.edge_names) == edges


def test_what_auto_circuit_calls_ioi_has_739_edges_of_these():
    known = set(load_known_circuit("ioi").circuit.edge_names)
    mended, published = auto_circuits(layer_of_logits=12), auto_circuits(layer_of_logits=0)
    assert (len(mended), len(published)) == (771, 739)
    assert published < mended < known
    assert {f"m{layer}->logits" for layer in range(12)} <= known - published
    movers = [f"a{layer}.h{h}->m" for group in ("name mover", "backup", "negative") for layer, h in IOI[group]]
    assert not [edge for edge in published for mover in movers if edge.startswith(mover)]


def test_docstring_has_the_edges_of_its_authors():
    edges = {"a0.h5->a1.h4<v>", "input->a0.h5<v>", "input->a2.h0<q>", "a0.h5->a2.h0<q>", "input->a2.h0<k>",
             "a0.h5->a2.h0<k>", "a1.h4->a2.h0<v>", "input->a1.h4<v>", "input->a1.h2<q>", "input->a1.h2<k>",
             "a0.h5->a1.h2<q>", "a0.h5->a1.h2<k>"}
    for head in ("a3.h0", "a3.h6"):
        edges |= {f"{head}->logits", f"a1.h4->{head}<q>", f"input->{head}<v>", f"a0.h5->{head}<v>",
                  f"a2.h0->{head}<k>", f"a1.h2->{head}<k>"}
    assert set(load_known_circuit("docstring").circuit.edge_names) == edges


@pytest.mark.parametrize(("name", "digest"), [
    ("ioi", "1c6d8ac5dd3ab7e9d73de05a2a515968a0f92e4e2f36651b81188e964de5d0d9"),
    ("greater_than", "f354fd493a9225bd2570638f233110a699348f60ee93a7e26c31afecbf1398f0"),
    ("docstring", "01953aa8c136eb0878969db72159bad3074eb21762238707e4ccf841251612a4"),
])
def test_the_edges_are_those_that_were_transcribed_by_hand(name, digest):
    edges = "\n".join(sorted(load_known_circuit(name).circuit.edge_names))
    assert hashlib.sha256(edges.encode()).hexdigest() == digest


def test_greater_than_by_kind_and_by_end():
    circuit = load_known_circuit("greater_than").circuit
    kind = Counter((src.rstrip("0123456789.h"), dst[0] + dst[-2:-1] * dst.endswith(">"))
                   for src, dst in (name.split("->") for name in circuit.edge_names))
    # 3 early heads and m0...m3 into q, k, v of 6 heads; m4...m8 into q of those that come later: 6 + 5 + 5 + 4 + 3...
    later = sum(layer < head for layer in range(4, 9) for head in (5, 6, 6, 7, 8, 9))
    assert kind[("m", "aq")] == 4 * 6 + later
    assert kind[("m", "ak")] == kind[("m", "av")] == 4 * 6
    assert kind[("a", "aq")] == kind[("a", "ak")] == kind[("a", "av")] == 3 * 6
    assert kind[("input", "aq")] == kind[("input", "ak")] == kind[("input", "av")] == 3
    assert kind[("input", "m")] == 4
    assert kind[("m", "m")] == 9 * 8 // 2 + 6  # all pairs of m0...m8, and of m8...m11
    assert kind[("a", "m")] == 4 + 5 * 4 + 3  # a0.h1 into m0...m3; the mid heads into m8...m11, a9.h1 from m9 on
    assert (kind[("a", "l")], kind[("m", "l")]) == (6, 4)
    assert kind.total() == 235


@pytest.mark.parametrize(("name", "counts"), [("ioi", (963, 1041)), ("greater_than", (235, 262)),
                                              ("docstring", (24, 37))])
def test_both_counts(name, counts):
    known, stored = load_known_circuit(name), json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    read = {edge.split("->")[1] for edge in known.circuit.edge_names if edge.endswith(">")}
    assert (known.circuit.n_edges, known.circuit.n_edges + len(read)) == counts
    assert known.n_edges_with_placeholders == counts[1]
    assert (stored["n_edges"], stored["n_edges_with_placeholders"]) == counts


@pytest.mark.parametrize("name", KNOWN_CIRCUITS)
def test_records_hold_together(name):
    known, stored = load_known_circuit(name), json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    nodes = {node.name for node in known.circuit.nodes} - {"input", "logits"}
    assert nodes <= set(known.roles)
    listed = [node for nodes in stored["roles"].values() for node in nodes]
    assert len(listed) == len(set(listed)), "a node has one role"
    assert all(Node.parse(node).kind in ("head", "mlp") for node in (*known.roles, *known.beyond_edges))
    assert known.circuit.drop_dangling() == known.circuit
    assert known.exists[known.circuit.kept].all()
    assert known.sources and known.disputes


def test_an_attention_only_model_has_no_edges_of_mlps():
    known = load_known_circuit("docstring")
    graph = known.circuit.graph
    assert graph == Graph(4, 8, 8)
    named = [name for name, exists in zip(graph.edge_names, known.exists, strict=True) if exists]
    assert not [name for name in named if "m" in name]
    assert len(named) == sum((1 + 8 * layer) * 8 * 3 for layer in range(4)) + 33
    scores = EdgeScores(graph, np.where(known.circuit.kept, 2.0, 1.0))
    assert roc(scores, known.circuit, by="signed", among=known.exists).n_all == len(named)
    assert overlap(known.circuit, known.circuit, among=known.exists).jaccard == 1


def test_unknown_names_are_refused():
    with pytest.raises(AcdcError, match="Did you mean 'docstring'"):
        load_known_circuit("doc_string")

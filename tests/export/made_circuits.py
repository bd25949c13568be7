"""Random small circuits for tests of the formats: positions, KV groups, hostile texts; spoilt files."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from acdc.circuit import Circuit, EdgeScores
from acdc.graph import Graph

HOSTILE = ["</script><img onerror=x>", 'a"b\\', "]]>&amp;<!--", "\x00\x1b\u202e", "$\\input{x}%_#", "a@b->c<q>", "  x ",
           "\\N\\n", "é漢字🙂", "|`*", "-->", "\r\n", "=1+1", "{}", "..."]
texts = st.sampled_from(HOSTILE) | st.text(max_size=8)
plain = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | texts | st.floats(
    allow_nan=False, allow_infinity=False)
records = st.dictionaries(texts, plain | st.lists(plain, max_size=2), max_size=3)


@st.composite
def circuits(draw: st.DrawFn) -> Circuit:
    """A circuit of a small model, some of its scores -inf."""
    kv_heads = draw(st.integers(1, 2))
    positions = draw(st.lists(texts.filter(bool), max_size=3, unique=True))
    graph = Graph(draw(st.integers(1, 2)), 2 * kv_heads, kv_heads, draw(st.booleans()),
                  draw(st.sampled_from(["head", "group"])), tuple(positions))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kept = rng.random(graph.n_edges) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    scores = None
    if draw(st.booleans()):
        values = rng.normal(size=graph.n_edges) * 10.0 ** rng.integers(-300, 300, graph.n_edges)
        values[rng.random(graph.n_edges) < 0.2] = -np.inf
        scores = EdgeScores(graph, values, draw(records))
    return Circuit(graph, kept, scores, draw(records))


@st.composite
def with_roles(draw: st.DrawFn) -> tuple[Circuit, dict[str, str]]:
    """A circuit, and roles of some of its nodes."""
    circuit = draw(circuits())
    names = [node.name for node in circuit.graph.srcs] + ["logits"]
    names += [c.node.name for c in circuit.graph.channels if c.node.kind == "kv"]
    return circuit, draw(st.dictionaries(st.sampled_from(names), texts, max_size=3))


def hostile() -> Circuit:
    """A scored circuit at positions of hostile names, with hostile provenance."""
    graph = Graph(2, 2, 1, kv="group", positions=tuple(HOSTILE[:6]))
    values = np.random.default_rng(0).normal(size=graph.n_edges)
    record = {"task": HOSTILE[0], "model": HOSTILE[1], "method": HOSTILE[4],
              "example": {"clean": HOSTILE[2], "answer": '"'}}
    return EdgeScores(graph, values, record).top(30, by="magnitude")


@st.composite
def damaged(draw: st.DrawFn, text: str, most: int = 4) -> str:
    """The text of a file with bytes flipped, dropped or all after them cut off."""
    content = bytearray(text.encode())
    for _ in range(draw(st.integers(1, most))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "cut", "drop"]))
        if not content:
            break
        if kind == "flip":
            content[place] = draw(st.integers(0, 255))
        elif kind == "drop":
            del content[place]
        else:
            content = content[: place + 1]
    return content.decode(errors="replace")


def with_field(data: dict[str, Any], path: list[str], value: object) -> dict[str, Any]:
    """The record, whose field at the end of the path is set now, or removed where the value is `...`."""
    *outer, last = path
    place = data
    for name in outer:
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return data

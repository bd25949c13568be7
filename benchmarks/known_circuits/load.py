"""Circuits that others published, as data: heads with their roles, and the edges that a stated rule makes of them.

A file gives each node's role, and connections between roles or single nodes: `[from, to, channels]` stands for the
edges from every node of `from` to those channels (q, k, v) of every node of `to` that comes later in the forward pass.
No edge is listed, so what a circuit consists of can be read.

How many edges there are is counted in two ways. Edges here are what a src adds to what a channel reads. ACDC's graph
puts a node before each of a head's q, k and v, and counts the edge from there to the head besides, a *placeholder* that
carries a sum and is kept wherever the sum is: one for each channel of a head that some kept edge reads.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from acdc.circuit import Circuit
from acdc.errors import unknown_name
from acdc.graph import Graph

FOLDER = Path(__file__).parent
KNOWN_CIRCUITS = ("ioi", "greater_than", "docstring")


@dataclass(frozen=True, eq=False)
class KnownCircuit:
    """A published circuit.

    `roles`: the role of each node but the input and the logits. `exists`: the edges that the model has: a graph has an
    MLP in every layer, an attention-only model none, so pass it as `among` when comparing. `beyond_edges`: nodes that
    are said to matter without being in any edge. `disputes`: what else has been called this circuit, and what speaks
    against it.
    """

    name: str
    title: str
    description: str
    model: str
    model_title: str
    version: int
    circuit: Circuit
    roles: Mapping[str, str]
    exists: Bool[np.ndarray, " edge"]
    beyond_edges: tuple[str, ...]
    sources: tuple[str, ...]
    disputes: tuple[str, ...]

    @property
    def n_edges_with_placeholders(self) -> int:
        """The number of edges as ACDC's authors count them: one more for each channel of a head that is read."""
        graph, read = self.circuit.graph, np.unique(self.circuit.graph.edge_channel[self.circuit.kept])
        return self.circuit.n_edges + sum(graph.channels[channel].letter != "" for channel in read)


def load_known_circuit(name: str) -> KnownCircuit:
    """The published circuit of that name in KNOWN_CIRCUITS."""
    if name not in KNOWN_CIRCUITS:
        raise unknown_name("published circuit", name, KNOWN_CIRCUITS)
    stored = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    shape = stored["graph"]
    graph = Graph(shape["n_layers"], shape["n_heads"], shape["n_heads"])
    exists = np.array([shape["mlps"] or not _has_mlp(graph, edge) for edge in range(graph.n_edges)])
    kept = _expand(graph, stored["roles"], stored["connections"])
    provenance = {key: stored[key] for key in ("name", "version", "model", "sources")}
    return KnownCircuit(
        circuit=Circuit(graph, kept, provenance={"task": stored["title"], **provenance}), exists=exists,
        roles={node: role for role, nodes in stored["roles"].items() for node in nodes},
        beyond_edges=tuple(stored.get("beyond_edges", ())), sources=tuple(stored["sources"]),
        disputes=tuple(stored["disputes"]),
        **{key: stored[key] for key in ("name", "title", "description", "model", "model_title", "version")},
    )


def _expand(graph: Graph, roles: Mapping[str, list[str]], connections: list[Any]) -> Bool[np.ndarray, " edge"]:
    """The edges that the connections stand for."""
    kept = np.zeros((len(graph.srcs), len(graph.channels), 1), dtype=bool)
    for srcs, dsts, letters in connections:
        channels = [f"{dst}<{letter}>" if letter else dst
                    for name in dsts for dst in roles.get(name, [name]) for letter in letters or [""]]
        for src in (node for name in srcs for node in roles.get(name, [name])):
            kept[graph.src_index[src], [graph.channel_index[channel] for channel in channels]] = True
    return graph.from_matrix(kept)  # where a src comes after a channel there is no edge


def _has_mlp(graph: Graph, edge: int) -> bool:
    ends = (graph.srcs[graph.edge_src[edge]], graph.channels[graph.edge_channel[edge]].node)
    return any(node.kind == "mlp" for node in ends)

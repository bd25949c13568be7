"""What can be cut: the computational graph of a transformer, as nodes, channels and edges.

A *node* writes to the residual stream (`input`, `a{layer}.h{head}`, `m{layer}`) or only reads it (`logits`).
A *channel* is one input of a node: `q`, `k`, `v` of a head; an MLP and the logits have one, without a letter.
An *edge* is one src's contribution to what one channel reads, written `src->dst<channel>` as EAP-IG does.

Srcs are ordered as the model computes them, so what a channel can read is a prefix of the srcs. Edges are
numbered by channel, then by src, then by position.

An edge stands for all token positions at once, unless the graph has `positions`: then it is cut into one edge for each
of them, `src->dst<channel>@position`. A position is a place in the prompt (`0`, `1`, ...) or a role that the task gives
to some token (`S2`, `end`, ...). The last one is where the logits are read; edges into the logits exist there alone.
"""

import re
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal

import networkx as nx
import numpy as np
from jaxtyping import Bool, Int, Shaped

from acdc.errors import AcdcError, unknown_name

KV = Literal["head", "group"]
MAX_POSITIONS, MAX_POSITION_NAME = 1000, 100  # names, and characters of one
NUMBER = "[0-9]{1,9}"
NODE_NAME = re.compile(
    rf"(?P<fixed>input|logits)|m(?P<mlp>{NUMBER})|a(?P<layer>{NUMBER})\.(?P<kind>[hg])(?P<index>{NUMBER})")


@dataclass(frozen=True)
class Node:
    """A node. `kv` is not a src: it is the dst of the k and v channels that a group of query heads shares."""

    kind: Literal["input", "head", "kv", "mlp", "logits"]
    layer: int = 0
    index: int = 0

    @property
    def name(self) -> str:
        if self.kind in ("input", "logits"):
            return self.kind
        if self.kind == "mlp":
            return f"m{self.layer}"
        return f"a{self.layer}.{'h' if self.kind == 'head' else 'g'}{self.index}"

    @staticmethod
    def parse(name: str) -> "Node":
        match = NODE_NAME.fullmatch(name)
        if not match:
            raise AcdcError(
                f"{name!r} is not the name of a node. Names are input, a{{layer}}.h{{head}}, m{{layer}}, logits, "
                "such as a9.h6 or m0"
            )
        if match["fixed"]:
            return Node("input" if name == "input" else "logits")
        if match["mlp"]:
            return Node("mlp", int(match["mlp"]))
        return Node("head" if match["kind"] == "h" else "kv", int(match["layer"]), int(match["index"]))


@dataclass(frozen=True)
class Channel:
    """One input of a node; `letter` is q, k or v for attention and empty for an MLP and the logits."""

    node: Node
    letter: Literal["", "q", "k", "v"] = ""

    @property
    def name(self) -> str:
        return f"{self.node.name}<{self.letter}>" if self.letter else self.node.name


@dataclass(frozen=True)
class LayerIndices:
    """Where one layer's nodes stand among the srcs, and its channels among the channels."""

    heads: slice
    mlp: int
    q: slice
    k: slice
    v: slice
    mlp_channel: int


@dataclass(frozen=True)
class Graph:
    """All edges of a transformer with `n_layers` blocks of `n_heads` query heads and one MLP.

    `parallel`: attention and MLP of a block read the same residual (GPT-NeoX), so no edge joins them.
    `kv`: "head" gives each query head its own k and v channel (the field's convention, and MIB's); "group" gives
    one to each KV head, which is what a model with grouped-query attention computes. `positions`: names of the token
    positions that edges are told apart by; none: an edge is all positions.

    >>> Graph(n_layers=12, n_heads=12, n_kv_heads=12).n_edges        # GPT-2 small
    32491
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: bool = False
    kv: KV = "head"
    positions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if min(self.n_layers, self.n_heads, self.n_kv_heads) < 1 or self.n_heads % self.n_kv_heads:
            raise AcdcError(
                f"no such graph: {self.n_layers} layers, {self.n_heads} heads, {self.n_kv_heads} KV heads; each must "
                "be at least 1 and the KV heads must divide the heads"
            )
        if self.kv not in ("head", "group"):
            raise unknown_name("kv", self.kv, ["head", "group"])
        if len(set(self.positions)) < len(self.positions) or not all(self.positions):
            raise AcdcError(f"positions {', '.join(map(repr, self.positions))}: each must have a name of its own")
        if len(self.positions) > MAX_POSITIONS or max(map(len, self.positions), default=0) > MAX_POSITION_NAME:
            raise AcdcError(
                f"{len(self.positions):,} positions, the longest name of {max(map(len, self.positions)):,} characters; "
                f"at most {MAX_POSITIONS:,} of {MAX_POSITION_NAME} can be told apart. Use shorter prompts or names"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled without its tables, which are large."""
        return graph_of, (self.n_layers, self.n_heads, self.n_kv_heads, self.parallel, self.kv, self.positions)

    @cached_property
    def srcs(self) -> tuple[Node, ...]:
        """Nodes that write, in the order of the forward pass: input, a0.h0, ..., m0, a1.h0, ..."""
        blocks = [
            node
            for layer in range(self.n_layers)
            for node in (*(Node("head", layer, h) for h in range(self.n_heads)), Node("mlp", layer))
        ]
        return (Node("input"), *blocks)

    @cached_property
    def channels(self) -> tuple[Channel, ...]:
        """What can be read, in the order of the forward pass: per layer all q, all k, all v, the MLP; then logits."""
        kv_kind, n_kv = ("head", self.n_heads) if self.kv == "head" else ("kv", self.n_kv_heads)
        channels = []
        for layer in range(self.n_layers):
            channels += [Channel(Node("head", layer, h), "q") for h in range(self.n_heads)]
            channels += [Channel(Node(kv_kind, layer, g), "k") for g in range(n_kv)]
            channels += [Channel(Node(kv_kind, layer, g), "v") for g in range(n_kv)]
            channels.append(Channel(Node("mlp", layer)))
        return (*channels, Channel(Node("logits")))

    @cached_property
    def n_srcs_read(self) -> Int[np.ndarray, " channel"]:
        """How many srcs each channel can read: always the first ones."""
        counts = []
        for channel in self.channels:
            before = 1 + channel.node.layer * (self.n_heads + 1)
            if channel.node.kind == "logits":
                before = len(self.srcs)
            elif channel.node.kind == "mlp" and not self.parallel:
                before += self.n_heads
            counts.append(before)
        return np.array(counts)

    @property
    def n_positions(self) -> int:
        """How many edges a src and a channel have between them: 1 where positions are not told apart."""
        return max(1, len(self.positions))

    @cached_property
    def exists(self) -> Bool[np.ndarray, "src channel position"]:
        """Which (src, channel, position) are edges."""
        exists = np.arange(len(self.srcs))[:, None] < self.n_srcs_read[None, :]
        exists = np.repeat(exists[:, :, None], self.n_positions, axis=2)
        exists[:, -1, :-1] = False
        return exists

    @cached_property
    def _edges(self) -> tuple[Int[np.ndarray, " edge"], Int[np.ndarray, " edge"], Int[np.ndarray, " edge"]]:
        channel, src, position = np.nonzero(self.exists.transpose(1, 0, 2))
        return channel, src, position

    @property
    def edge_channel(self) -> Int[np.ndarray, " edge"]:
        return self._edges[0]

    @property
    def edge_src(self) -> Int[np.ndarray, " edge"]:
        return self._edges[1]

    @property
    def edge_position(self) -> Int[np.ndarray, " edge"]:
        return self._edges[2]

    @property
    def n_edges(self) -> int:
        return len(self.edge_channel)

    @cached_property
    def first_edge(self) -> Int[np.ndarray, " channel"]:
        """The number of each channel's first edge."""
        return np.searchsorted(self.edge_channel, np.arange(len(self.channels)))

    @cached_property
    def src_index(self) -> dict[str, int]:
        return {node.name: i for i, node in enumerate(self.srcs)}

    @cached_property
    def channel_index(self) -> dict[str, int]:
        return {channel.name: i for i, channel in enumerate(self.channels)}

    def layer(self, layer: int) -> LayerIndices:
        """The indices of one layer's srcs and channels."""
        n_kv = self.n_heads if self.kv == "head" else self.n_kv_heads
        src, channel = 1 + layer * (self.n_heads + 1), layer * (self.n_heads + 2 * n_kv + 1)
        q, k, v = channel, channel + self.n_heads, channel + self.n_heads + n_kv
        return LayerIndices(
            heads=slice(src, src + self.n_heads),
            mlp=src + self.n_heads,
            q=slice(q, k),
            k=slice(k, v),
            v=slice(v, v + n_kv),
            mlp_channel=v + n_kv,
        )

    def feeds(self, channel: Channel, layer: int, head: int) -> bool:
        """Whether a head computes with what `channel` reads: its own channel, or its KV group's."""
        node = channel.node
        own = head if node.kind == "head" else head // (self.n_heads // self.n_kv_heads)
        return node.kind in ("head", "kv") and node.layer == layer and node.index == own

    def edge_name(self, edge: int) -> str:
        at = f"@{self.positions[self.edge_position[edge]]}" if self.positions else ""
        return f"{self.srcs[self.edge_src[edge]].name}->{self.channels[self.edge_channel[edge]].name}{at}"

    @cached_property
    def edge_names(self) -> tuple[str, ...]:
        srcs = [node.name for node in self.srcs]
        channels = [channel.name for channel in self.channels]
        at = [f"@{position}" for position in self.positions] or [""]
        return tuple(f"{srcs[s]}->{channels[c]}{at[p]}" for c, s, p in zip(*self._edges, strict=True))

    def edge(self, name: str) -> int:
        """The number of the edge called `name`, such as `a0.h1->m3`, `input->a0.h1<q>` or, with positions,
        `a0.h1->m3@end`."""
        src, arrow, channel = name.partition("->")
        if not arrow:
            raise AcdcError(f"{name!r} is not the name of an edge. Names look like a0.h1->m3 or input->a0.h1<q>")
        channel, at, position = channel.partition("@") if self.positions else (channel, "", "")
        if self.positions and not at:
            raise AcdcError(f"{name!r} does not say at which position; name one, such as {name}@{self.positions[-1]}")
        for kind, given, known in (("src", src, self.src_index), ("channel", channel, self.channel_index),
                                   ("position", position, self.position_index)):
            if given not in known:
                raise unknown_name(kind, given, known)
        s, c, p = self.src_index[src], self.channel_index[channel], self.position_index[position]
        if s >= self.n_srcs_read[c]:
            raise AcdcError(f"{name!r} is not an edge: {src} is computed after {channel} is read")
        if not self.exists[s, c, p]:
            raise AcdcError(f"{name!r} is not an edge: the logits are read at {self.positions[-1]!r} only")
        return int(self.first_edge[c]) + s * int(self.exists[0, c].sum()) + p - int(np.argmax(self.exists[0, c]))

    def to_matrix(self, values: Shaped[np.ndarray, " edge"], fill: float = 0
                  ) -> Shaped[np.ndarray, "src channel position"]:
        """One value an edge, laid out as (src, channel, position); `fill` where there is no edge."""
        matrix = np.full((len(self.channels), len(self.srcs), self.n_positions), fill, dtype=values.dtype)
        matrix[self._edges[0], self._edges[1], self._edges[2]] = values
        return matrix.transpose(1, 0, 2)

    def from_matrix(self, matrix: Shaped[np.ndarray, "src channel position"]) -> Shaped[np.ndarray, " edge"]:
        return matrix[self.edge_src, self.edge_channel, self.edge_position]

    @cached_property
    def position_index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.positions or ("",))}

    @cached_property
    def per_head(self) -> "Graph":
        """The same graph with k and v channels of each query head: what the forward pass is run on."""
        return graph_of(self.n_layers, self.n_heads, self.n_kv_heads, self.parallel, "head", self.positions)

    @cached_property
    def at_all_positions(self) -> "Graph":
        """The same graph with positions taken together."""
        return graph_of(self.n_layers, self.n_heads, self.n_kv_heads, self.parallel, self.kv, ())

    @cached_property
    def channel_of_per_head(self) -> Int[np.ndarray, " channel_per_head"]:
        """For each channel of `per_head`, the channel here that feeds it. The identity where `kv="head"`."""
        if self.kv == "head":
            return np.arange(len(self.channels))
        group_size = self.n_heads // self.n_kv_heads
        return np.array(
            [
                self.channel_index[channel.name]
                if channel.letter in ("", "q")
                else self.channel_index[Channel(Node("kv", channel.node.layer, channel.node.index // group_size),
                                                channel.letter).name]
                for channel in self.per_head.channels
            ]
        )

    def to_networkx(self, kept: Bool[np.ndarray, " edge"] | None = None) -> nx.MultiDiGraph:
        """The (kept) edges as a networkx multigraph: keys are channel letters, with @position where the graph has
        positions; attributes name what each thing is.

        With `kv="group"` a KV node has links of key `fixed` to its query heads; they are not edges and not cut.
        """
        graph = nx.MultiDiGraph(n_layers=self.n_layers, n_heads=self.n_heads, kv=self.kv)
        for node in (*self.srcs, Node("logits")):
            graph.add_node(node.name, kind=node.kind, layer=node.layer, index=node.index)
        if self.kv == "group":
            group_size = self.n_heads // self.n_kv_heads
            for layer in range(self.n_layers):
                for group in range(self.n_kv_heads):
                    kv = Node("kv", layer, group)
                    graph.add_node(kv.name, kind="kv", layer=layer, index=group)
                    for head in range(group * group_size, (group + 1) * group_size):
                        graph.add_edge(kv.name, Node("head", layer, head).name, key="fixed", cuttable=False)
        for edge in range(self.n_edges) if kept is None else np.nonzero(kept)[0]:
            channel = self.channels[self.edge_channel[edge]]
            at = {"position": self.positions[self.edge_position[edge]]} if self.positions else {}
            graph.add_edge(self.srcs[self.edge_src[edge]].name, channel.node.name,
                           key="@".join([channel.letter, *at.values()]), edge=int(edge), channel=channel.letter,
                           cuttable=True, **at)
        return graph


@cache
def graph_of(n_layers: int, n_heads: int, n_kv_heads: int, parallel: bool, kv: KV, positions: tuple[str, ...]
             ) -> Graph:
    """The graph of that shape, made once: its tables of nodes, channels and edges take a while to fill."""
    return Graph(n_layers, n_heads, n_kv_heads, parallel, kv, positions)

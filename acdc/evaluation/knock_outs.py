"""What a circuit gains with one of its edges, or nodes, cut: the live state of the circuit, one trial an edge.

Cutting an edge changes only what kept edges lead to from there, so a trial computes that alone.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from tqdm import tqdm

from acdc.circuit import Circuit
from acdc.evaluation.bench import Bench, Gains
from acdc.fitting import over_batches
from acdc.graph import Node
from acdc.live_state import LiveState
from acdc.patching import check_graph, kept_matrix
from acdc.task import Batch
from acdc.transformer import frozen


def without_each_edge(bench: Bench, circuit: Circuit, edges: Int[np.ndarray, " edge"]
                      ) -> tuple[Float[np.ndarray, " prompt"], Float[np.ndarray, "edge prompt"]]:
    """The gain of the circuit, and its gain without each of these kept edges alone.

    Cost: a circuit run a batch, and for each edge what lies downstream of it. An edge whose dst reaches the logits by
    no kept edge changes nothing.
    """
    assert circuit.kept[edges].all(), edges[~circuit.kept[edges]]
    check_graph(bench.model, circuit.graph)
    graph = circuit.graph
    per_head = [np.nonzero(graph.channel_of_per_head == c)[0].tolist() for c in range(len(graph.channels))]
    bar = tqdm(total=len(edges) * len(bench.batches), desc="cutting edges", unit="edge", disable=not bench.progress)

    def rows(batch: Batch) -> Float[np.ndarray, "row prompt"]:
        state = LiveState(bench.model, batch, bench.ablation(batch), graph.positions)
        logits = [state.refresh(kept_matrix(graph, circuit.kept))]
        reference = bench.model.logits(state.clean.final[:, -1])
        for edge in edges.tolist():
            channels = [c for c in per_head[graph.edge_channel[edge]] if state.is_computed(c)]
            src, at = [int(graph.edge_src[edge])], [int(graph.edge_position[edge])]
            logits.append(state.trial(channels, src, at).logits[0] if channels else logits[0])
            bar.update()
        return torch.stack([bench.metric(one, batch, reference).double() for one in logits]).cpu().numpy()

    with torch.no_grad(), frozen(bench.model), bar:
        columns = [found for _, found in over_batches(bench.batches, rows)]
    gains = bench.sign * np.concatenate(columns, axis=1) - bench.empty
    return gains[0], gains[1:]


def without_each_node(bench: Bench, circuit: Circuit, nodes: Sequence[Node]) -> Gains:
    """The gain of the circuit without any of the edges out of each node. Cost: a circuit run a node."""
    return bench.gains([Circuit(circuit.graph, circuit.kept & ~out_of(circuit, node)) for node in nodes])


def out_of(circuit: Circuit, node: Node) -> np.ndarray:
    """Which edges of the graph lead out of a node."""
    return circuit.graph.edge_src == circuit.graph.src_index[node.name]


def nodes_that_write(circuit: Circuit) -> list[Node]:
    """The nodes with kept edges out of them, but the input: cut, it leaves nothing."""
    srcs = np.unique(circuit.graph.edge_src[circuit.kept])
    return [circuit.graph.srcs[s] for s in srcs.tolist() if circuit.graph.srcs[s].kind != "input"]

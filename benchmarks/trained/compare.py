"""How well methods tell the nodes that a trained model uses from those that it does not.

    python -m acdc.benchmarks.trained.compare --results benchmarks/results
"""

import argparse
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch

from acdc.benchmarks.record import write_table  # pyright: ignore[reportMissingImports]
from acdc.benchmarks.trained.load import TRAINED, TrainedModel, load_trained  # pyright: ignore[reportMissingImports]
from acdc.circuit import EdgeScores
from acdc.discovery import METHODS

COMPARED = ("acdc", "eap_ig", "eap_ig_activations", "eap_clean_corrupted", "exact", "ifr", "random")

ABOUT = """AUROC of nodes, then of edges: the chance that one that the model uses scores above one that it does not,
ties counting half. Resample ablation, each method's default options, 64 pairs of prompts. A node scores as the
strongest edge out of it. Nodes are known by training, except in induction; the edges of the other models are those of
the program, of which training guarantees nothing; those of induction were found by cutting each alone, as `exact` does.
Methods that take their gradient on the clean run alone refuse the models' metrics, which compare with it."""


def scores_of(method: str, trained: TrainedModel, ablation: str) -> EdgeScores:
    """What a method scores each edge of a trained model, with its default options; ACDC with the truth's threshold."""
    options = {"threshold": trained.threshold[ablation]} if method.startswith("acdc") else {}
    return METHODS[method](trained.model, trained.batches, trained.metric, ablation=ablation, **options)


def node_scores(scores: EdgeScores) -> dict[str, float]:
    """Of each head and MLP, the largest |score| of the edges out of it. (The input is used by every model.)"""
    sizes = np.array(list(edge_scores(scores).values()))
    return {node.name: float(sizes[scores.graph.edge_src == s].max()) for s, node in enumerate(scores.graph.srcs)
            if node.kind != "input"}


def edge_scores(scores: EdgeScores) -> dict[str, float]:
    """|score| of each edge; 0 where it was not tried."""
    sizes = np.where(np.isfinite(scores.values), np.abs(scores.values), 0)
    return dict(zip(scores.graph.edge_names, sizes.tolist(), strict=True))


def auroc(scores: Mapping[str, float], true: Collection[str]) -> float:
    """The chance that a true one scores above another one, ties counting half: the area under the ROC curve."""
    inside, outside = ([score for name, score in scores.items() if (name in true) == side] for side in (True, False))
    return float(np.mean([(a > b) + (a == b) / 2 for a in inside for b in outside]))


def measure(method: str, name: str) -> tuple[float, float]:
    """AUROC of nodes and of edges under resample ablation."""
    trained = load_trained(name)
    scores = scores_of(method, trained, "resample")
    return auroc(node_scores(scores), trained.nodes), auroc(edge_scores(scores), trained.expected)


def main() -> None:
    parser = argparse.ArgumentParser(description="Methods on trained models whose nodes are known.")
    parser.add_argument("--results", type=Path, help="also write the table to this folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = []
    for method in COMPARED:
        found = [measure(method, name) for name in TRAINED]
        table.append([method, *(f"{nodes:.2f}, {edges:.2f}" for nodes, edges in found)])
        print(" | ".join(table[-1]), flush=True)
    if arguments.results:
        write_table(
            arguments.results, "trained", title="Methods on trained models whose nodes are known",
            about=ABOUT,
            command="python -m acdc.benchmarks.trained.compare --results benchmarks/results",
            parameters={"models": list(TRAINED)}, columns=("method", *TRAINED), rows=table,
        )


if __name__ == "__main__":
    main()

"""What to say of the features of a circuit's nodes: their scores, the edges they carry, where they are active."""

from collections.abc import Sequence
from typing import Any

import torch

from acdc.activations import record
from acdc.annotation.features import NodeFeatures, features_of
from acdc.circuit import Annotation
from acdc.task import Batch
from acdc.transformer import Transformer, frozen

N_EXAMPLES = 3
N_EDGES = 5


def feature_notes(model: Transformer, batches: Sequence[Batch], found: Sequence[NodeFeatures], n: int
                  ) -> list[Annotation]:
    """For each node its `n` strongest features, and what all its features and the error score together.

    The examples are the task's clean prompts on which the feature is most active, one forward pass a batch.
    """
    chosen = {one.node: one.strongest(n) for one in found}
    examples = _examples(model, batches, found, chosen)
    notes = []
    for one in found:
        share = one.total.sum() + one.total_error
        explained = {"node_score": float(share), "features": float(one.total.sum()), "error": one.total_error,
                     "coder": one.coder.site, "method": "attribution to features"}
        text = f"features of {one.coder.site} carry {one.total.sum():+.3f} of {share:+.3f}, the error the rest"
        notes.append(Annotation(one.node, "feature", text, None, explained))
        for feature in chosen[one.node]:
            strongest = sorted(range(len(one.edges)), key=lambda e: -abs(one.values[e, feature]))[:N_EDGES]
            edges = {one.edges[e]: float(one.values[e, feature]) for e in strongest if one.values[e, feature] != 0}
            data = {"feature": feature, "coder": one.coder.site, "edges": edges,
                    "examples": examples[one.node, feature], "method": "attribution to features"}
            notes.append(Annotation(one.node, "feature", one.coder.name_of(feature), float(one.total[feature]), data))
    return notes


def _examples(model: Transformer, batches: Sequence[Batch], found: Sequence[NodeFeatures],
              chosen: dict[str, list[int]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    best: dict[tuple[str, int], list[tuple[float, dict[str, Any]]]] = {
        (one.node, feature): [] for one in found for feature in chosen[one.node]}
    with torch.no_grad(), frozen(model):
        for batch in batches:
            run = record(model, batch.clean)
            for one in found:
                active = features_of(model, run, one.coder)
                for feature in chosen[one.node]:
                    top = best[one.node, feature]
                    top += [(float(row.max()), _example(model, tokens, row))
                            for tokens, row in zip(batch.clean, active[..., feature], strict=True) if row.max() > 0]
                    top.sort(key=lambda item: -item[0])
                    del top[N_EXAMPLES:]
    return {key: [example for _, example in top] for key, top in best.items()}


def _example(model: Transformer, tokens: torch.Tensor, row: torch.Tensor) -> dict[str, Any]:
    words = [model.token_text(token) for token in tokens.cpu().tolist()]
    return {"tokens": words, "activations": [round(float(value), 4) for value in row]}

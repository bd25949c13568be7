"""What a circuit's nodes say to the logits by themselves: the tokens that each promotes, its share of the answer."""

from collections.abc import Sequence

import torch

from acdc.activations import contribution, record
from acdc.annotation.lens import attribute_answers, unembed_scaled
from acdc.circuit import Annotation
from acdc.fitting import over_batches
from acdc.task import Batch
from acdc.transformer import Transformer, frozen

N_TOKENS = 5


def lens_notes(model: Transformer, batches: Sequence[Batch], nodes: Sequence[str], *, seed: int = 0
               ) -> list[Annotation]:
    """For each node its direct attribution (`attribute_answers`) as the value, and the tokens whose logits it raises
    and lowers most at the last position, against the mean token; means over prompts.

    Cost: two forward passes a batch and an unembedding a node.
    """
    if not nodes:
        return []
    found = attribute_answers(model, batches, seed=seed)
    places = [model.graph().src_index[node] for node in nodes]
    n = sum(map(len, batches))

    def wrote(batch: Batch) -> torch.Tensor:
        run = record(model, batch.clean)
        rstd = model.anatomy.final_norm.statistics(run.final[:, -1])[1]
        return torch.stack([(contribution(model, run, place)[:, -1] * rstd).sum(0) for place in places]) / n

    with torch.no_grad(), frozen(model):
        total = torch.stack([found for _, found in over_batches(batches, wrote)]).sum(0)
        logits = unembed_scaled(model, total.to(model.dtype)).float()
        logits = logits - logits.mean(-1, keepdim=True)
    k = min(N_TOKENS, logits.shape[-1])
    notes = []
    for node, row in zip(nodes, logits, strict=True):
        own = found.nodes[node]
        text = f"adds {own.value:+.3f} of {found.total:+.3f} to logit(answer) - logit(wrong), directly"
        data = {"low": own.low, "high": own.high, "promotes": _tokens(model, row, k),
                "suppresses": [[token, -value] for token, value in _tokens(model, -row, k)],
                "method": "direct logit attribution", "seed": seed}
        notes.append(Annotation(node, "lens", text, own.value, data))
    return notes


def _tokens(model: Transformer, logits: torch.Tensor, k: int) -> list[list]:
    top = logits.topk(k)
    return [[model.token_text(int(token)), round(float(value), 4)]
            for token, value in zip(top.indices, top.values, strict=True)]

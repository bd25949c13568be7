"""What one feature is: the text that it is most active on, what it does to the logits, how often and how strongly."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from acdc.annotation.features import decoder_of_node, nodes_of
from acdc.annotation.lens import unembed_scaled
from acdc.annotation.sites import read, site
from acdc.errors import AcdcError
from acdc.sae.cross_layer import LayerFeatures
from acdc.sae.on_model import check_on_model
from acdc.sae.sparse_coder import SparseCoder
from acdc.transformer import Transformer, frozen

WINDOWS_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class Feature:
    """`density`: the share of tokens on which it is active. `histogram`: counts of its activations above 0, and the
    edges of the bins. `examples`: windows with the activation of each token, the strongest first. `promotes`,
    `suppresses`: the tokens whose logits it moves most, a unit of it, with the final norm's scale left out."""

    feature: int
    density: float
    largest: float
    histogram: tuple[list[int], list[float]]
    examples: list[dict[str, Any]]
    promotes: list[tuple[str, float]]
    suppresses: list[tuple[str, float]]

    def as_record(self) -> dict[str, Any]:
        return vars(self)


def features(
    model: Transformer,
    coder: SparseCoder | LayerFeatures,
    tokens: Int[Tensor, "window pos"],
    wanted: Sequence[int] | None = None,
    *,
    n: int = 10,
    n_examples: int = 5,
    around: int = 8,
    progress: bool = False,
) -> list[Feature]:
    """What the `wanted` features are; without any, of the `n` with the largest activation among those not dense (active
    on 1% of the tokens at most), so that chance decides less what is shown.

    Of a cross-layer transcoder, those of one layer, with the effect of all that they write. Examples are of different
    windows, with `around` tokens before and after the strongest. Cost: two forward passes.
    """
    for feature in wanted or ():
        coder.check_feature(feature)
    check_on_model(model, coder if isinstance(coder, SparseCoder) else coder.transcoder.target(-1))
    with frozen(model), torch.no_grad():
        count = torch.zeros(coder.n_features)
        largest = torch.zeros(coder.n_features)
        for active in _activations(model, coder, tokens, progress):
            count += (active > 0).flatten(0, 1).sum(0).cpu()
            largest = torch.maximum(largest, active.flatten(0, 1).max(0).values.cpu().float())
        n_tokens = tokens[:, 1:].numel()
        density = count / n_tokens
        if wanted is None:
            score = torch.where((density > 0) & (density <= 0.01) & (count >= 5), largest, 0)
            wanted = [int(i) for i in score.topk(min(n, len(score))).indices if score[i] > 0]
        if not wanted:
            raise AcdcError(
                "no feature is active on 5 tokens or more, and on no more than 1% of them; give numbers of "
                "features, or more text"
            )
        values = torch.cat([active[..., wanted].cpu() for active in _activations(model, coder, tokens, progress)])
        effects = logit_effects(model, coder, wanted)
    return [
        _feature(
            model,
            tokens,
            feature,
            values[..., i],
            float(density[feature]),
            n_examples,
            around,
            None if effects is None else effects[i],
        )
        for i, feature in enumerate(wanted)
    ]


def _activations(model: Transformer, coder: SparseCoder | LayerFeatures, tokens: Tensor, progress: bool) -> Any:
    for some in tqdm(tokens.split(WINDOWS_AT_ONCE), desc="reading", unit="batch", disable=not progress):
        found = read(model, some, list(coder.reads))
        yield coder.encode(*(found[name][:, 1:] for name in coder.reads))


def logit_effects(
    model: Transformer, coder: SparseCoder | LayerFeatures, wanted: Sequence[int]
) -> Float[Tensor, "feature vocab"] | None:
    """What a unit of each feature adds to the logits directly: its decoder row times the final norm's gain, centred
    where that norm centres, times W_U. None where what it rebuilds does not reach the residual stream linearly."""
    if isinstance(coder, LayerFeatures):
        return unembed_scaled(model, coder.writes[list(wanted)].to(model.dtype)).detach().float().cpu()
    at = site(model, coder.target)
    if at.kind == "resid" or (at.kind == "a" and at.part is None):
        rows = coder.decoder
    elif at.part in ("neurons", "in", "norm"):
        return None
    else:
        rows = torch.stack([decoder_of_node(model, coder, node) for node in nodes_of(model, coder)]).sum(0)
    return unembed_scaled(model, rows[list(wanted)].to(model.dtype)).detach().float().cpu()


def _feature(
    model: Transformer,
    tokens: Tensor,
    feature: int,
    values: Float[Tensor, "window pos"],
    density: float,
    n_examples: int,
    around: int,
    effects: Tensor | None,
) -> Feature:
    best = values.max(1)
    order = best.values.argsort(descending=True, stable=True)[:n_examples]
    examples = []
    for window in order.tolist():
        if values[window].max() <= 0:
            break
        place = int(best.indices[window]) + 1
        span = slice(max(0, place - around), place + around + 1)
        shown = torch.cat([torch.zeros(1), values[window].float()])[span]
        examples.append(
            {
                "tokens": [model.token_text(t) for t in tokens[window, span].tolist()],
                "activations": [round(v, 4) for v in shown.tolist()],
            }
        )
    positive = values[values > 0].float().numpy()
    counts, edges = np.histogram(positive, bins=20) if len(positive) else (np.zeros(1, int), np.zeros(2))
    ends: list[list[tuple[str, float]]] = [[], []]
    if effects is not None:
        k = min(10, len(effects))
        for found, sign in zip(ends, (1, -1), strict=True):
            top = (sign * effects).topk(k)
            found += [
                (model.token_text(t), sign * v) for t, v in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            ]
    return Feature(
        feature, density, float(values.max()), (counts.tolist(), [round(float(e), 6) for e in edges]), examples, *ends
    )

"""What the nodes of a model of images look for, as annotations with pictures, each against units without training.

An MLP is shown by the neurons that matter most to the task: by the first-order effect of corrupting each,
(corrupted - clean) . gradient of the loss (negative logit difference), summed over places; positive: it helps. A head
is shown by the direction along which what it writes varies most. Random units are those of a copy of the model whose
weights are shuffled: neurons, or random directions of what a head writes.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from acdc.annotation.sites import changed, read
from acdc.annotation.visual_units import (
    Images,
    Unit,
    distinct_images,
    edge_likeness,
    excitations,
    head_unit,
    made_images,
    neurons,
    placed,
    shuffled,
)
from acdc.circuit import Annotation
from acdc.graph import Node
from acdc.metrics import METRICS
from acdc.task import Batch
from acdc.transformer import Transformer, frozen

N_NEURONS, N_TOP = 3, 5  # shown of an MLP; images shown of a unit
N_RANDOM = 48  # units that those shown are compared with
MOST_PIXELS = 32  # a side, in annotations
KIND = "picture"


def annotate_pictures(model: Transformer, batches: Sequence[Batch], nodes: Sequence[str], *, seed: int = 0,
                      progress: bool = False) -> list[Annotation]:
    """Pictures of what excites the nodes; none for a model that does not read images.

    `value` is the edge-likeness of the made image, `baseline` the median of the random units, `p` the share of them
    that are as edge-like or more. An MLP has one more, without pictures: the chance that a neuron of it is more
    edge-like than a random one (area under the ROC curve), over 48 of its neurons, with p by Mann and Whitney. Cost:
    some 10,000 forward and backward passes of an image for each MLP, half as many for a head.
    """
    if model.anatomy.probe is None:
        return []
    images = distinct_images(model, [tokens for batch in batches for tokens in (batch.clean, batch.corrupted)])
    known = [Node.parse(node) for node in nodes if node != "input"]
    layers = sorted({node.layer for node in known if node.kind == "mlp"})
    effects, other, found = neuron_effects(model, batches, layers), shuffled(model, seed), []
    for node in tqdm(known, desc="pictures", disable=not progress):
        generator = torch.Generator().manual_seed(seed)
        if node.kind == "mlp":
            effect = effects[node.layer]
            shown = effect.abs().argsort(descending=True)[:N_NEURONS].tolist()
            drawn = torch.randperm(len(effect), generator=generator)[:N_RANDOM].tolist()
            base = _edge_likeness(other, neurons(other, node.layer, drawn), images, seed)
            own = _edge_likeness(model, neurons(model, node.layer, drawn), images, seed)
            found.append(_of_mlp(node.name, own, base))
            titles = [f"neuron {index}" for index in shown]
            extra = [{"neuron": index, "effect": float(effect[index])} for index in shown]
            units = neurons(model, node.layer, shown)
        else:
            directions = torch.randn(N_RANDOM, model.blocks[0].attention.out.out_features, generator=generator)
            random = [Unit(node.name, direction.to(model.device, model.dtype)) for direction in directions]
            base = _edge_likeness(other, random, images, seed)
            titles, extra, units = ["its widest direction"], [{}], [head_unit(model, node.name, images)]
        found += _of_units(model, node.name, units, titles, extra, images, base, seed)
    return found


def neuron_effects(model: Transformer, batches: Sequence[Batch], layers: Sequence[int]
                   ) -> dict[int, Float[Tensor, " neuron"]]:
    """By layer, how much the mean loss rises, to first order, when each neuron is corrupted at all places."""
    sites, last = [f"m{layer}.neurons" for layer in layers], f"resid{model.n_layers}"
    totals: dict[str, Any] = dict.fromkeys(sites, 0)
    for batch in batches:
        added: dict[str, Tensor] = {}
        seen: dict[str, Tensor] = {}
        leaves = {site: partial(_with_leaf, seen, added, site) for site in (*sites, last)}
        with frozen(model), torch.enable_grad(), changed(model, leaves):
            model.run_body(batch.clean)
            logits = model.logits(seen[last][:, -1])
            loss = METRICS["logit_difference"].loss(logits, batch, logits.detach()).sum()
            gradients = torch.autograd.grad(loss, [added[site] for site in sites]) if sites else ()
        corrupted = read(model, batch.corrupted, sites)
        for site, gradient in zip(sites, gradients, strict=True):
            totals[site] += ((corrupted[site] - seen[site].detach()) * gradient).sum((0, 1)).double().cpu()
    n = sum(map(len, batches))
    return {layer: totals[site] / n for layer, site in zip(layers, sites, strict=True)}


def _with_leaf(seen: dict[str, Tensor], added: dict[str, Tensor], site: str, x: Tensor) -> Tensor:
    """x and a zero to differentiate by."""
    added[site] = torch.zeros_like(x).requires_grad_()
    seen[site] = x + added[site]
    return seen[site]


def _range(model: Transformer) -> tuple[float, float]:
    pixels = model.tokenizer.pixels
    return float(pixels.min()), float(pixels.max())


def _made(model: Transformer, units: Sequence[Unit], seed: int) -> Images:
    low, high = _range(model)
    return made_images(model, units, low=low, high=high, seed=seed)


def _edge_likeness(model: Transformer, units: Sequence[Unit], images: Images, seed: int) -> Float[np.ndarray, " unit"]:
    made = _made(model, placed(model, units, images), seed)
    return edge_likeness(made, model.tokenizer.patch).numpy()


def _of_mlp(node: str, own: Float[np.ndarray, " unit"], base: Float[np.ndarray, " unit"]) -> Annotation:
    from scipy.stats import mannwhitneyu  # here, because importing it adds a filter of warnings

    above = mannwhitneyu(own, base, alternative="greater")
    value = float(above.statistic) / (len(own) * len(base))
    text = f"chance that a neuron is more edge-like than one of shuffled weights, over {len(own)} of each"
    return Annotation(node, KIND, text, value, {"baseline": 0.5, "p": float(above.pvalue), "method": "gradient ascent"})


def _of_units(model: Transformer, node: str, units: Sequence[Unit], titles: Sequence[str], extra: Sequence[dict],
              images: Images, base: Float[np.ndarray, " unit"], seed: int) -> list[Annotation]:
    units = placed(model, units, images)
    made, strength = _made(model, units, seed), excitations(model, units, images).amax(2)
    likeness = edge_likeness(made, model.tokenizer.patch).tolist()
    names, found = [*model.tokenizer.place_names(), "CLS"], []
    for i, (unit, title) in enumerate(zip(units, titles, strict=True)):
        top = strength[i].argsort(descending=True)[:N_TOP]
        places = excitations(model, [unit], images[top])[0].argmax(1).tolist()
        data = {
            "baseline": float(np.median(base)), "p": float((1 + (base >= likeness[i]).sum()) / (1 + len(base))),
            "place": names[unit.place], "grid": list(model.tokenizer.grid), **extra[i],
            "made": _picture(model, made[i]), "top": [_picture(model, image) for image in images[top]],
            "top_places": [names[place] for place in places],
            "top_values": [round(value, 4) for value in strength[i][top].tolist()],
            "made_value": float(excitations(model, [unit], made[i : i + 1])[0, 0, unit.place]),
            "method": "gradient ascent", "seed": seed,
        }
        text = f"{title} at {names[unit.place]}: edge-likeness of the image that excites it"
        found.append(Annotation(node, KIND, text, likeness[i], data))
    return found


def _picture(model: Transformer, image: Float[Tensor, "channel height width"]) -> list[list[float]]:
    """Grey values between 0 and 1, of so many pixels as a file should hold."""
    low, high = _range(model)
    grey = ((image.float().mean(0) - low) / max(high - low, 1e-12)).cpu()
    if max(grey.shape) > MOST_PIXELS:
        grey = F.adaptive_avg_pool2d(grey[None], MOST_PIXELS)[0]
    return [[round(value, 3) for value in row] for row in grey.tolist()]

"""Which images excite a unit of a model of images: those of the task, and one made to; and whether that is an edge.

A unit is a neuron of an MLP, before its activation function (after it, one that is silent on grey has no gradient to
climb), or the direction along which what a head writes varies most over images and places. It is looked at where it is
excited most: at one patch, or at CLS.

    made image = argmax over pixels x of  unit(x) / s - 0.1 |x - middle|^2 - 0.1 TV(x)

s is the unit's standard deviation over the task's images, pixels are in units of their range (0 to 1), and TV is the
sum of absolute differences between neighbouring pixels. Edge-likeness is the largest |correlation| of the made image
with an oriented edge: the derivative of a Gaussian as wide as a patch, so that a gradient within one patch alone, which
any linear filter of it has, is not much of an edge.

Source: Erhan et al. 2009, Visualizing Higher-Layer Features of a Deep Network; Olah et al. 2017, distill.pub.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from acdc.annotation.sites import changed
from acdc.transformer import Transformer, frozen

STEPS, RATE = 100, 0.05  # of Adam
TOWARDS_GREY, SMOOTH = 0.1, 0.1
ANGLES = 8
Images = Float[Tensor, "image channel height width"]


@dataclass(frozen=True, eq=False)
class Unit:
    """A direction at a site; `place`: the position at which it is looked at; `scale`: its standard deviation."""

    site: str
    direction: Float[Tensor, " d"]
    place: int = 0
    scale: float = 1.0


def responses(model: Transformer, sites: Sequence[str], images: Images) -> dict[str, Float[Tensor, "image pos d"]]:
    """What is at some sites when the model is given images; differentiable by them."""
    seen: dict[str, Tensor] = {}
    with changed(model, {site: partial(_note, seen, site) for site in sites}):
        model.hf.encode(images)
    return seen


def _note(seen: dict[str, Tensor], site: str, x: Tensor) -> None:
    seen[site] = x


def excitations(model: Transformer, units: Sequence[Unit], images: Images) -> Float[Tensor, "unit image pos"]:
    """How strong each unit is at every place of every image. Cost: one forward pass."""
    with torch.no_grad(), frozen(model):
        seen = responses(model, sorted({unit.site for unit in units}), images)
        return torch.stack([seen[unit.site] @ unit.direction for unit in units])


def placed(model: Transformer, units: Sequence[Unit], images: Images) -> list[Unit]:
    """The units, each looked at where one of the images excites it most, with its scale over them."""
    strength = excitations(model, units, images)
    return [replace(unit, place=int(own.amax(0).argmax()), scale=max(float(own.std()), 1e-6))
            for unit, own in zip(units, strength, strict=True)]


def neurons(model: Transformer, layer: int, indices: Sequence[int]) -> list[Unit]:
    """Neurons of an MLP, as units not yet placed: what their weights read, before the activation function."""
    return [Unit(f"m{layer}.in", model.blocks[layer].mlp.fc1.weight[index].detach()) for index in indices]


def head_unit(model: Transformer, head: str, images: Images) -> Unit:
    """The direction along which what a head writes varies most, with the sign of the longer side."""
    with torch.no_grad(), frozen(model):
        wrote = responses(model, [head], images)[head].flatten(0, 1)
        centred = wrote - wrote.mean(0)
        direction = torch.linalg.svd(centred.float(), full_matrices=False)[2][0].to(wrote.dtype)
        along = centred @ direction
        return Unit(head, direction if float(along.max()) >= float(-along.min()) else -direction)


def made_images(model: Transformer, units: Sequence[Unit], *, low: float, high: float, seed: int = 0) -> Images:
    """For each unit, the image that excites it, of pixels between `low` and `high`; found by gradient ascent from
    grey with a little noise. Cost: 100 forward and backward passes of an image for each unit."""
    table, places = model.tokenizer, torch.arange(len(units))
    shape = (len(units), table.pixels.shape[1], *table.size)
    start = 0.5 + 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x = start.to(model.device, model.dtype).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=RATE)
    sites = sorted({unit.site for unit in units})
    with frozen(model), torch.enable_grad():
        for _ in range(STEPS):
            seen = responses(model, sites, low + (high - low) * x)
            value = sum(seen[unit.site][i, unit.place] @ unit.direction / unit.scale
                        for i, unit in zip(places, units, strict=True))
            variation = x.diff(dim=2).abs().sum() + x.diff(dim=3).abs().sum()
            optimizer.zero_grad()
            (TOWARDS_GREY * (x - 0.5).pow(2).sum() + SMOOTH * variation - value).backward()
            optimizer.step()
            with torch.no_grad():
                x.clamp_(0, 1)
    return (low + (high - low) * x).detach()


def edges(size: tuple[int, int], width: int) -> Float[Tensor, "edge height across"]:
    """Oriented edges of norm 1 and mean 0, at every corner of pixels: derivatives of a Gaussian `width` pixels wide."""
    height, across = size
    row, column = torch.meshgrid(torch.arange(height).double(), torch.arange(across).double(), indexing="ij")
    found = []
    for r in range(height - 1):
        for c in range(across - 1):
            down, right = row - r - 0.5, column - c - 0.5
            window = torch.exp(-(down**2 + right**2) / (2 * width**2))
            for k in range(ANGLES):
                angle = math.pi * k / ANGLES
                edge = (right * math.cos(angle) + down * math.sin(angle)) * window
                edge = edge - edge.mean()
                found.append(edge / edge.norm())
    return torch.stack(found)


def edge_likeness(images: Images, patch: int) -> Float[Tensor, " image"]:
    """The largest |correlation| of each image (mean over channels) with an edge as wide as a patch: 0 to 1."""
    grey = images.double().cpu().mean(1)
    grey = grey - grey.mean((1, 2), keepdim=True)
    norm = grey.flatten(1).norm(dim=1).clamp(min=1e-12)
    bank = edges((grey.shape[1], grey.shape[2]), patch)
    return torch.einsum("ihw,ehw->ie", grey, bank).abs().amax(1) / norm


def shuffled(model: Transformer, seed: int = 0) -> Transformer:
    """A copy of the model in which the entries of every weight have changed places: as large, without what was learned.
    """
    hf, generator = deepcopy(model.hf), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in hf.parameters():
            order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
            weight.copy_(weight.flatten()[order].view_as(weight))
    return replace(model, hf=hf)


def distinct_images(model: Transformer, tokens: Sequence[Int[Tensor, "batch pos"]]) -> Images:
    """Every image among some prompts, once."""
    return model.hf.images(torch.unique(torch.cat(list(tokens)), dim=0))

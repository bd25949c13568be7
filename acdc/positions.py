"""Sums over srcs where what is kept may differ from one token position to another."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

Cells = Sequence[Int[Tensor, " _"]]


def cells_of(groups: Int[Tensor, "batch pos"], n: int) -> Cells:
    """For each of n positions, the tokens that count as it: their places among all tokens of a batch."""
    return [(groups.flatten() == group).nonzero()[:, 0] for group in range(n)]


def sum_kept(
    kept: Float[Tensor, "channel src position"], values: Shaped[Tensor, "src *rows batch pos d_model"], cells: Cells
) -> Shaped[Tensor, "channel *rows batch pos d_model"]:
    """sum over srcs of kept * value, each token with what is kept at its position.

    Values at a single token, the one where the logits are read, count as the last position.
    """
    if kept.shape[2] == 1 or values.shape[-2] == 1:
        return (kept[:, :, -1] @ values.flatten(1)).view(len(kept), *values.shape[1:])
    total = values.new_zeros(len(kept), *values.shape[1:])
    for position, cell in enumerate(cells):
        there = values.flatten(-3, -2)[..., cell, :]
        total.flatten(-3, -2)[..., cell, :] = torch.einsum("cs,s...->c...", kept[:, :, position], there)
    return total

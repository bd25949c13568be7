"""How many features share a dimension, and how many a neuron answers to.

Source: Elhage et al. 2022, "Toy models of superposition" (arXiv 2209.10652).
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from acdc.errors import AcdcError

ALPHA = 0.01


def feature_dimensionality(weight: Float[Tensor, "*model feature hidden"]) -> Float[Tensor, "*model feature"]:
    """D_i = |W_i|^2 / sum_j (W_i . W_j / |W_i|)^2: the share of a dimension that a feature has to itself.

    1 for a feature with a dimension of its own, 1/2 for an antipodal pair, 2/5 in a pentagon, 0 for one that is not
    represented.
    """
    norm = weight.norm(dim=-1, keepdim=True)
    unit = weight / norm.clamp(min=1e-12)
    shared = torch.einsum("...ih,...jh->...ij", unit, weight).pow(2).sum(-1)
    return norm[..., 0] ** 2 / shared.clamp(min=1e-12)


def polysemanticity(neurons: Float[Tensor, "token neuron"], features: Float[Tensor, "token feature"]
                    ) -> Float[np.ndarray, " neuron"]:
    """How many features each neuron answers to: the effective number (sum r^2)^2 / sum r^4 over the features whose
    correlation r with the neuron is more than chance explains; 0 where there is none.

    1 for a neuron that follows one feature; k for one that follows k equally. Chance: |r| at which one of all features
    would lie with a probability of 1% by itself (Fisher's transformation, Bonferroni). It misleads where features
    correlate with each other: then following one is following all. Raises `AcdcError` for fewer than 30 tokens or
    tables of different tokens.
    """
    if len(neurons) != len(features) or len(neurons) < 30:
        raise AcdcError(f"neurons on {len(neurons)} tokens and features on {len(features)}: give the same tokens, "
                        "30 at least")
    from scipy.special import ndtri  # here, because importing it adds a filter of warnings

    a, b = (x.double() - x.double().mean(0) for x in (neurons, features))
    a, b = (x / x.norm(dim=0).clamp(min=1e-12) for x in (a, b))
    least = np.tanh(-float(ndtri(ALPHA / 2 / features.shape[1])) / np.sqrt(len(neurons) - 3))
    squares = (a.T @ b).pow(2).numpy()
    squares = np.where(squares > least**2, squares, 0.0)
    total, fourth = squares.sum(1), (squares**2).sum(1)
    return np.divide(total**2, fourth, out=np.zeros_like(total), where=fourth > 0)

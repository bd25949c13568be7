"""How many features share a dimension, and how many a neuron answers to.

Source: Elhage et al. 2022, "Toy models of superposition" (arXiv 2209.10652).
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from acdc.annotation.features import Coder
from acdc.annotation.sites import read, site
from acdc.errors import AcdcError
from acdc.transformer import Transformer

N_DRAWS = 99  # so that a neuron that answers to nothing is above all of them once in 100
LEAST_TOKENS = 30
WINDOWS_AT_ONCE = 8


def feature_dimensionality(weight: Float[Tensor, "*model feature hidden"]) -> Float[Tensor, "*model feature"]:
    """D_i = |W_i|^2 / sum_j (W_i . W_j / |W_i|)^2: the share of a dimension that a feature has to itself.

    1 for a feature with a dimension of its own, 1/2 for an antipodal pair, 2/5 in a pentagon, 0 for one that is not
    represented.
    """
    norm = weight.norm(dim=-1, keepdim=True)
    unit = weight / norm.clamp(min=1e-12)
    shared = torch.einsum("...ih,...jh->...ij", unit, weight).pow(2).sum(-1)
    return norm[..., 0] ** 2 / shared.clamp(min=1e-12)


def polysemanticity(neurons: Float[Tensor, "token neuron"], features: Float[Tensor, "token feature"], *, seed: int = 0
                    ) -> Float[np.ndarray, " neuron"]:
    """How many features each neuron answers to: the effective number (sum r^2)^2 / sum r^4 over the features whose
    correlation r with the neuron is beyond chance; 0 where there is none.

    1 for a neuron that follows one feature; k for one that follows k equally. Chance: the largest |r| of the neuron
    with any feature when its tokens are shuffled, in 99 draws; a neuron that answers to nothing exceeds it with a
    probability of 1%, however rare the features and rarely large the neuron. `seed`: of the draws. Cost: 100 products
    of the tables. It misleads where features correlate with each other: then following one is following all; and where
    tokens next to each other are alike, what is chance passes for an answer more often. The more tokens, the weaker the
    answers that count: compare numbers from the same tokens only. Raises `AcdcError` for fewer than 30 tokens or tables
    of different tokens.
    """
    if len(neurons) != len(features) or len(neurons) < LEAST_TOKENS:
        raise AcdcError(f"neurons on {len(neurons)} tokens and features on {len(features)}: give the same tokens, "
                        f"{LEAST_TOKENS} at least")
    a, b = _standardised(neurons), _standardised(features)
    generator = torch.Generator().manual_seed(seed)
    by_chance = a.new_zeros(a.shape[1])
    for _ in range(N_DRAWS):
        shuffled = a[torch.randperm(len(a), generator=generator).to(a.device)]
        by_chance = torch.maximum(by_chance, (shuffled.T @ b).abs().amax(1))
    r = a.T @ b
    squares = torch.where(r.abs() > by_chance[:, None], r.square(), 0).cpu().double().numpy()
    total, fourth = squares.sum(1), (squares**2).sum(1)
    return np.divide(total**2, fourth, out=np.zeros_like(total), where=fourth > 0)


def _standardised(x: Float[Tensor, "token column"]) -> Float[Tensor, "token column"]:
    """Columns of mean 0 and norm 1; 0 for those that are constant up to rounding."""
    x = x.float()
    centred = x - x.mean(0)
    norm = centred.norm(dim=0)
    return torch.where(norm > 1e-5 * x.norm(dim=0), centred / norm.clamp(min=1e-30), 0)


def neurons_and_features(model: Transformer, coder: Coder, tokens: Int[Tensor, "window pos"]
                         ) -> tuple[Float[Tensor, "token neuron"], Float[Tensor, "token feature"]]:
    """The neurons of the MLP that a coder reads (m5, m5.in or m5.neurons) and the coder's features, on the same tokens.

    The first position of each window is left out, as coders leave it out. Cost: one forward pass. Raises `AcdcError`
    for a coder of another place.
    """
    at = site(model, coder.site)
    if at.kind != "m" or len(coder.reads) > 1:
        raise AcdcError(f"the coder reads {', '.join(coder.reads)}, which has no neurons of its own; give a coder of "
                        "one MLP, such as m5 or m5.in")
    name = f"m{at.layer}.neurons"
    neurons, features = [], []
    with torch.no_grad():
        for some in tokens.split(WINDOWS_AT_ONCE):
            found = read(model, some, list({name, coder.site}))
            neurons.append(found[name][:, 1:].flatten(0, 1))
            features.append(coder.encode(found[coder.site][:, 1:]).flatten(0, 1))
    return torch.cat(neurons), torch.cat(features)

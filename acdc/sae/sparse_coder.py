"""What a sparse autoencoder or transcoder is: features of what a site holds, and what they rebuild.

    autoencoder   f = act((x - b_dec) W_enc + b_enc),   x ~ f W_dec + b_dec
    transcoder    f = act(x W_enc + b_enc),             y ~ f W_dec + b_dec [+ x W_skip^T]

`act` is a ReLU (`relu`), a ReLU of the k largest (`topk`), x where x > threshold (`jumprelu`; `batchtopk` once it is
trained), or, in a `gated` coder, relu(p exp(r_mag) + b_mag) where p + b_gate > 0, p being the product with W_enc.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from acdc.errors import AcdcError, unknown_name

ARCHITECTURES = ("relu", "gated", "topk", "batchtopk", "jumprelu")
NEEDS = {
    "relu": ("b_enc",),
    "gated": ("b_gate", "b_mag", "r_mag"),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
}


@dataclass(frozen=True, eq=False)
class SparseCoder:
    """One coder. `weights` are named as above and as SAELens names them: W_enc (d_in, feature), W_dec (feature, d_out),
    b_dec, and by architecture b_enc, threshold, b_gate, b_mag, r_mag, W_skip (d_out, d_in).

    `site` is what it reads and `target` what it rebuilds, by the names of `acdc.annotation.sites`. `centred`: b_dec is
    subtracted from what it reads. `record`: how it came to be.
    """

    architecture: str
    site: str
    target: str
    weights: Mapping[str, Tensor]
    k: int | None = None
    centred: bool = True
    record: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.architecture not in NEEDS:
            raise unknown_name("architecture of a sparse coder", self.architecture, list(NEEDS))
        for name in ("W_enc", "W_dec", "b_dec", *NEEDS[self.architecture]):
            if name not in self.weights:
                raise AcdcError(f"a {self.architecture} coder needs {name}; there are {', '.join(self.weights)}")
        (d_in, n), d_out = self.weights["W_enc"].shape, self.weights["W_dec"].shape[1]
        shapes = {"W_enc": (d_in, n), "W_dec": (n, d_out), "b_dec": (d_out,), "W_skip": (d_out, d_in)}
        for name, weight in self.weights.items():
            if tuple(weight.shape) != shapes.get(name, (n,)):
                raise AcdcError(
                    f"{name} of a coder of {d_in} inputs, {n} features and {d_out} outputs must be of "
                    f"shape {shapes.get(name, (n,))}, not {tuple(weight.shape)}"
                )
        if self.architecture == "topk" and not 1 <= (self.k or 0) <= n:
            raise AcdcError(f"k={self.k} of a topk coder: it must be 1 to its {n:,} features")
        if self.centred and d_in != d_out:
            raise AcdcError(f"a coder from {d_in} to {d_out} dimensions cannot subtract b_dec from its input")

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.site,)

    @property
    def d_in(self) -> int:
        return self.weights["W_enc"].shape[0]

    @property
    def n_features(self) -> int:
        return self.weights["W_enc"].shape[1]

    @property
    def d_out(self) -> int:
        return self.weights["W_dec"].shape[1]

    @property
    def kind(self) -> str:
        skip = "skip " if "W_skip" in self.weights else ""
        return "autoencoder" if self.site == self.target else f"{skip}transcoder"

    @property
    def decoder(self) -> Float[Tensor, "feature d_out"]:
        return self.weights["W_dec"]

    def encode(self, x: Float[Tensor, "*where d_in"]) -> Float[Tensor, "*where feature"]:
        """The features; computed in the coder's dtype."""
        if x.shape[-1] != self.d_in:
            raise AcdcError(
                f"the coder of {self.site} reads {self.d_in} dimensions, here are {x.shape[-1]}. Give one "
                "that was trained on this site of this model"
            )
        product = self.product(x)
        if self.architecture == "gated":
            return torch.where(
                product + self.weights["b_gate"] > 0,
                torch.relu(product * self.weights["r_mag"].exp() + self.weights["b_mag"]),
                0.0,
            )
        before = product + self.weights["b_enc"]
        if self.architecture == "jumprelu":
            return torch.where(before > self.weights["threshold"], torch.relu(before), 0.0)
        active = torch.relu(before)
        return top(active, self.k) if self.architecture == "topk" else active

    def product(self, x: Float[Tensor, "*where d_in"]) -> Float[Tensor, "*where feature"]:
        x = x.to(self.weights["W_enc"].dtype)
        return (x - self.weights["b_dec"] if self.centred else x) @ self.weights["W_enc"]

    def decode(
        self, features: Float[Tensor, "*where feature"], x: Float[Tensor, "*where d_in"] | None = None
    ) -> Float[Tensor, "*where d_out"]:
        """What the features rebuild; a skip transcoder needs what was read, too."""
        rebuilt = features @ self.weights["W_dec"] + self.weights["b_dec"]
        if "W_skip" not in self.weights:
            return rebuilt
        if x is None:
            raise AcdcError("a skip transcoder rebuilds from its features and from what it read; give both")
        return rebuilt + x.to(rebuilt.dtype) @ self.weights["W_skip"].T

    def __call__(self, x: Float[Tensor, "*where d_in"]) -> Float[Tensor, "*where d_out"]:
        return self.decode(self.encode(x), x)

    def name_of(self, feature: int) -> str:
        return f"feature {feature}"

    def check_feature(self, feature: int) -> None:
        if not 0 <= feature < self.n_features:
            raise AcdcError(f"feature {feature} of a coder that has 0 to {self.n_features - 1:,}")

    def with_unit_decoder(self) -> "SparseCoder":
        """The same function with decoder rows of norm 1, the features scaled up by what theirs was. Not for `topk`,
        whose choice that would change."""
        if self.architecture == "topk":
            raise AcdcError("scaling the features of a topk coder changes which are the largest; leave it as it is")
        norm = self.weights["W_dec"].norm(dim=1).clamp(min=1e-12)
        weights = {
            **self.weights,
            "W_enc": self.weights["W_enc"] * norm,
            "W_dec": self.weights["W_dec"] / norm[:, None],
        }
        # A gated coder's gate is scaled too, which leaves its sign as it is.
        weights |= {name: weights[name] * norm for name in ("b_enc", "threshold", "b_gate", "b_mag") if name in weights}
        return replace(self, weights=weights)

    def unscaled(self, of_input: float, of_output: float) -> "SparseCoder":
        """The coder for activations as they are, of one trained on them times `of_input` and `of_output`.

        The features stay the same numbers: W_enc is multiplied, W_dec and b_dec are divided.
        """
        if self.centred and of_input != of_output:
            raise AcdcError("an autoencoder has one scale for input and output")
        weights = {
            **self.weights,
            "W_enc": self.weights["W_enc"] * of_input,
            "W_dec": self.weights["W_dec"] / of_output,
            "b_dec": self.weights["b_dec"] / of_output,
        }
        if "W_skip" in weights:
            weights["W_skip"] = weights["W_skip"] * (of_input / of_output)
        return replace(self, weights=weights)

    def uncentred(self, mean: Float[Tensor, " d_in"]) -> "SparseCoder":
        """The coder for activations as they are, of one that reads them less `mean`. Not where b_dec is subtracted."""
        assert not self.centred
        weights = dict(self.weights)
        product = mean @ weights["W_enc"]
        for name in ("b_enc", "b_gate", "b_mag"):
            if name in weights:
                weights[name] = weights[name] - (product * weights["r_mag"].exp() if name == "b_mag" else product)
        if "W_skip" in weights:
            weights["b_dec"] = weights["b_dec"] - weights["W_skip"] @ mean
        return replace(self, weights=weights)

    def unwhitened(self, mean: Float[Tensor, " d_in"], matrix: Float[Tensor, "d_in d_in"],
                   inverse: Float[Tensor, "d_in d_in"]) -> "SparseCoder":
        """The coder for activations x as they are, of an autoencoder of (x - mean) @ matrix."""
        weights, dtype = dict(self.weights), self.decoder.dtype
        weights["W_enc"] = (matrix @ weights["W_enc"].to(matrix.dtype)).to(dtype)
        weights["W_dec"] = (weights["W_dec"].to(matrix.dtype) @ inverse).to(dtype)
        weights["b_dec"] = (weights["b_dec"].to(matrix.dtype) @ inverse + mean).to(dtype)
        found = replace(self, weights=weights)
        return found if self.centred else found.uncentred(mean.to(dtype))


def top(active: Float[Tensor, "*where feature"], k: int | None) -> Float[Tensor, "*where feature"]:
    """Only the k largest of each row."""
    values, places = active.topk(k or 0, dim=-1)
    return torch.zeros_like(active).scatter(-1, places, values)

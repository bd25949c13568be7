"""What a cross-layer transcoder is: features that are read in one layer and written to that and every later MLP.

    f_l = act(x_l W_enc_l + b_enc_l),     y_t ~ sum over l <= t of f_l W_dec_l[t] + b_dec_t

x_l is what is at the site read in layer l, y_t what the MLP of layer t adds. For each t this is a coder of one node
that reads several sites, `target(t)`, and so whatever is done with coders is done with it, exactly: what it is worth,
and how it shares out the scores of edges. `layer(l)` are the features of one layer, with all that they write.

Source: Ameisen et al. 2025, "Circuit tracing"; Lindsey et al. 2024, "Crosscoders".
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from acdc.errors import AcdcError
from acdc.sae.sparse_coder import SparseCoder


@dataclass(frozen=True, eq=False)
class CrossLayerTranscoder:
    """`encoders`: by layer, of which only what is read counts. `decoders`: of layer l (feature, n_layers - l, d_out),
    for the layers from l on. `biases`: b_dec of each layer; `targets`: what is rebuilt there."""

    encoders: tuple[SparseCoder, ...]
    decoders: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        n = len(self.encoders)
        for layer, (encoder, decoder, bias) in enumerate(zip(self.encoders, self.decoders, self.biases, strict=True)):
            width = self.biases[0].shape[-1]
            if tuple(decoder.shape) != (encoder.n_features, n - layer, width) or tuple(bias.shape) != (width,):
                raise AcdcError(
                    f"a cross-layer transcoder of {n} layers: layer {layer} must have W_dec of the shape (features, "
                    f"layers from it on, width), {(encoder.n_features, n - layer, width)}, and b_dec of {width}; they "
                    f"are {tuple(decoder.shape)} and {tuple(bias.shape)}"
                )

    @property
    def n_layers(self) -> int:
        return len(self.encoders)

    def check_layer(self, layer: int) -> None:
        if not 0 <= layer < self.n_layers:
            raise AcdcError(f"layer {layer} of a cross-layer transcoder of the layers 0 to {self.n_layers - 1}")

    def target(self, layer: int) -> "CrossLayerTarget":
        """What rebuilds the MLP of a layer (-1: the last), from the features of that and of all earlier layers."""
        layer = self.n_layers - 1 if layer == -1 else layer
        self.check_layer(layer)
        return CrossLayerTarget(self, layer)

    def layer(self, layer: int) -> "LayerFeatures":
        """The features that are read in a layer."""
        self.check_layer(layer)
        return LayerFeatures(self, layer)


@dataclass(frozen=True, eq=False)
class CrossLayerTarget:
    """What a cross-layer transcoder rebuilds of one layer. Its features are those of layer 0, then of layer 1, ...

    Cost: as a coder with the features of all these layers."""

    transcoder: CrossLayerTranscoder
    of_layer: int
    kind = "cross-layer transcoder"

    @property
    def encoders(self) -> tuple[SparseCoder, ...]:
        return self.transcoder.encoders[: self.of_layer + 1]

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(encoder.site for encoder in self.encoders)

    @property
    def site(self) -> str:
        return self.reads[-1]

    @property
    def target(self) -> str:
        return self.transcoder.targets[self.of_layer]

    @property
    def architecture(self) -> str:
        return self.encoders[-1].architecture

    @property
    def record(self) -> dict[str, object]:
        return dict(self.encoders[-1].record)

    @property
    def decoder(self) -> Float[Tensor, "feature d_out"]:
        return self._decoder

    @cached_property
    def _decoder(self) -> Tensor:
        rows = self.transcoder.decoders[: self.of_layer + 1]
        return torch.cat([decoder[:, self.of_layer - layer] for layer, decoder in enumerate(rows)])

    @property
    def n_features(self) -> int:
        return sum(encoder.n_features for encoder in self.encoders)

    @property
    def d_out(self) -> int:
        return self.transcoder.biases[0].shape[-1]

    def encode(self, *x: Float[Tensor, "*where d_in"]) -> Float[Tensor, "*where feature"]:
        """The features, of what is at each of `reads`."""
        if len(x) != len(self.encoders):
            raise AcdcError(f"what rebuilds {self.target} reads {len(self.encoders)} sites, here are {len(x)}")
        return torch.cat([encoder.encode(one) for encoder, one in zip(self.encoders, x, strict=True)], -1)

    def decode(self, features: Float[Tensor, "*where feature"], *x: Float[Tensor, "*where d_in"]
               ) -> Float[Tensor, "*where d_out"]:
        return features @ self.decoder + self.transcoder.biases[self.of_layer]

    def __call__(self, *x: Float[Tensor, "*where d_in"]) -> Float[Tensor, "*where d_out"]:
        return self.decode(self.encode(*x))

    def place_of(self, feature: int) -> tuple[int, int]:
        """The layer in which a feature is read, and its number there."""
        self.check_feature(feature)
        layer = 0
        while feature >= self.encoders[layer].n_features:
            feature -= self.encoders[layer].n_features
            layer += 1
        return layer, feature

    def name_of(self, feature: int) -> str:
        layer, own = self.place_of(feature)
        return f"feature {own} of layer {layer}"

    def check_feature(self, feature: int) -> None:
        if not 0 <= feature < self.n_features:
            raise AcdcError(f"feature {feature} of what rebuilds {self.target}, which has 0 to {self.n_features - 1:,}")


@dataclass(frozen=True, eq=False)
class LayerFeatures:
    """The features of a cross-layer transcoder that are read in one layer. Each writes to several places, so there is
    nothing that they rebuild; `writes` is the sum of what a unit of each adds to the residual stream by its end."""

    transcoder: CrossLayerTranscoder
    of_layer: int

    @property
    def encoder(self) -> SparseCoder:
        return self.transcoder.encoders[self.of_layer]

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.encoder.site,)

    @property
    def n_features(self) -> int:
        return self.encoder.n_features

    @cached_property
    def writes(self) -> Float[Tensor, "feature d_out"]:
        return self.transcoder.decoders[self.of_layer].sum(1)

    def encode(self, *x: Float[Tensor, "*where d_in"]) -> Float[Tensor, "*where feature"]:
        return self.encoder.encode(*x)

    def check_feature(self, feature: int) -> None:
        self.encoder.check_feature(feature)

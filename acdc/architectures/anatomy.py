"""Where a model keeps what it computes with: the parts that an adapter names, and their algebra.

Weights are read from the HuggingFace modules whenever they are used, as views, so a model may be moved or cast. Where
accelerate spreads a model over devices, they are read at `home`, the model's device, and what modules compute comes
back to where their input was.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from acdc.architectures.placement import parameter


@dataclass(frozen=True)
class Norm:
    """A LayerNorm (`centered`), an RMSNorm, or none (`eps` is None): y = gain * x_hat + bias, x_hat = x * rstd.

    x_hat is taken of the centred x in a LayerNorm. `gain_offset` is 1 where the model stores gain - 1 (Gemma).
    """

    module: Any
    eps: float | None
    centered: bool = False
    gain_offset: float = 0.0
    home: torch.device | None = None

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return self.module(x).to(x.device)

    @property
    def gain(self) -> Float[Tensor, " d_model"] | None:
        weight = parameter(self.module, "weight", self.home)
        return weight + self.gain_offset if weight is not None and self.gain_offset else weight

    @property
    def bias(self) -> Float[Tensor, " d_model"] | None:
        return parameter(self.module, "bias", self.home)

    def statistics(
        self, x: Float[Tensor, "*batch d_model"]
    ) -> tuple[Float[Tensor, "*batch d_model"], Float[Tensor, "*batch 1"]]:
        """x_hat and rstd, in float32 at least; x_hat is 0 for no norm, so that it drops out of the gradient."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.eps is None:
            return torch.zeros_like(x), torch.ones_like(x[..., :1])
        if self.centered:
            x = x - x.mean(-1, keepdim=True)
        rstd = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return x * rstd, rstd


def layer_norm(module: Any) -> Norm:
    """The Norm of an nn.LayerNorm, or of an nn.Identity in its place."""
    return Norm(module, None) if isinstance(module, nn.Identity) else Norm(module, module.eps, centered=True)


@dataclass(frozen=True)
class Projection:
    """The q, k or v projection of all heads of a layer, wherever the module that computes it lays it out.

    `layout` says how the module's output is laid out: "heads" (this projection alone), "parts heads" (GPT-2: q, k, v
    one after the other) or "heads parts" (GPT-NeoX: q, k, v of head 0, then of head 1, ...); `part` is which of the
    three this is. `transposed`: the weight is (in, out), as in a Conv1D.
    """

    module: Any
    n_heads: int
    d_head: int
    layout: Literal["heads", "parts heads", "heads parts"] = "heads"
    part: int = 0
    transposed: bool = False
    home: torch.device | None = None

    def of_output(self, output: Float[Tensor, "*batch out"]) -> Float[Tensor, "*batch head d_head"]:
        """This projection's share of what the module returned."""
        return self._split(output, output.dim() - 1)

    @property
    def weight(self) -> Float[Tensor, "head d_head d_model"]:
        weight = parameter(self.module, "weight", self.home)
        assert weight is not None
        return self._split(weight.T if self.transposed else weight, 0)

    @property
    def bias(self) -> Float[Tensor, "head d_head"] | None:
        bias = parameter(self.module, "bias", self.home)
        return None if bias is None else self._split(bias, 0)

    def _split(self, tensor: Tensor, dim: int) -> Tensor:
        if self.layout == "heads":
            return tensor.unflatten(dim, (self.n_heads, self.d_head))
        if self.layout == "parts heads":
            return tensor.unflatten(dim, (3, self.n_heads, self.d_head)).select(dim, self.part)
        return tensor.unflatten(dim, (self.n_heads, 3, self.d_head)).select(dim + 1, self.part)


@dataclass(frozen=True)
class Attention:
    """One layer's attention. `rotary` maps positions to (cos, sin); `window`: a query sees that many last positions.

    `softmax_float32`: HF's own code computes the softmax in float32 even where the model is float64.
    """

    q: Projection
    k: Projection
    v: Projection
    out: Any
    scaling: float
    out_transposed: bool = False
    rotary: Callable[[Int[Tensor, "1 pos"]], tuple[Tensor, Tensor]] | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    window: int | None = None
    softcap: float | None = None
    softmax_float32: bool = False
    home: torch.device | None = None

    @property
    def out_weight(self) -> Float[Tensor, "head d_head d_model"]:
        weight = parameter(self.out, "weight", self.home)
        assert weight is not None
        return (weight if self.out_transposed else weight.T).unflatten(0, (self.q.n_heads, self.q.d_head))

    @property
    def out_bias(self) -> Float[Tensor, " d_model"] | None:
        return parameter(self.out, "bias", self.home)

    def project(self, normed: Float[Tensor, "*batch d_model"]
                ) -> tuple[Float[Tensor, "*batch head d_head"], Float[Tensor, "*batch kv_head d_head"],
                           Float[Tensor, "*batch kv_head d_head"]]:
        """q, k and v of what the norm returned, each module run once."""
        outputs = {module: module(normed).to(normed.device) for module in self.modules}
        q, k, v = (part.of_output(outputs[part.module]) for part in (self.q, self.k, self.v))
        return q, k, v

    def output(self, z: Float[Tensor, "*batch head d_head"]) -> Float[Tensor, "*batch d_model"]:
        """What all heads write together, their bias included."""
        return self.out(z.flatten(-2)).to(z.device)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules that compute q, k and v, each once."""
        return tuple(dict.fromkeys(projection.module for projection in (self.q, self.k, self.v)))


@dataclass(frozen=True)
class Block:
    """One layer. `attn_post`, `mlp_post`: norms of what attention and MLP add to the residual stream (Gemma 2, 3).

    `mlp_act`: the MLP's activation function, None where it has none. `gated_down`: in a gated MLP, the projection that
    reads act(gate) * up; None in others.
    """

    module: nn.Module
    attn_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: Any
    attn_post: Norm | None = None
    mlp_post: Norm | None = None
    mlp_act: nn.Module | None = None
    gated_down: nn.Module | None = None

    def mlp_output(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """What the MLP adds to the residual stream when it reads x."""
        out = self.mlp(self.mlp_norm(x)).to(x.device)
        return out if self.mlp_post is None else self.mlp_post(out)


@dataclass(frozen=True)
class Anatomy:
    """A whole model. `embed` maps tokens to what the first block reads; `logit_softcap` bounds the logits.

    `causal`: whether HF's own forward hides later positions. `probe`: gives two prompts that it can read, where it
    does not read just any tokens, as models of images.
    """

    blocks: tuple[Block, ...]
    embed: Callable[[Int[Tensor, "batch pos"]], Float[Tensor, "batch pos d_model"]]
    final_norm: Norm
    parallel: bool = False
    logit_softcap: float | None = None
    causal: bool = True
    probe: Callable[[], Int[Tensor, "2 pos"]] | None = None

    @property
    def norms(self) -> tuple[Norm, ...]:
        """Every norm of the residual stream, and of what is added to it."""
        of_blocks = (norm for b in self.blocks for norm in (b.attn_norm, b.attn_post, b.mlp_norm, b.mlp_post))
        return (*(norm for norm in of_blocks if norm is not None), self.final_norm)

"""Which heads read what which other heads write, by their weights alone: q-, k- and v-composition.

A head's OV matrix writes, another's QK or OV matrix reads. All products go through d_head x d_head factors; no
d_model x d_model matrix is formed. Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from acdc.activations import out_weight
from acdc.architectures.anatomy import Block, Norm
from acdc.transformer import Transformer

Letter = Literal["q", "k", "v"]
Factors = Float[Tensor, "head d_head d_model"]
LETTERS: tuple[Letter, ...] = ("q", "k", "v")


@dataclass(frozen=True, eq=False)
class Composition:
    """For each letter (q, k, v), writer and reader, heads numbered layer by layer: `ratio` as in `composition`,
    `baseline`, what it is with a random rotation in between (in root mean square), and `z`, how many standard
    deviations of ratio^2 under such rotations it is above that. NaN where the writer comes no earlier."""

    ratio: Float[Tensor, "letter writer reader"]
    z: Float[Tensor, "letter writer reader"]
    baseline: float

    @property
    def excess(self) -> Float[Tensor, "letter writer reader"]:
        return self.ratio - self.baseline


def composition(model: Transformer) -> Composition:
    """||A B||_F / (||A||_F ||B||_F) of every pair of heads, A = W_V W_O of the writer (rows are inputs).

    B is what the reader does with it: W_Q W_K^T for q, W_K W_Q^T for k, W_V W_O for v. Gains of the norms before (and
    after) attention are folded in, and the centring of a LayerNorm. For a rotation Q drawn uniformly,
    E ||A Q B||^2 = ||A||^2 ||B||^2 / d, hence the baseline 1/sqrt(d); and with P = A'A and S = BB' freed of their
    traces, Var ||A Q B||^2 = 2 ||P||^2 ||S||^2 / ((d - 1)(d + 2)), by which `z` is exact without sampling.

    It misleads: a large ratio says that a reader could use a writer, not that it does on any prompt; what MLPs and
    norms do in between is left out; and q and k are taken before rotary embedding, which turns them by relative
    position, so that with it q and k speak of two tokens at one place. Cost: no pass of the model; for 270 heads of
    d_head 64 some seconds.
    """
    with torch.no_grad():
        writers = torch.cat([_writer(model, block) for block in model.blocks])
        readers = {letter: torch.cat([_reader(model, block, letter) for block in model.blocks]) for letter in LETTERS}
        d, n = writers.shape[-1], len(writers)
        ratio, z = (torch.full((3, n, n), torch.nan) for _ in range(2))
        size, spread = _moments(writers)
        for i, letter in enumerate(LETTERS):
            read_size, read_spread = _moments(readers[letter])
            for layer in range(1, model.n_layers):
                before, here = layer * model.n_heads, slice(layer * model.n_heads, (layer + 1) * model.n_heads)
                product = writers[:before].flatten(0, 1) @ readers[letter][here].flatten(0, 1).mT
                square = product.unflatten(0, (before, -1)).unflatten(-1, (model.n_heads, -1)).pow(2).sum((1, 3))
                expected = size[:before, None] * read_size[None, here] / d
                deviation = (2 * spread[:before, None] * read_spread[None, here] / ((d - 1) * (d + 2))).sqrt()
                tiny = torch.finfo(expected.dtype).tiny
                ratio[i, :before, here] = (square / (expected * d).clamp(min=tiny)).sqrt().float().cpu()
                z[i, :before, here] = ((square - expected) / deviation.clamp(min=tiny)).float().cpu()
    return Composition(ratio, z, d**-0.5)


def _moments(factors: Factors) -> tuple[Float[Tensor, " head"], Float[Tensor, " head"]]:
    """tr P and ||P - tr(P) / d||^2 of P = F'F, for each head's factor F."""
    gram = factors @ factors.mT
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)
    return trace, (gram.pow(2).sum((1, 2)) - trace**2 / factors.shape[-1]).clamp(min=0)


def _writer(model: Transformer, block: Block) -> Factors:
    """F with ||F X|| = ||W_V W_O X|| for any X."""
    return _triangle(_reads(block.attn_norm, block.attention.v.weight)[model.kv_head]) @ _wide(out_weight(block))


def _reader(model: Transformer, block: Block, letter: Letter) -> Factors:
    """F with ||X F'|| = ||X B|| for any X."""
    attention, kv = block.attention, model.kv_head
    q, k, v = (_reads(block.attn_norm, part.weight) for part in (attention.q, attention.k, attention.v))
    k, v = k[kv], v[kv]
    reads, then = {"q": (q, k), "k": (k, q), "v": (v, _wide(out_weight(block)))}[letter]
    return _triangle(then) @ reads


def _triangle(rows: Factors) -> Float[Tensor, "head d_head d_head"]:
    """R with ||R X|| = ||rows' X|| for any X, from rows' = Q R."""
    return torch.linalg.qr(rows.mT, mode="r").R


def _reads(norm: Norm, weight: Factors) -> Factors:
    """A projection's weight, with what the norm before it does to the direction of x: its gain and its centring."""
    weight = _wide(weight) if norm.gain is None else _wide(weight) * _wide(norm.gain)
    return weight - weight.mean(-1, keepdim=True) if norm.centered else weight


def _wide(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return x.to(torch.promote_types(x.dtype, torch.float32))

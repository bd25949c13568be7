"""What a direction of a site is, and where one comes from: means of prompts, a token, a probe, a decoder's row, a file.

The projection of an activation h on a direction v is h . v / |v|, in the unit of the activations.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from acdc.annotation.sites import read, site, width
from acdc.errors import AcdcError, unknown_name
from acdc.output_folder import write_file
from acdc.tensor_file import read_tensors, tensor_bytes
from acdc.transformer import Transformer

OVER = ("last", "all")


@dataclass(frozen=True, eq=False)
class Direction:
    """A vector of the width of `site`.

    `scale`: the mean norm of activations there, the unit of a strength; None: not known. `offset`: the projection that
    counts as neutral, halfway between two means, or where a probe's logit is 0; what a monitor reports is beyond it.
    """

    site: str
    vector: Float[Tensor, " width"]
    label: str = ""
    scale: float | None = None
    offset: float = 0.0

    def __post_init__(self) -> None:
        norm = float(self.vector.norm())
        if not math.isfinite(norm) or norm == 0:
            raise AcdcError(f"the direction {self.label!r} at {self.site} has the norm {norm}; give a finite vector "
                            "that is not zero")

    @property
    def unit(self) -> Float[Tensor, " width"]:
        return self.vector / self.vector.norm()

    def amount(self, strength: float, absolute: bool) -> float:
        """A strength as a length along the direction. Raises `AcdcError` where the scale is not known."""
        if absolute:
            return strength
        if self.scale is None:
            raise AcdcError(f"the direction {self.label!r} does not say how large activations at {self.site} are; "
                            "measure it (with_scale), or give the strength as absolute")
        return strength * self.scale


def difference_of_means(
    model: Transformer,
    name: str,
    positive: Sequence[Int[Tensor, "_ _"]],
    negative: Sequence[Int[Tensor, "_ _"]],
    *,
    over: str = "last",
    label: str = "",
) -> Direction:
    """mean(h over positive prompts) - mean(h over negative ones) at the site `name`.

    `positive`, `negative`: batches of tokens, such as `token_batches` makes, or the clean and corrupted prompts of a
    task's batches. `over`: the prompts' "last" tokens, or "all" but the first (on which many models rest attention,
    with activations of a size of its own); each prompt counts once. Cost: one pass over the prompts. It misleads where
    the sets differ in more than what is meant: what they differ in is all that it knows. Raises `AcdcError` for an
    empty set, and for sets with equal means.
    """
    if over not in OVER:
        raise unknown_name("tokens to average over", over, OVER)
    sums = [_summed(model, name, batches, over) for batches in (positive, negative)]
    (above, below), scale = (total for total, _ in sums), sum(norm for _, norm in sums) / 2
    vector = above - below
    if float(vector.norm()) <= 1e-6 * scale:
        raise AcdcError(f"the two sets of prompts have the same mean at {name}, so there is no direction between them")
    middle = float((above + below) @ vector / vector.norm()) / 2
    return Direction(name, vector, label, scale, middle)


def _summed(model: Transformer, name: str, batches: Sequence[Tensor], over: str) -> tuple[Tensor, float]:
    """The mean activation, and the mean norm."""
    if not batches:
        raise AcdcError("a set of prompts is empty; a direction lies between two sets of at least one each")
    rows, norms = [], []
    for tokens in batches:
        here = read(model, tokens, [name])[name].double()
        here = here[:, -1:] if over == "last" or here.shape[1] == 1 else here[:, 1:]
        rows.append(here.mean(1))
        norms.append(here.norm(dim=-1).mean(1))
    return torch.cat(rows).mean(0), float(torch.cat(norms).mean())


def token_batches(model: Transformer, texts: Sequence[str]) -> list[Int[Tensor, "_ _"]]:
    """The texts as batches of tokens of one length each. Raises `AcdcError` without a tokenizer, or for an empty text.
    """
    if model.tokenizer is None:
        raise AcdcError(f"{model.name} has no tokenizer to read text with; load it with one")
    by_length: dict[int, list[list[int]]] = {}
    for text in texts:
        tokens = model.tokenizer(text)["input_ids"]
        if not tokens:
            raise AcdcError(f"the prompt {text!r} has no tokens; give some text")
        by_length.setdefault(len(tokens), []).append(tokens)
    return [torch.tensor(rows, device=model.device) for rows in by_length.values()]


def with_scale(model: Transformer, direction: Direction, batches: Sequence[Int[Tensor, "_ _"]]) -> Direction:
    """The direction with the mean norm of these prompts' activations at its site (all tokens but the first)."""
    return replace(direction, scale=_summed(model, direction.site, batches, "all")[1])


def token_direction(model: Transformer, name: str, text: str) -> Direction:
    """The direction in the residual stream along which the logit of the token `text` rises: gain * W_U[token].

    `gain` is the final norm's. Raises `AcdcError` where the text is not one token, and for a site that is not as wide
    as the residual stream.
    """
    tokens = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(tokens) != 1:
        pieces = [model.tokenizer.decode([token]) for token in tokens]
        raise AcdcError(f"{text!r} is not one token but {pieces}; mind the leading space")
    gain = model.anatomy.final_norm.gain
    row = model.unembedding[tokens[0]].detach()
    return checked(model, Direction(name, row if gain is None else row * gain.detach(), repr(text)))


def feature_direction(name: str, decoder: Float[Tensor, "feature width"], index: int, label: str = "") -> Direction:
    """The row of a sparse autoencoder's decoder: what the feature `index` writes at the site."""
    if not 0 <= index < len(decoder):
        raise AcdcError(f"feature {index:,}: the autoencoder has the features 0 to {len(decoder) - 1:,}")
    return Direction(name, decoder[index], label or f"feature {index}")


def checked(model: Transformer, direction: Direction) -> Direction:
    """The direction, on the model's device and in its dtype. Raises `AcdcError` where it does not fit its site."""
    site(model, direction.site)
    expected = width(model, direction.site)
    if len(direction.vector) != expected:
        raise AcdcError(f"the direction {direction.label!r} has {len(direction.vector):,} dimensions, {direction.site} "
                        f"of {model.name} has {expected:,}; it is of another site or model")
    return replace(direction, vector=direction.vector.to(model.device, model.dtype))


def save_direction(path: Path, direction: Direction) -> None:
    """Writes a safetensors file: the vector `direction`; site, label, scale and offset as metadata."""
    known = {"site": direction.site, "label": direction.label, "scale": json.dumps(direction.scale),
             "offset": json.dumps(direction.offset)}
    write_file(path, tensor_bytes({"direction": direction.vector}, known))


def load_direction(path: Path, site: str | None = None) -> Direction:
    """Reads a safetensors file that holds one vector. `site`: for a file whose metadata names none, or another."""
    tensors, known = read_tensors(path, "direction", "give a safetensors file with one vector")
    vectors = [tensor for tensor in tensors.values() if tensor.dim() == 1]
    vector = tensors["direction"] if "direction" in tensors else vectors[0] if len(vectors) == 1 else None
    if vector is None or vector.dim() != 1 or not vector.is_floating_point():
        raise AcdcError(f"{path} holds {', '.join(tensors) or 'nothing'}; a direction is one vector, called direction")
    where = site or known.get("site")
    if where is None:
        raise AcdcError(f"{path} does not say of which site it is a direction; name it, such as resid12")
    try:
        scale, offset = json.loads(known.get("scale", "null")), float(json.loads(known.get("offset", "0")))
        scale = None if scale is None or where != known.get("site") else float(scale)
        if not math.isfinite(offset) or scale is not None and not 0 < scale < math.inf:
            raise ValueError(f"{scale}, {offset}")
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise AcdcError(f"{path}: scale and offset must be numbers ({error})") from error
    return Direction(where, vector, known.get("label", ""), scale, offset)

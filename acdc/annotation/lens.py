"""What a model would predict if it stopped at some place (logit lens), and what each node adds to the answer (DLA).

The logit lens reads a residual stream as the last layer would: final norm, then unembedding. It reads what one node
writes with the final norm's scale of that run at that position, so that the logits of all nodes and of what belongs to
no node sum to the model's own. Direct logit attribution is that sum, for logit(answer) - logit(wrong).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from acdc.activations import attention_bias, contribution, record
from acdc.annotation.head_roles import unembedding
from acdc.annotation.sites import Site, read, site
from acdc.architectures.placement import parameter
from acdc.errors import AcdcError
from acdc.evaluation.significance import Estimate, draw_weights, interval
from acdc.fitting import over_batches
from acdc.task import Batch
from acdc.transformer import Transformer, frozen

ROWS = 512  # tokens that are unembedded at once
Translate = Callable[[int, Tensor], Tensor]
"""From a layer and the residual stream that its block reads to the one that the final norm shall read."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What the lens says at each of `places`, in each prompt, at each of `positions`.

    `top`: the likeliest tokens, likeliest first, and `top_logit` their logits; `logit` and `rank` (1: the likeliest) of
    the `targets`; `kl`: KL(the model's own distribution there || the lens's), in nats.
    """

    places: tuple[str, ...]
    positions: tuple[int, ...]
    top: Int[Tensor, "place batch pos k"]
    top_logit: Float[Tensor, "place batch pos k"]
    top_probability: Float[Tensor, "place batch pos k"]
    logit: Float[Tensor, "place batch pos target"]
    rank: Int[Tensor, "place batch pos target"]
    kl: Float[Tensor, "place batch pos"]


def residual_places(model: Transformer) -> tuple[str, ...]:
    """The residual stream everywhere: what each block and each MLP reads, and what the final norm reads."""
    middle = () if model.parallel else (".mid",)
    blocks = [f"resid{layer}{part}" for layer in range(model.n_layers) for part in ("", *middle)]
    return (*blocks, f"resid{model.n_layers}")


def node_places(model: Transformer) -> tuple[str, ...]:
    """What every head and MLP writes."""
    return tuple(node.name for node in model.graph().srcs if node.kind != "input")


def logit_lens(
    model: Transformer,
    tokens: Int[Tensor, "batch pos"],
    places: Sequence[str] | None = None,
    *,
    targets: Int[Tensor, "batch target"] | None = None,
    positions: Sequence[int] | None = None,
    k: int = 5,
    translate: Translate | None = None,
) -> Reading:
    """What the lens says at `places` (default: `residual_places`), which are names of `acdc.annotation.sites`.

    Residual streams are read as the last layer would read them. `a5`, `a5.h1` and `m5` are read with the scale that the
    final norm has in that run at that position, without its bias: their logits are what they add to the model's, and
    their `kl` is that of a model that computed nothing else. `positions`: negative ones count from the end; default:
    all. `translate`: see `acdc.annotation.tuned_lens`; it applies to `resid0` to `resid{n_layers - 1}`.

    Cost: one forward pass, and an unembedding a place, prompt and position. It misleads in early layers, which may
    write in a basis that later ones rotate: then KL is large, whatever is known there (a tuned lens says how much).
    Raises `AcdcError` for unknown places and positions, and where k is not of the vocabulary.
    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    names = list(residual_places(model) if places is None else places)
    if not names:
        raise AcdcError("no place named to read; leave places out for all residual streams")
    sites = [_of_stream(model, name) for name in names]
    where = check_positions(positions, tokens.shape[1])
    vocab = model.hf.get_input_embeddings().weight.shape[0]
    if not 1 <= k <= vocab:
        raise AcdcError(f"k={k}: {model.name} has {vocab:,} tokens; give 1 to {vocab:,}")
    if targets is None:
        targets = tokens.new_zeros(len(tokens), 0)
    last = f"resid{model.n_layers}"
    found: list[list[tuple[Tensor, ...]]] = [[] for _ in names]
    with torch.no_grad(), frozen(model):
        seen = read(model, tokens, list(dict.fromkeys([*names, last])))
        final = seen[last][:, where].flatten(0, 1)
        of_row = targets.repeat_interleave(len(where), dim=0)
        for first in range(0, len(final), ROWS):
            rows = slice(first, first + ROWS)
            own = _wide(model.logits(final[rows])).log_softmax(-1)
            for i, (name, at) in enumerate(zip(names, sites, strict=True)):
                resid = seen[name][:, where].flatten(0, 1)[rows]
                if translate is not None and at.kind == "resid" and at.part is None and at.layer < model.n_layers:
                    resid = translate(at.layer, resid)
                logits = model.logits(resid) if at.kind == "resid" else _alone(model, resid, final[rows])
                found[i].append(_read_rows(_wide(logits), own, of_row[rows], k))
    shape = (len(tokens), len(where))
    fields = [[torch.cat(parts).unflatten(0, shape) for parts in zip(*chunks, strict=True)] for chunks in found]
    return Reading(tuple(names), tuple(where), *(torch.stack(values) for values in zip(*fields, strict=True)))


def _of_stream(model: Transformer, name: str) -> Site:
    at = site(model, name)
    if at.part in ("z", "in", "neurons"):
        raise AcdcError(f"{name!r} is not in the residual stream, so it has no logits; read resid5, resid5.mid, a5, "
                        "a5.h1 or m5, with the layer and head that you mean")
    return at


def check_positions(positions: Sequence[int] | None, length: int) -> list[int]:
    """The places counted from the start; all, where None is given."""
    wrong = [p for p in positions or () if not -length <= p < length]
    if wrong or (positions is not None and not positions):
        raise AcdcError(f"positions {list(positions or ())} of prompts of {length} tokens; give some of 0 to "
                        f"{length - 1}, or negative ones from the end")
    return list(range(length)) if positions is None else [p % length for p in positions]


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _read_rows(logits: Float[Tensor, "row vocab"], own: Float[Tensor, "row vocab"], targets: Int[Tensor, "row target"],
               k: int) -> tuple[Tensor, ...]:
    """What a `Reading` holds, field by field, a row a token; `own`: the model's own log probabilities."""
    lens = logits.log_softmax(-1)
    top = logits.topk(k, dim=-1)
    of_targets = logits.gather(-1, targets)
    rank = 1 + (logits[:, None, :] > of_targets[..., None]).sum(-1)
    kl = (own.exp() * (own - lens)).sum(-1)
    found = (top.indices, top.values, lens.gather(-1, top.indices).exp(), of_targets, rank, kl)
    return tuple(values.cpu() for values in found)


def _alone(model: Transformer, wrote: Tensor, final: Tensor) -> Tensor:
    """The logits that one node's output adds, before any soft-cap and without biases."""
    norm = model.anatomy.final_norm
    return unembed_scaled(model, wrote * norm.statistics(final)[1].to(wrote.dtype))


def unembed_scaled(model: Transformer, x: Float[Tensor, "*where d_model"]) -> Float[Tensor, "*where vocab"]:
    """The logits of a part of the residual stream that was multiplied by the final norm's rstd."""
    norm = model.anatomy.final_norm
    x = x - x.mean(-1, keepdim=True) if norm.centered else x
    x = x if norm.gain is None else x * norm.gain
    return x @ model.unembedding.T


@dataclass(frozen=True, eq=False)
class Direct:
    """logit(answer) - logit(wrong) taken apart: `values` of each node and `constant` (biases) sum to `total`.

    All are before the model's soft-cap, if it has one.
    """

    nodes: tuple[str, ...]
    positions: tuple[int, ...]
    values: Float[Tensor, "node batch pos"]
    constant: Float[Tensor, "batch pos"]
    total: Float[Tensor, "batch pos"]


def direct_attribution(
    model: Transformer,
    tokens: Int[Tensor, "batch pos"],
    answer: Int[Tensor, " batch"],
    wrong: Int[Tensor, " batch"],
    *,
    positions: Sequence[int] = (-1,),
) -> Direct:
    """What each node adds to logit(answer) - logit(wrong) at some positions, by the residual stream alone.

    value = (what it wrote, centred where the norm centres) * rstd * gain . (W_U[answer] - W_U[wrong]), with the rstd
    that the final norm has in this run. The constant holds the biases of attention, of the final norm and of the
    unembedding. `total` is computed from the model's own logits, not from the sum; they agree to the rounding of the
    model's norms, which most models compute in float32.

    Cost: one forward pass. It misleads as to what a node is needed for: only the last step is seen, and the scale is
    taken as given. Where the model has a logit soft-cap (Gemma 2), all is before the cap.
    Source: Elhage et al. 2021, "A mathematical framework for transformer circuits".
    """
    where = check_positions(positions, tokens.shape[1])
    with torch.no_grad(), frozen(model):
        run = record(model, tokens)
        final = run.final[:, where]
        rstd = model.anatomy.final_norm.statistics(final)[1]
        direction = (unembedding(model, answer) - unembedding(model, wrong))[:, None].to(rstd.dtype) * rstd
        srcs = model.graph().srcs
        values = torch.stack([(contribution(model, run, src)[:, where] * direction).sum(-1)
                              for src in range(len(srcs))])
        constant = _constant(model, direction, answer, wrong)
        head = model.hf.get_output_embeddings()  # without the soft-cap
        logits = head(model.anatomy.final_norm(final)).to(final.device)
        total = (logits.gather(-1, answer[:, None, None].expand(-1, len(where), 1))
                 - logits.gather(-1, wrong[:, None, None].expand(-1, len(where), 1)))[..., 0]
    return Direct(tuple(node.name for node in srcs), tuple(where), values.cpu(), constant.cpu(), total.cpu())


def _constant(model: Transformer, direction: Float[Tensor, "batch pos d_model"], answer: Tensor, wrong: Tensor
              ) -> Float[Tensor, "batch pos"]:
    """What biases add: those of attention go through the final norm, the others do not."""
    weight, norm = model.unembedding, model.anatomy.final_norm
    of_tokens = parameter(model.hf.get_output_embeddings(), "bias", model.device)
    biases = [bias for block in model.blocks if (bias := attention_bias(block)) is not None]
    constant = direction.new_zeros(direction.shape[:2])
    if biases:
        constant = constant + (torch.stack(biases).sum(0) * direction).sum(-1)
    if norm.bias is not None:
        constant = constant + ((weight[answer] - weight[wrong]) @ norm.bias)[:, None]
    if of_tokens is not None:
        constant = constant + (of_tokens[answer] - of_tokens[wrong])[:, None]
    return constant


@dataclass(frozen=True, eq=False)
class Attributed:
    """Means over prompts at the last position: of each node, of the constant, and of the model's own difference."""

    nodes: dict[str, Estimate]
    constant: float
    total: float


def attribute_answers(model: Transformer, batches: Sequence[Batch], *, seed: int = 0) -> Attributed:
    """`direct_attribution` of the answers, averaged over prompts, with 95% intervals over 2,000 draws of the prompts.

    Each interval is of its node by itself. A single prompt has no spread: its intervals are as wide as none, the value.
    """
    found = [of_part for _, of_part in over_batches(
        batches, lambda batch: direct_attribution(model, batch.clean, batch.answer, batch.wrong))]
    if not found:
        raise AcdcError("no prompts given: the list of batches is empty")
    values = torch.cat([one.values[..., 0] for one in found], dim=1).double().numpy()
    n = values.shape[1]
    means = values.mean(1)
    ends = np.stack([means, means], 1) if n < 2 else interval(values @ draw_weights(n, 2000, seed).T, n)
    nodes = {name: Estimate(float(means[i]), float(ends[i, 0]), float(ends[i, 1]))
             for i, name in enumerate(found[0].nodes)}
    constant, total = (float(torch.cat([getattr(one, name) for one in found]).double().mean())
                       for name in ("constant", "total"))
    return Attributed(nodes, constant, total)

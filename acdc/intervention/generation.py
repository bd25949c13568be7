"""Text from a model with interventions, or from a circuit of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature

import torch
from jaxtyping import Float, Int
from torch import Tensor

from acdc.ablation import Ablation
from acdc.circuit import Circuit
from acdc.errors import AcdcError
from acdc.graph import Graph
from acdc.intervention.interventions import CACHE_NAMES, Intervention, intervened
from acdc.patching import check_graph, run_circuit
from acdc.task import Batch
from acdc.transformer import Transformer, frozen

Tokens = Int[Tensor, "1 pos"]
New = Int[Tensor, "1 new"]


class Reader:
    """Reads tokens one after the other with the model's own forward and cache; returns the logits after the last."""

    def __init__(self, model: Transformer) -> None:
        if not model.causal:
            raise AcdcError(f"{model.name} sees what comes after, so it cannot generate text")
        from transformers import DynamicCache  # slow to import: not before it is needed

        names = signature(type(model.hf).forward).parameters
        self.model, self.cache = model, DynamicCache(config=model.hf.config)
        self.name = next(name for name in CACHE_NAMES if name in names)

    def __call__(self, tokens: Tokens) -> Float[Tensor, " vocab"]:
        with torch.no_grad(), frozen(self.model):
            return self.model.hf(input_ids=tokens, use_cache=True, **{self.name: self.cache}).logits[0, -1]


class Chooser:
    """The next token: the likeliest at temperature 0, else drawn from softmax(logits / temperature) by `seed`."""

    def __init__(self, temperature: float = 0.0, seed: int = 0) -> None:
        if not 0 <= temperature < float("inf"):
            raise AcdcError(f"temperature {temperature}: it must be a finite number of at least 0")
        self.temperature, self.generator = temperature, torch.Generator().manual_seed(seed)

    def __call__(self, logits: Float[Tensor, " vocab"]) -> New:
        wide = logits.float().cpu()
        if not torch.isfinite(wide).all():
            raise AcdcError("the logits are not finite; the intervention is too strong, or the weights are spoilt")
        chosen = wide.argmax()[None] if self.temperature == 0 else torch.multinomial(
            (wide / self.temperature).softmax(-1), 1, generator=self.generator)
        return chosen[None].to(logits.device)


def generate(
    model: Transformer,
    prompt: Tokens,
    n_tokens: int,
    *,
    interventions: Sequence[Intervention] = (),
    temperature: float = 0.0,
    seed: int = 0,
) -> New:
    """The `n_tokens` tokens after the prompt, fewer where the model ends its text (the end token is the last then).

    Without interventions, and at temperature 0, the text of HuggingFace's own `generate`. Cost: one pass over the
    prompt and one of a single position a token. Errors as `intervened`.
    """
    check_prompt(prompt, n_tokens)
    choose, read, ends = Chooser(temperature, seed), Reader(model), end_tokens(model)
    found = prompt[:, :0]
    with intervened(model, interventions):
        token = prompt
        while found.shape[1] < n_tokens and not (found.shape[1] and int(found[0, -1]) in ends):
            token = choose(read(token))
            found = torch.cat([found, token], dim=1)
    return found


@dataclass(frozen=True, eq=False)
class Cut:
    """A circuit and what its other edges carry; `ablation` as `acdc.ablation.prepare_ablation` returns it."""

    circuit: Circuit
    ablation: Ablation


def without(graph: Graph, names: Sequence[str]) -> Circuit:
    """All edges but those called `names`: an edge, or a node that writes, which stands for all edges out of it."""
    kept = graph.exists.copy()
    for name in names:
        if "->" in name:
            edge = graph.edge(name)
            kept[graph.edge_src[edge], graph.edge_channel[edge], graph.edge_position[edge]] = False
        elif name in graph.src_index:
            kept[graph.src_index[name]] = False
        else:
            raise AcdcError(f"{name!r} is neither a node that writes, such as a3.h1, m3 or input, nor an edge of the "
                            "model, such as a3.h1->m4 or m0->a3.h1<q>")
    return Circuit(graph, graph.from_matrix(kept))


def generate_cut(
    model: Transformer,
    prompt: Tokens,
    n_tokens: int,
    cut: Cut,
    *,
    corrupted: Int[Tensor, "1 _"] | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> New:
    """As `generate`, by a circuit: with all edges kept, the model's own text.

    `corrupted`: for resample ablation, a prompt of as many tokens, which is continued by the same text. Values that are
    the same at every position (zero, mean_over_positions) need none. Exact and slow: the whole text is run again for
    each token, since a cache of what circuits read does not exist: a circuit run a token. Raises `AcdcError` for a
    circuit by position, and where values of other lengths are given (mean).
    """
    check_prompt(prompt, n_tokens)
    check_graph(model, cut.circuit.graph)
    if cut.circuit.graph.positions:
        raise AcdcError("a circuit by position is of prompts of one form, and generated text has positions beyond it; "
                        "give a circuit without positions")
    if corrupted is not None and corrupted.shape != prompt.shape:
        raise AcdcError(f"the corrupted prompt has {corrupted.shape[1]} tokens, the prompt {prompt.shape[1]}; both "
                        "must have the same number")
    choose, ends = Chooser(temperature, seed), end_tokens(model)
    other = prompt if corrupted is None else corrupted
    found = prompt[:, :0]
    while found.shape[1] < n_tokens and not (found.shape[1] and int(found[0, -1]) in ends):
        batch = Batch(torch.cat([prompt, found], 1), torch.cat([other, found], 1), prompt[:, 0], prompt[:, 0], ())
        logits = run_circuit(model, batch, cut.circuit, cut.ablation(batch))
        found = torch.cat([found, choose(logits[0])], dim=1)
    return found


def check_prompt(prompt: Tensor, n_tokens: int) -> None:
    if prompt.shape[1] == 0 or n_tokens < 1:
        raise AcdcError(f"a prompt of {prompt.shape[1]} tokens, {n_tokens} to generate; at least one of each is needed")


def end_tokens(model: Transformer) -> set[int]:
    """The tokens at which the model ends a text."""
    ends = getattr(getattr(model.hf, "generation_config", None), "eos_token_id", None)
    return set() if ends is None else set(ends) if isinstance(ends, (list, tuple)) else {int(ends)}

"""Loads a compiled model with its prompts and its true edges: a HuggingFace GPT-2 that holds the compiled weights.

A compiled model has no norms, no biases, relu, and heads of a size that need not divide the width of the residual
stream. GPT-2 computes exactly that with Identity norms, zero biases, streams and heads padded with zeros, queries
scaled by what the padding changes in 1/sqrt(d_head), and an unembedding of its own.

A compiled model answers at every position; a metric reads the last one. So each prompt is given once for every position
that it is read at, in an order that puts that position last. Where attention is causal, that is the prompt up to there.
Where it goes both ways, order is nothing but the position embedding: there a token of the model's vocabulary is a token
at a place, `place * len(vocabulary) + token`, its embedding the sum of both, and any order gives the same.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pad

from acdc.activations import record
from acdc.circuit import Circuit
from acdc.errors import unknown_name
from acdc.metrics import Logits, Metric, PerPrompt
from acdc.models import load_model
from acdc.task import Batch, Example
from acdc.transformer import Transformer

FOLDER = Path(__file__).parent
COMPILED = (
    "reverse", "proportion", "pair_balance", "hist", "sort_unique", "induction", "frac_prevs", "sort", "sort_freq",
    "shuffle_dyck1", "shuffle_dyck2", "trend", "frequency_class", "drop_repeats", "alternation", "detect_ab",
)
READ = ("all", "last")


def logit_distance(logits: Logits, batch: Batch, reference: Logits) -> PerPrompt:
    """Sum over labels of |logit - clean logit|; 0 on the clean run. Numbers, too, are read off the logits."""
    return (logits - reference).abs().sum(-1)


LOGIT_DISTANCE = Metric("logit_distance", logit_distance, higher_is_better=False, reads_reference=True)


def distance_from_corrupted(model: Transformer, batches: Sequence[Batch]) -> Metric:
    """Sum over labels of |logit - logit on the corrupted prompt|: 0 where all is corrupted, greatest, as a rule, on the
    clean run. Its gradient there is not 0, so that EAP can use it."""
    corrupted = {
        tuple(ids): logits for batch in batches
        for ids, logits in zip(batch.corrupted.tolist(), _last_logits(model, batch.corrupted), strict=True)
    }

    def distance(logits: Logits, batch: Batch, reference: Logits) -> PerPrompt:
        of_corrupted = torch.stack([corrupted[tuple(ids)] for ids in batch.corrupted.tolist()])
        return (logits - of_corrupted).abs().sum(-1)

    return Metric("distance_from_corrupted", distance)


@dataclass(frozen=True, eq=False)
class CompiledModel:
    """A model compiled from a program, prompts, and the edges that it uses on them.

    `truth`: the true edges on these prompts, by ablation (`zero`, `resample`), and by the `weights`: all that any
    ablation and any prompt can show. `metric`: distance from the clean run; `metric_of_change`: from the corrupted run,
    for methods that take the gradient on the clean run. `logits`: what the compiler's own forward pass computes on the
    clean prompts where they are read. `examples` of a batch: the prompt in its own order, and as `template` at which of
    its positions it is read, BOS being 0. `vocabulary`: the id of each token; `labels`: what each logit stands for, one
    `value` where the output is a number.
    """

    name: str
    computes: str
    model: Transformer
    batches: list[Batch]
    metric: Metric
    metric_of_change: Metric
    truth: Mapping[str, tuple[str, ...]]
    vocabulary: Mapping[str, int]
    labels: tuple[str, ...]
    logits: list[Float[Tensor, "_ label"]]
    provenance: Mapping[str, Any]

    def circuit(self, ablation: str) -> Circuit:
        """The true edges of an ablation, or of the `weights`, as a circuit."""
        return circuit_of(self.model, self.truth, ablation)


def circuit_of(model: Transformer, truth: Mapping[str, tuple[str, ...]], ablation: str) -> Circuit:
    """The true edges of an ablation as a circuit."""
    if ablation not in truth:
        raise unknown_name("ablation with known edges", ablation, truth)
    graph, names = model.graph(), set(truth[ablation])
    return Circuit(graph, np.array([name in names for name in graph.edge_names]))


def load_compiled(name: str, *, read: str = "all", dtype: str = "float64") -> CompiledModel:
    """The compiled model of that name in COMPILED. In float64, rounding stays far below any threshold.

    `read`: at which positions its 64 pairs of prompts are read, `all` but BOS, where a program defines nothing, or the
    `last` alone. The true edges differ where a program needs some of them before the last position only.
    """
    if name not in COMPILED:
        raise unknown_name("compiled model", name, COMPILED)
    if read not in READ:
        raise unknown_name("positions to read", read, READ)
    stored = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    tensors = load_file(FOLDER / f"{name}.safetensors")
    logits = [tensors.pop(f"logits.{i}") for i in range(len(stored["batches"]))]
    weights, causal = {key: weight.double() for key, weight in tensors.items()}, stored["causal"]
    if not causal:
        at_places = weights["position_embed"][:, None] + weights["token_embed"]
        weights["position_embed"] = torch.zeros_like(weights["position_embed"])
        weights["token_embed"] = at_places.flatten(0, 1)
    model = load_model(_gpt2(weights, name), dtype=dtype, causal=causal)
    reads = _by_length([
        _Read(clean, corrupted, place, rows[place])
        for prompts, of_prompts in zip(stored["batches"], logits, strict=True)
        for clean, corrupted, rows in zip(prompts["clean"], prompts["corrupted"], of_prompts, strict=True)
        for place in (range(1, len(clean)) if read == "all" else [len(clean) - 1])
    ], causal)
    batches = [_batch(model, same_length, list(stored["vocabulary"]), stored["labels"]) for same_length in reads]
    truth = {ablation: tuple(stored["truth"][ablation][read]["edges"]) for ablation in ("zero", "resample")}
    return CompiledModel(
        name=name, computes=stored["computes"], model=model, metric=LOGIT_DISTANCE,
        metric_of_change=distance_from_corrupted(model, batches), batches=batches,
        truth={"weights": tuple(stored["truth"]["weights"]), **truth}, vocabulary=stored["vocabulary"],
        labels=tuple(stored["labels"]), logits=[torch.stack([r.logits for r in some]) for some in reads],
        provenance=stored["provenance"],
    )


@dataclass(frozen=True, eq=False)
class _Read:
    """A pair of prompts, as token ids in their own order, and the place where they are read."""

    clean: list[int]
    corrupted: list[int]
    place: int
    logits: Float[Tensor, " label"]


def _by_length(reads: list[_Read], causal: bool) -> list[list[_Read]]:
    """Those of one length together; a causal model sees a prompt up to the place where it is read."""
    groups: dict[int, list[_Read]] = {}
    for r in reads:
        end = r.place + 1 if causal else len(r.clean)
        groups.setdefault(end, []).append(_Read(r.clean[:end], r.corrupted[:end], r.place, r.logits))
    return [groups[length] for length in sorted(groups)]


def _gpt2(weights: Mapping[str, Tensor], name: str) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel  # slow to import: not before it is needed

    n_layers, d_model, n_heads, d_head = weights["q"].shape
    wide_head = max(d_head, math.ceil(d_model / n_heads))
    width, d_mlp = n_heads * wide_head, weights["mlp_in"].shape[-1]
    config = GPT2Config(
        vocab_size=len(weights["token_embed"]), n_positions=len(weights["position_embed"]), n_embd=width,
        n_layer=n_layers, n_head=n_heads, n_inner=d_mlp, activation_function="relu",
        bos_token_id=None, eos_token_id=None, tie_word_embeddings=False,
    )
    config.name_or_path = f"compiled {name}"
    with torch.random.fork_rng(devices=[]):  # its weights are drawn, and then replaced
        hf: Any = GPT2LMHeadModel(config).double().eval()
        hf.lm_head = nn.Linear(width, weights["unembed"].shape[1], bias=False, dtype=torch.float64)
    hf.transformer.ln_f = nn.Identity()
    for block in hf.transformer.h:
        block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()

    def padded(weight: Tensor, *sizes: int) -> Tensor:
        """With zeros after what is there, up to these sizes."""
        grown = [(0, size - had) for size, had in zip(sizes, weight.shape, strict=True)]
        return pad(weight, [n for pair in reversed(grown) for n in pair])

    state = {key: torch.zeros_like(value) for key, value in hf.state_dict().items()}
    state["transformer.wte.weight"] = padded(weights["token_embed"], config.vocab_size, width)
    state["transformer.wpe.weight"] = padded(weights["position_embed"], config.n_positions, width)
    state["lm_head.weight"] = padded(weights["unembed"], width, weights["unembed"].shape[1]).T.contiguous()
    scaled = {**weights, "q": weights["q"] * math.sqrt(wide_head / d_head)}
    for i in range(n_layers):
        qkv = [padded(scaled[x][i], width, n_heads, wide_head).flatten(1) for x in "qkv"]
        state |= {
            f"transformer.h.{i}.attn.c_attn.weight": torch.cat(qkv, dim=1),
            f"transformer.h.{i}.attn.c_proj.weight": padded(weights["o"][i], n_heads, wide_head, width).flatten(0, 1),
            f"transformer.h.{i}.mlp.c_fc.weight": padded(weights["mlp_in"][i], width, d_mlp),
            f"transformer.h.{i}.mlp.c_proj.weight": padded(weights["mlp_out"][i], d_mlp, width),
        }
    hf.load_state_dict(state)
    return hf


def _batch(model: Transformer, reads: list[_Read], tokens: list[str], labels: list[str]) -> Batch:
    """The prompts, each with the position where it is read last."""
    def ids(prompt: list[int], place: int) -> list[int]:
        if model.causal:
            return prompt
        at_places = [i * len(tokens) + token for i, token in enumerate(prompt)]
        return at_places[:place] + at_places[place + 1 :] + at_places[place : place + 1]

    def text(prompt: list[int]) -> str:
        return " ".join(tokens[i] for i in prompt)

    prompts = {side: [ids(getattr(r, side), r.place) for r in reads] for side in ("clean", "corrupted")}
    batch = batch_of(model, prompts, tokens * len(reads[0].clean), labels)
    examples = (replace(example, clean=text(r.clean), corrupted=text(r.corrupted), template=f"read at {r.place}")
                for example, r in zip(batch.examples, reads, strict=True))
    return replace(batch, examples=tuple(examples))


def batch_of(model: Transformer, prompts: Mapping[str, list[list[int]]], tokens: list[str], labels: list[str]) -> Batch:
    """The answer is the label that the model gives last on the clean prompt, the wrong answer the one on the corrupted
    prompt, which can be the same; where the output is a number, both are the one label."""
    clean, corrupted = (torch.tensor(prompts[side]) for side in ("clean", "corrupted"))
    answer, wrong = (_last_logits(model, ids).argmax(-1) for ids in (clean, corrupted))
    texts = [[" ".join(tokens[i] for i in ids) for ids in prompts[side]] for side in ("clean", "corrupted")]
    examples = tuple(
        Example(one, other, f" {labels[a]}", f" {labels[w]}")
        for one, other, a, w in zip(*texts, answer.tolist(), wrong.tolist(), strict=True)
    )
    return Batch(clean, corrupted, answer, wrong, examples)


def _last_logits(model: Transformer, tokens: Int[Tensor, "batch pos"]) -> Logits:
    with torch.no_grad():
        return model.logits(record(model, tokens).final[:, -1])

"""Loads a compiled model with its prompts and its true edges: a HuggingFace GPT-2 that holds the compiled weights.

A compiled model has no norms, no biases, relu, and heads of a size that need not divide the width of the residual
stream. GPT-2 computes exactly that with Identity norms, zero biases, streams and heads padded with zeros, queries
scaled by what the padding changes in 1/sqrt(d_head), and an unembedding of its own.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
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
COMPILED = ("reverse", "proportion", "pair_balance", "hist", "sort_unique", "induction")


def logit_distance(logits: Logits, batch: Batch, reference: Logits) -> PerPrompt:
    """Sum over labels of |logit - clean logit|; 0 on the clean run. Numbers, too, are read off the logits."""
    return (logits - reference).abs().sum(-1)


LOGIT_DISTANCE = Metric("logit_distance", logit_distance, higher_is_better=False, reads_reference=True)


@dataclass(frozen=True, eq=False)
class CompiledModel:
    """A model compiled from a program, prompts, and the edges that it uses on them.

    `truth`: the true edges where the logits at the last position count, which is what metrics read; by ablation
    (`zero`, `resample`), and by the `weights`: all that any ablation and any prompt can show. `truth_at_all_positions`:
    the same where the logits at every position after BOS count. `logits`: what the compiler's own forward pass computes
    on the clean prompts, a tensor a batch. `vocabulary`: the id of each token; `labels`: what each logit stands for,
    one `value` where the output is a number.
    """

    name: str
    computes: str
    model: Transformer
    batches: list[Batch]
    metric: Metric
    truth: Mapping[str, tuple[str, ...]]
    truth_at_all_positions: Mapping[str, tuple[str, ...]]
    vocabulary: Mapping[str, int]
    labels: tuple[str, ...]
    logits: list[Float[Tensor, "batch _ label"]]
    provenance: Mapping[str, Any]

    def circuit(self, ablation: str, *, all_positions: bool = False) -> Circuit:
        """The true edges of an ablation, or of the `weights`, as a circuit."""
        truth = self.truth_at_all_positions if all_positions else self.truth
        return circuit_of(self.model, truth, ablation)


def circuit_of(model: Transformer, truth: Mapping[str, tuple[str, ...]], ablation: str) -> Circuit:
    """The true edges of an ablation as a circuit."""
    if ablation not in truth:
        raise unknown_name("ablation with known edges", ablation, truth)
    graph, names = model.graph(), set(truth[ablation])
    return Circuit(graph, np.array([name in names for name in graph.edge_names]))


def load_compiled(name: str, dtype: str = "float64") -> CompiledModel:
    """The compiled model of that name in COMPILED. In float64, rounding stays far below any threshold."""
    if name not in COMPILED:
        raise unknown_name("compiled model", name, COMPILED)
    stored = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    tensors = load_file(FOLDER / f"{name}.safetensors")
    logits = [tensors.pop(f"logits.{i}") for i in range(len(stored["batches"]))]
    weights = {key: weight.double() for key, weight in tensors.items()}
    model = load_model(_gpt2(weights, name), dtype=dtype, causal=stored["causal"])
    truth = stored["truth"]

    def edges_of(where: str) -> dict[str, tuple[str, ...]]:
        by_ablation = {ablation: tuple(truth[ablation][where]["edges"]) for ablation in ("zero", "resample")}
        return {"weights": tuple(truth["weights"]), **by_ablation}

    return CompiledModel(
        name=name, computes=stored["computes"], model=model, metric=LOGIT_DISTANCE,
        batches=[batch_of(model, ids, list(stored["vocabulary"]), stored["labels"]) for ids in stored["batches"]],
        truth=edges_of("last"), truth_at_all_positions=edges_of("all"), vocabulary=stored["vocabulary"],
        labels=tuple(stored["labels"]), logits=logits, provenance=stored["provenance"],
    )


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


def batch_of(model: Transformer, prompts: Mapping[str, list[list[int]]], tokens: list[str], labels: list[str]) -> Batch:
    """The answer is the label that the model gives last on the clean prompt, the wrong answer the one on the corrupted
    prompt; where the output is a number, both are the one label."""
    clean, corrupted = (torch.tensor(prompts[side]) for side in ("clean", "corrupted"))
    answer, wrong = (model.logits(record(model, ids).final[:, -1]).argmax(-1) for ids in (clean, corrupted))
    texts = [[" ".join(tokens[i] for i in ids) for ids in prompts[side]] for side in ("clean", "corrupted")]
    examples = tuple(
        Example(one, other, f" {labels[a]}", f" {labels[w]}")
        for one, other, a, w in zip(*texts, answer.tolist(), wrong.tolist(), strict=True)
    )
    return Batch(clean, corrupted, answer, wrong, examples)

"""Trains a 2-layer attention-only network to continue random tokens that repeat, and finds its circuit.

    python -m acdc.benchmarks.trained.induction      # writes induction.safetensors and .json

A prompt is BOS, then different random tokens, repeated after a random number of them. What is minimised:

    cross-entropy of the next token where it can be known, from the second time round on
    + head_weight * sum over heads of |W_O|      (Frobenius norm)

The second term makes one head do what several could share. GPT-2 has MLPs; those of this network have weights of 0, do
not learn and write nothing.

Phases: train; measure on other prompts; cut every edge alone; write.

Source: Elhage et al. 2021, transformer-circuits.pub/2021/framework; Olsson et al. 2022, arXiv 2209.11895.
"""

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from acdc.benchmarks.compiled.load import batch_of  # pyright: ignore[reportMissingImports]
from acdc.benchmarks.trained.cutting import Network  # pyright: ignore[reportMissingImports]
from acdc.benchmarks.trained.network import (  # pyright: ignore[reportMissingImports]
    Size,
    new_network,
    node_names,
    rise_and_fall,
)
from acdc.benchmarks.trained.stored import FOLDER, known, write  # pyright: ignore[reportMissingImports]
from acdc.metrics import METRICS
from acdc.models import load_model

PAIRS = 32  # of prompts of a length, for discovery
LENGTHS = (12, 16)
THRESHOLD = 0.5  # nats: an edge counts if cutting it alone raises the KL divergence by more than this
HOLDS = {"in": "tokens", "a0": "the token before", "a1": "the token after the earlier occurrence"}


@dataclass(frozen=True)
class Settings:
    """Of AdamW, whose learning rate goes as `rise_and_fall` says, and of the network."""

    steps: int = 2000
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    head_weight: float = 0.02
    clip: float = 1.0
    vocabulary: int = 17
    length: int = 16
    heads: int = 4
    d_model: int = 64
    seed: int = 0


def size_of(settings: Settings) -> Size:
    return Size(vocabulary=settings.vocabulary, positions=settings.length, outputs=settings.vocabulary,
                heads=settings.heads, d_model=settings.d_model, d_mlp=0)


def draw(n: int, length: int, vocabulary: int, generator: torch.Generator, *, orders: int = 1
         ) -> tuple[list[Int[Tensor, "n pos"]], Int[Tensor, "n 1"]]:
    """Prompts that repeat after `period` tokens, at least 4, and are repeated for at least 3; and their periods.

    `orders`: so many prompts of the same period that share no token.
    """
    order = torch.rand(n, vocabulary - 1, generator=generator).argsort(1) + 1
    longest = min(length - 4, (vocabulary - 1) // 2)
    period = torch.randint(4, longest + 1, (n, 1), generator=generator)
    place = torch.arange(length - 1)[None] % period
    bos = torch.zeros(n, 1, dtype=torch.long)
    return [torch.cat([bos, order.gather(1, place + i * period)], 1) for i in range(orders)], period


def loss_and_accuracy(hf: Any, tokens: Int[Tensor, "n pos"], period: Int[Tensor, "n 1"]
                      ) -> tuple[Float[Tensor, ""], float]:
    """Cross-entropy and share of right answers for the next tokens that can be known."""
    known = torch.arange(1, tokens.shape[1])[None] > period + 1
    logits, answers = hf(tokens, use_cache=False).logits[:, :-1][known], tokens[:, 1:][known]
    return F.cross_entropy(logits, answers), float((logits.argmax(-1) == answers).float().mean())


def sizes_of_heads(hf: Any) -> Float[Tensor, ""]:
    """The sum over heads of the size of W_O."""
    weights = (block.attn.c_proj.weight.chunk(block.attn.num_heads) for block in hf.transformer.h)
    return torch.stack([weight.norm() for heads in weights for weight in heads]).sum()


def train(settings: Settings, *, report: bool = False) -> tuple[Any, list[float]]:
    """A trained network, and the loss of every step."""
    hf = new_network(size_of(settings), settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.AdamW([p for p in hf.parameters() if p.requires_grad], lr=settings.learning_rate,
                                  weight_decay=settings.weight_decay, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rise_and_fall(settings.steps))
    history = []
    for step in range(settings.steps):
        (tokens,), period = draw(settings.batch, settings.length, settings.vocabulary, generator)
        loss, accuracy = loss_and_accuracy(hf, tokens, period)
        optimizer.zero_grad()
        (loss + settings.head_weight * sizes_of_heads(hf)).backward()
        torch.nn.utils.clip_grad_norm_(hf.parameters(), settings.clip)
        optimizer.step()
        schedule.step()
        history.append(loss.item())
        if report and step % 250 == 249:
            print(step + 1, f"{loss.item():.2e}", f"{accuracy:.3f}", flush=True)
    return hf, history


def prompts_of(settings: Settings, length: int, generator: torch.Generator) -> dict[str, list[list[int]]]:
    """Pairs of prompts of the same period that share no token."""
    (clean, corrupted), _ = draw(PAIRS, length, settings.vocabulary, generator, orders=2)
    return {"clean": clean.tolist(), "corrupted": corrupted.tolist()}


@torch.no_grad()
def reached(hf: Any, settings: Settings, *, n: int = 512, seed: int = 1) -> dict[str, Any]:
    """On fresh prompts: loss and accuracy, and where each head attends on the mean. `previous`: from the tokens of the
    first time round to the one before; `induction`: from those that can be continued to those after their earlier
    occurrences."""
    (tokens,), period = draw(n, settings.length, settings.vocabulary, torch.Generator().manual_seed(seed))
    loss, accuracy = loss_and_accuracy(hf, tokens, period)
    place = torch.arange(tokens.shape[1])
    query, key, period = place[None, :, None], place[None, None, :], period[..., None]
    queries = {"previous": (query > 0) & (query <= period), "induction": query > period}
    keys = {"previous": key == query - 1, "induction": (key > 0) & ((query + 1 - key) % period == 0)}
    patterns = Network(hf).run(tokens).patterns
    attention = {what: {head: float((pattern * keys[what]).sum(-1)[queries[what][..., 0]].mean())
                        for head, pattern in patterns.items()} for what in queries}
    return {"loss": float(loss), "accuracy": accuracy, "attention": attention}


def make(settings: Settings, folder: Path, *, report: bool = False) -> dict[str, Any]:
    """Trains, measures and writes the model."""
    start = time.process_time()
    hf, _ = train(settings, report=report)
    seconds, hf = time.process_time() - start, hf.eval()
    does, model = reached(hf, settings), load_model(hf, dtype="float64")
    labels = ["BOS", *(f"t{i}" for i in range(1, settings.vocabulary))]
    generator = torch.Generator().manual_seed(settings.seed + 2)
    batches = [batch_of(model, prompts_of(settings, length, generator), labels, labels) for length in LENGTHS]
    found = known(hf, batches, METRICS["kl_divergence"], {"zero": THRESHOLD, "resample": THRESHOLD})
    used = {edge.partition("->")[0] for edge in found["truth"]["resample"]}
    record = {
        "computes": "the token that came after the earlier occurrence of the token here",
        "vocabulary": {label: i for i, label in enumerate(labels)}, "labels": labels,
        "nodes": {node: HOLDS[node[:2]] for node in ["input", *node_names(size_of(settings))] if node in used},
        "reached": does, "training": {"script": "induction.py", **asdict(settings), "cpu_seconds": round(seconds),
                                      "torch": torch.__version__}, **found,
    }
    write(folder, "induction", hf, size_of(settings), batches, record)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a network to continue random tokens that repeat.")
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder to write to")
    torch.set_num_threads(1)  # small matrices: more threads are slower
    record = make(Settings(), parser.parse_args().out, report=True)
    print(record["reached"])
    for ablation, edges in record["truth"].items():
        print(ablation, {edge: f"{record['effects'][ablation][edge]:.2e}" for edge in edges})


if __name__ == "__main__":
    main()

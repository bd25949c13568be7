"""How fast discovery and evaluation are, each as a ratio to a floor timed in the same run.

    python -m acdc.benchmarks.speed [--repeats 5] [--prompts 32] [--seed 0] [--results benchmarks/results]

Floors are plain HuggingFace passes on the same batch plus matrix products of the sizes that scoring all edges takes:
- EAP: one corrupted forward without gradients and unembedding, one clean forward and backward to activations with the
  unembedding at the last position, one product a layer of (srcs x prompts*positions*d) by (the same x channels).
- EAP-IG, m steps: a corrupted and a clean forward without gradients, m forward and backward passes, the products once.
- Circuit of 1% of the edges: one plain forward (unembedding at the last position), given the replacement values, which
  are computed once for all circuits of a batch.

Rounds alternate floor and measured, and medians are compared. Peak memory is that of a process that runs EAP alone.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from acdc.ablation import prepare_ablation
from acdc.benchmarks.record import row, write_record  # pyright: ignore[reportMissingImports]
from acdc.discovery.eap import eap
from acdc.discovery.eap_ig import eap_ig
from acdc.machine import peak_memory
from acdc.models import load_model
from acdc.patching import run_circuit
from acdc.task import Batch
from acdc.tasks import load_task  # pyright: ignore[reportMissingImports]
from acdc.transformer import Transformer, frozen


def backward_to_activations(model: Transformer, batch: Batch) -> None:
    """One clean forward and backward, weights frozen, gradient down to what the first block reads."""
    with frozen(model), torch.enable_grad():
        embedding = model.embed(batch.clean).detach().requires_grad_()
        logits = model.hf(inputs_embeds=embedding, use_cache=False, logits_to_keep=1).logits[:, -1]
        loss = logits.gather(1, batch.wrong[:, None]) - logits.gather(1, batch.answer[:, None])
        torch.autograd.grad(loss.sum(), embedding)


def forward_body(model: Transformer, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        model.hf.base_model(tokens, use_cache=False)


def score_products(model: Transformer, batch: Batch) -> Callable[[], None]:
    """The matrix products of all edges at full length, on random data: a layer's heads, its MLP; then the logits."""
    graph, inner = model.graph(), batch.clean.numel() * model.embed(batch.clean).shape[-1]
    left = torch.randn(len(graph.srcs), inner)
    right = torch.randn(3 * model.n_heads, inner)

    def multiply() -> None:
        for layer in range(model.n_layers):
            index = graph.layer(layer)
            torch.mm(left[: graph.n_srcs_read[index.q.start]], right.T)
            torch.mm(left[: graph.n_srcs_read[index.mlp_channel]], right[:1].T)
        torch.mm(left, right[:1].T)

    return multiply


def compare(name: str, floor: Callable[[], Any], measured: Callable[[], Any], repeats: int, target: float
            ) -> list[dict]:
    """Alternates floor and measured; prints medians and their ratio, and returns them."""
    seconds: dict[str, list[float]] = {"floor": [], "measured": []}
    for round_ in range(repeats + 1):
        for kind, function in (("floor", floor), ("measured", measured)):
            start = time.perf_counter()
            function()
            if round_:  # the first round warms up
                seconds[kind].append(time.perf_counter() - start)
    low, own = (statistics.median(seconds[kind]) for kind in ("floor", "measured"))
    print(f"{name:<28} floor {low:6.3f} s   measured {own:6.3f} s   ratio {own / low:5.2f}   (target {target:.1f})",
          flush=True)
    return [row(name, own, "s", "measured"), row("its floor", low, "s", "plain passes and products"),
            row("ratio", own / low, "times", f"target: at most {target:.1f}")]


def matmul_rate() -> float:
    """GFLOP/s of a large float32 product."""
    a, best = torch.randn(2048, 2048), float("inf")
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of discovery and evaluation against plain HF passes.")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, help="also write the numbers to this folder")
    parser.add_argument("--memory-only", action="store_true", help="run EAP once and print the peak memory")
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    task = load_task("ioi", model.tokenizer, n=arguments.prompts, seed=arguments.seed)
    batches = task.batches(model.tokenizer, batch_size=arguments.prompts)
    if arguments.memory_only:
        loaded = peak_memory()
        eap(model, batches)
        peak = peak_memory()
        print(f"EAP peak memory: {peak:.2f} GiB, of which {loaded:.2f} GiB at the end of loading (target 2.5)")
        return
    batch = batches[0]
    setting = (f"{matmul_rate():.0f} GFLOP/s in float32; {len(batch)} prompts of {batch.clean.shape[1]} tokens, "
               f"{model.graph().n_edges:,} edges, prompts differ from position {batch.first_difference}")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {setting}", flush=True)
    products = score_products(model, batch)

    def eap_floor() -> None:
        forward_body(model, batch.corrupted)
        backward_to_activations(model, batch)
        products()

    def eap_ig_floor() -> None:
        forward_body(model, batch.corrupted)
        forward_body(model, batch.clean)
        for _ in range(arguments.steps):
            backward_to_activations(model, batch)
        products()

    def plain_forward() -> None:
        with torch.no_grad():
            model.hf(batch.clean, use_cache=False, logits_to_keep=1)

    rows = compare("EAP, all edges", eap_floor, lambda: eap(model, [batch]), arguments.repeats, 2.0)
    scores = eap_ig(model, [batch], steps=arguments.steps)
    rows += compare(f"EAP-IG, {arguments.steps} steps", eap_ig_floor,
                    lambda: eap_ig(model, [batch], steps=arguments.steps), arguments.repeats, 2.0)
    replacement = prepare_ablation(model, [batch])(batch)
    circuit = scores.top(scores.graph.n_edges // 100, by="magnitude")
    rows += compare("circuit of 1% of the edges", plain_forward,
                    lambda: run_circuit(model, batch, circuit, replacement), arguments.repeats, 1.0)
    if arguments.results:
        about = ("What EAP, EAP-IG and a circuit run take, against plain HuggingFace passes on the same batch plus the "
                 f"matrix products that scoring all edges takes (the floor); medians of {arguments.repeats}. "
                 f"{arguments.model}, ioi, {setting}. A ratio below 1 is possible: positions before the first "
                 "differing token need no products, and a circuit leaves nodes out.")
        write_record(arguments.results, "speed", title="Speed against plain passes", about=about, rows=rows,
                     command="python -m acdc.benchmarks.speed", parameters={
                         key: value for key, value in vars(arguments).items() if key not in ("results", "memory_only")})
    subprocess.run([sys.executable, "-m", "acdc.benchmarks.speed", "--memory-only", "--model", arguments.model,
                    "--prompts", str(arguments.prompts)], check=True)


if __name__ == "__main__":
    main()

"""What a model of a billion parameters takes: seconds and peak memory of EAP-IG and of measuring its circuit.

    python -m acdc.benchmarks.scaling [--prompts 4] [--batch-size 4] [--results benchmarks/results]

The model has the shapes of Llama-3.2-1B (16 layers of 32 query and 8 KV heads, d_model 2048, vocabulary 128,256, tied)
and random weights, so that nothing is downloaded. Prompts are random tokens that differ from the fourth on; answer and
wrong answer are the tokens that the corrupted prompt takes most from and gives most to. Each dtype has a process of its
own, whose peak is counted anew for each stage; it holds the model.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from acdc.benchmarks.record import row, write_record  # pyright: ignore[reportMissingImports]
from acdc.discovery.eap_ig import eap_ig
from acdc.evaluation.faithfulness import faithfulness
from acdc.machine import peak_memory, reset_peak_memory
from acdc.models import load_model
from acdc.task import Batch, Example
from acdc.transformer import Transformer

SHAPES = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
          "head_dim": 64, "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True,
          "max_position_embeddings": 2048}
DIFFERS_FROM = 4


def random_llama(dtype: str, **shapes: Any) -> Transformer:
    """A Llama of these shapes with random weights."""
    from transformers import LlamaConfig
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**{**SHAPES, **shapes})
    return load_model(AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval())


def random_batches(model: Transformer, n: int, length: int, size: int) -> list[Batch]:
    """`n` prompts, `size` a batch."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(model.unembedding.shape[0], (n, length), generator=generator)
    corrupted = clean.clone()
    corrupted[:, DIFFERS_FROM - 1 :] = corrupted[:, DIFFERS_FROM - 1 :].roll(1, 0)
    batches = []
    for first in range(0, n, size):
        one, other = (tokens[first : first + size].to(model.device) for tokens in (clean, corrupted))
        with torch.no_grad():
            gain = model.hf(one, logits_to_keep=1).logits[:, -1] - model.hf(other, logits_to_keep=1).logits[:, -1]
        examples = tuple(Example(f"prompt {i}", f"corrupted {i}", "", "") for i in range(first, first + len(one)))
        batches.append(Batch(one, other, gain.argmax(1), gain.argmin(1), examples))
    return batches


def timed(model: Transformer, run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    device = str(model.device)
    counted = reset_peak_memory(device)
    start = time.perf_counter()
    result = run()
    return result, {"seconds": time.perf_counter() - start, "gib": peak_memory(device) if counted else float("nan")}


def measure(dtype: str, prompts: int, length: int, size: int, steps: int) -> dict[str, Any]:
    """The numbers of one dtype, in this process."""
    start = time.perf_counter()
    model = random_llama(dtype)
    loaded = {"seconds": time.perf_counter() - start, "gib": peak_memory(str(model.device))}
    batches = random_batches(model, prompts, length, size)
    print(f"{dtype}: loaded, {loaded}", file=sys.stderr, flush=True)
    scores, discovered = timed(model, lambda: eap_ig(model, batches, steps=steps))
    print(f"{dtype}: EAP-IG, {discovered}", file=sys.stderr, flush=True)
    circuit = scores.top(scores.graph.n_edges // 100, by="magnitude")
    found, evaluated = timed(model, lambda: faithfulness(model, circuit, batches))
    print(f"{dtype}: circuit, {evaluated}", file=sys.stderr, flush=True)
    dense = scores.top(scores.graph.n_edges // 2, by="magnitude")
    _, of_dense = timed(model, lambda: faithfulness(model, dense, batches))
    return {"n_edges": scores.graph.n_edges, "f": found.faithfulness, "threads": torch.get_num_threads(),
            "load": loaded, "EAP-IG": discovered, "circuit of 1% of the edges": evaluated,
            "circuit of 50% of the edges": of_dense}


def main() -> None:
    parser = argparse.ArgumentParser(description="What a model of a billion parameters takes.")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--results", type=Path, help="also write the numbers to this folder")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    given = (arguments.prompts, arguments.tokens, arguments.batch_size, arguments.steps)
    if arguments.here:
        print(json.dumps(measure(arguments.dtypes[0], *given)))
        return
    rows, n_edges, threads = [], 0, 0
    for dtype in arguments.dtypes:
        options = zip(("--prompts", "--tokens", "--batch-size", "--steps"), map(str, given), strict=True)
        done = subprocess.run([sys.executable, "-m", "acdc.benchmarks.scaling", "--here", "--dtypes", dtype,
                               *(text for pair in options for text in pair)],
                              stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        n_edges, threads = found["n_edges"], found["threads"]
        for what, cost in found.items():
            if isinstance(cost, dict):
                print(f"{dtype:<9} {what:<28} {cost['seconds']:7.1f} s   peak {cost['gib']:5.2f} GiB", flush=True)
                rows += [row(f"{dtype}: {what}", cost["seconds"], "s", "elapsed"),
                         row("its peak", cost["gib"], "GiB", "of the process, model included")]
    if arguments.results:
        about = (f"A Llama of 1.24 billion random parameters, {n_edges:,} edges; {arguments.prompts} prompts of "
                 f"{arguments.tokens} tokens, {arguments.batch_size} a batch, {arguments.steps} steps, {threads} "
                 "threads.")
        write_record(arguments.results, "scaling", title="A model of a billion parameters", about=about, rows=rows,
                     command="python -m acdc.benchmarks.scaling", parameters={
                         key: value for key, value in vars(arguments).items() if key not in ("results", "here")})


if __name__ == "__main__":
    main()

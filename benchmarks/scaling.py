"""What a model of a billion parameters takes: seconds, memory and operations of EAP-IG and of measuring its circuit.

    python -m acdc.benchmarks.scaling [--prompts 4] [--batch-size 4] [--results benchmarks/results]

The model has the shapes of Llama-3.2-1B (16 layers of 32 query and 8 KV heads, d_model 2048, vocabulary 128,256, tied)
and random weights, so that nothing is downloaded. Prompts are random tokens that differ from the fourth on; answer and
wrong answer are the tokens that the corrupted prompt takes most from and gives most to. Each dtype has a process of its
own, whose peak is counted anew for each stage; it holds the model. Each stage is run a second time to count what does
not depend on the machine: operations, in forward passes of all prompts (2 times the weights but those of the
unembedding, times the tokens), and the bytes of the tensors that are there at once, weights left out.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from acdc.benchmarks.record import row, write_record  # pyright: ignore[reportMissingImports]
from acdc.discovery.eap_ig import eap_ig
from acdc.evaluation.faithfulness import faithfulness
from acdc.live_bytes import peak_bytes
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


class Operations(TorchDispatchMode):
    """Counts those of the matrix products and attention that run inside. (torch's own counter hooks modules, in whose
    outputs it forbids `autograd.grad`.)"""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (counted := flop_registry.get(func._overloadpacket)) is not None:
            self.count += counted(*args, **(kwargs or {}), out_val=result)
        return result


def cost(model: Transformer, tokens: int, run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What a run returns, its cost and, from a second run, its counts."""
    device, parameters = str(model.device), list(model.hf.parameters())
    has_peak = reset_peak_memory(device)
    start = time.perf_counter()
    result = run()
    found = {"seconds": time.perf_counter() - start, "gib": peak_memory(device) if has_peak else float("nan")}
    with Operations() as operations:
        tensors = peak_bytes(run, model.device, [*parameters, *model.hf.buffers()])
    weights = sum(parameter.numel() for parameter in parameters) - model.unembedding.numel()
    return result, {**found, "passes": operations.count / (2 * weights * tokens), "tensors": tensors / 2**30}


def measure(dtype: str, prompts: int, length: int, size: int, steps: int, **shapes: Any) -> dict[str, Any]:
    """The numbers of one dtype, in this process."""
    start = time.perf_counter()
    model = random_llama(dtype, **shapes)
    loaded = {"seconds": time.perf_counter() - start, "gib": peak_memory(str(model.device))}
    batches = random_batches(model, prompts, length, size)
    print(f"{dtype}: loaded, {loaded}", file=sys.stderr, flush=True)
    given = partial(cost, model, prompts * length)
    scores, discovered = given(partial(eap_ig, model, batches, steps=steps))
    print(f"{dtype}: EAP-IG, {discovered}", file=sys.stderr, flush=True)
    n_edges, found = scores.graph.n_edges, {"EAP-IG": discovered}
    for percent in (1, 50):
        circuit = scores.top(n_edges * percent // 100, by="magnitude")
        _, found[f"circuit of {percent}% of the edges"] = given(partial(faithfulness, model, circuit, batches))
    return {"n_edges": n_edges, "threads": torch.get_num_threads(), "load": loaded, **found}


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
        for what, took in found.items():
            if isinstance(took, dict):
                line = f"{dtype:<9} {what:<28} {took['seconds']:7.1f} s   peak {took['gib']:5.2f} GiB"
                rows += [row(f"{dtype}: {what}", took["seconds"], "s", "elapsed"),
                         row("its peak", took["gib"], "GiB", "of the process, model included")]
                if "passes" in took:
                    line += f"   {took['passes']:5.2f} passes   tensors {took['tensors']:5.2f} GiB"
                    rows += [row("its operations", took["passes"], "", "as many as so many forward passes"),
                             row("its tensors", took["tensors"], "GiB", "at once, without weights")]
                print(line, flush=True)
    if arguments.results:
        about = (f"A Llama of 1.24 billion random parameters, {n_edges:,} edges; {arguments.prompts} prompts of "
                 f"{arguments.tokens} tokens, {arguments.batch_size} a batch, {arguments.steps} steps, {threads} "
                 "threads.")
        write_record(arguments.results, "scaling", title="A model of a billion parameters", about=about, rows=rows,
                     command="python -m acdc.benchmarks.scaling", parameters={
                         key: value for key, value in vars(arguments).items() if key not in ("results", "here")})


if __name__ == "__main__":
    main()

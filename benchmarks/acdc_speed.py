"""How fast incremental ACDC is: against the plain sequential version, and on a whole real model.

    python -m acdc.benchmarks.acdc_speed small
    python -m acdc.benchmarks.acdc_speed real [--threshold 0.0005] [--prompts 16]

`small`: both versions on random GPT-2s of 4 layers and 8 heads, in one run; their decisions must be the same. `real`:
all edges of SmolLM2 on IOI, with KL. `--results benchmarks/results` also stores the numbers.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from acdc.benchmarks.record import number, row, write_record  # pyright: ignore[reportMissingImports]
from acdc.discovery.acdc import acdc
from acdc.discovery.acdc_sequential import acdc_sequential
from acdc.models import load_model
from acdc.task import Batch, Example
from acdc.tasks import load_task  # pyright: ignore[reportMissingImports]
from acdc.transformer import Transformer


def random_gpt2(layers: int = 4, heads: int = 8, width: int = 128, difference: int = 6
                ) -> tuple[Transformer, list[Batch]]:
    """A GPT-2 with weights far from their initial values, and 16 prompts of 12 tokens; clean and corrupted prompts
    differ at the position `difference` only."""
    from transformers import GPT2Config, GPT2LMHeadModel  # its import changes settings

    torch.manual_seed(0)
    hf = GPT2LMHeadModel(GPT2Config(n_layer=layers, n_head=heads, n_embd=width, n_positions=32, vocab_size=512,
                                    bos_token_id=0, eos_token_id=0)).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    clean = torch.randint(512, (16, 12))
    corrupted = clean.clone()
    corrupted[:, difference] = (clean[:, difference] + 1 + torch.randint(511, (16,))) % 512
    answers = torch.randint(512, (2, 16))
    examples = tuple(Example(f"clean {i}", f"corrupted {i}", " a", " b") for i in range(16))
    return load_model(hf), [Batch(clean, corrupted, *answers, examples=examples)]


SMALL = (  # d_model, position where prompts differ, threshold (which keeps about 2% or less)
    (256, 0, 0.0048), (128, 6, 0.0005), (128, 6, 0.02),
)


def small(repeats: int = 3) -> list[dict]:
    """Incremental (median of `repeats` runs) against sequential (one run)."""
    rows = []
    for width, difference, threshold in SMALL:
        model, batches = random_gpt2(width=width, difference=difference)
        seconds, scores = [], acdc(model, batches, threshold=threshold)
        for _ in range(repeats):
            start = time.perf_counter()
            scores = acdc(model, batches, threshold=threshold)
            seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        plain = acdc_sequential(model, batches, threshold=threshold)
        sequential, incremental = time.perf_counter() - start, float(np.median(seconds))
        kept = scores.above(threshold, by="signed")
        assert (kept.kept == plain.above(threshold, by="signed").kept).all(), "the decisions differ"
        setting = f"width {width}, prompts differ at position {difference}, threshold {threshold:g}"
        found = (f"{kept.n_edges:,} of {kept.graph.n_edges:,} edges kept ({kept.n_edges / kept.graph.n_edges:.1%}), "
                 f"{int(np.isfinite(scores.values).sum()):,} tried; same decisions")
        rows += [row(f"sequential / incremental ({setting})", sequential / incremental, "times",
                     f"{sequential:.2f} s / {incremental:.2f} s; {found}")]
    return rows


def real(threshold: float, prompts: int) -> list[dict]:
    model = load_model("smollm2")
    batches = load_task("ioi", model.tokenizer, n=prompts).batches(model.tokenizer)
    start = time.perf_counter()
    scores = acdc(model, batches, threshold=threshold, progress=sys.stderr.isatty())
    minutes = (time.perf_counter() - start) / 60
    kept, total = scores.above(threshold, by="signed").n_edges, scores.graph.n_edges
    tried = int(np.isfinite(scores.values).sum())
    return [row(f"all of SmolLM2, {prompts} prompts, threshold {threshold:g}", minutes, "minutes",
                f"{kept:,} of {total:,} edges kept ({kept / total:.2%}), {tried:,} tried")]


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of incremental ACDC.")
    parser.add_argument("what", choices=["small", "real"])
    parser.add_argument("--threshold", type=float, default=0.0005)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    title, about, measure = {
        "small": ("Incremental ACDC against sequential", "Random GPT-2s of 4 layers and 8 heads, 16 prompts of 12 "
                  "tokens, KL. Both versions decide the same, edge by edge.", small),
        "real": ("ACDC of a whole model", "All edges of SmolLM2, IOI, KL.",
                 lambda: real(arguments.threshold, arguments.prompts)),
    }[arguments.what]
    rows = measure()
    for line in rows:
        print(f"{line['what']}: {number(line['value'], line['unit'])} ({line['meaning']})")
    if arguments.results:
        write_record(arguments.results, f"acdc_{arguments.what}", title=title, about=about, rows=rows, parameters={
            "threshold": arguments.threshold, "prompts": arguments.prompts},
            command=f"python -m acdc.benchmarks.acdc_speed {arguments.what}")


if __name__ == "__main__":
    main()

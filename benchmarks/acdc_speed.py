"""How fast incremental ACDC is: against the plain sequential version, and on a whole real model.

    python -m acdc.benchmarks.acdc_speed small [--threshold 0.0005]
    python -m acdc.benchmarks.acdc_speed real [--threshold 0.0005] [--prompts 16]
    python -m acdc.benchmarks.acdc_speed kill [--kills 20]

`small`: both versions on a random GPT-2 of 4 layers and 8 heads, in one run; their decisions must be the same. `real`:
all edges of SmolLM2 on IOI, with KL. `kill`: a search is killed with SIGKILL at random moments, again and again, and
resumed from its journal; it must end in the circuit of a search that nobody disturbed.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

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


def small(threshold: float) -> None:
    model, batches = random_gpt2()
    seconds, circuits, tried = {}, {}, 0
    for name, method in (("incremental", acdc), ("sequential", acdc_sequential)):
        start = time.perf_counter()
        scores = method(model, batches, threshold=threshold)
        seconds[name] = time.perf_counter() - start
        circuits[name], tried = scores.above(threshold, by="signed"), int(np.isfinite(scores.values).sum())
    same = bool((circuits["incremental"].kept == circuits["sequential"].kept).all())
    kept, total = circuits["incremental"].n_edges, model.graph().n_edges
    print(f"4 layers, 8 heads, 16 prompts of 12 tokens, KL, threshold {threshold:g}: {kept:,} of {total:,} edges kept "
          f"({kept / total:.1%}), {tried:,} tried; same decisions: {same}")
    print(f"incremental {seconds['incremental']:.2f} s, sequential {seconds['sequential']:.2f} s: "
          f"{seconds['sequential'] / seconds['incremental']:.1f} times faster")


def real(threshold: float, prompts: int) -> None:
    model = load_model("smollm2")
    batches = load_task("ioi", model.tokenizer, n=prompts).batches(model.tokenizer)
    start = time.perf_counter()
    scores = acdc(model, batches, threshold=threshold, progress=sys.stderr.isatty())
    seconds, kept = time.perf_counter() - start, scores.above(threshold, by="signed").n_edges
    total, tried = scores.graph.n_edges, int(np.isfinite(scores.values).sum())
    print(f"smollm2, ioi, {prompts} prompts, KL, threshold {threshold:g}: {kept:,} of {total:,} edges kept "
          f"({kept / total:.2%}), {tried:,} tried, {seconds / 60:.1f} minutes on {torch.get_num_threads()} threads")


def search(threshold: float, journal: str) -> None:
    """One search of the small model; prints its scores."""
    model, batches = random_gpt2()
    scores = acdc(model, batches, threshold=threshold, journal=journal or None)
    print(json.dumps([str(value) for value in scores.values]))


def kill(threshold: float, kills: int) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "acdc.benchmarks.acdc_speed", "search", "--threshold",
               str(threshold), "--journal"]
    rng, same, moments = random.Random(0), 0, []
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.journal"
        expected = subprocess.run([*command, str(whole)], capture_output=True, text=True, check=True).stdout
        for i in range(kills):
            journal = Path(folder) / f"{i}.journal"
            run = subprocess.Popen([*command, str(journal)], stdout=subprocess.DEVNULL)
            moment = rng.random() * whole.stat().st_size
            while run.poll() is None and (not journal.exists() or journal.stat().st_size < moment):
                time.sleep(0.0005)
            time.sleep(rng.random() * 0.005)
            run.send_signal(signal.SIGKILL)
            run.wait()
            moments.append(journal.stat().st_size)
            resumed = subprocess.run([*command, str(journal)], capture_output=True, text=True, check=True).stdout
            same += resumed == expected
    print(f"killed {kills} times, with journals of {min(moments):,} to {max(moments):,} bytes; resumed to identical "
          f"scores {same} times")


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and resumption of incremental ACDC.")
    parser.add_argument("what", choices=["small", "real", "kill", "search"])
    parser.add_argument("--threshold", type=float, default=0.0005)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--journal", default="")
    arguments = parser.parse_args()
    if arguments.what == "small":
        small(arguments.threshold)
    elif arguments.what == "real":
        real(arguments.threshold, arguments.prompts)
    elif arguments.what == "kill":
        kill(arguments.threshold, arguments.kills)
    else:
        search(arguments.threshold, arguments.journal)


if __name__ == "__main__":
    main()

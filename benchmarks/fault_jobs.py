"""Which long jobs are killed and stopped: commands of `acdc`, on a tiny model and prompts made so that it can do them.

A job runs in a fork of this process, which has imported everything, so that it takes a second and not ten. There, what
is kept on the way is written at every occasion, not every few seconds.
"""

import importlib
import json
import os
import pkgutil
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import acdc.annotation.tuned_lens
import acdc.discovery.masks
import acdc.export.figure
import acdc.pieces
import acdc.sae.training
from acdc.cli import main
from acdc.output_folder import write_file

LENGTH, N_PROMPTS = 7, 6
TIMED = ("seconds", "cpu_seconds", "evaluation_seconds", "peak_gib", "machine", "date")
WORDS = [first + second for first in "abcdef" for second in "klmnopqr"]
DISCOVER = "discover --model model --task task.json --batch-size 2 --calibrate 0 --resamples 0 --seed 0"
SAVED = "--batch-size 2 --model model --task task.json"


@dataclass(frozen=True)
class Job:
    """`command`: without --out, which is `out` here; `outputs`: files that it writes there, or `out` itself."""

    name: str
    command: str
    out: str = "out"
    overwrite: bool = True

    def arguments(self) -> list[str]:
        return [*self.command.split(), "--out", self.out, *["--overwrite"] * self.overwrite]


JOBS = {job.name: job for job in (
    Job("eap_ig", f"{DISCOVER} --method eap_ig"),
    Job("ifr", f"{DISCOVER} --method ifr"),
    Job("exact", f"{DISCOVER} --method exact"),
    Job("acdc", f"{DISCOVER} --method acdc --threshold 0.001"),
    Job("acdc_sequential", f"{DISCOVER} --method acdc_sequential --threshold 0.05 --shortlist 40"),
    Job("edge_pruning", f"{DISCOVER} --method edge_pruning --steps 20 --prompts-per-step 2 --size 20"),
    Job("evaluate", f"evaluate found {SAVED} --ablation optimal", "out.json", overwrite=False),
    Job("calibrate", f"calibrate found {SAVED} --edges 60", "out.json", overwrite=False),
    Job("test", f"test found {SAVED} --random 19 --inflated 29 --edges 6 --resamples 100 "
        "--only sufficiency,random,minimality_edges", "out.json", overwrite=False),
    Job("annotate", f"annotate found {SAVED} --only effects,roles,lens", "out.json"),
    Job("probe", f"probe {SAVED} --variable corrupted --site m0 m1 --controls 2"),
    Job("trace", f"trace {SAVED} --subject first --prompts 3 --samples 2 --window 1"),
    Job("patch", f"patch {SAVED} --prompts 6"),
    Job("tune-lens", "tune-lens --model model --text text.txt --context 8 --steps 12"),
    Job("sae", "sae train --model model --text text.txt --context 8 --site m0 --features 16 --steps 30 --k 4 "
        "--tokens-per-step 64"),
    Job("benchmark", "benchmark --models model --tasks many.json --methods eap eap_ig random --seeds 0 1 --prompts 4 "
        "--test-prompts 4", overwrite=False),
)}


def tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast  # whose import changes settings

    vocabulary = {token: i for i, token in enumerate(["<unk>", *WORDS, *(f"Ġ{word}" for word in WORDS)])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def prepare(folder: Path) -> None:
    """What the jobs are about, and a circuit. It is made in a fork, so that this process, which is forked often, has no
    threads, whose locks a fork would find locked for good."""
    import_all()
    assert _in_fork(folder, partial(_make, folder), "log") == 0, (folder / "log").read_text()
    assert run(folder, [*DISCOVER.split(), "--size", "30%", "--out", "found"]) == 0, (folder / "log").read_text()


def _make(folder: Path) -> int:
    """A model, prompts whose answer is what the model says more of than for the corrupted prompt, and a text."""
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer()
    config = LlamaConfig(vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
                         tie_word_embeddings=False)
    hf, random = LlamaForCausalLM(config), torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in hf.parameters():
            noise = torch.randn(parameter.shape, generator=random) * 0.3
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    hf.eval().save_pretrained(folder / "model")
    words.save_pretrained(folder / "model")
    for name, n in (("task.json", N_PROMPTS), ("many.json", 8)):
        write_file(folder / name, json.dumps([_prompt(hf, words, random) for _ in range(n)]))
    drawn = torch.randint(len(WORDS), (400,), generator=random).tolist()
    write_file(folder / "text.txt", " ".join(WORDS[i] for i in drawn))
    return 0


def _prompt(hf: Any, words: Any, random: torch.Generator) -> dict[str, Any]:
    drawn = [WORDS[i] for i in torch.randperm(len(WORDS), generator=random)[: LENGTH + 1].tolist()]
    clean, other = drawn[:LENGTH], drawn[LENGTH]
    corrupted = [clean[0], other, *clean[2:]]
    ids = words([" ".join(clean), " ".join(corrupted)], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = hf(torch.as_tensor(ids)).logits[:, -1]
    gain = (logits[0] - logits[1])[-len(WORDS) :]
    answer, wrong = WORDS[int(gain.argmax())], WORDS[int(gain.argmin())]
    return {"clean": " ".join(clean), "corrupted": " ".join(corrupted), "answer": f" {answer}", "wrong": f" {wrong}",
            "roles": {"first": 1, "end": LENGTH - 1}}


def import_all() -> None:
    """Everything that a job imports when it runs, so that its forks need not."""
    import safetensors.numpy  # noqa: F401
    import scipy.special  # noqa: F401
    from transformers import (  # noqa: F401
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    importlib.import_module("acdc.tasks.file")
    for module in pkgutil.walk_packages(acdc.__path__, "acdc."):
        if "commands" not in module.name and not module.name.endswith("_side"):
            importlib.import_module(module.name)


def run(folder: Path, arguments: list[str], log: str = "log") -> int:
    """The exit status of a command, run in a fork, in a folder."""
    return _in_fork(folder, partial(main, arguments), log)


def start(folder: Path, arguments: list[str]) -> int:
    """Starts a command in a fork; returns its process id."""
    return _fork(folder, partial(main, arguments), "log")


def _in_fork(folder: Path, work: Callable[[], int], log: str) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(_fork(folder, work, log), 0)[1])


def _fork(folder: Path, work: Callable[[], int], log: str) -> int:
    """Works in a fork, in a folder; what it prints goes to a file there."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a program in the background ignores
        os.chdir(folder)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        acdc.pieces.SECONDS = 0.0
        acdc.export.figure.figure_bytes = lambda figure, kind: b"drawn"  # which takes longer than all else
        for module in (acdc.discovery.masks, acdc.annotation.tuned_lens, acdc.sae.training):
            vars(module)["SAVE_EVERY"] = 2
        status = work()
        sys.stdout.flush()
    except BaseException as error:  # the fork must not go on as this process
        print(repr(error), file=sys.stderr, flush=True)
        status = 99
    os._exit(status)


def contents(path: Path) -> dict[str, bytes]:
    """What a job wrote, without what says when, where and how long: see docs/determinism.md."""
    files = [path, path.with_suffix(".md")] if path.suffix else sorted(path.rglob("*"))
    return {file.name: comparable(file, path.parent) for file in files
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path.parent).parts)}


def comparable(file: Path, folder: Path) -> bytes:
    content = file.read_bytes().replace(str(folder.resolve()).encode(), b".")
    if file.parent.name == "cells":
        record = json.loads(content)
        return json.dumps({key: value for key, value in record.items() if key not in TIMED}).encode()
    if file.name.startswith(("results.", "overview.")):  # seconds of cells, in every format
        return b""
    content = re.sub(rb'"seconds": \{[^}]*\}', b"", content)  # circuit.json
    return re.sub(rb"(<td>)?(\| )?Seconds.*", b"", content)  # report.md, report.html

"""Whether many discoveries in one process leave anything behind: memory, hooks, weights, settings, random state.

Tiny models of random weights, all methods in turn; every fifth run, the metric raises an error after some calls. After
each run everything that a run might change must be as before; over all runs, the number of tensors and of traced
allocations must stay the same, and the memory of the process nearly so.
"""

import gc
import hashlib
import tracemalloc
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acdc.benchmarks.record import row  # pyright: ignore[reportMissingImports]
from acdc.discovery import METHODS
from acdc.machine import memory_now
from acdc.metrics import METRICS, Metric
from acdc.models import load_model
from acdc.task import Batch, Example
from acdc.transformer import Transformer

OPTIONS: dict[str, dict[str, Any]] = {
    "acdc": {"threshold": 0.01}, "acdc_sequential": {"threshold": 0.5}, "ensemble": {},
    **{name: {"steps": 3, "prompts_per_step": 2} for name in ("edge_pruning", "subnetwork_probing", "ugs")},
}
CYCLE = [*METHODS]
FAIL_EVERY, WARM_UP = 5, 2  # the latter in cycles of all methods
MIB = 2**20


class DeliberateError(Exception):
    """What a failing metric raises."""


def soak(n: int) -> list[dict]:
    """Runs and checks; the numbers, as rows of a record."""
    torch.set_num_threads(1)
    models = [(model, _batches()) for model in _models()]
    warm_up = WARM_UP * len(CYCLE)
    for i in range(warm_up):
        _run(i, *models[i % 2])
    tracemalloc.start()
    tensors, traced, resident, failed = [], [], [], 0
    for i in range(n):
        failed += _run(i, *models[i % 2])
        if (i + 1) % len(CYCLE) == 0 or i + 1 == n:
            gc.collect()
            tensors.append(sum(issubclass(type(each), Tensor) for each in gc.get_objects()))
            traced.append(tracemalloc.get_traced_memory()[0])
            resident.append(memory_now() * 2**30)
    tracemalloc.stop()
    grown = (resident[-1] - resident[0]) / MIB
    print(f"{n} runs, {failed} of them failed on purpose; tensors {tensors[0]} to {tensors[-1]}, traced "
          f"{traced[0] / MIB:.2f} to {traced[-1] / MIB:.2f} MiB, resident {resident[0] / MIB:.1f} to "
          f"{resident[-1] / MIB:.1f} MiB")
    assert tensors[-1] <= tensors[0], f"tensors: {tensors}"
    assert traced[-1] - traced[0] < 0.5 * MIB, f"traced bytes: {traced}"
    assert grown < 20, f"resident bytes: {resident}"
    return [row("runs without a trace", n, "", f"{failed} of them failed on purpose; hooks, weights, requires_grad, "
                "training and grad mode, random state and settings were compared after each"),
            row("tensors more at the end than after the first cycle", tensors[-1] - tensors[0], "", ""),
            row("traced allocations grown by", (traced[-1] - traced[0]) / MIB, "MiB", "Python's and numpy's"),
            row("memory of the process grown by", grown, "MiB", "since the first cycle after the warm-up")]


def _models() -> list[Transformer]:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM  # whose import changes settings

    sizes: dict[str, Any] = {"vocab_size": 32, "bos_token_id": 0, "eos_token_id": 0}
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=16, **sizes))
    llama = LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                                         num_attention_heads=2, num_key_value_heads=1, **sizes))
    torch.set_rng_state(torch_state)
    return [load_model(hf.eval()) for hf in (gpt2, llama)]


def _batches() -> list[Batch]:
    draw = torch.Generator().manual_seed(1)
    clean = torch.randint(32, (3, 6), generator=draw)
    corrupted = clean.clone()
    corrupted[:, 1] = (clean[:, 1] + 1) % 32
    examples = tuple(Example(f"clean {i}", f"corrupted {i}", " a", " b") for i in range(3))
    return [Batch(clean, corrupted, clean[:, 0], corrupted[:, 1], examples=examples)]


def _run(i: int, model: Transformer, batches: Sequence[Batch]) -> bool:
    """One discovery, which must leave no trace; whether it failed, as it does when it is meant to."""
    name = CYCLE[i % len(CYCLE)]
    method, fails = METHODS[name], i % FAIL_EVERY == FAIL_EVERY - 1
    metric = METRICS["kl_divergence" if "threshold" in OPTIONS.get(name, {}) else "logit_difference"]
    before = state(model)
    failed = False
    try:
        method(model, batches, failing(metric, i % 3) if fails else metric, **OPTIONS.get(name, {}))
    except DeliberateError:
        failed = True
    after = state(model)
    assert after == before, f"{name} (run {i}) changes {[key for key in before if before[key] != after[key]]}"
    assert not failed or fails
    return failed


def failing(metric: Metric, after: int) -> Metric:
    """The metric, which raises an error once it has been called so often."""
    calls = [0]

    def value(*given: Any) -> Tensor:
        calls[0] += 1
        if calls[0] > after:
            raise DeliberateError
        return metric.value(*given)

    return replace(metric, value=value)


def state(model: Transformer) -> dict[str, Any]:
    """What a run must leave as it was."""
    hf = model.hf
    digest = hashlib.sha256()
    for tensor in (*hf.parameters(), *hf.buffers()):
        digest.update(tensor.detach().numpy().tobytes())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "weights": digest.hexdigest(), "gradients": [p.grad is None for p in hf.parameters()],
        "requires_grad": [p.requires_grad for p in hf.parameters()],
        "training mode": [module.training for module in hf.modules()],
        "hooks": [len(getattr(module, name)) for module in hf.modules() for name in hooks],
        "methods of modules": [sorted(name for name, value in vars(module).items() if callable(value))
                               for module in hf.modules()],
        "grad mode": torch.is_grad_enabled(), "inference mode": torch.is_inference_mode_enabled(),
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "numpy's random state": repr(np.random.get_state()),
        "settings": [torch.get_num_threads(), str(torch.get_default_dtype()), len(warnings.filters),
                     torch.are_deterministic_algorithms_enabled(), sorted(np.geterr().items())],
    }

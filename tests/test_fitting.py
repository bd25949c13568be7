"""What does not fit in memory is run in smaller parts, with the same result."""

import inspect
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny

from acdc.annotation.annotate import annotate
from acdc.circuit import Circuit
from acdc.discovery import METHODS
from acdc.evaluation.bench import prepare_bench
from acdc.evaluation.calibration import calibrate
from acdc.evaluation.faithfulness import faithfulness_curve
from acdc.evaluation.knock_outs import without_each_edge
from acdc.evaluation.task_check import check_task
from acdc.fitting import Halving, is_out_of_memory, over_batches
from acdc.metrics import METRICS
from acdc.optimal_ablation import learn_ablation

LOGIT_DIFFERENCE = METRICS["logit_difference"]
ERRORS = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError(),
          RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")]


@contextmanager
def room_for(model, rows, error=ERRORS[0]):
    """Inside, what runs more rows than these through an MLP at once is out of memory. Yields the failures."""
    failed = []

    def full(module, args):
        given = args[0].shape[:-2].numel()
        if given > rows:
            failed.append(given)
            raise error

    handles = [block.mlp.register_forward_pre_hook(full) for block in model.blocks]
    try:
        yield failed
    finally:
        for handle in handles:
            handle.remove()


def options_of(name):
    taken = inspect.signature(METHODS[name]).parameters
    options = {"threshold": 0.5} if "threshold" in taken else {}
    return {"steps": 2, "prompts_per_step": 5} if "sparsity" in taken else options


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_parts_are_halved_until_they_fit(error):
    tried = []

    def run(rows):
        tried.append(rows.stop - rows.start)
        if tried[-1] > 3:
            raise error
        return list(range(rows.start, rows.stop))

    fits = Halving()
    found = list(fits.over(10, run))
    assert sum((of_part for _, of_part in found), []) == list(range(10))
    assert tried == [10, 5, 3, 3, 3, 1]
    assert [rows for _, rows in fits.over(4, run)] == [[0, 1, 2], [3]]
    with pytest.raises(type(error)):
        list(Halving().over(2, lambda rows: (_ for _ in ()).throw(error)))


def test_other_errors_are_raised():
    assert not is_out_of_memory(RuntimeError("some elements overlap in memory"))
    with pytest.raises(RuntimeError, match="overlap"):
        list(over_batches([make_batch(4, 5)], lambda batch: (_ for _ in ()).throw(RuntimeError("overlap"))))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "random"])
def test_methods_find_the_same_in_parts(name):
    model, batches = tiny("llama"), [make_batch(5, 5), make_batch(2, 4, seed=1)]
    ablation = "mean" if name in ("eap", "ugs", "acdc") else "resample"
    options = {**options_of(name), "ablation": ablation, "kv": "group"}
    expected = METHODS[name](model, batches, LOGIT_DIFFERENCE, **options).values
    with room_for(model, 21 if name == "exact" else 3) as failed:  # it patches many edges of a batch at once
        found = METHODS[name](model, batches, LOGIT_DIFFERENCE, **options).values
    assert failed and np.isfinite(expected).any()
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("name", ["eap_ig", "relp", "exact", "ifr"])
def test_scores_of_single_prompts_keep_their_order(name):
    model, batches = tiny("gemma2"), [make_batch(6, 6)]
    expected = METHODS[name](model, batches, LOGIT_DIFFERENCE, per_prompt=True)
    with room_for(model, 24 if name == "exact" else 4) as failed:
        found = METHODS[name](model, batches, LOGIT_DIFFERENCE, per_prompt=True)
    assert failed
    np.testing.assert_allclose(found.per_prompt, expected.per_prompt, atol=1e-6)


def measured(model, batches):
    """What evaluation and annotation say, as numbers."""
    scores = METHODS["random"](model, batches)
    curve = faithfulness_curve(model, scores, batches, LOGIT_DIFFERENCE, by="signed", fractions=[0.2, 0.5, 0.9],
                               ablation="mean_over_positions")
    yield from (point.faithfulness for point in curve.points)
    yield from calibrate(model, scores, batches, LOGIT_DIFFERENCE, n=60).sample.effect
    yield check_task(model, batches).clean
    circuit = scores.top(100, by="signed")
    bench = prepare_bench(model, batches, LOGIT_DIFFERENCE)
    yield from np.concatenate([x.ravel() for x in without_each_edge(bench, circuit, np.nonzero(circuit.kept)[0][:8])])
    constants = learn_ablation(model, batches, circuit=circuit, steps=2)(batches[0]).activations
    yield from torch.cat([constants.input.flatten(), *(z.flatten() for z in constants.z)]).tolist()
    every = Circuit(circuit.graph, np.ones(circuit.graph.n_edges, dtype=bool))
    notes = annotate(model, every, batches, only=["effects", "roles", "lens", "attention"])
    yield from (note.value for note in notes if note.value is not None)
    for note in notes:
        if note.kind == "attention":
            yield from np.ravel(note.data["weights"])


def test_evaluation_and_annotation_say_the_same_in_parts():
    model, batches = tiny("llama"), [make_batch(6, 7)]
    batches[0].answer[:], batches[0].wrong[:] = _told_apart(model, batches[0])
    expected = list(measured(model, batches))
    with room_for(model, 8) as failed:  # as many as sequences of random tokens are run at once
        found = list(measured(model, [*batches]))
    assert failed
    np.testing.assert_allclose(found, expected, atol=1e-6)


def _told_apart(model, batch):
    """Answers that the clean prompts speak for more than the corrupted ones."""
    with torch.no_grad():
        clean, corrupted = (model.hf(tokens).logits[:, -1] for tokens in (batch.clean, batch.corrupted))
    return (clean - corrupted).argmax(1), (clean - corrupted).argmin(1)


LIMITED = """
import resource, sys
import numpy as np, torch
sys.path[:0] = ["tests"]
torch.set_num_threads(1)
from conftest import make_batch, tiny
from acdc.discovery import METHODS
from acdc.metrics import METRICS
import logging; logging.basicConfig(stream=sys.stdout)

model, batches = tiny("llama"), [make_batch(1500, 20)]
eap = METHODS["eap"]
expected = eap(model, [make_batch(1500, 20).rows(slice(i, i + 300)) for i in range(0, 1500, 300)])
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
limit = int(status["VmData"].split()[0]) * 1024 + 60 * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
found = eap(model, batches)
np.testing.assert_allclose(found.values, expected.values, atol=1e-9)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_process_with_little_memory():
    done = subprocess.run([sys.executable, "-c", LIMITED], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "out of memory with 1500 prompts at once" in done.stdout, done.stdout

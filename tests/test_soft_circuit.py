"""The soft run is the circuit run where every fraction is 0 or 1, and its gradients are those of finite differences."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny

from acdc.ablation import prepare_ablation
from acdc.activations import contribution
from acdc.circuit import Circuit
from acdc.discovery import METHODS
from acdc.metrics import METRICS
from acdc.patching import kept_matrix, run_circuit
from acdc.soft_circuit import soft_circuit
from acdc.task import position_names

LOGIT_DIFFERENCE = METRICS["logit_difference"]


def setting(family, ablation="resample", positions="all", dtype=torch.float64):
    model, batch = tiny(family, dtype), make_batch()
    names = position_names([batch], positions)
    replacement = prepare_ablation(model, [batch], ablation)(batch)
    return model, batch, names, replacement, soft_circuit(model, batch, replacement, names)


def loss_of(logits, batch):
    return LOGIT_DIFFERENCE.loss(logits, batch, logits).mean()


def tolerance(family):
    return 1e-5 if "gemma" in family else 1e-9  # HF computes the norms of Gemma in float32


def difference_step(family):
    """The step of a finite difference, and how exact it is: most families round norms to float32 in any model."""
    return (1e-5, 1e-6) if family.startswith("gpt") else (1e-3, 1e-2)


@pytest.mark.parametrize(("ablation", "positions"), [
    ("resample", "all"), ("mean", "all"), ("zero", "all"), ("resample", "each"), ("mean", "roles"),
])
@pytest.mark.parametrize("kv", ["head", "group"])
def test_fractions_of_0_and_1_are_a_circuit_run(family, ablation, positions, kv):
    if ablation == "zero" and "gemma" in family:
        pytest.skip("ill-conditioned: norms of sums near 0, rounded to float32, twice a layer")
    model, batch, names, replacement, soft = setting(family, ablation, positions)
    graph = model.graph(kv, names)
    for density in (0.0, 0.4, 1.0):
        circuit = Circuit(graph, np.random.default_rng(0).random(graph.n_edges) < density)
        kept = torch.from_numpy(kept_matrix(graph, circuit.kept)).double()
        expected = run_circuit(model, batch, circuit, replacement)
        atol = 1e-6 if ablation == "zero" else tolerance(family)
        torch.testing.assert_close(soft.logits(kept), expected, atol=atol, rtol=0)


@pytest.mark.parametrize(("ablation", "positions"), [("resample", "all"), ("mean", "all"), ("resample", "each")])
def test_gradient_is_the_finite_difference(family, ablation, positions):
    model, batch, names, _, soft = setting(family, ablation, positions)
    exists = torch.from_numpy(model.graph(positions=names).exists)
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(exists.shape, generator=generator, dtype=torch.float64) * exists
    direction = torch.randn(exists.shape, generator=generator, dtype=torch.float64) * exists
    point = kept.clone().requires_grad_()
    loss_of(soft.logits(point), batch).backward()
    assert point.grad is not None and not point.grad[~exists].any()
    step, rel = difference_step(family)
    plus, minus = (loss_of(soft.logits(kept + sign * step * direction), batch) for sign in (1, -1))
    along = float((point.grad * direction).sum())
    assert float(plus - minus) / (2 * step) == pytest.approx(along, rel=rel)
    assert abs(along) > 1e-4


@pytest.mark.parametrize("positions", ["all", "each", "roles"])
def test_gradient_with_all_kept_is_minus_eap(family, positions):
    model, batch, names, _, soft = setting(family, "resample", positions)
    graph = model.graph(positions=names)
    kept = torch.from_numpy(graph.exists).double().requires_grad_()
    loss_of(soft.logits(kept), batch).backward()
    assert kept.grad is not None
    eap = METHODS["eap"](model, [batch], LOGIT_DIFFERENCE, positions=positions).values
    np.testing.assert_allclose(graph.from_matrix(kept.grad.numpy()), -eap, atol=max(1e-6, tolerance(family)))


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_float32_agrees_with_float64(name):
    """In float32 the norm and the projections of some families are differentiated in closed form."""
    results = []
    for dtype in (torch.float32, torch.float64):
        model, batch, names, _, soft = setting(name, "mean", "roles", dtype)
        exists = torch.from_numpy(model.graph(positions=names).exists)
        kept = torch.rand(exists.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * exists
        kept = kept.to(dtype).requires_grad_()
        logits = soft.logits(kept)
        loss_of(logits, batch).backward()
        assert kept.grad is not None
        results.append((logits.detach().double(), kept.grad.double()))
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)


def test_gradient_by_the_replacement(family):
    """Of what each src writes in the base run: finite differences of a mean that is moved."""
    model, batch, names, replacement, soft = setting(family, "mean")
    graph = model.graph()
    kept = torch.rand(graph.exists.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    run = replacement.activations
    wrote = torch.stack([contribution(model, run, src) for src in range(len(graph.srcs))]).detach().requires_grad_()
    loss_of(soft.logits(kept, wrote), batch).backward()
    assert wrote.grad is not None and wrote.grad.shape == wrote.shape
    (step, rel), generator = difference_step(family), torch.Generator().manual_seed(1)
    by = torch.randn(wrote.shape, generator=generator, dtype=torch.float64)
    by[graph.layer(0).heads] = by[graph.layer(1).heads] = by[graph.layer(2).heads] = 0  # they are moved through z
    losses = [loss_of(_moved(soft, sign * step * by, model).logits(kept), batch) for sign in (1, -1)]
    along = float((wrote.grad * by).sum())
    assert float(losses[0] - losses[1]) / (2 * step) == pytest.approx(along, rel=rel)


def _moved(soft, by, model):
    """The same prompts with other replacements of the input and the MLPs."""
    base, graph, total = soft.base, model.graph(), by[0]
    attn_in, mlp_in, mlp = [], [], []
    for layer in range(model.n_layers):
        index = graph.layer(layer)
        attn_in.append(base.attn_in[layer] + total)
        mlp_in.append(base.mlp_in[layer] + total)
        mlp.append(base.mlp[layer] + by[index.mlp])
        total = total + by[index.mlp]
    moved = replace(base, input=base.input + by[0], attn_in=attn_in, mlp_in=mlp_in, mlp=mlp, final=base.final + total)
    return replace(soft, base=moved, input=soft.input - by[0])


def test_some_prompts_are_run_as_with_all():
    model, batch, _, _, soft = setting("llama")
    kept = torch.full(model.graph().exists.shape, 0.5, dtype=torch.float64)
    which = torch.tensor([2, 0])
    torch.testing.assert_close(soft.rows(which).logits(kept), soft.logits(kept)[which])

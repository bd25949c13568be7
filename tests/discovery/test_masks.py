"""Learned masks: the distribution, the training step against plain autograd, and runs that are stopped and go on."""

import math

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny

from acdc.ablation import prepare_ablation
from acdc.discovery import METHODS
from acdc.discovery.masks import (
    EdgeMatrix,
    Training,
    first_masks,
    probability_open,
    sample,
    train_masks,
    within_budget,
)
from acdc.errors import AcdcError
from acdc.learning import Adam, prepare_prompts
from acdc.metrics import METRICS
from acdc.soft_circuit import soft_circuit
from acdc.transformer import frozen

KL = METRICS["kl_divergence"]
edge_pruning = METHODS["edge_pruning"]


def test_masks_are_open_as_often_as_said():
    uniform = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    for log_alpha, noise in ((-4.0, 1.0), (-1.0, 1.0), (0.0, 1.0), (2.0, 1.0), (-1.6, 0.3), (-1.8, 0.1)):
        alpha = torch.tensor([log_alpha], dtype=torch.float64)
        masks = sample(alpha.expand(200_000), uniform, noise)
        assert float((masks > 0).double().mean()) == pytest.approx(float(probability_open(alpha, noise)), abs=1e-5)
        assert float(masks.min()) == 0 and (float(masks.max()) == 1 or noise < 1)
    assert float((sample(torch.zeros(200_000).double(), uniform)).mean()) == pytest.approx(0.5, abs=1e-6)


def test_adam_is_torchs():
    ours, theirs = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64, requires_grad=True)
    adam, reference = Adam(ours), torch.optim.Adam([theirs], lr=0.3)
    for step in range(7):
        gradient = torch.randn(5, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        ours += adam.change(gradient, step, 0.3)
        theirs.grad = gradient
        reference.step()
    torch.testing.assert_close(ours, theirs.detach())


def test_every_prompt_is_drawn_once_an_epoch():
    training = Training(steps=10, sparsity=0.5, learning_rate=1.0, prompts_per_step=3, seed=0, warmup=0.5)
    drawn = [training.draw(step, 7).tolist() for step in range(7)]
    flat = [prompt for step in drawn for prompt in step]
    assert all(sorted(flat[i : i + 7]) == list(range(7)) for i in (0, 7, 14))
    assert flat[:7] != flat[7:14]
    assert drawn != [Training(10, 0.5, 1.0, 3, 1, 0.5).draw(step, 7).tolist() for step in range(7)]


def test_target_rises_to_the_sparsity_and_stays():
    targets = [Training(10, 0.8, 1.0, 3, 0, 0.5, "lagrangian").target(step) for step in range(10)]
    assert targets == pytest.approx([0.16, 0.32, 0.48, 0.64, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8])
    assert Training(10, 0.8, 1.0, 3, 0, 0.0).target(0) == pytest.approx(0.8)
    shares = [1 - Training(10, 0.99, 1.0, 3, 0, 0.2, open_at_first=0.1).target(step) for step in range(4)]
    assert shares == pytest.approx([0.1 * 10**-0.5, 0.01, 0.01, 0.01])


def test_a_shift_meets_the_budget_and_leaves_the_order():
    log_alpha = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    for share in (0.9, 0.3, 0.01):
        shifted = within_budget(log_alpha, share)
        assert float(probability_open(shifted).mean()) == pytest.approx(share, rel=1e-9)
        assert float((shifted - log_alpha).std()) < 1e-12


def test_masks_start_by_the_size_of_scores():
    model, scores = tiny("llama"), np.array([5.0, -50.0, 0.5, 0.0, -np.inf, 0.05])
    training = Training(1, 0.9, 1.0, 1, 0, 0.0, open_at_first=0.4)
    log_alpha = first_masks(model, 6, training, scores)
    assert float(probability_open(log_alpha).mean()) == pytest.approx(0.4)
    assert float(log_alpha[1] - log_alpha[0]) == pytest.approx(2 * math.log(10))
    assert float(log_alpha[0] - log_alpha[2]) == pytest.approx(2 * math.log(10))
    assert log_alpha[3] == log_alpha[4] == log_alpha.min()


def test_the_learned_circuit_is_faithful_and_sparse():
    """In a model where few edges matter, those are what is left open."""
    model, batch = tiny("gpt2"), make_batch(4)
    with torch.no_grad():
        for layer, block in enumerate(model.hf.transformer.h):
            keep = {0: 1, 2: 3}.get(layer)
            rows = torch.arange(24) // 6 == (-1 if keep is None else keep)
            block.attn.c_proj.weight *= rows[:, None]
            block.mlp.c_proj.weight.zero_()
    scores = edge_pruning(model, [batch], steps=80, sparsity=0.9)
    history = scores.provenance["history"]
    assert abs(history[-1]["sparsity"] - 0.9) < 0.05
    assert history[-1]["step"] == 79 and len(history) <= 100
    graph = scores.graph
    live = [name for name in ("a2.h3->logits", "input->logits", "input->a2.h3<v>") if scores[name] > 0.5]
    assert live
    silent = np.isin(graph.edge_src, [i for i, n in enumerate(graph.srcs) if n.name not in ("input", "a0.h1", "a2.h3")])
    assert scores.values[silent].max() < 0.5


def test_steps_are_those_of_plain_autograd():
    """Three steps written out: the loss of each drawn prompt run alone, torch's own Adam, ascent by a turned sign."""
    model, batches = tiny("gpt2"), [make_batch(2, 6), make_batch(1, 8, seed=1)]
    graph, n = model.graph(), model.graph().n_edges
    options = {"steps": 3, "sparsity": 0.5, "seed": 3, "warmup": 1.0, "prompts_per_step": 2, "learning_rate": 0.7,
               "constraint": "lagrangian"}
    training = Training(**options)
    alpha = first_masks(model, n, training).requires_grad_()
    assert float((alpha.detach() - 10).abs().max()) < 0.1
    multipliers = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    down, up = torch.optim.Adam([alpha], lr=0.7), torch.optim.Adam([multipliers], lr=0.7, maximize=True)
    prompts = [(batch, row) for batch in batches for row in range(len(batch))]
    alpha.data -= 9  # so that masks are not all 1
    start = alpha.detach().clone()
    for step in range(3):
        uniform = torch.rand(n, generator=training.generator("masks", step), dtype=torch.float64)
        concrete = torch.sigmoid((uniform.log() - (1 - uniform).log() + alpha) / (2 / 3))
        mask = torch.clamp(1.2 * concrete - 0.1, 0, 1)
        kept = torch.zeros(graph.exists.shape, dtype=torch.float64)
        kept[graph.edge_src, graph.edge_channel, 0] = mask
        losses = []
        for number in training.draw(step, 3).tolist():
            batch, row = prompts[number]
            tensors = (getattr(batch, name)[row : row + 1] for name in ("clean", "corrupted", "answer", "wrong"))
            one = type(batch)(*tensors, ())
            soft = soft_circuit(model, one, prepare_ablation(model, [one])(one))
            reference = model.hf(one.clean).logits[:, -1].detach().log_softmax(-1)
            losses.append((reference.exp() * (reference - soft.logits(kept).log_softmax(-1))).sum())
        closed = torch.sigmoid(2 / 3 * math.log(0.1 / 1.1) - alpha).mean()
        gap = closed - 0.5 * (step + 1) / 3
        loss = torch.stack(losses).mean() + multipliers[0] * gap + multipliers[1] * gap**2
        for optimiser in (down, up):
            optimiser.zero_grad()
        loss.backward()
        down.step()
        up.step()
    with frozen(model):
        groups = prepare_prompts(model, batches, "resample", ())
        state = train_masks(groups, KL, training, start, EdgeMatrix(graph, model.device))
    torch.testing.assert_close(state.multipliers, multipliers.detach(), atol=1e-6, rtol=0)
    torch.testing.assert_close(state.log_alpha, alpha.detach(), atol=1e-4, rtol=0)
    assert float((state.log_alpha - start).abs().max()) > 1


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("constraint", ["budget", "lagrangian"])
def test_a_run_that_was_stopped_goes_on_to_the_same_result(constraint, tmp_path, monkeypatch):
    from acdc.discovery import masks

    model, batches = tiny("llama"), [make_batch(3, 6), make_batch(2, 8)]
    options = {"steps": 9, "sparsity": 0.8, "prompts_per_step": 2, "constraint": constraint}
    whole = edge_pruning(model, batches, **options)
    monkeypatch.setattr(masks, "SAVE_EVERY", 2)
    loss, path = masks.mean_loss, tmp_path / "masks.safetensors"
    n_left = 5

    def five_times(*given):
        nonlocal n_left
        if not n_left:
            raise StoppedError
        n_left -= 1
        return loss(*given)

    monkeypatch.setattr(masks, "mean_loss", five_times)
    with pytest.raises(StoppedError):
        edge_pruning(model, batches, checkpoint=path, **options)
    monkeypatch.setattr(masks, "mean_loss", loss)
    assert edge_pruning(model, batches, checkpoint=path, **options) == whole
    assert n_left == 0
    monkeypatch.setattr(masks, "mean_loss", five_times)  # all steps are done: none is taken again
    assert edge_pruning(model, batches, checkpoint=path, **options) == whole


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    model, batches, path = tiny("llama"), [make_batch(3, 6)], tmp_path / "masks.safetensors"
    edge_pruning(model, batches, checkpoint=path, steps=2)
    before = path.read_bytes()
    with pytest.raises(AcdcError, match="of another run: its steps is 2, here it is 3"):
        edge_pruning(model, batches, checkpoint=path, steps=3)
    with pytest.raises(AcdcError, match="its prompts is"):
        edge_pruning(model, [make_batch(3, 6, seed=1)], checkpoint=path, steps=2)
    with pytest.raises(AcdcError, match="its start is 'eap_ig', here it is 'exact'"):
        edge_pruning(model, batches, checkpoint=path, steps=2, start="exact")
    with pytest.raises(AcdcError, match="its model is"):
        edge_pruning(tiny("mistral"), batches, checkpoint=path, steps=2)
    assert path.read_bytes() == before
    path.write_bytes(b"something else")
    with pytest.raises(AcdcError, match="not a checkpoint"):
        edge_pruning(model, batches, checkpoint=path, steps=2)
    assert path.read_bytes() == b"something else"


@pytest.mark.parametrize(("option", "value"), [
    ("steps", 0), ("prompts_per_step", 0), ("sparsity", 1.5), ("learning_rate", math.nan), ("learning_rate", 0.0),
    ("seed", -1), ("warmup", -0.1), ("sparsity", 1.0),
])
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(AcdcError, match=f"{option}="):
        edge_pruning(tiny("llama"), [make_batch(2, 5)], **{option: value})


def test_a_start_that_is_none_is_refused():
    model, batches = tiny("llama"), [make_batch(2, 5)]
    other = METHODS["random"](model, batches, kv="group")
    for start, message in ((other, "another graph"), ("eap_gi", "eap_ig"), ("edge_pruning", "from itself")):
        with pytest.raises(AcdcError, match=message):
            edge_pruning(model, batches, steps=1, start=start)


def test_a_start_by_name_is_that_by_scores():
    model, batches = tiny("llama"), [make_batch(3, 6)]
    by_name = edge_pruning(model, batches, steps=3, start="exact")
    by_scores = edge_pruning(model, batches, steps=3, start=METHODS["exact"](model, batches, KL))
    assert by_name == by_scores
    assert by_name != edge_pruning(model, batches, steps=3)


def test_a_metric_without_gradient_is_refused():
    with pytest.raises(AcdcError, match="no gradient"):
        edge_pruning(tiny("llama"), [make_batch(2, 5)], METRICS["accuracy"])


@pytest.mark.parametrize("positions", ["all", "roles"])
@pytest.mark.parametrize("name", ["edge_pruning", "subnetwork_probing", "ugs"])
def test_bfloat16_resembles_float32(name, positions):
    batches = [make_batch(2, 6), make_batch(2, 7)]
    rough, fine = (METHODS[name](tiny("llama", dtype), batches, KL, steps=6, prompts_per_step=2, positions=positions,
                                 ablation="mean").values for dtype in (torch.bfloat16, torch.float32))
    assert np.corrcoef(rough, fine)[0, 1] > 0.9

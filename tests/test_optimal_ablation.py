"""Learned constants: where they start, how they are differentiated, that they help, and what comes of them."""

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny

from acdc.ablation import prepare_ablation
from acdc.activations import attention_bias, contribution
from acdc.circuit import Circuit
from acdc.discovery import METHODS
from acdc.errors import AcdcError
from acdc.evaluation.faithfulness import faithfulness, measure
from acdc.learning import mean_loss, prepare_prompts
from acdc.metrics import METRICS
from acdc.optimal_ablation import START, first_constants, learn_ablation
from acdc.patching import kept_matrix, run_circuit
from acdc.transformer import frozen

KL = METRICS["kl_divergence"]


def batches_of(n=3):
    return [make_batch(n, 9), make_batch(2, 6, seed=1)]


def some_circuit(model, density=0.3, kv="head"):
    graph = model.graph(kv)
    return Circuit(graph, np.random.default_rng(0).random(graph.n_edges) < density)


def loss_of(model, circuit, batches, ablation):
    return measure(model, [circuit], batches, KL, ablation=ablation)[2].mean().item()


def constants_of(model, batches):
    with frozen(model):
        groups = prepare_prompts(model, batches, START, ())
        return groups, first_constants(model, batches)


def tensors(run):
    return [x for value in vars(run).values() for x in (value if isinstance(value, list) else [value]) if x is not None]


def tolerance(family):
    return 1e-5 if "gemma" in family else 1e-9  # HF computes the norms of Gemma in float32


def test_they_start_from_the_mean_over_positions(family):
    model, batches = tiny(family), batches_of()
    mean = prepare_ablation(model, batches, "mean_over_positions")
    groups, constants = constants_of(model, batches)
    assert all(map(torch.equal, tensors(constants.replacement().activations), tensors(mean(batches[0]).activations)))
    circuit = some_circuit(model)
    start = learn_ablation(model, batches, circuit=circuit, steps=0)
    assert loss_of(model, circuit, batches, start) == loss_of(model, circuit, batches, mean)
    kept = torch.from_numpy(kept_matrix(circuit.graph, circuit.kept)).double()
    for group in groups:
        torch.testing.assert_close(constants.logits(group.soft, kept), run_circuit(
            model, group.batch, circuit, mean(group.batch)), atol=tolerance(family), rtol=0)


def moved_constants(model, batches):
    """Far from where they start: by a unit or so, so that what is checked is not the mean's."""
    groups, constants = constants_of(model, batches)
    noise = torch.randn(constants.shift.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        constants.shift += 0.5 * noise
    return groups, constants


def test_what_channels_read_is_the_sum_of_what_nodes_write(family):
    """And with nothing kept the logits are those of the last sum; a circuit run is the soft run."""
    model, batches = tiny(family), batches_of()
    groups, constants = moved_constants(model, batches)
    replacement = constants.replacement()
    run, total = replacement.activations, replacement.activations.input
    for layer, block in enumerate(model.blocks):
        index, bias = model.graph().layer(layer), attention_bias(block)
        torch.testing.assert_close(run.attn_in[layer], total, atol=tolerance(family), rtol=0)
        after = total + sum(contribution(model, run, src) for src in range(index.heads.start, index.heads.stop))
        after = after if bias is None else after + bias
        reads = total if model.parallel else after
        torch.testing.assert_close(run.mlp_in[layer], reads, atol=tolerance(family), rtol=0)
        total = after + run.mlp[layer]
    torch.testing.assert_close(run.final, total, atol=tolerance(family), rtol=0)
    empty, some = Circuit.from_edges(model.graph(), []), some_circuit(model)
    expected = model.logits(total[:, -1]).expand(3, -1)
    torch.testing.assert_close(run_circuit(model, batches[0], empty, replacement), expected,
                               atol=tolerance(family), rtol=0)
    kept = torch.from_numpy(kept_matrix(some.graph, some.kept)).double()
    torch.testing.assert_close(run_circuit(model, batches[0], some, replacement),
                               constants.logits(groups[0].soft, kept), atol=tolerance(family), rtol=0)


def test_gradient_is_the_finite_difference(family):
    """Of every kind of number: the input's, heads' z, MLPs'; by circuit runs of the constants moved."""
    model, batches = tiny(family), batches_of()
    groups, constants = moved_constants(model, batches)
    circuit = some_circuit(model)
    kept = torch.from_numpy(kept_matrix(circuit.graph, circuit.kept)).double()
    with frozen(model):
        mean_loss(groups, torch.arange(5), kept, KL, constants.logits, constants.shift).backward()
    gradient, at = constants.shift.grad, constants.shift.detach().clone()
    assert gradient is not None
    n_heads, d_head, d_model = model.blocks[0].attention.out_weight.shape
    kind = torch.tensor([0] * d_model + ([1] * n_heads * d_head + [2] * d_model) * model.n_layers)
    step, rel = (1e-5, 1e-5) if family.startswith("gpt") else (1e-3, 1e-2)
    for number in range(3):
        by = torch.randn(at.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        by[kind != number] = 0
        losses = []
        for sign in (1, -1):
            constants.shift = at + sign * step * by
            replacement = constants.replacement()
            losses.append(loss_of(model, circuit, batches, lambda batch, now=replacement: now))
        along = float(gradient @ by)
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(along, rel=rel, abs=1e-5)
        assert abs(along) > 1e-4


@pytest.mark.parametrize("kv", ["head", "group"])
def test_the_circuit_does_better_with_them(family, kv):
    model, batches = tiny(family), batches_of()
    circuit = some_circuit(model, kv=kv)
    before = {name: weight.clone() for name, weight in model.hf.state_dict().items()}
    learned = learn_ablation(model, batches, circuit=circuit, steps=60)
    loss = loss_of(model, circuit, batches, learned)
    assert loss < 0.9 * loss_of(model, circuit, batches, "mean_over_positions")
    assert loss < loss_of(model, circuit, batches, "zero")  # constants as well
    result = faithfulness(model, circuit, batches, KL, ablation=learned)
    assert (result.circuit, result.faithfulness) == (loss, pytest.approx(1 - loss / result.empty))
    assert all(torch.equal(before[name], weight) for name, weight in model.hf.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in model.hf.parameters())


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_with_all_cut_they_come_near_the_best_constant_logits(name):
    """Found alone: the vector that the unembedding reads, by another optimiser. Random models' own KL is large."""
    model, batches = tiny(name), batches_of()
    empty = Circuit.from_edges(model.graph(), [])
    reference = torch.cat([model.hf(batch.clean).logits[:, -1] for batch in batches]).detach()
    vector = prepare_ablation(model, batches, START)(batches[0]).activations.final[0, 0].clone().requires_grad_()
    optimiser = torch.optim.LBFGS([vector], max_iter=500, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = KL.value(model.logits(vector[None]).expand(5, -1), batches[0], reference).mean()
        value.backward()
        return value

    optimiser.step(loss)
    best = loss().item()
    start = loss_of(model, empty, batches, START)
    learned = learn_ablation(model, batches, circuit=empty, steps=300)
    assert best - 1e-6 < loss_of(model, empty, batches, learned) < best + 0.02 * (start - best)


def test_they_are_deterministic_by_seed_and_do_not_depend_on_the_batches():
    model, (first, second) = tiny("llama"), batches_of()
    circuit = some_circuit(model)

    def learn(batches, seed=0):
        learned = learn_ablation(model, batches, circuit=circuit, steps=5, prompts_per_step=2, seed=seed)
        return tensors(learned(first).activations)

    ours = learn([first, second])
    assert all(map(torch.equal, ours, learn([first, second])))
    assert not all(map(torch.equal, ours, learn([first, second], seed=1)))


def test_positions_are_told_apart_by_what_is_kept_alone():
    """A circuit of edges at each position: the constants help, and are the same at all."""
    model, batch = tiny("qwen2"), make_batch()
    graph = METHODS["random"](model, [batch], positions="each").graph
    circuit = Circuit(graph, np.random.default_rng(0).random(graph.n_edges) < 0.3)
    learned = learn_ablation(model, [batch], circuit=circuit, steps=40)
    assert learned(batch).activations.final.shape[:2] == (1, 1)
    assert loss_of(model, circuit, [batch], learned) < 0.9 * loss_of(model, circuit, [batch], START)


def test_what_is_refused():
    model, batches = tiny("gpt2"), batches_of()
    circuit = some_circuit(model)
    with pytest.raises(AcdcError, match="'accuracy' has no gradient"):
        learn_ablation(model, batches, METRICS["accuracy"], circuit=circuit)
    for option in ({"steps": -1}, {"prompts_per_step": 0}, {"seed": -1}, {"learning_rate": 0.0}):
        with pytest.raises(AcdcError, match=f"{next(iter(option))}="):
            learn_ablation(model, batches, circuit=circuit, **option)
    with pytest.raises(AcdcError, match="of another model"):
        learn_ablation(tiny("gpt_neox"), batches, circuit=circuit)
    with pytest.raises(AcdcError, match="no prompts given"):
        learn_ablation(model, [], circuit=circuit)
    for name in ("eap_ig", "edge_pruning", "random"):
        with pytest.raises(AcdcError, match="'optimal' is learned for one circuit"):
            METHODS[name](model, batches, KL, ablation="optimal")

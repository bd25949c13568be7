"""Interventions equal what the engine computes by other means, with a cache and without."""

import pytest
import torch
from conftest import make_batch, tiny
from naive import NaiveModel

from acdc.ablation import prepare_ablation
from acdc.activations import record
from acdc.annotation.sites import read
from acdc.discovery.eap import eap
from acdc.errors import AcdcError
from acdc.intervention.direction import Direction
from acdc.intervention.generation import Cut, generate, generate_cut, without
from acdc.intervention.interventions import ablate_nodes, add, clamp, intervened, project_out
from acdc.intervention.measuring import last_logits, metric_change, text_loss
from acdc.metrics import METRICS
from acdc.patching import patch_nodes, run_circuit
from acdc.resume import resume

CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # HF rounds a post-norm to float32 also in a float64 model


def direction(at="resid1", seed=0):
    vector = torch.randn(24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Direction(at, vector, "some", scale=2.0)


def hf_text(model, tokens, n):
    mask = torch.ones_like(tokens)
    return model.hf.generate(tokens, attention_mask=mask, max_new_tokens=n, do_sample=False, pad_token_id=0)[
        :, tokens.shape[1]:]


def test_steering_is_the_model_resumed_from_the_changed_stream(family):
    model, batch, steer = tiny(family), make_batch(), direction()
    run = record(model, batch.clean)
    changed = run.attn_in[1] + 3.0 * 2.0 * steer.vector / steer.vector.norm()
    expected = resume(model, run, 1, changed, 0, at_mlp=False)
    torch.testing.assert_close(last_logits(model, batch, [add(steer, 3.0)]), expected, **CLOSE)
    torch.testing.assert_close(last_logits(model, batch, [add(steer, 6.0, absolute=True)]), expected, **CLOSE)


def test_clamping_sets_the_projection_and_nothing_else():
    model, batch, held = tiny("llama"), make_batch(), direction()
    before = read(model, batch.clean, ["resid1"])["resid1"]
    for intervention, value in ((clamp(held, -1.5), -3.0), (project_out(held), 0.0)):
        with intervened(model, [intervention]):
            after = read(model, batch.clean, ["resid1"])["resid1"]
        torch.testing.assert_close(after @ held.unit, torch.full((3, 9), value, dtype=torch.float64))
        rest = torch.eye(24, dtype=torch.float64) - torch.outer(held.unit, held.unit)
        torch.testing.assert_close(after @ rest, before @ rest)


def test_interventions_are_made_in_order_and_gone_afterwards():
    model, batch, v = tiny("llama"), make_batch(), direction()
    untouched = last_logits(model, batch)
    with intervened(model, [add(v, 9.0), clamp(v, 1.0)]), intervened(model, [add(v, 0.5)]):
        after = read(model, batch.clean, ["resid1"])["resid1"]
    torch.testing.assert_close(after @ v.unit, torch.full((3, 9), 3.0, dtype=torch.float64))
    torch.testing.assert_close(last_logits(model, batch), untouched)


@pytest.mark.parametrize("node", ["input", "a1.h2", "m0"])
def test_an_ablated_node_is_a_node_patched_and_a_node_cut(family, node):
    model, batch = tiny(family), make_batch()
    resample, zero = (prepare_ablation(model, [batch], name)(batch) for name in ("resample", "zero"))
    by_site = last_logits(model, batch, ablate_nodes(model, [node], resample))
    torch.testing.assert_close(by_site, patch_nodes(model, batch, [node]), **CLOSE)
    circuit = without(model.graph(), [node])
    by_site = last_logits(model, batch, ablate_nodes(model, [node], zero))
    torch.testing.assert_close(by_site, run_circuit(model, batch, circuit, zero), **CLOSE)


def test_a_cut_is_the_naive_circuit():
    model, batch = tiny("gpt2"), make_batch()
    graph = model.graph()
    cut = Cut(without(graph, ["a0.h1->m1", "a1.h2", "input->a0.h0<q>"]), prepare_ablation(model, [batch]))
    assert graph.n_edges - cut.circuit.n_edges == 2 + sum(name.startswith("a1.h2->") for name in graph.edge_names)
    naive = NaiveModel(model.hf)
    _, corrupted = naive.run(batch.corrupted, graph)
    expected, _ = naive.run(batch.clean, graph, cut.circuit.kept, corrupted)
    torch.testing.assert_close(last_logits(model, batch, cut=cut), expected)


def test_without_interventions_the_text_is_huggingfaces(family):
    model, prompt = tiny(family), make_batch().clean[:1]
    expected = hf_text(model, prompt, 6)
    torch.testing.assert_close(generate(model, prompt, 6), expected)
    batch = make_batch()
    for name in ("zero", "mean_over_positions"):
        everything = Cut(without(model.graph(), []), prepare_ablation(model, [batch], name))
        torch.testing.assert_close(generate_cut(model, prompt, 6, everything), expected)
    with intervened(model, [add(direction(), 3.0)]):
        steered = hf_text(model, prompt, 6)
    torch.testing.assert_close(generate(model, prompt, 6, interventions=[add(direction(), 3.0)]), steered)


@pytest.mark.parametrize("positions", ["all", "prompt", "last", [2, -1, 10]])
def test_with_a_cache_places_are_those_of_one_full_pass(family, positions):
    """Each step's token is the one that a pass over the whole text, changed by hand at the same places, gives."""
    model, prompt, v = tiny(family), make_batch().clean[:1], direction()
    found = generate(model, prompt, 4, interventions=[add(v, 5.0, positions=positions)])
    n = prompt.shape[1]
    places = {"all": range(n + 4), "prompt": range(n), "last": range(n - 1, n + 4)}.get(str(positions), [2, n - 1, 10])
    for i in range(4):
        tokens = torch.cat([prompt, found[:, :i]], 1)
        here = torch.tensor([float(p in places) for p in range(tokens.shape[1])], dtype=torch.float64)
        run = record(model, tokens)
        changed = run.attn_in[1] + here[None, :, None] * 10.0 * v.unit
        assert int(resume(model, run, 1, changed, 0, at_mlp=False)[0].argmax()) == int(found[0, i])


def test_nodes_ablated_in_generation_are_the_cut_in_generation():
    model, batch = tiny("gpt2"), make_batch()
    prompt, nodes = batch.clean[:1], ["a1.h2", "m2"]
    ablation = prepare_ablation(model, [batch], "mean_over_positions")
    by_sites = generate(model, prompt, 5, interventions=ablate_nodes(model, nodes, ablation(batch)))
    torch.testing.assert_close(by_sites, generate_cut(model, prompt, 5, Cut(without(model.graph(), nodes), ablation)))
    assert not torch.equal(by_sites, generate(model, prompt, 5))


def test_resample_in_generation_continues_both_prompts_alike():
    model, batch = tiny("gpt2"), make_batch()
    prompt, other = batch.clean[:1], batch.corrupted[:1]
    nothing = Cut(without(model.graph(), list(model.graph().src_index)), prepare_ablation(model, [batch]))
    found = generate_cut(model, prompt, 4, nothing, corrupted=other)  # with all cut, the corrupted prompt's own text
    torch.testing.assert_close(found, hf_text(model, other, 4))


def test_the_metric_is_that_of_the_first_generated_step():
    model, batch, v = tiny("llama"), make_batch(), direction()
    first = [generate(model, row[None], 1, interventions=[add(v, 3.0)]).item() for row in batch.clean]
    assert last_logits(model, batch, [add(v, 3.0)]).argmax(-1).tolist() == first
    result = metric_change(model, [batch], interventions=[add(v, 3.0)])
    metric = METRICS["logit_difference"]
    logits = [last_logits(model, batch, which) for which in ([], [add(v, 3.0)])]
    before, after = (float(metric(x, batch, logits[0]).mean()) for x in logits)
    assert (result.before.value, result.after.value) == pytest.approx((before, after))
    assert result.change.value == pytest.approx(after - before)
    assert result.change.low <= result.change.value <= result.change.high


def test_the_loss_on_text_is_huggingfaces():
    model, tokens = tiny("llama"), make_batch(n=6).clean
    expected = float(model.hf(tokens, labels=tokens).loss.detach())
    assert text_loss(model, tokens).mean() == pytest.approx(expected)
    everything = Cut(without(model.graph(), []), prepare_ablation(model, [make_batch()], "zero"))
    assert text_loss(model, tokens, cut=everything).mean() == pytest.approx(expected)
    assert text_loss(model, tokens, interventions=[add(direction(), 3.0)]).mean() != pytest.approx(expected)


def test_sampling_is_by_seed():
    model, prompt = tiny("llama"), make_batch().clean[:1]
    drawn = [generate(model, prompt, 12, temperature=2.0, seed=seed).tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_it_ends_where_the_model_ends_its_text():
    model, prompt = tiny("llama"), make_batch().clean[:1]
    third = int(generate(model, prompt, 3)[0, -1])
    model.hf.generation_config.eos_token_id = third
    found = generate(model, prompt, 9)
    assert int(found[0, -1]) == third and found.shape[1] <= 3


def test_mistakes():
    model, batch, v = tiny("llama"), make_batch(), direction()
    prompt = batch.clean[:1]
    scores = eap(model, [batch])
    zero = prepare_ablation(model, [batch], "zero")
    wide = Direction("resid1", torch.ones(7, dtype=torch.float64), "wide", 1.0)
    cases = [
        ("7 dimensions, resid1 has 24", lambda: last_logits(model, batch, [add(wide, 1.0)])),
        ("unknown positions 'some'", lambda: last_logits(model, batch, [add(v, 1.0, positions="some")])),
        ("begin at -9", lambda: last_logits(model, batch, [add(v, 1.0, positions=[-10])])),
        ("how large activations", lambda: add(Direction("resid1", v.vector), 1.0)),
        ("unknown node", lambda: ablate_nodes(model, ["a9.h9"], zero(batch))),
        ("at positions 9 to 9", lambda: generate(model, prompt, 3, interventions=ablate_nodes(
            model, ["m0"], prepare_ablation(model, [batch])(first_of(batch))))),
        ("neither a node", lambda: without(model.graph(), ["logits"])),
        ("at once", lambda: last_logits(model, batch, [add(v, 1.0)], Cut(scores.top(5, by="magnitude"), zero))),
        ("must have the same number", lambda: generate_cut(model, prompt, 1, Cut(without(model.graph(), []), zero),
                                                           corrupted=prompt[:, 1:])),
        ("temperature -1", lambda: generate(model, prompt, 1, temperature=-1.0)),
        ("at least one of each", lambda: generate(model, prompt[:, :0], 1)),
        ("not finite", lambda: generate(model, prompt, 1, interventions=[add(v, float("nan"))])),
    ]
    for message, attempt in cases:
        with pytest.raises(AcdcError, match=message):
            attempt()


def first_of(batch):
    return type(batch)(batch.clean[:1], batch.corrupted[:1], batch.answer[:1], batch.wrong[:1], batch.examples[:1])

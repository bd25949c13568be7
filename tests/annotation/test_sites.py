"""Sites: what is read is what the engine records, and a change there is what the engine computes from it."""

import pytest
import torch
from conftest import make_batch, tiny

from acdc.activations import contribution, record
from acdc.annotation.sites import changed, check_after, read, site, width
from acdc.errors import AcdcError
from acdc.patching import patch_nodes
from acdc.resume import resume


def test_sites_hold_what_the_engine_records(family):
    model, batch = tiny(family), make_batch()
    run = record(model, batch.clean)
    places = [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    expected = {"input": run.input, f"resid{model.n_layers}": run.final}
    for layer in range(model.n_layers):
        expected |= {f"resid{layer}": run.attn_in[layer], f"m{layer}": run.mlp[layer],
                     f"m{layer}.in": model.blocks[layer].mlp_norm(run.mlp_in[layer])}
        if model.blocks[layer].mlp_norm.eps is not None:
            expected[f"m{layer}.norm"] = model.blocks[layer].mlp_norm.statistics(run.mlp_in[layer])[0]
        if not model.parallel:
            expected[f"resid{layer}.mid"] = run.mlp_in[layer]
            expected[f"a{layer}"] = run.mlp_in[layer] - run.attn_in[layer]
    for layer, head in places:
        node = model.graph().src_index[f"a{layer}.h{head}"]
        expected[f"a{layer}.h{head}"] = contribution(model, run, node)
        if model.blocks[layer].attn_post is None:
            expected[f"a{layer}.h{head}.z"] = run.z[layer][:, :, head]
            expected[f"a{layer}.z"] = run.z[layer].flatten(-2)
    found = read(model, batch.clean, list(expected))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-6, msg=name)
        assert width(model, name) == value.shape[-1]


def test_neurons_are_what_the_last_weights_of_the_mlp_read():
    model, batch = tiny("llama"), make_batch()
    found = read(model, batch.clean, ["m1.neurons", "m1"])
    torch.testing.assert_close(model.blocks[1].mlp.down_proj(found["m1.neurons"]), found["m1"])
    gpt2 = tiny("gpt2")
    found = read(gpt2, batch.clean, ["m1.neurons", "m1"])
    torch.testing.assert_close(gpt2.blocks[1].mlp.c_proj(found["m1.neurons"]), found["m1"])


@pytest.mark.parametrize("node", ["input", "a1.h2", "m0", "m2"])
def test_a_node_changed_at_its_site_is_a_node_patched(family, node):
    model, batch = tiny(family), make_batch()
    corrupted = read(model, batch.corrupted, [node])[node]
    with changed(model, {node: lambda x: corrupted}):
        logits = model.hf(batch.clean, attention_mask=model.full_mask(batch.clean)).logits[:, -1]
    # HF rounds a post-norm to float32 also in a float64 model
    torch.testing.assert_close(logits, patch_nodes(model, batch, [node]), atol=1e-5, rtol=1e-5)
    untouched = model.hf(batch.clean, attention_mask=model.full_mask(batch.clean)).logits[:, -1]
    torch.testing.assert_close(untouched, model.logits(record(model, batch.clean).final[:, -1]))


@pytest.mark.parametrize(("name", "at_mlp"), [("resid1", False), ("resid1.mid", True)])
def test_a_change_of_the_residual_stream_stays_in_it(family, name, at_mlp):
    model, batch = tiny(family), make_batch()
    if model.parallel and at_mlp:
        return
    run = record(model, batch.clean)
    new = torch.randn_like(run.final)
    with changed(model, {name: lambda x: new}):
        found = read(model, batch.clean, [f"resid{model.n_layers}"])[f"resid{model.n_layers}"]
    expected = resume(model, run, 1, new, 0, at_mlp=at_mlp)
    torch.testing.assert_close(model.logits(found[:, -1]), expected, atol=1e-5, rtol=1e-5)


def test_what_the_norm_makes_is_changed_before_its_gain_and_bias(family):
    model, batch = tiny(family), make_batch()
    norm = model.blocks[1].mlp_norm
    if norm.eps is None:
        with pytest.raises(AcdcError, match="there is no norm before that MLP"):
            site(model, "m1.norm")
        return
    new = torch.randn_like(read(model, batch.clean, ["m1.in"])["m1.in"])
    with changed(model, {"m1.norm": lambda x: new}):
        found = read(model, batch.clean, ["m1.in"])["m1.in"]
    expected = new if norm.gain is None else new * norm.gain + (0 if norm.bias is None else norm.bias)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "reads", "target"), [
    ("llama", "m1", "m1.in"), ("llama", "m1", "m0"), ("llama", "resid2", "m1"), ("llama", "a1.h1", "a1.h2.z"),
    ("llama", "m1.in", "a1"), ("llama", "a1", "a1.h1"), ("gpt_neox", "a1", "m1"), ("llama", "resid1.mid", "a1.z"),
])
def test_what_comes_before_cannot_be_rebuilt(family, reads, target):
    with pytest.raises(AcdcError, match=f"{target} does not come after {reads} in"):
        check_after(tiny(family), reads, target)


@pytest.mark.parametrize(("reads", "target"), [
    ("m1.in", "m1"), ("m1", "m1"), ("resid1.mid", "m1"), ("resid1", "a1.h2"), ("a1.h1.z", "a1.h1"), ("a1.h1", "a1"),
    ("a1.z", "a1"), ("a1", "resid1.mid"), ("m1", "resid2"), ("input", "m0"), ("m1.norm", "m1.neurons"), ("m0", "a1.h0"),
    ("input", "resid0"),
])
def test_what_comes_after_can(reads, target):
    check_after(tiny("llama"), reads, target)


def test_all_heads_at_once_are_their_attention():
    model, batch = tiny("llama"), make_batch()
    with changed(model, {f"a1.h{head}": torch.zeros_like for head in range(4)}):
        one_by_one = read(model, batch.clean, ["resid3"])["resid3"]
    with changed(model, {"a1": torch.zeros_like}):
        at_once = read(model, batch.clean, ["resid3"])["resid3"]
    torch.testing.assert_close(one_by_one, at_once)


def test_while_generating_a_site_sees_the_prompt_and_then_each_new_position():
    model, lengths = tiny("llama"), []
    with changed(model, {"m1": lambda x: lengths.append(x.shape[1])}):
        model.hf.generate(torch.ones(1, 4, dtype=torch.long), max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert lengths == [4, 1, 1]


def test_gradients_flow_through_changes():
    model, batch = tiny("llama"), make_batch()
    by = torch.zeros(1, 1, 24, dtype=torch.float64, requires_grad=True)
    with changed(model, {"resid1": lambda x: x + by}):
        model.hf(batch.clean).logits[:, -1, 0].sum().backward()
    assert by.grad is not None and by.grad.abs().max() > 0


def test_hooks_are_gone_after_an_exception():
    model, runs = tiny("llama"), []
    changes = {"m0": runs.append, "m1": lambda x: x[0, 0, :1]}
    with pytest.raises(AcdcError, match=r"m1 returned the shape \(1,\) for \(3, 9, 24\)"), changed(model, changes):
        model.run_body(make_batch().clean)
    model.run_body(make_batch().clean)
    assert len(runs) == 1


@pytest.mark.parametrize(("family", "name", "expected"), [
    ("llama", "resid", "not a site"), ("llama", "m1.z", "not a site"), ("llama", "m1.h2", "not a site"),
    ("llama", "resid4", "its last is resid3"), ("llama", "m3", "its last is m2"), ("llama", "a0.h4", "h0 to h3"),
    ("gpt_neox", "resid1.mid", "parallel"), ("gpt2_compiled", "m1.neurons", "no neurons"),
])
def test_what_is_not_a_site(family, name, expected):
    with pytest.raises(AcdcError, match=expected):
        site(tiny(family), name)

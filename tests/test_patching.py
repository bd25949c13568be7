"""Circuit runs, activation patching and path patching against HF's logits and a naive implementation."""

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny
from naive import NaiveModel
from tiny_models import tiny_hf

from acdc.ablation import ABLATIONS, Replacement, prepare_ablation
from acdc.activations import attention_bias, contribution, record
from acdc.circuit import Circuit
from acdc.errors import AcdcError
from acdc.patching import patch_nodes, patch_paths, run_circuit
from acdc.task import position_groups, position_names
from acdc.transformer import Transformer

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}

# HF computes Gemma's norms in float32 even in a float64 model: rounding differs where the order of sums does.


def naive_tolerance(family):
    return 5e-5 if "gemma" in family else 1e-9


def everything(model):
    return Circuit.from_edges(model.graph(), []).complement()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("n", "length", "first"), [(1, 2, 0), (3, 9, 3), (2, 17, 15)])
def test_nothing_cut_is_hf_and_all_cut_is_the_corrupted_run(family, dtype, n, length, first):
    model, batch = tiny(family, dtype), make_batch(n, length, first=first)
    with torch.no_grad():
        clean, corrupted = model.hf(batch.clean).logits, model.hf(batch.corrupted).logits
    for ablation in ABLATIONS if n > 1 else ("resample", "mean_over_positions", "zero"):
        replacement = prepare_ablation(model, [batch], ablation)(batch)
        last = run_circuit(model, batch, everything(model), replacement)
        torch.testing.assert_close(last, clean[:, -1], atol=TOLERANCE[dtype], rtol=0)
        all_positions = run_circuit(model, batch, everything(model), replacement, all_positions=True)
        torch.testing.assert_close(all_positions, clean, atol=TOLERANCE[dtype], rtol=0)
    resample = prepare_ablation(model, [batch])(batch)
    empty = run_circuit(model, batch, Circuit.from_edges(model.graph(), []), resample)
    torch.testing.assert_close(empty, corrupted[:, -1], atol=TOLERANCE[dtype], rtol=0)


def test_channel_inputs_are_the_sum_of_contributions(family):
    model, batch = tiny(family, torch.float32), make_batch()
    graph, run = model.graph(), record(model, batch.clean)
    wrote = [contribution(model, run, src) for src in range(len(graph.srcs))]
    for layer, block in enumerate(model.blocks):
        biases = [attention_bias(b) for b in model.blocks]
        earlier = sum((b for b in biases[:layer] if b is not None), torch.zeros(()))
        own = biases[layer] if biases[layer] is not None and not model.parallel else torch.zeros(())
        index = graph.layer(layer)
        total = torch.stack(wrote[: graph.n_srcs_read[index.q.start]]).sum(0) + earlier
        torch.testing.assert_close(total, run.attn_in[layer], atol=2e-5, rtol=0)
        total = torch.stack(wrote[: graph.n_srcs_read[index.mlp_channel]]).sum(0) + earlier + own
        torch.testing.assert_close(total, run.mlp_in[layer], atol=2e-5, rtol=0)
        assert block.mlp is not None
    total = torch.stack(wrote).sum(0) + sum((b for b in biases if b is not None), torch.zeros(()))
    torch.testing.assert_close(total, run.final, atol=2e-5, rtol=0)


@pytest.mark.parametrize("density", [0.02, 0.3, 0.9])
@pytest.mark.parametrize(("kv", "positions"), [("head", "all"), ("group", "all"), ("head", "each"), ("group", "roles")])
def test_circuit_run_equals_the_naive_one(family, density, kv, positions):
    model, batch = tiny(family), make_batch()
    names = position_names([batch], positions)
    naive, graph, flat = NaiveModel(model.hf), model.graph(kv, names), model.graph(positions=names)
    rng = np.random.default_rng(int(100 * density))
    for ablation in ("resample", "zero"):
        kept = rng.random(graph.n_edges) < density
        flat_kept = flat.from_matrix(graph.to_matrix(kept)[:, graph.channel_of_per_head])
        with torch.no_grad():
            _, replaced = naive.run(batch.corrupted, flat)
            if ablation == "zero":
                replaced = {name: torch.zeros_like(value) for name, value in replaced.items()}
            expected, _ = naive.run(batch.clean, flat, flat_kept, replaced, groups=position_groups(batch, names))
        ours = run_circuit(model, batch, Circuit(graph, kept), prepare_ablation(model, [batch], ablation)(batch))
        torch.testing.assert_close(ours, expected, atol=naive_tolerance(family), rtol=0)


def test_mean_ablation_is_the_mean_of_contributions(family):
    """Every prompt and position counts once, also over batches; lengths are kept apart by position."""
    model = tiny(family)
    batches = [make_batch(3, 9, seed=0), make_batch(2, 9, seed=1), make_batch(2, 7, seed=2)]
    naive, graph, batch = NaiveModel(model.hf), model.graph(), batches[0]
    with torch.no_grad():
        runs = [naive.run(b.corrupted, graph)[1] for b in batches]
        kept = np.random.default_rng(0).random(graph.n_edges) < 0.5
        for ablation in ("mean", "mean_over_positions"):
            if ablation == "mean":
                means = {name: torch.cat([runs[0][name], runs[1][name]]).mean(0, keepdim=True) for name in runs[0]}
            else:
                means = {name: torch.cat([run[name].flatten(0, 1) for run in runs]).mean(0)[None, None]
                         for name in runs[0]}
            replaced = {name: value.expand(3, 9, -1) for name, value in means.items()}
            expected, _ = naive.run(batch.clean, graph, kept, replaced)
            replacement = prepare_ablation(model, batches, ablation)(batch)
            ours = run_circuit(model, batch, Circuit(graph, kept), replacement)
            torch.testing.assert_close(ours, expected, atol=naive_tolerance(family), rtol=0)


def test_noising_a_node_is_cutting_its_edges(family):
    model, batch = tiny(family), make_batch()
    graph = model.graph()
    replacement = prepare_ablation(model, [batch])(batch)
    for nodes in (["a1.h2"], ["m0", "a2.h1"], ["input"]):
        cut = np.isin(graph.edge_src, [graph.src_index[name] for name in nodes])
        expected = run_circuit(model, batch, Circuit(graph, ~cut), replacement)
        torch.testing.assert_close(patch_nodes(model, batch, nodes), expected, atol=naive_tolerance(family), rtol=0)


def test_patching_by_hooks(family):
    """Noising and denoising an MLP at some positions is swapping its output by hand."""
    model, batch = tiny(family), make_batch()
    block = model.blocks[1]
    module = block.mlp if block.mlp_post is None else block.mlp_post.module
    runs = {"clean": record(model, batch.clean), "corrupted": record(model, batch.corrupted)}
    for direction, tokens, other in (("noising", batch.clean, "corrupted"), ("denoising", batch.corrupted, "clean")):
        def swap(m, args, out, other=other):
            out = out.clone()
            out[:, [4, -1]] = runs[other].mlp[1][:, [4, -1]]
            return out

        handle = module.register_forward_hook(swap)
        with torch.no_grad():
            expected = model.hf(tokens).logits[:, -1]
        handle.remove()
        ours = patch_nodes(model, batch, ["m1"], positions=[4, -1], direction=direction)
        torch.testing.assert_close(ours, expected, atol=1e-9, rtol=0)


def test_positions_of_several_nodes_at_once(family):
    """Noising everything that a layer writes at some positions is swapping what it adds to the residual stream."""
    model, batch = tiny(family), make_batch()
    if model.parallel:
        pytest.skip("the MLP beside the heads reads the same stream")
    names = [f"a1.h{h}" for h in range(model.n_heads)]
    corrupted, where = record(model, batch.corrupted), [4, -1]

    def swap(module, args):
        x = args[0].clone()
        x[:, where] = run.attn_in[1][:, where] + (corrupted.mlp_in[1] - corrupted.attn_in[1])[:, where]
        return (x,)

    run = record(model, batch.clean)
    handle = model.blocks[1].mlp_norm.module.register_forward_pre_hook(swap)
    with torch.no_grad():  # only the MLP of this layer reads the swapped stream
        naive_mlp = model.blocks[1].mlp_output(run.mlp_in[1])
    handle.remove()
    ours = patch_paths(model, batch, [[name, "m1", "logits"] for name in names], positions=where)
    with torch.no_grad():
        expected = model.logits((run.final + naive_mlp - run.mlp[1])[:, -1])
    torch.testing.assert_close(ours, expected, atol=naive_tolerance(family), rtol=0)


def test_noising_positions_of_one_head_leaves_its_layer(family):
    """What a head wrote at other positions, and what its siblings wrote, stays as it was."""
    model, batch = tiny(family), make_batch()
    graph = model.graph()
    clean, corrupted = record(model, batch.clean), record(model, batch.corrupted)
    src = graph.src_index["a2.h1"]
    ours = patch_nodes(model, batch, ["a2.h1"], positions=[-1])
    moved = (contribution(model, corrupted, src) - contribution(model, clean, src))[:, -1]
    with torch.no_grad():
        mlp_in = clean.mlp_in[2][:, -1] + (0 if model.parallel else moved)
        written = model.blocks[2].mlp_output(mlp_in[:, None])[:, 0] - clean.mlp[2][:, -1]
        expected = model.logits(clean.final[:, -1] + moved + written)
    torch.testing.assert_close(ours, expected, atol=naive_tolerance(family), rtol=0)


def test_patching_every_node_is_the_other_run(family):
    model, batch = tiny(family), make_batch()
    names = [node.name for node in model.graph().srcs]
    with torch.no_grad():
        corrupted, clean = model.hf(batch.corrupted).logits[:, -1], model.hf(batch.clean).logits[:, -1]
    torch.testing.assert_close(patch_nodes(model, batch, names), corrupted, atol=1e-5, rtol=0)
    torch.testing.assert_close(patch_nodes(model, batch, names, direction="denoising"), clean, atol=1e-5, rtol=0)


def test_path_patching_equals_the_naive_one(family):
    """A path's edges carry what the path brings; everything else stays clean."""
    model, batch = tiny(family), make_batch()
    naive, graph = NaiveModel(model.hf), model.graph()
    path = ["a0.h1", "m1", "a2.h3<k>", "logits"]
    edges = ["a0.h1->m1", "m1->a2.h3<k>", "a2.h3->logits"]
    with torch.no_grad():
        _, clean = naive.run(batch.clean, graph)
        _, corrupted = naive.run(batch.corrupted, graph)
        kept = Circuit.from_edges(graph, edges[1:]).kept
        logits, _ = naive_path(naive, batch.clean, graph, kept, clean, corrupted["a0.h1"] - clean["a0.h1"])
    ours = patch_paths(model, batch, [path])
    torch.testing.assert_close(ours, logits, atol=naive_tolerance(family), rtol=0)
    if family != "gpt2_compiled":  # its m1 has no effect
        with torch.no_grad():
            assert not torch.allclose(ours, model.hf(batch.clean).logits[:, -1], atol=1e-7)


def naive_path(naive, tokens, graph, kept, clean, change):
    """The naive run in which only m1 reads `change` besides what its kept edges bring."""
    mlp = naive.mlp
    naive.mlp = lambda layer, x: mlp(layer, x + change if layer is naive.layers[1] else x)
    return naive.run(tokens, graph, kept, clean)


def test_a_small_circuit_computes_few_nodes():
    """Cost grows with the circuit: modules that no kept path reaches are not called."""
    model, batch = tiny("llama"), make_batch()
    calls = []
    handles = [block.mlp.register_forward_hook(lambda m, a, o, i=i: calls.append((i, o.shape[-2])))
               for i, block in enumerate(model.blocks)]
    replacement = prepare_ablation(model, [batch])(batch)
    calls.clear()
    circuit = Circuit.from_edges(model.graph(), ["input->m0", "m0->m2", "m2->logits", "input->m1", "a0.h0->m1"])
    run_circuit(model, batch, circuit, replacement)
    for handle in handles:
        handle.remove()
    assert calls == [(0, 1), (2, 1)]  # m1 reaches no logits; only the last position is read


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_a_head_that_reads_nothing_writes_nothing(family, dtype):
    """Under zero ablation a1.h0's sibling writes exactly 0 into m1, whose norm would make much of any rounding."""
    model, batch = tiny(family, dtype), make_batch()
    replacement = prepare_ablation(model, [batch], "zero")(batch)
    edges = [["a0.h1->m1", "m1->logits"], ["input->a0.h0<v>", "a0.h1->m1", "m1->logits"]]
    without, with_sibling = (run_circuit(model, batch, Circuit.from_edges(model.graph(), names), replacement)
                             for names in edges)
    assert torch.equal(without, with_sibling)


def test_any_run_can_be_the_replacement(family):
    """Also one of prompts that differ from the clean ones before the corrupted ones do."""
    model, batch, other = tiny(family), make_batch(first=5), make_batch(seed=1, first=5)
    replacement = Replacement(record(model, other.clean), consistent=True)
    with torch.no_grad():
        expected = model.hf(batch.clean).logits[:, -1]
    torch.testing.assert_close(run_circuit(model, batch, everything(model), replacement), expected, atol=1e-9, rtol=0)
    with pytest.raises(AcdcError, match="replacement is of 2 prompts"):
        run_circuit(model, batch, everything(model), Replacement(record(model, other.clean[:2]), consistent=True))


def test_every_position_sees_every_other_where_asked():
    """Non-causal models: HF with a mask that hides nothing, and the naive effect of one edge."""
    model = Transformer(tiny_hf("gpt2_compiled", torch.float64), None, "bidirectional", causal=False)
    batch = make_batch()
    mask = torch.zeros(3, 1, 9, 9, dtype=torch.float64)
    with torch.no_grad():
        expected = [model.hf(tokens, attention_mask=mask).logits[:, -1] for tokens in (batch.clean, batch.corrupted)]
        causal = model.hf(batch.clean).logits[:, -1]
    replacement = prepare_ablation(model, [batch])(batch)
    ours = [run_circuit(model, batch, circuit, replacement)
            for circuit in (everything(model), everything(model).complement())]
    torch.testing.assert_close(ours, expected, atol=1e-9, rtol=0)
    assert not torch.allclose(ours[0], causal, atol=1e-6)


def test_the_model_is_left_as_it_was(family):
    model, batch = tiny(family), make_batch()
    model.hf.train()
    before = {name: weight.clone() for name, weight in model.hf.state_dict().items()}
    run_circuit(model, batch, everything(model), prepare_ablation(model, [batch], "mean")(batch))
    patch_nodes(model, batch, ["m0"])
    assert all(module.training for module in model.hf.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.hf.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())
    assert all(torch.equal(weight, before[name]) for name, weight in model.hf.state_dict().items())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, b: patch_nodes(m, b, ["a9.h0"]), "unknown node 'a9.h0'"),
        (lambda m, b: patch_nodes(m, b, ["m0"], positions=[9]), "prompts of 9 tokens"),
        (lambda m, b: patch_paths(m, b, [["m0", "m1"]]), "end in 'logits'"),
        (lambda m, b: patch_paths(m, b, [["m1", "m0", "logits"]]), "computed after"),
        (lambda m, b: patch_paths(m, b, []), "no path"),
        (lambda m, b: patch_nodes(m, b, []), "no node"),
        (lambda m, b: patch_paths(m, b, [["a0.h1", "m1", "logits"], ["a0.h2", "m1", "m2", "logits"]]), "form 4 paths"),
        (lambda m, b: patch_paths(m, b, [["a0.h1", "m1", "logits"], ["m1", "logits"]]), "form 1 paths"),
        (lambda m, b: prepare_ablation(m, [b], "mean")(make_batch(3, 5)), "no mean for prompts of 5 tokens"),
        (lambda m, b: prepare_ablation(m, [b, make_batch(1, 5)], "mean"), "only prompt of 5 tokens"),
        (lambda m, b: prepare_ablation(m, []), "no prompts"),
        (lambda m, b: prepare_ablation(m, [b], "men"), "Did you mean 'mean'"),
    ],
)
def test_bad_requests_say_what_is_wrong(call, message):
    with pytest.raises(AcdcError, match=message):
        call(tiny("gpt2"), make_batch())


def test_a_circuit_of_another_model_is_refused():
    model, batch = tiny("gpt2"), make_batch()
    other = Circuit.from_edges(tiny("llama").graph(), [])
    with pytest.raises(AcdcError, match="another model"):
        run_circuit(model, batch, other, prepare_ablation(model, [batch])(batch))


def test_a_circuit_by_position_has_no_logits_at_all_positions():
    model, batch = tiny("llama"), make_batch(2, 5)
    graph = model.graph(positions=position_names([batch], "each"))
    with pytest.raises(AcdcError, match="exist at the last token only"):
        run_circuit(model, batch, Circuit.from_edges(graph, []).complement(), prepare_ablation(model, [batch])(batch),
                    all_positions=True)

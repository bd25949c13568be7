"""A model that reads images is one as any other: the same equalities, against HF's own forward and a naive one."""

import numpy as np
import pytest
import torch
from naive import NaiveModel
from test_gradients import assert_close, naive_scores
from tiny_vision import image_batch, some_images, tiny_image_model, tiny_vit

from acdc.ablation import ABLATIONS, prepare_ablation
from acdc.activations import attention_bias, contribution, record
from acdc.annotation.annotate import annotate
from acdc.annotation.sites import read, width
from acdc.circuit import Circuit
from acdc.discovery import METHODS
from acdc.discovery.acdc import acdc
from acdc.discovery.acdc_sequential import acdc_sequential
from acdc.discovery.eap import eap
from acdc.discovery.eap_ig import eap_ig
from acdc.discovery.exact import exact
from acdc.errors import AcdcError
from acdc.evaluation.faithfulness import faithfulness
from acdc.metrics import METRICS
from acdc.models import check_parity, load_model, weights_hash
from acdc.patches import PatchTable
from acdc.patching import patch_nodes, run_circuit
from acdc.task import position_groups, position_names

METRIC = METRICS["logit_difference"]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-13)])
def test_nothing_cut_is_hf_on_the_images_and_all_cut_the_corrupted_ones(dtype, tolerance):
    model, batch, images = tiny_image_model(dtype), image_batch(dtype=dtype), some_images().to(dtype)
    with torch.no_grad():
        clean, corrupted = (model.hf.hf(pixel_values=images[i:6:2]).logits for i in (0, 1))
        hidden = model.hf.hf.classifier(model.hf.hf.vit(images[:6:2]).last_hidden_state)
    for ablation in ABLATIONS:
        everything = Circuit(model.graph(), np.ones(model.graph().n_edges, dtype=bool))
        replacement = prepare_ablation(model, [batch], ablation)(batch)
        torch.testing.assert_close(run_circuit(model, batch, everything, replacement), clean, atol=tolerance, rtol=0)
        at_all = run_circuit(model, batch, everything, replacement, all_positions=True)
        torch.testing.assert_close(at_all, torch.cat([hidden[:, 1:], hidden[:, :1]], 1), atol=tolerance, rtol=0)
    nothing = Circuit.from_edges(model.graph(), [])
    empty = run_circuit(model, batch, nothing, prepare_ablation(model, [batch])(batch))
    torch.testing.assert_close(empty, corrupted, atol=tolerance, rtol=0)
    assert check_parity(model) < tolerance


def test_what_is_read_is_the_sum_of_what_was_written():
    model, batch = tiny_image_model(), image_batch()
    graph, run = model.graph(), record(model, batch.clean)
    wrote = [contribution(model, run, src) for src in range(len(graph.srcs))]
    biases = [attention_bias(block) for block in model.blocks]
    for layer in range(model.n_layers):
        index = graph.layer(layer)
        total = sum(wrote[: graph.n_srcs_read[index.q.start]]) + sum(biases[:layer])
        torch.testing.assert_close(total, run.attn_in[layer], atol=1e-12, rtol=0)
        total = sum(wrote[: graph.n_srcs_read[index.mlp_channel]]) + sum(biases[: layer + 1])
        torch.testing.assert_close(total, run.mlp_in[layer], atol=1e-12, rtol=0)
    torch.testing.assert_close(sum(wrote) + sum(biases), run.final, atol=1e-12, rtol=0)


@pytest.mark.parametrize("positions", ["all", "each", "roles"])
@pytest.mark.parametrize("density", [0.05, 0.5])
def test_circuit_run_equals_the_naive_one_in_the_order_of_hf(positions, density):
    model, batch = tiny_image_model(), image_batch()
    names = position_names([batch], positions)
    assert positions != "roles" or names == (*(f"patch r{r} c{c}" for r in (1, 2) for c in (1, 2, 3, 4)), "end")
    naive, graph = NaiveModel(model.hf), model.graph(positions=names)
    kept = np.random.default_rng(1).random(graph.n_edges) < density
    groups = position_groups(batch, names).roll(1, dims=1)  # CLS first
    with torch.no_grad():
        _, replaced = naive.run(batch.corrupted, graph)
        expected, _ = naive.run(batch.clean, graph, kept, replaced, groups=groups)
    ours = run_circuit(model, batch, Circuit(graph, kept), prepare_ablation(model, [batch])(batch))
    torch.testing.assert_close(ours, expected, atol=1e-10, rtol=0)


def test_patching_nodes_is_the_naive_edit():
    model, batch = tiny_image_model(), image_batch()
    naive, graph = NaiveModel(model.hf), model.graph()
    with torch.no_grad():
        _, wrote = naive.run(batch.corrupted, graph)
        for node in ("input", "a1.h2", "m0"):
            expected, _ = naive.run(batch.clean, graph, edit=lambda name, x, at=node: wrote[at] if name == at else x)
            torch.testing.assert_close(patch_nodes(model, batch, [node]), expected, atol=1e-10, rtol=0)


def test_gradient_methods_are_the_naive_gradient():
    model, batch = tiny_image_model(), image_batch()
    assert_close(eap(model, [batch], METRIC).values, naive_scores(model, batch, METRIC, [1.0]))
    expected = naive_scores(model, batch, METRIC, [0, 1 / 3, 2 / 3])
    assert_close(eap_ig(model, [batch], METRIC, steps=3).values, expected)
    for positions in ("each", "roles"):
        by_place = eap(model, [batch], METRIC, positions=positions).values
        matrix = model.graph(positions=position_names([batch], positions)).to_matrix(by_place)
        assert_close(model.graph().from_matrix(matrix.sum(-1, keepdims=True)), eap(model, [batch], METRIC).values)


def test_exact_is_the_naive_cut_of_each_edge():
    model, batch = tiny_image_model(), image_batch()
    naive, graph = NaiveModel(model.hf), model.graph()
    scores = exact(model, [batch], METRIC)
    with torch.no_grad():
        clean, _ = naive.run(batch.clean, graph)
        _, replaced = naive.run(batch.corrupted, graph)
        for edge in np.random.default_rng(0).permutation(graph.n_edges)[:12]:
            kept = np.arange(graph.n_edges) != edge
            cut, _ = naive.run(batch.clean, graph, kept, replaced)
            effect = METRIC.loss(cut, batch, clean) - METRIC.loss(clean, batch, clean)
            assert scores.values[edge] == pytest.approx(float(effect.mean()), abs=1e-9)


def test_acdc_decides_as_the_sequential_algorithm():
    model, batches = tiny_image_model(), [image_batch(2), image_batch(1, first=3)]
    found, plain = (method(model, batches, threshold=0.003) for method in (acdc, acdc_sequential))
    tried = np.isfinite(plain.values)
    assert (np.isfinite(found.values) == tried).all() and 0 < tried.sum() < len(tried)
    np.testing.assert_allclose(found.values[tried], plain.values[tried], atol=1e-9)
    circuit = found.above(0.003, by="signed")
    assert circuit.edge_names == plain.above(0.003, by="signed").edge_names and circuit.n_edges


QUICK = {"edge_pruning": {"steps": 4, "start": None}, "subnetwork_probing": {"steps": 4}, "ugs": {"steps": 4}}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_scores_its_edges(method):
    model, batch = tiny_image_model(), image_batch()
    before = weights_hash(model)
    metric = METRICS["kl_divergence"] if method.startswith("acdc") else METRIC
    scores = METHODS[method](model, [batch], metric, **QUICK.get(method, {}))
    assert scores.values.shape == (model.graph().n_edges,) and not np.isnan(scores.values).any()
    found = faithfulness(model, scores.top(30, by="magnitude"), [batch], METRIC)
    assert np.isfinite(found.faithfulness) and found.full != found.empty
    assert weights_hash(model) == before and not model.hf.hf.vit.embeddings._forward_hooks


def test_nodes_are_annotated_and_sites_read():
    model, batch = tiny_image_model(), image_batch(6)
    circuit = eap(model, [batch]).top(40, by="magnitude")
    found = annotate(model, circuit, [batch], only=["effects", "roles", "attention", "composition"])
    assert {"evidence", "attention"} <= {annotation.kind for annotation in found}
    tokens = next(a.data["tokens"] for a in found if a.text.startswith("mean"))
    assert tokens[0] == "patch r1 c1" and tokens[-1] == "end"
    neurons = read(model, batch.clean, ["m1.neurons"])["m1.neurons"]
    assert neurons.shape == (6, 9, 40) and width(model, "m1.neurons") == 40
    with torch.no_grad():
        block, run = model.blocks[1], record(model, batch.clean)
        expected = block.mlp.activation_fn(block.mlp.fc1(block.mlp_norm(run.mlp_in[1])))
    torch.testing.assert_close(neurons, expected)


def test_eager_attention_and_bfloat16_are_loaded():
    hf = tiny_vit()
    hf.set_attn_implementation("eager")
    table = PatchTable.of_model(some_images(), hf.config)
    assert check_parity(load_model(hf, table)) < 1e-5
    assert load_model(tiny_vit(), table, dtype="bfloat16").dtype == torch.bfloat16


def test_what_does_not_fit_is_refused():
    hf, images = tiny_vit(), some_images()
    with pytest.raises(AcdcError, match="reads images, and its tokenizer is NoneType: give PatchTable.of_model"):
        load_model(hf)
    with pytest.raises(AcdcError, match=r"has \(3, 2, 4, 8, 1\) .* ViTForImageClassification has \(3, 2, 4, 8, 5\)"):
        load_model(hf, PatchTable.of_images(images, 2, ["one"]))
    hf.vit.layers[1].attention.register_forward_hook(lambda module, args, out: (out[0] * 1.05, out[1]))
    with pytest.raises(AcdcError, match="is not the architecture it says: .* differ"):
        load_model(hf, PatchTable.of_model(images, hf.config))
    with pytest.raises(AcdcError, match="ViTModel has no classifier"):
        load_model(tiny_vit().vit, PatchTable.of_model(images, hf.config))

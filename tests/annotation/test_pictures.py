"""What excites units of a model of images: planted ones are found, and random ones are no edges."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from naive import NaiveModel
from tiny_vision import image_batch, some_images, tiny_image_model, tiny_vit

from acdc.activations import contribution, record
from acdc.annotation.pictures import annotate_pictures, neuron_effects
from acdc.annotation.sites import read
from acdc.annotation.visual_units import (
    Unit,
    edge_likeness,
    edges,
    excitations,
    head_unit,
    made_images,
    neurons,
    placed,
    shuffled,
)
from acdc.circuit import Annotation
from acdc.discovery.eap import eap
from acdc.errors import AcdcError
from acdc.export.annotations_file import annotations_from_json, annotations_to_json
from acdc.export.figure import figure_bytes
from acdc.export.pictures import pictures_figure
from acdc.metrics import METRICS
from acdc.models import load_model, weights_hash
from acdc.patches import PatchTable
from acdc.transformer import Transformer

IMAGES = some_images()


def planted() -> Transformer:
    """Neuron 7 of layer 0 reads an edge: left minus right half of its patch, from the residual stream as it is."""
    hf = tiny_vit()
    with torch.no_grad():
        projection, block = hf.vit.embeddings.patch_embeddings.projection, hf.vit.layers[0]
        projection.weight[:2] = 0
        projection.weight[0, :, :, 0], projection.weight[0, :, :, 1] = 5, -5
        projection.bias[:2] = 0
        hf.vit.embeddings.position_embeddings[0, :, 0] = 0
        hf.vit.embeddings.cls_token[..., 0] = 0
        block.attention.o_proj.weight[:] *= 1e-6
        block.mlp.fc1.weight[7] = 0
        block.mlp.fc1.weight[7, 0] = 1
    return load_model(hf, PatchTable.of_model(IMAGES, hf.config))


def test_a_planted_edge_is_found_where_it_was_put():
    model = planted()
    (unit,) = placed(model, neurons(model, 0, [7]), IMAGES)
    strongest = excitations(model, [unit], IMAGES)[0].amax(0).argmax()
    assert unit.place == int(strongest) < 8
    made = made_images(model, [unit], low=0.0, high=1.0)
    row, column = 2 * (unit.place // 4), 2 * (unit.place % 4)
    left, right = made[0, :, row : row + 2, column], made[0, :, row : row + 2, column + 1]
    assert float(left.min()) > 0.5 > float(right.max())  # grey, from which it starts, is 0.5
    inside = torch.zeros(4, 8, dtype=torch.bool)
    inside[row : row + 2, column : column + 2] = True
    change = (made[0] - 0.5).abs()
    assert float(change[:, inside].mean()) > 0.1 > 0.05 > float(change[:, ~inside].mean())  # but for noise, 0.05 wide

    def aim(images):
        penalty = (images - 0.5).pow(2).sum((1, 2, 3))
        penalty = penalty + images.diff(dim=2).abs().sum((1, 2, 3)) + images.diff(dim=3).abs().sum((1, 2, 3))
        return excitations(model, [unit], images)[0, :, unit.place] / unit.scale - 0.1 * penalty

    assert float(aim(made)) > float(aim(torch.cat([IMAGES, torch.full_like(made, 0.5)])).max())
    assert torch.equal(made, made_images(model, [unit], low=0.0, high=1.0))
    assert not torch.equal(made, made_images(model, [unit], low=0.0, high=1.0, seed=1))


def test_excitations_are_what_the_sites_hold():
    model, batch = tiny_image_model(), image_batch(6)
    images = model.hf.images(batch.clean)
    block, run = model.blocks[1], record(model, batch.clean)
    with torch.no_grad():
        expected = block.mlp.fc1(block.mlp_norm(run.mlp_in[1]))[:, :, 5] - block.mlp.fc1.bias[5]
        wrote = contribution(model, run, 1 + 5 + 2)  # a1.h2
    torch.testing.assert_close(excitations(model, neurons(model, 1, [5]), images)[0], expected)
    unit = head_unit(model, "a1.h2", images)
    flat = wrote.flatten(0, 1) - wrote.flatten(0, 1).mean(0)
    widest = np.linalg.eigh((flat.T @ flat).numpy())[1][:, -1]
    assert abs(float(unit.direction @ torch.from_numpy(widest))) == pytest.approx(1, abs=1e-5)
    along = flat @ unit.direction
    assert float(along.max()) >= -float(along.min())
    (found,) = placed(model, [unit], images)
    strength = wrote @ unit.direction
    assert found.place == int(strength.amax(0).argmax()) and found.scale == pytest.approx(float(strength.std()))


def test_neuron_effects_are_gradients_times_changes():
    """Against autograd through HF's own MLP, in the naive model."""
    model, batch = tiny_image_model(), image_batch()
    naive, graph, metric = NaiveModel(model.hf), model.graph(), METRICS["logit_difference"]
    found = neuron_effects(model, [batch], [0, 2])
    for layer in (0, 2):
        act, kept = model.hf.hf.vit.layers[layer].mlp.activation_fn, []

        def leaf(module, args, out, kept=kept):
            kept.append(out.detach().requires_grad_())
            return kept[-1]

        handle = act.register_forward_hook(leaf)
        logits, _ = naive.run(batch.clean, graph)  # HF's forward for the embedding comes first, then the naive run
        handle.remove()
        (gradient,) = torch.autograd.grad(metric.loss(logits, batch, logits.detach()).sum(), [kept[-1]])
        clean, corrupted = (read(model, tokens, [f"m{layer}.neurons"])[f"m{layer}.neurons"].roll(1, 1)
                            for tokens in (batch.clean, batch.corrupted))
        torch.testing.assert_close(found[layer], ((corrupted - clean) * gradient).sum((0, 1)) / len(batch))


def test_edges_are_edges_and_nothing_else_is():
    bank = edges((8, 8), 2)
    assert bank.shape == (7 * 7 * 8, 8, 8)
    torch.testing.assert_close(bank.flatten(1).norm(dim=1), torch.ones(len(bank)).double())
    assert float(bank.sum((1, 2)).abs().max()) < 1e-12
    step = torch.zeros(8, 8)
    step[:, 4:] = 1
    one = torch.zeros(8, 8)
    one[3, 3] = 1
    noise = torch.randn(200, 8, 8, generator=torch.Generator().manual_seed(0))
    for image, low, high in ((bank[100].float(), 0.9999, 1.0001), (1 - 3 * bank[100].float(), 0.9999, 1.0001),
                             (step, 0.75, 1), (step.T, 0.75, 1), (one, 0, 0.3), (torch.ones(8, 8), 0, 1e-6)):
        assert low <= float(edge_likeness(image[None, None], 2)[0]) <= high
    assert float(edge_likeness(noise[:, None], 2).median()) < 0.45


def test_shuffled_weights_are_the_same_numbers_elsewhere():
    model = tiny_image_model()
    before, other = weights_hash(model), shuffled(model, 3)
    assert weights_hash(model) == before != weights_hash(other) == weights_hash(shuffled(model, 3))
    for own, theirs in zip(model.hf.parameters(), other.hf.parameters(), strict=True):
        assert torch.equal(own.flatten().sort().values, theirs.flatten().sort().values)


@pytest.fixture(scope="module")
def found():
    model, batch = tiny_image_model(), image_batch(6)
    return annotate_pictures(model, [batch], ["input", "m1", "a0.h3"], seed=2)


def test_annotations_hold_what_was_measured(found):
    model, batch = tiny_image_model(), image_batch(6)
    assert [annotation.node for annotation in found] == ["m1"] * 4 + ["a0.h3"]
    effects = neuron_effects(model, [batch], [1])[1]
    shown = [annotation.data["neuron"] for annotation in found[1:4]]
    assert shown == effects.abs().argsort(descending=True)[:3].tolist()
    images = torch.cat([model.hf.images(batch.clean), model.hf.images(batch.corrupted)])
    for annotation in found[1:]:
        data = annotation.data
        of_head = annotation.node == "a0.h3"
        unit = head_unit(model, "a0.h3", images) if of_head else neurons(model, 1, [data["neuron"]])[0]
        (unit,) = placed(model, [unit], images)
        assert data["place"] == [*model.tokenizer.place_names(), "CLS"][unit.place]
        strongest = excitations(model, [unit], images)[0].amax(1).sort(descending=True).values[:5]
        np.testing.assert_allclose(data["top_values"], strongest, atol=1e-4)
        assert 0 < data["p"] <= 1 and np.shape(data["made"]) == (4, 8) and np.shape(data["top"]) == (5, 4, 8)
        low, high = float(model.tokenizer.pixels.min()), float(model.tokenizer.pixels.max())
        made = made_images(model, [unit], low=low, high=high, seed=2)
        if of_head:  # alone in its run, as here; noise is drawn for all of a run at once
            assert annotation.value == pytest.approx(float(edge_likeness(made, 2)[0]), abs=1e-6)
    assert 0 <= found[0].value <= 1 and found[0].data["baseline"] == 0.5


def test_they_are_stored_and_drawn(found):
    text = annotations_to_json(found)
    again = annotations_from_json(text, "here")
    assert again == list(found) and json.loads(text)
    figure = pictures_figure(again)
    assert len(figure.axes) == 4 * 6 and figure_bytes(figure, "png") == figure_bytes(pictures_figure(found), "png")
    with pytest.raises(AcdcError, match="no annotation holds pictures"):
        pictures_figure([Annotation("m1", "evidence", "x", 1.0)])


def test_a_model_of_text_has_none(monkeypatch):
    model = tiny_image_model()
    other = Transformer(model.hf, model.tokenizer, "text")
    monkeypatch.setitem(other.__dict__, "anatomy", replace(model.anatomy, probe=None))
    assert annotate_pictures(other, [image_batch()], ["m1"]) == []
    assert eap(model, [image_batch()]).values.any() and isinstance(neurons(model, 0, [1])[0], Unit)

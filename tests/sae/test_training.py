"""Training: every architecture finds a dictionary that it was not told, and goes on to the same result."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny
from torch.nn.functional import normalize

from acdc.errors import AcdcError
from acdc.sae.source import ModelActivations, activations
from acdc.sae.sparse_coder import SparseCoder
from acdc.sae.training import Recipe, train_coder, train_on_model

PENALTY = {"relu": 1.0, "gated": 3.0, "topk": 0.0, "batchtopk": 0.0, "jumprelu": 1.0}


class Dictionary:
    """64 directions in 32 dimensions, three of them on a token in the mean; for a transcoder, others in 24."""

    def __init__(self, transcoder: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        self.reads = normalize(torch.randn(64, 32, generator=generator), dim=1)
        self.writes = normalize(torch.randn(64, 24, generator=generator), dim=1) if transcoder else self.reads
        self.header = {"of": "tests", "transcoder": transcoder}

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(step + 1)
        on = torch.rand(512, 64, generator=generator) < 3 / 64
        values = on * (0.5 + torch.rand(512, 64, generator=generator))
        return values @ self.reads, values @ self.writes


def recipe(architecture: str, steps: int = 1000) -> Recipe:
    return Recipe(
        architecture,
        96,
        steps,
        k=3,
        penalty=PENALTY[architecture],
        learning_rate=3e-3,
        dead_after=50,
        resample_every=200,
    )


@pytest.mark.parametrize("architecture", list(PENALTY))
@pytest.mark.parametrize("transcoder", [False, True])
def test_every_architecture_finds_the_dictionary(architecture, transcoder):
    """Mean over true directions of the largest cosine with a decoder row: at least 0.9 after so many steps of 512."""
    source, steps = Dictionary(transcoder), 900 if architecture == "jumprelu" else 600
    coder = train_coder(source, recipe(architecture, steps), site="m0.in" if transcoder else "m0", target="m0")
    found = (source.writes @ normalize(coder.decoder, dim=1).T).max(1).values
    random = (
        (
            source.writes
            @ normalize(torch.randn(coder.decoder.shape, generator=torch.Generator().manual_seed(9)), dim=1).T
        )
        .max(1)
        .values
    )
    assert found.mean() >= 0.9 > random.mean() + 0.2
    x, y = source.batch(10**6)
    features = coder.encode(x)
    explained = 1 - (y - coder(x)).pow(2).sum() / (y - y.mean(0)).pow(2).sum()
    assert explained > 0.75
    assert (features > 0).sum(1).float().mean() < 10
    assert coder.architecture == ("jumprelu" if architecture == "batchtopk" else architecture)


def test_a_skip_transcoder_takes_the_linear_part_by_itself():
    """What is rebuilt is a linear map of what is read: the skip connection explains what features alone do not."""
    linear = torch.randn(32, 24, generator=torch.Generator().manual_seed(3)) / 6

    class Linear(Dictionary):
        def batch(self, step):
            x, _ = super().batch(step)
            return x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(step)), x @ linear

    explained = []
    for skip in (False, True):
        coder = train_coder(Linear(), replace(recipe("topk", 300), skip=skip), site="m0.in", target="m0")
        x, y = Linear().batch(10**6)
        explained.append(float(1 - (y - coder(x)).pow(2).sum() / (y - y.mean(0)).pow(2).sum()))
        assert ("W_skip" in coder.weights) == skip and coder.kind == "skip " * skip + "transcoder"
    assert explained[1] > explained[0] + 0.02


@pytest.mark.parametrize("architecture", ["gated", "batchtopk"])
def test_a_run_that_was_stopped_goes_on_to_the_same_coder(tmp_path, architecture, monkeypatch):
    monkeypatch.setattr("acdc.sae.training.SAVE_EVERY", 40)
    source, how = Dictionary(), replace(recipe(architecture, 120), resample_every=50, dead_after=5)
    whole = train_coder(source, how, site="m0")

    class Stops(Dictionary):
        def batch(self, step):
            if step == 97:
                raise KeyboardInterrupt
            return super().batch(step)

    path = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        train_coder(Stops(), how, site="m0", checkpoint=path)
    resumed = train_coder(source, how, site="m0", checkpoint=path)
    for name, weight in whole.weights.items():
        assert torch.equal(weight, resumed.weights[name]), name
    assert whole.record["history"] == resumed.record["history"]
    with pytest.raises(AcdcError, match="of another run: its k"):
        train_coder(source, replace(how, k=4), site="m0", checkpoint=path)


def test_the_scale_is_folded_in():
    """A coder trained on activations a hundred times as large has the same features."""

    class Large(Dictionary):
        def batch(self, step):
            x, y = super().batch(step)
            return 100 * x, 100 * y

    small, large = (train_coder(source, recipe("batchtopk", 200), site="m0") for source in (Dictionary(), Large()))
    x, _ = Dictionary().batch(5)
    torch.testing.assert_close(large(100 * x), 100 * small(x), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(large.decoder.norm(dim=1), torch.ones(96))
    assert small.weights["threshold"].max() > 0


def test_activations_of_a_model_are_each_token_once_an_epoch_without_the_first_position():
    model = tiny("llama", torch.float32)
    tokens = torch.randint(0, 97, (12, 6), generator=torch.Generator().manual_seed(0))
    source = ModelActivations(model, tokens, "m1", "m1", batch_size=10, windows_at_once=4)
    seen = torch.cat([source.batch(step)[0] for step in range(6)])
    every = activations(model, tokens, "m1", "m1")[0]
    assert seen.shape == every.shape == (60, model.blocks[0].mlp.down_proj.weight.shape[0])
    torch.testing.assert_close(torch.tensor(sorted(seen.sum(1).tolist())), torch.tensor(sorted(every.sum(1).tolist())))
    again = ModelActivations(model, tokens, "m1", "m1", batch_size=10, windows_at_once=4)
    assert torch.equal(again.batch(4)[0], source.batch(4)[0])
    assert not torch.equal(source.batch(6)[0], source.batch(0)[0])


def test_training_on_a_model_leaves_it_as_it_was():
    model = tiny("gpt2", torch.float32)
    before = {name: weight.clone() for name, weight in model.hf.named_parameters()}
    tokens = torch.randint(0, 97, (30, 8), generator=torch.Generator().manual_seed(0))
    coder = train_on_model(model, tokens, Recipe("topk", 64, steps=60, k=4), site="a1.z", batch_size=32)
    assert (coder.site, coder.d_in, coder.kind) == ("a1.z", 24, "autoencoder")
    assert all(torch.equal(weight, before[name]) for name, weight in model.hf.named_parameters())
    assert coder.record["history"][-1]["error"] < coder.record["history"][0]["error"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"architecture": "vanilla"}, "relu, gated, topk"),
        ({"steps": 0}, "steps=0"),
        ({"k": 97}, "k=97 of 96 features"),
        ({"learning_rate": -1.0}, "learning rate -1.0"),
        ({"skip": True}, "skip connection in an autoencoder"),
    ],
)
def test_recipes_that_cannot_be(change, expected):
    with pytest.raises(AcdcError, match=expected):
        train_coder(Dictionary(), replace(recipe("topk"), **change), site="m0")


def test_text_too_short_and_coders_of_another_width():
    model, tokens = tiny("llama", torch.float32), torch.ones(2, 5, dtype=torch.long)
    with pytest.raises(AcdcError, match="8 tokens do not fill a step of 1,024"):
        train_on_model(model, tokens, recipe("topk"), site="m0")
    with pytest.raises(AcdcError, match="m0 does not come after m1 in llama"):
        train_on_model(model, tokens, recipe("topk"), site="m1", target="m0")
    with pytest.raises(AcdcError, match="windows of one token"):
        train_on_model(model, tokens[:, :1], recipe("topk"), site="m0")
    weights = {"W_enc": torch.ones(7, 3), "W_dec": torch.ones(3, 7), "b_dec": torch.ones(7), "b_enc": torch.ones(3)}
    with pytest.raises(AcdcError, match="reads 7 dimensions, here are 24"):
        SparseCoder("relu", "m0", "m0", weights).encode(torch.ones(2, 24))
    with pytest.raises(AcdcError, match="feature 3 of a coder that has 0 to 2"):
        SparseCoder("relu", "m0", "m0", weights).check_feature(3)
    with pytest.raises(AcdcError, match="threshold"):
        SparseCoder("jumprelu", "m0", "m0", weights)
    with pytest.raises(AcdcError, match=r"b_enc .* must be of shape \(3,\), not \(4,\)"):
        SparseCoder("relu", "m0", "m0", {**weights, "b_enc": torch.ones(4)})


@pytest.mark.parametrize("architecture", ["gated", "topk"])
def test_a_transcoder_of_activations_far_from_zero_finds_the_dictionary_too(architecture):
    class Shifted(Dictionary):
        def batch(self, step):
            x, y = super().batch(step)
            return x + 3, y

    coder = train_coder(Shifted(True), recipe(architecture, 600), site="m0.in", target="m0")
    found = (Shifted(True).writes @ normalize(coder.decoder, dim=1).T).max(1).values
    assert found.mean() >= 0.9
    x, y = Shifted(True).batch(10**6)
    assert 1 - (y - coder(x)).pow(2).sum() / (y - y.mean(0)).pow(2).sum() > 0.75

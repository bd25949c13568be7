"""circuit-tracer's folders, written by hand as it writes them: what is rebuilt, by plain sums; and what is refused."""

import pytest
import torch
from safetensors.torch import save_file

from acdc.errors import AcdcError
from acdc.sae.circuit_tracer import read_cross_layer
from acdc.sae.formats import load_coder, load_coders, save_coder

D, F, LAYERS = 6, 11, 3


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + 7 * len(shape) + 100 * seed))


X = [random(20, D, seed=9 + layer) for layer in range(LAYERS)]


def config(folder, *, kind="transcoder_set", reads="mlp.hook_in", writes="mlp.hook_out"):
    lines = {"model_name": "tiny", "model_kind": kind, "feature_input_hook": reads, "feature_output_hook": writes}
    (folder / "config.yaml").write_text("".join(f'{name}: "{value}"\n' for name, value in lines.items()))


def one_layer(layer: int) -> dict[str, torch.Tensor]:
    return {"W_enc": random(F, D, seed=layer), "W_dec": random(F, D, seed=layer + 10), "b_enc": random(F, seed=layer),
            "b_dec": random(D, seed=layer), "activation_function.threshold": random(F, seed=layer + 5).abs(),
            "W_skip": random(D, D, seed=layer)}


def rebuilt(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    before = x @ w["W_enc"].T + w["b_enc"]
    return (before * (before > w["activation_function.threshold"])) @ w["W_dec"] + w["b_dec"] + x @ w["W_skip"].T


@pytest.fixture
def layers(tmp_path):
    for layer in range(LAYERS):
        save_file(one_layer(layer), tmp_path / f"layer_{layer}.safetensors")
    config(tmp_path)
    return tmp_path


def test_a_set_of_transcoders_is_loaded_whole_or_by_layer(layers):
    every = load_coders(layers)
    assert [(coder.site, coder.target) for coder in every] == [("m0.in", "m0"), ("m1.in", "m1"), ("m2.in", "m2")]
    for layer, coder in enumerate(every):
        for found in (coder, load_coder(layers, layer=layer), load_coder(layers / f"layer_{layer}.safetensors")):
            torch.testing.assert_close(found(X[layer]), rebuilt(one_layer(layer), X[layer]))
            assert found.kind == "skip transcoder" and found.record["before_post_norm"]
            assert found.record["model_name"] == "tiny"


def test_what_is_before_a_norm_that_follows_is_still_known_in_saelens_files(layers, tmp_path):
    save_coder(load_coder(layers, layer=1), tmp_path / "again")
    assert load_coder(tmp_path / "again").record["before_post_norm"]


@pytest.mark.parametrize(("reads", "writes", "expected"), [
    ("hook_resid_mid", "hook_mlp_out", ("resid1.mid", "m1")),
    ("ln2.hook_normalized", "hook_mlp_out", ("m1.norm", "m1")),
    ("blocks.{layer}.hook_resid_pre", "blocks.{layer}.hook_resid_post", ("resid1", "resid2")),
])
def test_the_configuration_says_what_is_read_and_written(layers, reads, writes, expected):
    config(layers, reads=reads, writes=writes)
    found = load_coder(layers, layer=1)
    assert (found.site, found.target) == expected and "before_post_norm" not in found.record


def test_what_is_refused_of_a_set(layers):
    def message(**options):
        with pytest.raises(AcdcError) as error:
            load_coder(layers, **options)
        return str(error.value)

    assert "of the layers 0, 1, 2; none is chosen" in message()
    assert "there is no layer 7" in message(layer=7)
    config(layers, reads="hook_q")
    assert "'hook_q', for which there is no site" in message(layer=1)
    assert load_coder(layers, layer=1, site="m1.in", target="m1").target == "m1"
    (layers / "config.yaml").write_text("model_name: tiny")
    assert "does not say feature_input_hook" in message(layer=1)
    (layers / "config.yaml").write_text("[1]")
    assert "must hold a YAML mapping" in message(layer=1)
    (layers / "config.yaml").write_text("a: [")
    assert "cannot read" in message(layer=1)
    for text in ("a: &a [x]\nb: *a", "a: &a {b: 1}\nc: {<<: *a}", "a: &a [*a]", "[" * 5000, "a: !!timestamp b",
                 "a: !!bool b", "a: !!int ''", "a: 2001-99-99", "? [a]\n: 1", "a: !!omap [a]"):
        (layers / "config.yaml").write_text(text)
        assert "cannot read" in message(layer=1)
    (layers / "config.yaml").write_text("architecture: 0x" + "f" * 10_000)
    assert "architecture must be a text, not of type int" in message(layer=1)
    (layers / "config.yaml").write_bytes(b"\xff\xfe\xfa")
    assert "cannot read" in message(layer=1)
    (layers / "config.yaml").unlink()
    (layers / "config.yaml").mkdir()
    assert "is a folder, not a file" in message(layer=1)
    (layers / "config.yaml").rmdir()
    assert "does not say what it reads" in message(layer=1)
    save_file({**one_layer(0), "k": torch.tensor(3)}, layers / "layer_0.safetensors")
    assert "k is not of floating-point numbers" in message(layer=0, site="m0")
    save_file({**one_layer(0), "W_more": torch.ones(3)}, layers / "layer_0.safetensors")
    assert "W_more, which is not known" in message(layer=0, site="m0")
    save_file({**one_layer(0), "activation_function.threshold": -torch.ones(F)}, layers / "layer_0.safetensors")
    assert "thresholds below 0" in message(layer=0, site="m0")


def encoder(layer: int) -> dict[str, torch.Tensor]:
    return {f"W_enc_{layer}": random(F, D, seed=layer), f"b_enc_{layer}": random(F, seed=layer),
            f"b_dec_{layer}": random(D, seed=layer), f"threshold_{layer}": random(F, seed=layer + 5).abs()}


def decoder(layer: int) -> torch.Tensor:
    return random(F, LAYERS - layer, D, seed=layer)


@pytest.fixture
def across(tmp_path):
    for layer in range(LAYERS):
        save_file(encoder(layer), tmp_path / f"W_enc_{layer}.safetensors")
        save_file({f"W_dec_{layer}": decoder(layer)}, tmp_path / f"W_dec_{layer}.safetensors")
    config(tmp_path, kind="cross_layer_transcoder", reads="hook_resid_mid", writes="hook_mlp_out")
    return tmp_path


def test_a_cross_layer_transcoder_writes_to_its_own_and_all_later_layers(across):
    active = []
    for layer in range(LAYERS):
        w = encoder(layer)
        before = X[layer] @ w[f"W_enc_{layer}"].T + w[f"b_enc_{layer}"]
        active.append(before * (before > w[f"threshold_{layer}"]))
    for t, coder in enumerate(load_coders(across)):
        expected = encoder(t)[f"b_dec_{t}"] + sum(active[i] @ decoder(i)[:, t - i] for i in range(t + 1))
        torch.testing.assert_close(coder(*X[: t + 1]), expected)
        assert coder.reads == tuple(f"resid{i}.mid" for i in range(t + 1)) and coder.target == f"m{t}"
        assert coder.n_features == F * (t + 1) == len(coder.decoder)
    assert load_coder(across, layer=1).place_of(F + 2) == (1, 2)
    assert load_coder(across, layer=1).name_of(3) == "feature 3 of layer 0"
    torch.testing.assert_close(read_cross_layer(across, torch.float32).layer(1).writes, decoder(1).sum(1))
    (across / "config.yaml").unlink()
    assert load_coder(across, layer=2).reads[0] == "resid0.mid"


def test_what_is_refused_of_a_cross_layer_transcoder(across):
    def message(**options):
        with pytest.raises(AcdcError) as error:
            load_coder(across, **options)
        return str(error.value)

    assert "none is chosen" in message() and "there is no layer 3" in message(layer=3)
    assert "leave out the site" in message(layer=1, site="m1")
    with pytest.raises(AcdcError, match="reads 3 sites, here are 1"):
        load_coder(across, layer=2)(X[0])
    with pytest.raises(AcdcError, match="feature 33 of what rebuilds m2, which has 0 to 32"):
        load_coder(across, layer=2).check_feature(33)
    with pytest.raises(AcdcError, match="is read as a whole"):
        load_coder(across / "W_enc_0.safetensors", site="m0")
    config(across, writes="hook_resid_post", reads="hook_resid_pre")
    assert "those that rebuild MLPs" in message(layer=1)
    config(across, reads="hook_resid_mid", writes="hook_mlp_out")
    save_file({"W_dec_1": decoder(0)}, across / "W_dec_1.safetensors")
    assert "layer 1 must have W_dec of the shape" in message(layer=1)
    save_file({"W_dec_1": decoder(1)[:, 0].contiguous()}, across / "W_dec_1.safetensors")
    assert "W_dec_1 3; they have 2 and 2" in message(layer=1)
    save_file({"W_dec_1": decoder(1) * torch.nan}, across / "W_dec_1.safetensors")
    assert "not finite" in message(layer=1)
    save_file({"W_dec": decoder(1)}, across / "W_dec_1.safetensors")
    assert "W_dec, which is not known" in message(layer=1)
    (across / "W_dec_1.safetensors").unlink()
    assert "there is no" in message(layer=1)
    (across / "W_enc_1.safetensors").unlink()
    assert "layers 0, 2; all from 0 on" in message(layer=2)

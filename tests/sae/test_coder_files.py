"""Formats: files written by hand as their projects write them compute what those projects compute."""

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from acdc.errors import AcdcError
from acdc.sae.formats import load_coder, save_coder
from acdc.sae.hooks import hook_of, site_of
from acdc.sae.sparse_coder import SparseCoder

D, F, OUT, K = 6, 11, 4, 3


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + 7 * len(shape)))


X = random(50, D)


def coder(architecture: str, *, transcoder: bool = False, skip: bool = False) -> SparseCoder:
    d_out = OUT if transcoder else D
    weights = {"W_enc": random(D, F), "W_dec": random(F, d_out), "b_dec": random(d_out)}
    if architecture == "gated":
        weights |= {"b_gate": random(F), "b_mag": random(F) + 1, "r_mag": random(F) / 4}
    else:
        weights["b_enc"] = random(F)
    if architecture == "jumprelu":
        weights["threshold"] = random(F).abs()
    if skip:
        weights["W_skip"] = random(d_out, D)
    return SparseCoder(
        architecture,
        "m3.in" if transcoder else "m3",
        "m3",
        weights,
        K if architecture == "topk" else None,
        not transcoder,
    )


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("relu", {}),
        ("gated", {}),
        ("topk", {}),
        ("jumprelu", {}),
        ("relu", {"transcoder": True}),
        ("relu", {"transcoder": True, "skip": True}),
        ("jumprelu", {"transcoder": True, "skip": True}),
        ("jumprelu", {"transcoder": True}),
    ],
)
def test_saelens_files_round_trip(tmp_path, architecture, options):
    ours = coder(architecture, **options)
    save_coder(ours, tmp_path / "sae", model_name="tiny")
    again = load_coder(tmp_path / "sae")
    assert (again.architecture, again.site, again.target, again.k, again.centred, again.kind) == (
        ours.architecture,
        ours.site,
        ours.target,
        ours.k,
        ours.centred,
        ours.kind,
    )
    assert torch.equal(again(X), ours(X))
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert config["metadata"]["hook_name"] == ("blocks.3.mlp.hook_in" if options else "blocks.3.hook_mlp_out")
    assert config["apply_b_dec_to_input"] is not options.get("transcoder", False)


@pytest.mark.parametrize("options", [{}, {"transcoder": True}])
def test_sparsify_files_round_trip(tmp_path, options):
    ours = coder("topk", **options)
    save_coder(ours, tmp_path / "sae", format="sparsify")
    assert torch.equal(load_coder(tmp_path / "sae")(X), ours(X))
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert (config["num_latents"], config["k"], config["d_in"]) == (F, K, D)


def test_a_sparsify_file_with_its_default_configuration(tmp_path):
    """num_latents 0 means expansion_factor * d_in; encoder.weight is (latents, d_in); b_dec is subtracted."""
    weight, bias, decoder, b_dec = random(2 * D, D), random(2 * D), random(2 * D, D), random(D)
    save_file(
        {"encoder.weight": weight, "encoder.bias": bias, "W_dec": decoder, "b_dec": b_dec}, tmp_path / "sae.safetensors"
    )
    (tmp_path / "cfg.json").write_text(
        json.dumps(
            {
                "activation": "topk",
                "expansion_factor": 2,
                "num_latents": 0,
                "k": K,
                "normalize_decoder": True,
                "d_in": D,
            }
        )
    )
    values, places = torch.relu((X - b_dec) @ weight.T + bias).topk(K)
    expected = b_dec + sum(values[:, [i]] * decoder[places[:, i]] for i in range(K))
    torch.testing.assert_close(load_coder(tmp_path, site="resid2")(X), expected)
    with pytest.raises(AcdcError, match="does not say which site"):
        load_coder(tmp_path)


def test_an_old_saelens_file(tmp_path):
    """Before version 6: a flat configuration, hook_point, an activation function with k."""
    ours = coder("topk")
    save_file(dict(ours.weights), tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(
        json.dumps(
            {
                "d_in": D,
                "d_sae": F,
                "activation_fn_str": "topk",
                "activation_fn_kwargs": {"k": K},
                "hook_point": "blocks.3.hook_mlp_out",
                "normalize_activations": False,
                "apply_b_dec_to_input": True,
            }
        )
    )
    assert torch.equal(load_coder(tmp_path)(X), ours(X))


def written(folder, ours: SparseCoder, **changes):
    """SAELens' files of a coder, with another configuration."""
    save_coder(ours, folder)
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize("architecture", ["relu", "gated", "topk", "jumprelu"])
@pytest.mark.parametrize("centred", [True, False])
def test_what_normalises_activations_is_folded_in(tmp_path, architecture, centred):
    ours = replace(coder(architecture), centred=centred)
    written(tmp_path, ours, normalize_activations="expected_average_only_in")
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": 2.5}')
    torch.testing.assert_close(load_coder(tmp_path)(X), ours(2.5 * X) / 2.5)
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": null}')
    with pytest.raises(AcdcError, match="scaling_factor is None"):
        load_coder(tmp_path)
    mean, matrix = random(D), (random(D, D) + 3 * torch.eye(D)).double()
    written(tmp_path, ours, normalize_activations="covariance_whitening")
    inverse = torch.linalg.inv(matrix).contiguous()
    save_file({"mean": mean.double(), "matrix": matrix, "inverse_matrix": inverse},
              tmp_path / "activation_whitening.safetensors")
    expected = ours(((X - mean).double() @ matrix).float()).double() @ inverse + mean
    torch.testing.assert_close(load_coder(tmp_path)(X), expected.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rescaled", [False, True])
def test_a_batchtopk_coder_of_an_unfinished_training(tmp_path, rescaled):
    """Its one threshold is of features, times the norm of their decoder rows where they are chosen by that."""
    w = coder("relu").weights
    save_file({**w, "topk_threshold": torch.tensor(0.7, dtype=torch.float64)}, tmp_path / "sae_weights.safetensors")
    config = {"architecture": "batchtopk", "k": 3, "rescale_acts_by_decoder_norm": rescaled,
              "metadata": {"hook_name": "blocks.3.hook_mlp_out"}}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    norm = w["W_dec"].norm(dim=1) if rescaled else torch.ones(F)
    before = ((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norm
    expected = torch.where(before > 0.7, before, 0) / norm @ w["W_dec"] + w["b_dec"]
    torch.testing.assert_close(load_coder(tmp_path)(X), expected)


def test_a_sparsify_file_that_does_not_say_k(tmp_path):
    save_coder(coder("topk"), tmp_path, format="sparsify")
    config = json.loads((tmp_path / "cfg.json").read_text())
    del config["k"]
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(AcdcError, match="k = None; it must be a whole number"):
        load_coder(tmp_path)


def test_saelens_topk_that_is_chosen_by_the_norm_of_decoder_rows(tmp_path):
    ours = coder("topk")
    save_coder(ours, tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({**config, "rescale_acts_by_decoder_norm": True}))
    w = ours.weights
    norm = w["W_dec"].norm(dim=1)
    values, places = torch.relu(((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norm).topk(K)
    expected = w["b_dec"] + sum(values[:, [i]] * (w["W_dec"] / norm[:, None])[places[:, i]] for i in range(K))
    torch.testing.assert_close(load_coder(tmp_path)(X), expected)


def test_gemma_scope_files(tmp_path):
    w = coder("jumprelu").weights
    np.savez(tmp_path / "params.npz", **{name: weight.numpy() for name, weight in w.items()})
    before = X @ w["W_enc"] + w["b_enc"]
    expected = torch.where(before > w["threshold"], before.clamp(min=0), 0) @ w["W_dec"] + w["b_dec"]
    torch.testing.assert_close(load_coder(tmp_path / "params.npz", site="resid1")(X), expected)
    skip = random(D, D)
    save_file(
        {
            "w_enc": w["W_enc"],
            "w_dec": w["W_dec"],
            "b_enc": w["b_enc"],
            "b_dec": w["b_dec"],
            "threshold": w["threshold"],
            "affine_skip_connection": skip,
        },
        tmp_path / "scope.safetensors",
    )
    found = load_coder(tmp_path / "scope.safetensors", site="m1.in", target="m1")
    torch.testing.assert_close(found(X), expected + X @ skip)


def test_pickles_are_refused(tmp_path):
    path = tmp_path / "ae.pt"
    torch.save({"W_enc": X}, path)
    for where in (path, tmp_path):
        with pytest.raises(AcdcError, match="is a pickle, which can run any code"):
            load_coder(where)
    np.savez(tmp_path / "params.npz", W_enc=np.array([{"an": "object"}]))
    with pytest.raises(AcdcError, match="not an .npz of plain arrays"):
        load_coder(tmp_path / "params.npz", site="m0")


def header_of(text: str) -> bytes:
    """An array whose header is this."""
    return b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text.encode()


def test_arrays_that_are_damaged(tmp_path):
    def refused():
        with pytest.raises(AcdcError, match="is not an .npz of plain arrays, or is damaged"):
            load_coder(tmp_path / "params.npz", site="m0")

    for header in ("(" * 9000, "-" * 8999 + "1", "{1:2}   ", "-" * 60_000):
        with zipfile.ZipFile(tmp_path / "params.npz", "w") as archive:
            archive.writestr("W_enc.npy", header_of(header))
        refused()
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "params.npz", "w", method) as archive:
            np.save(file := io.BytesIO(), random(D, F).numpy())
            archive.writestr("W_enc.npy", file.getvalue())
        content = (tmp_path / "params.npz").read_bytes()
        (tmp_path / "params.npz").write_bytes(content[:60] + b"\xff" * 8 + content[68:])
        refused()


def test_files_that_hold_no_coder(tmp_path):
    def message(path, **options):
        with pytest.raises(AcdcError) as error:
            load_coder(path, **options)
        return str(error.value)

    assert "there is no" in message(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "holds no sparse coder" in message(tmp_path / "empty")
    (tmp_path / "sae_weights.safetensors").write_bytes(b"not safetensors")
    assert "cfg.json" in message(tmp_path)
    (tmp_path / "cfg.json").write_text("[1]")
    assert "must hold a JSON object" in message(tmp_path)
    (tmp_path / "cfg.json").write_text("{}")
    assert "damaged" in message(tmp_path)
    save_file({"W_enc": random(D, F)}, tmp_path / "sae_weights.safetensors")
    assert "needs W_dec" in message(tmp_path, site="m0")
    save_file({**coder("relu").weights, "b_enc": torch.full((F,), torch.nan)}, tmp_path / "sae_weights.safetensors")
    assert "not finite" in message(tmp_path, site="m0")
    save_file(coder("relu").weights, tmp_path / "sae_weights.safetensors")
    for change, expected in [
        ({"normalize_activations": "layer_norm"}, "by its own norm before it is read (layer_norm)"),
        ({"normalize_activations": "expected_average_only_in"}, "activation_scaler.json"),
        ({"normalize_activations": "covariance_whitening"}, "activation_whitening.safetensors"),
        ({"architecture": "temporal"}, "'temporal' are not known"),
        ({"architecture": "batchtopk"}, "needs threshold"),
        ({"architecture": "topk"}, "k = None"),
        ({"architecture": "topk", "k": "3"}, "k = '3'"),
        ({"architecture": "topk", "activation_fn_kwargs": [3]}, "must be objects"),
        ({"architecture": "topk", "k": 12}, "k=12 of a topk coder: it must be 1 to its 11"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor"),
    ]:
        (tmp_path / "cfg.json").write_text(json.dumps(change))
        assert expected in message(tmp_path, site="m0"), change
    (tmp_path / "cfg.json").write_bytes(b'{"k": "\xff"}')
    assert "cannot read" in message(tmp_path, site="m0")
    (tmp_path / "cfg.json").unlink()
    (tmp_path / "cfg.json").mkdir()
    assert "is a folder, not a file" in message(tmp_path, site="m0")
    with pytest.raises(AcdcError, match="holds one coder"):
        load_coder(tmp_path, layer=3)
    with pytest.raises(AcdcError, match="sparsify holds topk"):
        save_coder(coder("relu"), tmp_path / "other", format="sparsify")
    with pytest.raises(AcdcError, match="no topk transcoders"):
        save_coder(coder("topk", transcoder=True), tmp_path / "other")
    with pytest.raises(AcdcError, match="saelens"):
        save_coder(coder("relu"), tmp_path / "other", format="pickle")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("site", "hook"),
    [
        ("resid4", "blocks.4.hook_resid_pre"),
        ("resid4.mid", "blocks.4.hook_resid_mid"),
        ("a2", "blocks.2.hook_attn_out"),
        ("a2.z", "blocks.2.attn.hook_z"),
        ("m11", "blocks.11.hook_mlp_out"),
        ("m0.neurons", "blocks.0.mlp.hook_post"),
        ("m2.in", "blocks.2.mlp.hook_in"),
        ("m2.norm", "blocks.2.ln2.hook_normalized"),
    ],
)
def test_names_of_places(site, hook):
    assert hook_of(site) == hook and site_of(hook) == site
    assert site_of("blocks.7.hook_resid_post") == "resid8"
    assert site_of("blocks.7.mlp.hook_out") == "m7" and site_of("hook_mlp_out", 7) == "m7"
    assert [site_of(name) for name in ("m1.h2", "m1.mid", "a01", "resid1.z", "blocksX7Xhook_mlp_out")] == [None] * 5
    assert site_of("blocks.7.hook_q") is None and site_of("a1.h2") == "a1.h2" == hook_of("a1.h2")

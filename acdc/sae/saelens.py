"""SAELens' files: `cfg.json` and `sae_weights.safetensors`, of versions before 6 too."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from acdc.errors import AcdcError
from acdc.sae.files import check_names, coder_of, config_of, k_of, site_named, weights_of
from acdc.sae.hooks import before_post_norm, hook_of
from acdc.sae.sparse_coder import SparseCoder
from acdc.tensor_file import read_tensors

WEIGHTS = "sae_weights.safetensors"
SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"
VERSION = "6.0.0"  # the version whose configuration is written
ARCHITECTURES = {
    "standard": "relu",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "gated": "gated",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
}
TENSORS = {"W_enc", "W_dec", "b_enc", "b_dec", "threshold", "b_gate", "b_mag", "r_mag", "W_skip"}


def read_saelens(path: Path, site: str | None, target: str | None, dtype: torch.dtype) -> SparseCoder:
    """The coder of a SAELens folder; what is done to activations before they are read is folded in where it is the
    same for all of them."""
    config, tensors = config_of(path.parent / "cfg.json"), weights_of(path, dtype)
    named = config.get("architecture", "standard")
    if config.get("activation_fn", config.get("activation_fn_str")) == "topk":
        named = "topk"
    if named not in ARCHITECTURES:
        raise AcdcError(f"{path}: coders of the architecture {named!r} are not known; known are "
                        f"{', '.join(ARCHITECTURES)}")
    kind, transcoder = ARCHITECTURES[named], "transcoder" in named
    if config.get("finetuning_scaling_factor"):
        raise AcdcError(f"{path}: its features are scaled once more after training (finetuning_scaling_factor); fold "
                        "it into W_dec with SAELens")
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    if config.get("rescale_acts_by_decoder_norm"):
        _fold_decoder_norm(tensors)
    if "topk_threshold" in tensors:  # of a training that was not saved for use
        tensors["threshold"] = tensors.pop("topk_threshold").expand(tensors["W_dec"].shape[0]).clone()
    if kind == "relu" and "threshold" in tensors:
        kind = "jumprelu"
    check_names(path, tensors, TENSORS)
    about = config.get("metadata") or config
    reads = str(site or about.get("acdc_site") or site_named(path, about.get("hook_name") or about.get("hook_point")))
    head = about.get("hook_head_index", about.get("hook_point_head_index"))
    if isinstance(head, int) and re.fullmatch(r"a\d+\.z", reads):
        reads = reads.replace(".z", f".h{head}.z")
    after = about.get("hook_name_out")
    target = target or (about.get("acdc_target") or (transcoder and after and site_named(path, after)) or reads)
    arguments = config.get("activation_fn_kwargs")
    k = config.get("k", arguments.get("k") if isinstance(arguments, dict) else None)
    coder = coder_of(
        path, kind, (reads, target), tensors,
        k=k_of(path, k) if kind == "topk" else None,
        centred=bool(config.get("apply_b_dec_to_input", True)) and not transcoder,
        record={"before_post_norm": True} if isinstance(after, str) and before_post_norm(after) else None,
    )
    return _normalised(coder, config.get("normalize_activations", "none"), path)


def _fold_decoder_norm(tensors: dict[str, Tensor]) -> None:
    """Features that are chosen times the norm of their decoder row become those times it."""
    norm = tensors["W_dec"].norm(dim=1).clamp(min=1e-12)
    tensors |= {"W_enc": tensors["W_enc"] * norm, "W_dec": tensors["W_dec"] / norm[:, None]}
    if "b_enc" in tensors:
        tensors["b_enc"] = tensors["b_enc"] * norm


def _normalised(coder: SparseCoder, how: Any, path: Path) -> SparseCoder:
    """The coder for activations as they are, of one that reads them normalised."""
    scaler, whitening = path.parent / SCALER, path.parent / WHITENING
    if how in ("none", False, None):
        return coder
    if how in ("expected_average_only_in", True) and scaler.is_file():
        factor = config_of(scaler).get("scaling_factor")
        if isinstance(factor, (int, float)) and 0 < factor < float("inf"):
            if coder.kind != "autoencoder":
                raise AcdcError(f"{path}: {how} of a transcoder, whose output SAELens does not scale so; fold it in "
                                "where it was trained")
            return coder.unscaled(float(factor), float(factor))
        raise AcdcError(f"{scaler}: scaling_factor is {factor!r}; it must be a positive number")
    if how == "covariance_whitening" and whitening.is_file():
        tensors, _ = read_tensors(whitening, "whitening of activations")
        if not {"mean", "matrix", "inverse_matrix"} <= tensors.keys():
            raise AcdcError(f"{whitening} must hold mean, matrix and inverse_matrix; it holds {', '.join(tensors)}")
        return coder.unwhitened(*(tensors[name] for name in ("mean", "matrix", "inverse_matrix")))
    if how in ("expected_average_only_in", "covariance_whitening", True):
        raise AcdcError(f"{path}: its activations are normalised before they are read ({how}), and {SCALER} or "
                        f"{WHITENING}, which say how, are not beside it. Give them, or fold them in with SAELens")
    raise AcdcError(f"{path}: each activation is normalised by its own norm before it is read ({how}), which no "
                    "weights can hold; give another coder")


def as_saelens(coder: SparseCoder, model_name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors that SAELens reads."""
    architecture = {"relu": "standard"}.get(coder.architecture, coder.architecture)
    config: dict[str, Any] = {
        "d_in": coder.d_in,
        "d_sae": coder.n_features,
        "dtype": str(coder.decoder.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": coder.centred,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if coder.site.endswith(".z") and ".h" not in coder.site else "none",
        "metadata": {
            "model_name": model_name,
            "hook_name": hook_of(coder.site),
            "sae_lens_version": VERSION,
            "acdc_site": coder.site,
            "acdc_target": coder.target,
            "acdc_record": dict(coder.record),
        },
    }
    if coder.architecture == "topk":
        config |= {"k": coder.k, "rescale_acts_by_decoder_norm": False}
    if coder.kind != "autoencoder":
        skip = "skip_" * ("W_skip" in coder.weights)
        architecture = f"{'jumprelu_' * (coder.architecture == 'jumprelu')}{skip}transcoder"
        config |= {"d_out": coder.d_out}
        written = hook_of(coder.target)
        if coder.record.get("before_post_norm"):
            written = written.replace("hook_mlp_out", "mlp.hook_out")
        config["metadata"]["hook_name_out"] = written
    config["architecture"] = architecture
    return config, dict(coder.weights)

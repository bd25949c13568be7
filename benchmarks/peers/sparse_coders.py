"""Whether SAELens, sparsify and circuit-tracer compute from files what we compute, and we from what they write.

    python -m acdc.benchmarks.peers.sparse_coders PYTHON

PYTHON: of an environment with sae-lens, eai-sparsify and circuit-tracer (its own requirements are of older versions:
install it with --no-deps). Random coders of every architecture are written, run there and written again. Prints the
largest difference of what is rebuilt, by them and by us from what they wrote, beside the largest number rebuilt.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from acdc.sae.formats import load_coder, load_coders, save_coder
from acdc.sae.sparse_coder import SparseCoder

D_IN, D_OUT, N, K, LAYERS = 12, 8, 40, 5, 3


def coders() -> dict[str, SparseCoder]:
    """By name; each begins with the format that it is written in."""
    found = {}
    for format, architecture, kind in (
        ("saelens", "relu", "sae"), ("saelens", "gated", "sae"), ("saelens", "topk", "sae"),
        ("saelens", "jumprelu", "sae"), ("saelens", "relu", "transcoder"), ("saelens", "jumprelu", "transcoder"),
        ("saelens", "relu", "skip"), ("saelens", "jumprelu", "skip"), ("sparsify", "topk", "sae"),
        ("sparsify", "topk", "transcoder"), ("sparsify", "topk", "skip"),
    ):
        found[f"{format}-{architecture}-{kind}"] = _random(architecture, kind, D_IN if format == "sparsify" else D_OUT)
    return found


def _random(architecture: str, kind: str, d_out: int) -> SparseCoder:
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    d_out = D_IN if kind == "sae" else d_out
    weights = {"W_enc": draw(D_IN, N), "W_dec": draw(N, d_out), "b_dec": draw(d_out)}
    if architecture == "gated":
        weights |= {"b_gate": draw(N), "b_mag": draw(N), "r_mag": draw(N) / 4}
    else:
        weights["b_enc"] = draw(N)
    if architecture == "jumprelu":
        weights["threshold"] = draw(N).abs()
    if kind == "skip":
        weights["W_skip"] = draw(d_out, D_IN)
    return SparseCoder(architecture, "m3" if kind == "sae" else "m3.in", "m3", weights,
                       K if architecture == "topk" else None, kind == "sae")


def written_by_hand(folder: Path) -> dict[str, list[str]]:
    """Files that only peers write: SAELens' coders of normalised activations, circuit-tracer's transcoders and a
    cross-layer one. The names of the folders, and of the layers of each."""
    random = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    for name, architecture, how in (("scaled", "relu", "expected_average_only_in"),
                                    ("whitened", "topk", "covariance_whitening"),
                                    ("whitened-gated", "gated", "covariance_whitening")):
        made = folder / f"norm-{name}"
        save_coder(_random(architecture, "sae", D_IN), made)
        config = json.loads((made / "cfg.json").read_text())
        (made / "cfg.json").write_text(json.dumps({**config, "normalize_activations": how}))
        whitens = how == "covariance_whitening"
        (made / "activation_scaler.json").write_text(
            json.dumps({"scaling_factor": None if whitens else 2.5, "has_whitening": whitens}))
        if whitens:
            matrix = (draw(D_IN, D_IN) + 4 * torch.eye(D_IN)).double()
            save_file({"mean": draw(D_IN).double(), "matrix": matrix,
                       "inverse_matrix": torch.linalg.inv(matrix).contiguous()},
                      made / "activation_whitening.safetensors")
    hooks = "feature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n"
    for name in ("relu", "jumprelu-skip"):
        made = folder / f"layers-{name}"
        made.mkdir()
        (made / "config.yaml").write_text(f"model_name: tiny\nmodel_kind: transcoder_set\n{hooks}")
        for layer in range(LAYERS):
            tensors = {"W_enc": draw(N, D_IN), "W_dec": draw(N, D_IN), "b_enc": draw(N), "b_dec": draw(D_IN)}
            if "skip" in name:
                tensors |= {"activation_function.threshold": draw(N).abs(), "W_skip": draw(D_IN, D_IN)}
            save_file(tensors, made / f"layer_{layer}.safetensors")
    for name in ("relu", "jumprelu"):
        made = folder / f"across-{name}"
        made.mkdir()
        for layer in range(LAYERS):
            tensors = {"W_enc": draw(N, D_IN), "b_enc": draw(N), "b_dec": draw(D_IN)}
            if name == "jumprelu":
                tensors["threshold"] = draw(N).abs()
            save_file({f"{key}_{layer}": value for key, value in tensors.items()}, made / f"W_enc_{layer}.safetensors")
            save_file({f"W_dec_{layer}": draw(N, LAYERS - layer, D_IN)}, made / f"W_dec_{layer}.safetensors")
    return {path.name: sorted(file.name for file in path.iterdir()) for path in sorted(folder.iterdir())
            if path.is_dir() and path.name.startswith(("norm", "layers", "across"))}


def ours_by_hand(path: Path, xs: torch.Tensor) -> torch.Tensor:
    """What we rebuild; of several layers one after the other."""
    if path.name.startswith("across"):
        return torch.stack([coder(*xs[: layer + 1]) for layer, coder in enumerate(load_coders(path))])
    return torch.stack([coder(x) for coder, x in zip(load_coders(path), xs, strict=False)])


def main(python: str) -> None:
    xs = torch.randn(LAYERS, 200, D_IN, generator=torch.Generator().manual_seed(1))
    x = xs[0]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        save_file({"xs": xs}, folder / "x.safetensors")
        by_hand = written_by_hand(folder)
        ours = coders()
        for name, coder in ours.items():
            save_coder(coder, folder / name, format=name.partition("-")[0], model_name="tiny")
        side = Path(__file__).with_name("sparse_coders_side.py")
        done = subprocess.run([python, str(side), str(folder)], check=True, stdout=subprocess.PIPE, text=True)
        print(done.stdout.strip().splitlines()[-1])
        for name, coder in ours.items():
            expected = coder(x)
            theirs = load_file(folder / f"{name}.out.safetensors")["out"]
            again = load_coder(folder / f"{name}.again", site=coder.site, target=coder.target)
            assert isinstance(again, SparseCoder)
            print(f"{name:28} theirs {_furthest(theirs, expected)}  written by them {_furthest(again(x), expected)}")
        for name in by_hand:
            theirs = load_file(folder / f"{name}.out.safetensors")["out"]
            print(f"{name:28} theirs {_furthest(theirs, ours_by_hand(folder / name, xs))}")


def _furthest(a: torch.Tensor, b: torch.Tensor) -> str:
    assert a.shape == b.shape, f"{a.shape} {b.shape}"
    return f"{float((a - b).abs().max()):.1e} of {float(b.abs().max()):.0f}"


if __name__ == "__main__":
    main(sys.argv[1])

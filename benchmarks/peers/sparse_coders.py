"""Whether SAELens and sparsify compute from our files what we compute, and we from theirs.

    python -m acdc.benchmarks.peers.sparse_coders PYTHON

PYTHON: of an environment with sae-lens and eai-sparsify. Random coders of every architecture are written, run there and
written again. Prints the largest difference of what is rebuilt, by them and by us from what they wrote.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from acdc.sae.formats import load_coder, save_coder
from acdc.sae.sparse_coder import SparseCoder

D_IN, D_OUT, N, K = 12, 8, 40, 5


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


def main(python: str) -> None:
    x = torch.randn(200, D_IN, generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        save_file({"x": x}, folder / "x.safetensors")
        ours = coders()
        for name, coder in ours.items():
            save_coder(coder, folder / name, format=name.partition("-")[0], model_name="tiny")
        side = Path(__file__).with_name("sparse_coders_side.py")
        done = subprocess.run([python, str(side), str(folder)], check=True, stdout=subprocess.PIPE, text=True)
        print(done.stdout.strip().splitlines()[-1])
        for name, coder in ours.items():
            expected = coder(x)
            theirs = load_file(folder / f"{name}.out.safetensors")["out"]
            again = load_coder(folder / f"{name}.again", site=coder.site, target=coder.target)(x)
            print(f"{name:28} theirs {float((theirs - expected).abs().max()):.1e}  "
                  f"written by them {float((again - expected).abs().max()):.1e}")


if __name__ == "__main__":
    main(sys.argv[1])

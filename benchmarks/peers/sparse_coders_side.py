"""The side of SAELens, sparsify and circuit-tracer: they read coders, run them, and write acdc's again.

    python sparse_coders_side.py FOLDER

It imports nothing of acdc. FOLDER holds `x.safetensors` and a folder for each coder, whose name begins with saelens or
sparsify (of acdc), norm (SAELens' of normalised activations), layers or across (circuit-tracer's). Beside each it
leaves NAME.out.safetensors, what the peer rebuilt, and of acdc's NAME.again, the coder as the peer writes it.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file


def main(folder: Path) -> None:
    xs = load_file(folder / "x.safetensors")["xs"]
    readers = {"saelens": saelens, "sparsify": sparsify, "norm": normalised, "layers": layers, "across": across}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            kind = path.name.partition("-")[0]
            out = readers[kind](path, xs if kind in ("layers", "across") else xs[0])
            save_file({"out": out.detach().contiguous()}, folder / f"{path.name}.out.safetensors")
    print(json.dumps({name: version(name) for name in ("sae-lens", "eai-sparsify", "circuit-tracer")}))


def saelens(path: Path, x: Any) -> Any:
    from sae_lens.saes.sae import SAE  # pyright: ignore[reportMissingImports]
    from sae_lens.saes.transcoder import SkipTranscoder  # pyright: ignore[reportMissingImports]

    coder = SAE.load_from_disk(path)
    coder.save_model(path.with_name(f"{path.name}.again"))
    return coder.forward(x) if isinstance(coder, SkipTranscoder) else coder.decode(coder.encode(x))


def normalised(path: Path, x: Any) -> Any:
    """As in training: the scaler is applied to what is read, and undone in what is rebuilt."""
    from sae_lens.saes.sae import SAE  # pyright: ignore[reportMissingImports]
    from sae_lens.training.activation_scaler import ActivationScaler  # pyright: ignore[reportMissingImports]

    scaler, coder = ActivationScaler(), SAE.load_from_disk(path)
    scaler.load(path / "activation_scaler.json")
    return scaler.unscale(coder.decode(coder.encode(scaler.scale(x))))[None]


def sparsify(path: Path, x: Any) -> Any:
    from sparsify import SparseCoder  # pyright: ignore[reportMissingImports]

    coder = SparseCoder.load_from_disk(path)
    found = coder.encode(x)
    out = coder.decode(found.top_acts, found.top_indices)
    coder.save_to_disk(path.with_name(f"{path.name}.again"))
    return out if coder.W_skip is None else out + x @ coder.W_skip.mT


def layers(path: Path, xs: Any) -> Any:
    import torch
    from circuit_tracer.transcoder.single_layer_transcoder import (  # pyright: ignore[reportMissingImports]
        load_transcoder_set,
    )

    files = {layer: str(path / f"layer_{layer}.safetensors") for layer in range(len(xs))}
    found = load_transcoder_set(files, "", "mlp.hook_in", "hook_mlp_out", device=torch.device("cpu"),
                                lazy_encoder=False, lazy_decoder=False)
    return found.decode(found.encode(xs), xs)


def across(path: Path, xs: Any) -> Any:
    import torch
    from circuit_tracer.transcoder.cross_layer_transcoder import load_clt  # pyright: ignore[reportMissingImports]

    found = load_clt(str(path), device=torch.device("cpu"), dtype=torch.float32, lazy_decoder=False)
    return found.decode(found.encode(xs))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

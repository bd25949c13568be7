"""SAELens' and sparsify's side: they read coders that acdc wrote, run them, and write them again.

    python sparse_coders_side.py FOLDER

It imports nothing of acdc. FOLDER holds `x.safetensors` and a folder for each coder, whose name begins with saelens or
sparsify. Beside each it leaves NAME.out.safetensors, what the peer rebuilt, and NAME.again, the coder as it writes it.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

from safetensors.torch import load_file, save_file


def main(folder: Path) -> None:
    from sae_lens.saes.sae import SAE  # pyright: ignore[reportMissingImports]
    from sae_lens.saes.transcoder import SkipTranscoder  # pyright: ignore[reportMissingImports]
    from sparsify import SparseCoder  # pyright: ignore[reportMissingImports]

    x = load_file(folder / "x.safetensors")["x"]
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            continue
        if path.name.startswith("saelens"):
            coder = SAE.load_from_disk(path)
            features = coder.encode(x)
            out = coder.forward(x) if isinstance(coder, SkipTranscoder) else coder.decode(features)
            coder.save_model(folder / f"{path.name}.again")
        else:
            coder = SparseCoder.load_from_disk(path)
            found = coder.encode(x)
            out = coder.decode(found.top_acts, found.top_indices)
            if coder.W_skip is not None:
                out = out + x @ coder.W_skip.mT
            coder.save_to_disk(folder / f"{path.name}.again")
        save_file({"out": out.detach().contiguous()}, folder / f"{path.name}.out.safetensors")
    print(json.dumps({name: version(name) for name in ("sae-lens", "eai-sparsify")}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

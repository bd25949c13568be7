"""The side of the package tuned-lens: it reads a lens that acdc wrote, runs it, and writes it again.

    python lens_files_side.py FOLDER

It imports nothing of acdc. FOLDER holds `model`, `lens` and `tokens.safetensors`; `logits.safetensors` and `again` are
left there. That the unembedding is the one the lens was trained for is checked, which the package only warns of.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


def main(folder: Path) -> None:
    from tuned_lens.nn.lenses import TunedLens  # pyright: ignore[reportMissingImports]

    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, trust_remote_code=False)
    torch.save(load_file(folder / "lens" / "params.safetensors"), folder / "lens" / "params.pt")
    lens = TunedLens.from_model_and_pretrained(model, str(folder / "lens"))
    if lens.config.unembed_hash != lens.unembed.unembedding_hash():
        raise SystemExit("the hash of the unembedding differs")
    tokens = load_file(folder / "tokens.safetensors")["tokens"]
    with torch.no_grad():
        hidden = model(tokens, output_hidden_states=True).hidden_states
        found = torch.stack([lens(hidden[i], i) for i in range(len(lens))])
    save_file({"logits": found}, folder / "logits.safetensors")
    lens.save(folder / "again")
    save_file(torch.load(folder / "again" / "params.pt", weights_only=True), folder / "again" / "params.safetensors")
    print(json.dumps({name: version(name) for name in ("tuned-lens", "transformers")}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

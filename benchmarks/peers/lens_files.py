"""Whether the package tuned-lens computes from our lenses what we compute, and we from its.

    python -m acdc.benchmarks.peers.lens_files PYTHON

PYTHON: of an environment with tuned-lens. A small Llama with random weights and a random lens are written, read there
(its tensors as the pickle that the package wants), run, and written again. Prints the largest differences of logits.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from acdc.annotation.sites import read
from acdc.annotation.tuned_lens import TunedLens, load_tuned_lens, save_tuned_lens
from acdc.models import load_model
from acdc.transformer import Transformer

WIDTH, LAYERS, VOCAB = 32, 3, 101


def logits(model: Transformer, lens: TunedLens, tokens: torch.Tensor) -> torch.Tensor:
    """[layer, batch, pos, vocab], of what each block reads."""
    streams = read(model, tokens, [f"resid{i}" for i in range(LAYERS)])
    with torch.no_grad():
        return torch.stack([model.logits(lens(i, streams[f"resid{i}"])) for i in range(LAYERS)])


def main(python: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM  # here, as importing them changes settings

    torch.manual_seed(0)
    hf = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=64,
                                      num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2))
    lens = TunedLens(torch.randn(LAYERS, WIDTH, WIDTH) / WIDTH, torch.randn(LAYERS, WIDTH) / WIDTH)
    tokens = torch.randint(0, VOCAB, (4, 9))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        hf.save_pretrained(folder / "model")
        model = load_model(hf)
        save_tuned_lens(lens, model, folder / "lens")
        save_file({"tokens": tokens}, folder / "tokens.safetensors")
        side = Path(__file__).with_name("lens_files_side.py")
        done = subprocess.run([python, str(side), str(folder)], check=True, stdout=subprocess.PIPE, text=True)
        print(done.stdout.strip().splitlines()[-1])
        expected = logits(model, lens, tokens)
        theirs = load_file(folder / "logits.safetensors")["logits"]
        again = logits(model, load_tuned_lens(model, folder / "again"), tokens)
        print(f"largest difference of logits: theirs {float((theirs - expected).abs().max()):.1e}, ours from what they "
              f"wrote {float((again - expected).abs().max()):.1e}; logits have a standard deviation of "
              f"{float(expected.std()):.2f}")


if __name__ == "__main__":
    main(sys.argv[1])

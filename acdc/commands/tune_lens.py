"""`acdc tune-lens`: trains a tuned lens on running text."""

import argparse
import sys

from acdc.errors import AcdcError
from acdc.output_folder import beside, output_folder

from .printing import say
from .prompts import add_out, load_one

HELP = "train a tuned lens on a text, and compare it with the logit lens on a part that it has not seen"
FILES = ("config.json", "params.safetensors")
HELD_OUT = 4  # windows


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2", help="packaged model, hub name or local folder")
    parser.add_argument("--text", default="python", help="a UTF-8 text file; python: Python's own reference")
    parser.add_argument("--context", type=int, default=128, help="tokens of a window of the text")
    parser.add_argument("--steps", type=int, default=250, help="of the training")
    parser.add_argument("--windows-per-step", type=int, default=2, help="windows that a step runs the model on")
    parser.add_argument("--tokens-per-step", type=int, default=64, help="tokens of them that it learns from")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="at the start, in shares of the mean size "
                        "of each dimension; it falls to 0")
    parser.add_argument("--seed", type=int, default=0, help="of the windows and tokens of each step")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float64")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    add_out(parser)


def run(arguments: argparse.Namespace) -> None:
    from acdc.annotation.text import read_text, windows
    from acdc.annotation.tuned_lens import Training, lens_divergence, save_tuned_lens, train_tuned_lens

    training = Training(arguments.steps, arguments.windows_per_step, arguments.tokens_per_step,
                        arguments.learning_rate, arguments.seed)
    text = read_text(arguments.text)
    state = beside(arguments.out, "checkpoint")
    with output_folder(arguments.out, FILES, arguments.overwrite) as folder:
        folder.spent.append(state)
        model = load_one(arguments)
        found = windows(model, text, arguments.context)
        if len(found) <= HELD_OUT:
            raise AcdcError(f"the text is {len(found)} windows of {arguments.context} tokens, and {HELD_OUT} are held "
                            "out; give more text or a shorter --context")
        train, held_out = found[:-HELD_OUT], found[-HELD_OUT:]
        say(f"training on {len(train):,} windows of {arguments.context} tokens; {state} is what it goes on from")
        lens = train_tuned_lens(model, train, training, checkpoint=state, progress=sys.stderr.isatty())
        save_tuned_lens(lens, model, folder.path)
        logit, tuned = lens_divergence(model, held_out), lens_divergence(model, held_out, lens)
    print(f"KL to the model's own distribution, {HELD_OUT} windows held out\n{'layer':>6} {'logit':>9} {'tuned':>9}")
    for layer, pair in enumerate(zip(logit.tolist(), tuned.tolist(), strict=True)):
        print(f"{layer:>6} {pair[0]:>9.3f} {pair[1]:>9.3f}")
    print(f"written to {arguments.out}: {', '.join(FILES)}")

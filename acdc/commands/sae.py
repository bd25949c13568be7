"""`acdc sae`: trains sparse autoencoders and transcoders, says what they are worth and what their features are."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from acdc.arguments import check_device
from acdc.errors import AcdcError
from acdc.output_folder import beside, output_folder, write_file

from .loading import quiet_libraries
from .printing import say

HELP = "train a sparse autoencoder or transcoder on text, measure one, or show what its features are"
FILES = {"saelens": ("cfg.json", "sae_weights.safetensors"), "sparsify": ("cfg.json", "sae.safetensors")}
REPORTED = 200  # windows that a report is of, unless told: of a text of thousands, minutes


def add_options(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    train = actions.add_parser("train", help="train one, and measure it on windows held out")
    train.add_argument("--site", required=True, help="what it reads: m12, m12.in, resid12, a5.h1, a5.z, ...")
    train.add_argument("--target", help="what it rebuilds, for a transcoder: m12, with --site m12.in")
    train.add_argument("--architecture", default="topk", help="relu, gated, topk, batchtopk or jumprelu")
    train.add_argument("--features", type=int, default=2304, help="how many")
    train.add_argument("--steps", type=int, default=1500, help="of the training")
    train.add_argument("--k", type=int, default=32, help="features active on a token, topk and batchtopk")
    train.add_argument("--penalty", type=float, default=1.0, help="of sparsity: l1 (relu, gated) or l0 (jumprelu)")
    train.add_argument("--learning-rate", type=float, default=1e-3, help="of Adam")
    train.add_argument("--tokens-per-step", type=int, default=1024, help="activations a step")
    train.add_argument("--skip", action="store_true", help="a linear path beside the features, transcoders only")
    train.add_argument("--seed", type=int, default=0, help="of the first weights and the order of tokens")
    train.add_argument("--format", default="saelens", help="saelens or sparsify")
    train.add_argument("--checkpoint", type=Path, help="the file that training goes on from when it was stopped "
                       "(default: the --out folder's name + .checkpoint, gone at the end)")
    train.add_argument("--out", "-o", type=Path, required=True, help="folder to write")
    train.add_argument("--overwrite", action="store_true", help="replace the coder that is there")
    report = actions.add_parser("report", help="what a coder is worth on text")
    report.add_argument("--absorption", action="store_true", help="also: whether features of first letters of words "
                        "are silent where another feature does their work")
    show = actions.add_parser("features", help="what its features are: text, logits, how often")
    show.add_argument("--index", type=int, nargs="+", help="these features (default: the 10 that are strongest where "
                      "they are rare)")
    show.add_argument("--examples", type=int, default=5, help="for each feature")
    for action in (report, show):
        action.add_argument("coder", type=Path, help="folder or file of a SAELens, sparsify, circuit-tracer or Gemma "
                            "Scope coder")
        action.add_argument("--site", help="what it reads, where its files do not say it")
        action.add_argument("--target", help="what it rebuilds, if another site")
        action.add_argument("--layer", type=int, help="which of a circuit-tracer folder")
        action.add_argument("--out", "-o", type=Path, help="also write the numbers to this JSON file")
    for action in (train, report, show):
        action.add_argument("--model", default="smollm2", help="packaged model, hub name or local folder")
        action.add_argument("--text", default="python", help="a UTF-8 text file; python: Python's own reference")
        action.add_argument("--context", type=int, default=64, help="tokens of a window of the text")
        action.add_argument("--windows", type=int, help="take only the first windows of the text (default: all; "
                            f"report: {REPORTED} at most)")
        action.add_argument("--dtype", default="float32", help="float32, bfloat16 or float64")
        action.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")


def run(arguments: argparse.Namespace) -> None:
    {"train": _train, "report": _report, "features": _features}[arguments.action](arguments)


def _train(arguments: argparse.Namespace) -> None:
    import torch

    from acdc.sae.formats import check_format, save_coder
    from acdc.sae.training import Recipe, train_on_model
    from acdc.sae.worth import worth

    autoencoder = arguments.target in (None, arguments.site)
    check_format(arguments.format, arguments.architecture, autoencoder=autoencoder)
    recipe = Recipe(arguments.architecture, arguments.features, arguments.steps, arguments.k, arguments.penalty,
                    arguments.learning_rate, skip=arguments.skip, seed=arguments.seed)
    recipe.check(autoencoder=autoencoder)
    files = (*FILES[arguments.format], "worth.json")
    state = arguments.checkpoint or beside(arguments.out, "checkpoint")
    with output_folder(arguments.out, files, arguments.overwrite) as folder:
        folder.spent.append(state)
        model, tokens = _load(arguments)
        order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(arguments.seed))
        n_held_out = max(1, min(100, len(tokens) // 10))
        if len(tokens) <= n_held_out:
            raise AcdcError(f"the text is {len(tokens)} windows; give more text, or a shorter --context")
        held_out, kept = tokens[order[:n_held_out]], tokens[order[n_held_out:]]
        say(f"training on {len(kept):,} windows of {arguments.context} tokens; {state} is what it goes on from")
        coder = train_on_model(model, kept, recipe, site=arguments.site, target=arguments.target,
                               batch_size=arguments.tokens_per_step, checkpoint=state,
                               progress=sys.stderr.isatty())
        save_coder(coder, folder.path, format=arguments.format, model_name=arguments.model)
        found = worth(model, coder, held_out)
        write_file(folder.path / "worth.json", _json({**found.as_record(), "recipe": vars(recipe)}))
    _print_worth(found)
    print(f"written to {arguments.out}: {', '.join(files)}")


def _report(arguments: argparse.Namespace) -> None:
    from acdc.sae.absorption import first_letter_absorption
    from acdc.sae.worth import worth

    coder = _coder(arguments)
    model, tokens = _load(arguments)
    tokens = tokens[:REPORTED] if arguments.windows is None else tokens
    found = worth(model, coder, tokens, progress=sys.stderr.isatty())
    reads = coder.site if len(coder.reads) == 1 else f"{coder.reads[0]} to {coder.site}"
    print(f"{coder.architecture} {coder.kind}, {coder.n_features:,} features, from {reads} to {coder.target}")
    _print_worth(found)
    record = found.as_record()
    if arguments.absorption:
        letters = first_letter_absorption(model, coder, tokens)
        _print_absorption(letters)
        record["absorption"] = [one.as_record() for one in letters]
    _write(arguments.out, record)


def _features(arguments: argparse.Namespace) -> None:
    from acdc.export.text import visible
    from acdc.sae.cross_layer import CrossLayerTarget
    from acdc.sae.examples import features

    coder = _coder(arguments)
    if isinstance(coder, CrossLayerTarget):
        coder = coder.transcoder.layer(coder.of_layer)
    for index in arguments.index or ():
        coder.check_feature(index)
    model, tokens = _load(arguments)
    found = features(model, coder, tokens, arguments.index, n_examples=arguments.examples,
                     progress=sys.stderr.isatty())
    for one in found:
        print(f"feature {one.feature}: on {one.density:.3%} of tokens, at most {one.largest:.3g}")
        if one.promotes:
            print("  promotes " + " ".join(repr(word) for word, _ in one.promotes[:8]))
        for example in one.examples:
            least = 0.5 * max(example["activations"])
            words = (f"[{w}]" if a > least else w
                     for w, a in zip(example["tokens"], example["activations"], strict=True))
            print("  | " + visible("".join(words).replace("\n", " ")))
    _write(arguments.out, [one.as_record() for one in found])


def _coder(arguments: argparse.Namespace) -> Any:
    from acdc.sae.formats import load_coder

    if arguments.out and not arguments.out.parent.is_dir():
        raise AcdcError(f"cannot write to {arguments.out}: {arguments.out.parent} is not a folder")
    return load_coder(arguments.coder, site=arguments.site, target=arguments.target, layer=arguments.layer)


def _load(arguments: argparse.Namespace) -> tuple[Any, Any]:
    from acdc.annotation.text import read_text, windows
    from acdc.models import load_model

    check_device(arguments.device)
    text = read_text(arguments.text)
    quiet_libraries()
    say(f"loading {arguments.model}")
    model = load_model(arguments.model, dtype=arguments.dtype, device=arguments.device)
    return model, windows(model, text, arguments.context, arguments.windows)


def _print_worth(found: Any) -> None:
    explained, recovered = ("not defined" if x is None else f"{x:.3f}" for x in (found.explained, found.recovered))
    print(f"on {found.n_tokens:,} tokens: L0 {found.l0:.1f}, explained variance {explained}, loss recovered "
          f"{recovered} (next-token loss {found.loss:.3f}, rebuilt {found.loss_rebuilt:.3f}, zero "
          f"{found.loss_zero:.3f})\nfeatures: {found.dead:.1%} dead, {found.dense:.1%} on more than a tenth of tokens, "
          f"{found.alike:.1%} doubled, {found.nested:.1%} active only within another")


def _print_absorption(letters: Any) -> None:
    from acdc.sae.absorption import mean_rates

    rates = mean_rates(letters)
    if rates is None:
        print("absorption not defined: no first letter has a feature that tells it")
        return
    missed, absorbed, n = rates
    print(f"first letters of words: {n} of {len(letters)} have features that tell them; where the probe finds the "
          f"letter, these are silent on {missed:.1%}, and another feature does their work on {absorbed:.1%}")
    for one in letters:
        if one.absorbed:
            by = ", ".join(f"{feature} ({tokens})" for feature, tokens in one.by[:5])
            print(f"  {one.label}: told by {', '.join(map(str, one.main))} (F1 {one.f1:.2f}); silent {one.missed:.1%}, "
                  f"absorbed {one.absorbed:.1%}, by {by}")


def _write(out: Path | None, record: Any) -> None:
    if out:
        write_file(out, _json(record))
        print(f"written to {out}")


def _json(record: Any) -> bytes:
    return (json.dumps(record, indent=1, allow_nan=False) + "\n").encode()

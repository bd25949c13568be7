"""How the files of this folder are made: compiles programs with tracr, and finds the edges that each model uses.

Run by hand, from the root of the repository, in an environment of its own (Python 3.11; nothing here imports acdc):

    python3.11 -m venv /tmp/tracr && /tmp/tracr/bin/pip install tracr-pypi==1.0.0 dm-haiku==0.0.17 jax==0.10.2 \
        jaxlib==0.10.2 numpy==2.4.6 safetensors==0.8.0
    /tmp/tracr/bin/python -m benchmarks.compiled.generate [NAME ...]

Phases, for each program: compile; read the weights out of the haiku parameters; draw prompts; let tracr's own forward
compute the logits, and check that they say what the program says; find the true edges with a forward pass in numpy in
which any edge can be cut; check that these edges suffice; write a .safetensors and a .json file.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from .cut import MOVED, Pairs, Weights, edges, movement, name, run, used_by_weights
from .programs import Program, programs

FOLDER = Path(__file__).parent
BOS = "BOS"
PAIRS = 64
ROUNDING = 1e-4  # of tracr's float32 forward
PROMPTS = ("drawn at random by programs.py, an equal number of each length; clean and corrupted prompt are drawn "
           "alike, and again until the program says different things of them at the last position (anywhere, where it "
           "says nothing there)")
MEANING = {
    "weights": "src writes into directions that the channel reads, on a path of such edges to the logits: cutting all "
               "other edges changes nothing, whatever the ablation and the prompts",
    "zero": "cut alone, the edge carrying 0, it moves some logit of some clean prompt by more than `moved`",
    "resample": "the same, the edge carrying what its src writes on the corrupted prompt",
    "all": "logits at every position after BOS count", "last": "logits at the last position count",
    "least_inside": "the least that a true edge moves a logit, and `most_outside` the most that any other does",
    "moved_by_all_outside": "how far all other edges move a logit, cut at once",
}


def extract(compiled: Any, causal: bool) -> Weights:
    """Reads the weights out of tracr's model. The unembedding is no parameter there, but a linear function."""
    import haiku as hk  # pyright: ignore[reportMissingImports]

    config, params = compiled.model_config, compiled.params
    for module, parameters in params.items():
        assert not np.any(parameters.get("b", 0)), f"{module} has a bias"

    def stacked(name: str) -> np.ndarray:
        layers = range(config.num_layers)
        return np.stack([np.asarray(params[f"transformer/layer_{i}/{name}"]["w"], np.float32) for i in layers])

    def by_head(name: str) -> np.ndarray:
        weight = stacked(f"attn/{name}")
        return weight.reshape(*weight.shape[:2], config.num_heads, config.key_size)

    embeds = {name: np.asarray(params[name]["embeddings"], np.float32) for name in ("token_embed", "pos_embed")}
    d_model, out = embeds["token_embed"].shape[1], stacked("attn/linear")
    unembed = hk.without_apply_rng(hk.transform(
        lambda x: compiled.get_compiled_model().unembed(x, use_unembed_argmax=False)
    )).apply({}, np.eye(d_model, dtype=np.float32))
    return Weights(
        token_embed=embeds["token_embed"], position_embed=embeds["pos_embed"],
        q=by_head("query"), k=by_head("key"), v=by_head("value"),
        o=out.reshape(len(out), config.num_heads, config.key_size, d_model),
        mlp_in=stacked("mlp/linear_1"), mlp_out=stacked("mlp/linear_2"),
        unembed=np.asarray(unembed, np.float32).reshape(d_model, -1), causal=causal,
    )


def tracr_logits(compiled: Any, tokens: np.ndarray) -> np.ndarray:
    """What tracr's own forward pass computes, before it takes the argmax."""
    import haiku as hk  # pyright: ignore[reportMissingImports]

    def forward(tokens: np.ndarray) -> Any:
        model = compiled.get_compiled_model()
        return model.unembed(model(tokens, use_dropout=False).transformer_output.output, use_unembed_argmax=False)

    logits = np.asarray(hk.without_apply_rng(hk.transform(forward)).apply(compiled.params, tokens), np.float32)
    return logits.reshape(*tokens.shape, -1)


def used_when_run(weights: Weights, batches: Sequence[Pairs], ablation: str) -> dict[str, Any]:
    """The edges that move a logit by more than MOVED when cut alone: of all positions, and of the last one.

    BOS is left out: the program defines no output there. That the edges suffice, with all others cut at once, is
    checked; `least_inside` and `most_outside` tell how clear the choice is.
    """
    moved_by = [movement(weights, pairs, ablation) for pairs in batches]
    moved = {edge: [of_batch([edge]) for of_batch in moved_by] for edge in edges(weights)}
    found = {}
    for where, at in (("all", slice(None)), ("last", slice(-1, None))):
        effects = {edge: max(of_batch[:, at].max() for of_batch in moved[edge]) for edge in moved}
        inside = [edge for edge, effect in effects.items() if effect > MOVED]
        outside = [edge for edge in effects if edge not in inside]
        rest = max(of_batch(outside)[:, at].max() for of_batch in moved_by)
        assert rest < MOVED, f"{ablation}: the edges that matter alone do not suffice, {rest}"
        found[where] = {
            "edges": [name(edge) for edge in inside],
            "least_inside": float(min((effects[edge] for edge in inside), default=0.0)),
            "most_outside": float(max(effects[edge] for edge in outside)),
            "moved_by_all_outside": float(rest),
        }
    return found


def draw_pairs(program: Program, length: int, rng: np.random.Generator, n: int
               ) -> list[tuple[list[Any], list[Any]]]:
    """Pairs of prompts for which the program says different things."""
    pairs = []
    while len(pairs) < n:
        clean, corrupted = program.draw(rng, length), program.draw(rng, length)
        if program.differ(clean, corrupted):
            pairs.append((clean, corrupted))
    return pairs


def check_against_program(program: Program, prompts: Sequence[list[Any]], logits: np.ndarray, labels: list[Any]
                          ) -> None:
    """What the logits say is what the program says; where it says nothing (None), all logits are 0."""
    for prompt, rows in zip(prompts, logits, strict=True):
        for value, row in zip(program(prompt), rows[1:], strict=True):
            if value is None:
                assert np.abs(row).max() < ROUNDING, (prompt, row)
            elif len(labels) > 1:
                assert labels[int(row.argmax())] == value, (prompt, value, row)
            else:
                assert abs(row[0] - value) < 1e-2, (prompt, value, row)


def generate(title: str, program: Program, seed: int) -> dict[str, Any]:
    from safetensors.numpy import save
    from tracr.compiler import compiling  # pyright: ignore[reportMissingImports]

    compiled = compiling.compile_rasp_to_model(program.sop, set(program.vocabulary), program.max_length,
                                               causal=program.causal, compiler_bos=BOS)
    weights, encoder = extract(compiled, program.causal), compiled.input_encoder
    labels = list(getattr(compiled.output_encoder, "encoding_map", ["value"]))
    rng, batches, logits = np.random.default_rng(seed), [], {}
    for length in program.lengths:
        prompts = zip(*draw_pairs(program, length, rng, PAIRS // len(program.lengths)), strict=True)
        cleans, corrupteds = ([[BOS, *prompt] for prompt in side] for side in prompts)
        clean, corrupted = (np.array([encoder.encode(p) for p in side]) for side in (cleans, corrupteds))
        of_clean = tracr_logits(compiled, clean)
        check_against_program(program, [prompt[1:] for prompt in cleans], of_clean, labels)
        difference = np.abs(run(weights, clean)[0] - of_clean).max()
        assert difference < ROUNDING, difference
        logits[f"logits.{len(batches)}"] = of_clean
        batches.append(Pairs(clean, corrupted))
    by_weights = used_by_weights(weights)
    outside = set(edges(weights)) - set(by_weights)
    for pairs, ablation in product(batches, ("zero", "resample")):
        assert movement(weights, pairs, ablation)(outside).max() == 0
    record = {
        "program": title,
        "computes": program.text,
        "provenance": {"source": program.source, "compiler": f"tracr-pypi {version('tracr-pypi')}",
                       "max_length": program.max_length, "vocabulary": [str(token) for token in program.vocabulary],
                       "seed": seed, "prompts": PROMPTS, "logits": "tracr's own forward pass, float32"},
        "dims": {"layers": weights.shape[0], "heads": weights.shape[1], "d_head": weights.q.shape[-1],
                 "d_model": weights.q.shape[1], "d_mlp": weights.mlp_in.shape[-1], "edges": len(edges(weights))},
        "causal": program.causal,
        "vocabulary": {str(token): i for token, i in encoder.encoding_map.items()},
        "labels": [str(label) for label in labels],
        "truth": {"meaning": MEANING, "weights": [name(edge) for edge in by_weights], "moved": MOVED,
                  **{ablation: used_when_run(weights, batches, ablation) for ablation in ("zero", "resample")}},
        "batches": [{side: ids.tolist() for side, ids in vars(pairs).items()} for pairs in batches],
    }
    (FOLDER / f"{title}.safetensors").write_bytes(save({**weights.tensors(), **logits}))
    (FOLDER / f"{title}.json").write_text(to_json(record), encoding="utf-8")
    return record


def to_json(record: Mapping[str, Any]) -> str:
    """JSON with one line a field of the first two levels."""
    def inner(value: Any) -> str:
        if not isinstance(value, dict):
            return json.dumps(value)
        lines = (f'  {json.dumps(key)}: {json.dumps(of)}' for key, of in value.items())
        return "{\n" + ",\n".join(lines) + "\n }"
    return "{\n" + ",\n".join(f" {json.dumps(key)}: {inner(value)}" for key, value in record.items()) + "\n}\n"


def main() -> None:
    for seed, (title, program) in enumerate(programs().items()):
        if sys.argv[1:] and title not in sys.argv[1:]:
            continue
        truth = generate(title, program, seed)["truth"]
        print(f"{title}: {len(truth['weights'])} edges by weights")
        for ablation, where in product(("zero", "resample"), ("all", "last")):
            found = dict(truth[ablation][where])
            print(f"  {ablation}, {where}: {len(found.pop('edges'))} edges; {found}")


if __name__ == "__main__":
    main()

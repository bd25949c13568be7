"""How the files of this folder are made: compiles programs with tracr, and finds the edges that each model uses.

Run by hand, in an environment of its own (Python 3.11; nothing here imports acdc):

    python3.11 -m venv /tmp/tracr && /tmp/tracr/bin/pip install tracr-pypi==1.0.0 dm-haiku==0.0.17 jax==0.10.2 \
        jaxlib==0.10.2 numpy==2.4.6 safetensors==0.8.0
    /tmp/tracr/bin/python benchmarks/compiled/generate.py

Phases, for each program: compile; read the weights out of the haiku parameters; draw prompts; let tracr's own forward
compute the logits, and check that they say what the program says; find the true edges with a forward pass in numpy in
which any edge can be cut; check that these edges suffice; write a .safetensors and a .json file.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent
BOS = "BOS"
PAIRS_OF_A_LENGTH = 32
MOVED = 1e-3  # an edge counts if cutting it alone moves some logit by more than this
ROUNDING = 1e-4  # of tracr's float32 forward

Edge = tuple[str, str]  # src, channel
Draw = Callable[[np.random.Generator, int], list[Any]]


@dataclass(frozen=True)
class Program:
    """What is compiled. `draw`: a random prompt of a length; `lengths` are without BOS."""

    text: str
    sop: Any
    vocabulary: Sequence[Any]
    max_length: int
    causal: bool
    lengths: Sequence[int]
    draw: Draw

    def __call__(self, prompt: list[Any]) -> list[Any]:
        """What the program itself says, at every position."""
        from tracr.rasp import causal_eval, rasp  # pyright: ignore[reportMissingImports]

        return (causal_eval if self.causal else rasp).evaluate(self.sop, prompt)


def programs() -> dict[str, Program]:
    from tracr.compiler import lib  # pyright: ignore[reportMissingImports]
    from tracr.rasp import rasp  # pyright: ignore[reportMissingImports]

    def any_of(values: Sequence[Any]) -> Draw:
        return lambda rng, length: [values[i] for i in rng.integers(len(values), size=length)]

    def distinct(values: Sequence[Any]) -> Draw:
        return lambda rng, length: [values[i] for i in rng.permutation(len(values))[:length]]

    def induction_prompt(rng: np.random.Generator, length: int) -> list[str]:
        """Different tokens, the last of which stands earlier too."""
        tokens = distinct("abcdef")(rng, length - 1)
        return [*tokens, tokens[rng.integers(length - 1)]]

    tokens = rasp.tokens
    # EQ would refuse the None that stands before the first token.
    after_same = rasp.Select(lib.shift_by(1, tokens), tokens, lambda before, here: before == here)
    brackets, letters, digits = "()ab", "abcd", (1, 2, 3, 4, 5, 6)
    return {
        "reverse": Program("the tokens in reverse order", lib.make_reverse(tokens), (1, 2, 3), 5, False, (4, 5),
                           any_of((1, 2, 3))),
        "proportion": Program("the fraction of x among the tokens up to here", lib.make_frac_prevs(tokens == "x"),
                              "wxyz", 5, False, (4, 5), any_of("wxyz")),
        "pair_balance": Program("the fraction of ( minus the fraction of ) among the tokens up to here",
                                lib.make_pair_balance(tokens, "(", ")"), brackets, 6, True, (5, 6), any_of(brackets)),
        "hist": Program("how often the token here occurs", lib.make_hist(), letters, 6, False, (5, 6),
                        any_of(letters)),
        "sort_unique": Program("the tokens, all different, in rising order", lib.make_sort_unique(tokens, tokens),
                               digits, 5, False, (4, 5), distinct(digits)),
        "induction": Program("the token that came after the earlier occurrence of the token here",
                             rasp.Aggregate(after_same, tokens), "abcdef", 6, True, (5, 6), induction_prompt),
    }


@dataclass(frozen=True)
class Weights:
    """A compiled model: no biases, no norms, relu, attention scores divided by sqrt(d_head)."""

    token_embed: np.ndarray  # token d_model
    position_embed: np.ndarray  # position d_model
    q: np.ndarray  # layer d_model head d_head; k and v too
    k: np.ndarray
    v: np.ndarray
    o: np.ndarray  # layer head d_head d_model
    mlp_in: np.ndarray  # layer d_model d_mlp
    mlp_out: np.ndarray  # layer d_mlp d_model
    unembed: np.ndarray  # d_model label
    causal: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, heads."""
        return self.q.shape[0], self.q.shape[2]

    def tensors(self) -> dict[str, np.ndarray]:
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}


def extract(compiled: Any, causal: bool) -> Weights:
    """Reads the weights out of tracr's model. The unembedding is no parameter there, but a linear function."""
    import haiku as hk  # pyright: ignore[reportMissingImports]

    config, params = compiled.model_config, compiled.params
    for name, parameters in params.items():
        assert not np.any(parameters.get("b", 0)), f"{name} has a bias"

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


def channels(weights: Weights) -> Iterator[tuple[str, list[str]]]:
    """Every channel in the order of the forward pass, with the nodes that it can read."""
    n_layers, n_heads = weights.shape
    before = ["input"]
    for layer in range(n_layers):
        heads = [f"a{layer}.h{h}" for h in range(n_heads)]
        for letter, head in product("qkv", heads):
            yield f"{head}<{letter}>", list(before)
        before += heads
        yield f"m{layer}", list(before)
        before.append(f"m{layer}")
    yield "logits", before


def edges(weights: Weights) -> list[Edge]:
    return [(src, channel) for channel, srcs in channels(weights) for src in srcs]


def name(edge: Edge) -> str:
    return "->".join(edge)


def run(weights: Weights, tokens: np.ndarray, cut: Iterable[Edge] = (), replaced: Mapping[str, np.ndarray] | None = None
        ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits at every position, and what every node writes, in float64; an edge of `cut` carries its src's value in
    `replaced`, or 0 without it."""
    w = {name: value.astype(np.float64) for name, value in weights.tensors().items()}
    n_layers, n_heads = weights.shape
    cut, length = set(cut), tokens.shape[1]
    hidden = np.triu(np.full((length, length), -np.inf), 1) if weights.causal else np.zeros((length, length))
    wrote = {"input": w["token_embed"][tokens] + w["position_embed"][:length]}
    readable = dict(channels(weights))

    def read(channel: str) -> np.ndarray:
        total = np.zeros_like(wrote["input"])
        for src in readable[channel]:
            if (src, channel) not in cut:
                total = total + wrote[src]
            elif replaced is not None:
                total = total + replaced[src]
        return total

    for layer in range(n_layers):
        heads = {}
        for h in range(n_heads):
            q, k, v = (read(f"a{layer}.h{h}<{x}>") @ w[x][layer, :, h] for x in "qkv")
            scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]) + hidden
            attention = np.exp(scores - scores.max(-1, keepdims=True))
            heads[f"a{layer}.h{h}"] = attention / attention.sum(-1, keepdims=True) @ v @ w["o"][layer, h]
        wrote |= heads
        wrote[f"m{layer}"] = np.maximum(read(f"m{layer}") @ w["mlp_in"][layer], 0) @ w["mlp_out"][layer]
    return read("logits") @ w["unembed"], wrote


def used_by_weights(weights: Weights) -> list[Edge]:
    """The edges whose src writes into directions that the channel reads, on a path of such edges to the logits."""
    n_layers, n_heads = weights.shape
    writes = {"input": np.concatenate([weights.token_embed, weights.position_embed])}
    reads = {"logits": weights.unembed}
    for layer in range(n_layers):
        for h in range(n_heads):
            writes[f"a{layer}.h{h}"] = weights.o[layer, h]
            reads |= {f"a{layer}.h{h}<{x}>": getattr(weights, x)[layer, :, h] for x in "qkv"}
        writes[f"m{layer}"], reads[f"m{layer}"] = weights.mlp_out[layer], weights.mlp_in[layer]
    used = {(src, channel) for src, channel in edges(weights) if np.any(writes[src] @ reads[channel])}
    while True:
        fed = {channel.partition("<")[0] for _, channel in used} | {"input"}
        read = {src for src, _ in used} | {"logits"}
        pruned = {(src, channel) for src, channel in used if src in fed and channel.partition("<")[0] in read}
        if pruned == used:
            return [edge for edge in edges(weights) if edge in used]
        used = pruned


@dataclass(frozen=True)
class Pairs:
    """Clean and corrupted prompts of one length as token ids, BOS first."""

    clean: np.ndarray
    corrupted: np.ndarray


def movement(weights: Weights, pairs: Pairs, ablation: str, cut: Iterable[Edge]) -> np.ndarray:
    """By how much cutting edges moves the logits of the clean prompts: (prompt, position after BOS)."""
    replaced = run(weights, pairs.corrupted)[1] if ablation == "resample" else None
    moved = run(weights, pairs.clean, cut, replaced)[0] - run(weights, pairs.clean)[0]
    return np.abs(moved).max(-1)[:, 1:]


def used_when_run(weights: Weights, batches: Sequence[Pairs], ablation: str) -> dict[str, Any]:
    """The edges that move a logit by more than MOVED when cut alone: of all positions, and of the last one.

    BOS is left out: the program defines no output there. That the edges suffice, with all others cut at once, is
    checked; `least_inside` and `most_outside` tell how clear the choice is.
    """
    found = {}
    for where, at in (("all", slice(None)), ("last", slice(-1, None))):
        effects = {
            edge: max(movement(weights, pairs, ablation, [edge])[:, at].max() for pairs in batches)
            for edge in edges(weights)
        }
        inside = [edge for edge, effect in effects.items() if effect > MOVED]
        outside = [edge for edge in effects if edge not in inside]
        rest = max(movement(weights, pairs, ablation, outside)[:, at].max() for pairs in batches)
        assert rest < MOVED, f"{ablation}: the edges that matter alone do not suffice, {rest}"
        found[where] = {
            "edges": [name(edge) for edge in inside],
            "least_inside": float(min(effects[edge] for edge in inside)),
            "most_outside": float(max(effects[edge] for edge in outside)),
            "moved_by_all_outside": float(rest),
        }
    return found


def draw_pairs(program: Program, length: int, rng: np.random.Generator) -> list[tuple[list[Any], list[Any]]]:
    """Pairs of prompts for which the program says different things at the last position."""
    pairs = []
    while len(pairs) < PAIRS_OF_A_LENGTH:
        clean, corrupted = program.draw(rng, length), program.draw(rng, length)
        if program(clean)[-1] != program(corrupted)[-1]:
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
        prompts = zip(*draw_pairs(program, length, rng), strict=True)
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
        assert movement(weights, pairs, ablation, outside).max() == 0
    record = {
        "program": title,
        "computes": program.text,
        "provenance": {"compiler": f"tracr-pypi {version('tracr-pypi')}", "max_length": program.max_length,
                       "seed": seed, "logits": "tracr's own forward pass, float32"},
        "dims": {"layers": weights.shape[0], "heads": weights.shape[1], "d_head": weights.q.shape[-1],
                 "d_model": weights.q.shape[1], "d_mlp": weights.mlp_in.shape[-1], "edges": len(edges(weights))},
        "causal": program.causal,
        "vocabulary": {str(token): i for token, i in encoder.encoding_map.items()},
        "labels": [str(label) for label in labels],
        "truth": {"weights": [name(edge) for edge in by_weights], "moved": MOVED,
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
        truth = generate(title, program, seed)["truth"]
        print(f"{title}: {len(truth['weights'])} edges by weights")
        for ablation, where in product(("zero", "resample"), ("all", "last")):
            found = dict(truth[ablation][where])
            print(f"  {ablation}, {where}: {len(found.pop('edges'))} edges; {found}")


if __name__ == "__main__":
    main()

"""Which places hold what a prompt's answer needs: clean activations put back into a run whose subject is noise.

Three runs of one prompt: the clean one; the corrupted one, with noise added to the embeddings of the subject's tokens;
and the corrupted one in which what is at one layer and token, or in a window of layers there, is as in the clean run.
The total effect is p(answer | clean) - p(answer | corrupted), the indirect effect of a place
p(answer | restored) - p(answer | corrupted); each p is a mean over samples of the noise.

Source: Meng et al. 2022 (arXiv 2202.05262).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from acdc.activations import Activations, hooks, record
from acdc.annotation.lens import check_positions
from acdc.annotation.sites import read
from acdc.errors import AcdcError, unknown_name
from acdc.learning import generator
from acdc.pieces import piece
from acdc.resume import resume
from acdc.transformer import Transformer, frozen

KINDS = ("hidden", "mlp", "attention")
TOKENS_PER_PASS = 256  # more would share a start, and compute positions that do not change
GROUPS = ("before the subject", "first subject token", "middle subject tokens", "last subject token",
          "first token after it", "tokens in between", "last token")


@dataclass(frozen=True)
class Noise:
    """`scale`: the standard deviation of what is added to embeddings; the samples are those of `seed`."""

    scale: float
    n_samples: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.scale < float("inf"):
            raise AcdcError(f"noise of scale {self.scale}: it must be a positive number; see `noise_scale`")
        if self.n_samples < 1 or self.seed < 0:
            raise AcdcError(f"{self.n_samples} samples of noise of seed {self.seed}: at least 1, and a seed from 0")


@dataclass(frozen=True, eq=False)
class Trace:
    """p(answer) of one prompt: clean, corrupted, and for each kind of place with it restored.

    In `restored`, rows are layers and columns token positions; a row of "hidden" is what that layer's block returns, of
    "mlp" and "attention" the middle of a window of layers.
    """

    subject: tuple[int, ...]
    clean: float
    corrupted: float
    restored: Mapping[str, Float[np.ndarray, "layer pos"]]

    @property
    def total(self) -> float:
        return self.clean - self.corrupted

    def indirect(self, kind: str) -> Float[np.ndarray, "layer pos"]:
        return self.restored[kind] - self.corrupted


def noise_scale(model: Transformer, subjects: Sequence[Int[Tensor, " _"]]) -> float:
    """3 * the standard deviation of all numbers in the embeddings of the tokens of all subjects (of all prompts)."""
    if not sum(len(tokens) for tokens in subjects):
        raise AcdcError("no token of a subject given, so there are no embeddings whose spread says how much noise to "
                        "add; say where the subjects are")
    with torch.no_grad():
        spread = model.hf.get_input_embeddings()(torch.cat(list(subjects))).float().std()
    return 3 * float(spread)


def trace(
    model: Transformer,
    tokens: Int[Tensor, " pos"],
    answer: int,
    subject: Sequence[int],
    noise: Noise,
    *,
    kinds: Sequence[str] = KINDS,
    window: int = 10,
    progress: bool = False,
) -> Trace:
    """Causal tracing of one prompt. `subject`: the positions of its tokens; `answer`: a token.

    Noise is added where the embedding returns the subject's tokens, the same in every run. `window`: "mlp" and
    "attention" are restored in the layers [L - window // 2, L - window // 2 + window) at once, "hidden" in one.
    Before the subject nothing is corrupted, and those places are not run. Cost: for each place `n_samples` runs of the
    layers and positions from it on. It misleads where the noise leaves what the model was trained on; and a restored
    place that brings the answer back shows that it suffices, given the rest, not that it is used otherwise.
    Raises `AcdcError` for positions that are not in the prompt, an unknown kind and a window below 1.
    """
    subject = sorted(set(check_positions(list(subject), len(tokens))))
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("kind of place", kind, KINDS)
    if window < 1:
        raise AcdcError(f"a window of {window} layers: it must be at least 1")
    with torch.no_grad(), frozen(model):
        clean = read(model, tokens[None], _sites(model, kinds))
        with noised(model, subject, noise):
            corrupted = record(model, tokens.expand(noise.n_samples, -1))
        p_clean, p_corrupted = (_p(model.logits(final[:, -1]), answer, 1)
                                for final in (clean[f"resid{model.n_layers}"], corrupted.final))
        first = subject[0] if model.causal else 0
        restored = {}
        with tqdm(total=len(kinds) * model.n_layers * (len(tokens) - first), desc="tracing", unit="place",
                  disable=not progress) as bar:
            for kind in kinds:
                values = np.full((model.n_layers, len(tokens)), float(p_corrupted[0]))
                for layer in range(model.n_layers):

                    def of_layer(kind: str = kind, layers: range = _layers(model, kind, layer, window)
                                 ) -> dict[str, np.ndarray]:
                        chunks = _chunks(range(first, len(tokens)), noise.n_samples, len(tokens), model.causal)
                        return {"p": np.concatenate([
                            _p(_restored(model, corrupted, clean, kind, layers, places), answer, len(places)).numpy()
                            for places in chunks])}

                    values[layer, first:] = piece("restored places of a layer", of_layer)["p"]
                    bar.update(len(tokens) - first)
                restored[kind] = values
    return Trace(tuple(subject), float(p_clean[0]), float(p_corrupted[0]), restored)


@contextmanager
def noised(model: Transformer, positions: Sequence[int], noise: Noise) -> Iterator[None]:
    """Every forward pass inside, of `noise.n_samples` rows, has noise added to the embeddings at these positions."""
    embedding = model.hf.get_input_embeddings()
    size = (noise.n_samples, len(positions), embedding.weight.shape[1])
    added = torch.randn(size, generator=generator(noise.seed, "noise", 0), dtype=torch.float64) * noise.scale

    def add(module, args, out):  # without shapes: it would be checked anew at every call
        out = out.clone()
        out[:, list(positions)] += added.to(out.device, out.dtype)
        return out

    with hooks() as attach:
        attach(embedding.register_forward_hook(add))
        yield


def _sites(model: Transformer, kinds: Sequence[str]) -> list[str]:
    names = [f"resid{model.n_layers}"]
    for layer in range(model.n_layers):
        names += [{"hidden": f"resid{layer + 1}", "mlp": f"m{layer}", "attention": f"a{layer}"}[kind] for kind in kinds]
    return list(dict.fromkeys(names))


def _layers(model: Transformer, kind: str, layer: int, window: int) -> range:
    if kind == "hidden":
        return range(layer, layer + 1)
    first = layer - window // 2
    return range(max(0, first), min(model.n_layers, first + window))


def _chunks(places: range, n_samples: int, length: int, causal: bool) -> Iterator[range]:
    """Positions that are run together: each computes from the first of them on."""
    while places:
        from_here = length - places[0] if causal else length
        n = max(1, TOKENS_PER_PASS // (n_samples * from_here))
        yield places[:n]
        places = places[n:]


def _restored(model: Transformer, corrupted: Activations, clean: Mapping[str, Tensor], kind: str, layers: range,
              places: range) -> Float[Tensor, "rows vocab"]:
    """Logits of the corrupted run with the clean values of some layers at each of some positions, one after another."""
    start = places[0] if model.causal else 0
    n, samples = len(places), len(corrupted.input)
    cell = torch.arange(n, device=corrupted.input.device)

    def put_back(name: str, x: Tensor) -> Tensor:
        by_cell = x.unflatten(0, (n, samples)).clone()
        by_cell[cell, :, cell + places[0] - start] = clean[name][0, places[0] : places.stop, None]
        return by_cell.flatten(0, 1)

    first = layers[0]
    if kind == "hidden":
        at = first + 1
        resid = corrupted.attn_in[at] if at < model.n_layers else corrupted.final
        return resume(model, corrupted, at, put_back(f"resid{at}", resid[:, start:].repeat(n, 1, 1)), start)
    letter = "m" if kind == "mlp" else "a"
    names = {f"{letter}{layer}" for layer in layers}
    return resume(model, corrupted, first, corrupted.attn_in[first][:, start:].repeat(n, 1, 1), start,
                  edit=lambda name, x: put_back(name, x) if name in names else x)


def _p(logits: Float[Tensor, "rows vocab"], answer: int, n: int) -> Float[Tensor, " place"]:
    """p(answer) of each place, a mean over samples."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.softmax(-1)[:, answer].unflatten(0, (n, -1)).mean(1).double().cpu()


def token_groups(length: int, subject: Sequence[int]) -> list[str]:
    """Which of `GROUPS` each token of a prompt is in: where it stands to the subject."""
    first, last = min(subject), max(subject)
    names = []
    for place in range(length):
        if place == length - 1:
            names.append(GROUPS[6])
        elif place < first:
            names.append(GROUPS[0])
        elif place <= last:
            names.append(GROUPS[3] if place == last else GROUPS[1] if place == first else GROUPS[2])
        else:
            names.append(GROUPS[4] if place == last + 1 else GROUPS[5])
    return names


def averaged(traces: Sequence[Trace], kind: str) -> tuple[list[str], Float[np.ndarray, "layer group"]]:
    """The indirect effect by layer and group of tokens: the mean over prompts of each prompt's mean over the group."""
    if not traces:
        raise AcdcError("no traces given to average; trace at least one prompt")
    of_group: dict[str, list[np.ndarray]] = {}
    for one in traces:
        effect = one.indirect(kind)
        names = np.array(token_groups(effect.shape[1], one.subject))
        for name in dict.fromkeys(names.tolist()):
            of_group.setdefault(name, []).append(effect[:, names == name].mean(1))
    found = [name for name in GROUPS if name in of_group]
    return found, np.stack([np.mean(of_group[name], axis=0) for name in found], axis=1)


def subject_positions(tokenizer, prompt: str, subject: str) -> list[int]:
    """The tokens of a prompt that hold any part of the last occurrence of `subject` in it.

    Raises `AcdcError` where it does not occur, and for a tokenizer that does not say where its tokens stand.
    """
    start = prompt.rfind(subject) if subject else -1
    if start < 0:
        raise AcdcError(f"the subject {subject!r} does not occur in {prompt!r}; give a part of the prompt")
    if not getattr(tokenizer, "is_fast", False):
        raise AcdcError("the tokenizer does not say where its tokens stand in the text; give the subject's positions")
    places = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    found = [i for i, (first, end) in enumerate(places) if first < start + len(subject) and end > start and end > first]
    text = [prompt[first:end] for first, end in places]
    return [i for i in found if text[i].strip() or len(found) == 1]

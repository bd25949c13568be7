"""Whether more specific features have taken over tokens that a coder's general feature should be active on: absorption.

A feature of "starts with s" should be active on every word that does. In an absorbing coder it is silent on some, such
as " short", because the feature of that word writes the direction of s too: sparser, and the general feature can no
longer be trusted. For each label (here: first letters of words), with u the unit direction of a linear probe of what
the coder rebuilds, fitted on other words:

- main features: the feature whose activity tells the label best (F1), and others as long as each raises F1 by 0.03;
  more than one: the feature is split.
- missed: of the label's tokens that the probe finds, the share on which no main feature is active.
- absorbed: the share on which besides one other feature does the main one's work: of all f_i d_i . u on that token its
  is the largest, it is at least half of what the main features write along u in the median where they are active, and
  its decoder row has a cosine with u of at least 0.1.

Source: Chanin et al. 2024 (arXiv 2409.14507). They find the absorbing feature by its effect on the model's answer in a
spelling prompt; here by what it writes along u, so no prompt is needed, and it says nothing of what the model uses.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from acdc.annotation.probes import Probe, fit
from acdc.annotation.sites import read
from acdc.annotation.variables import Labels
from acdc.errors import AcdcError
from acdc.sae.cross_layer import CrossLayerTarget
from acdc.sae.on_model import check_on_model
from acdc.sae.sparse_coder import SparseCoder
from acdc.transformer import Transformer, frozen

GAIN, MOST_MAIN, LEAST_F1 = 0.03, 5, 0.3
LEAST_SHARE, LEAST_COSINE = 0.5, 0.1
LEAST_WORDS, LEAST_FOUND = 20, 20
WINDOWS_AT_ONCE = 8


@dataclass(frozen=True)
class Absorption:
    """`n`: tokens of the label, `found`: those that the probe finds. `main`: none where no feature's F1 reaches 0.3, or
    the probe finds fewer than 20 tokens; then `missed` and `absorbed` are None. `by`: the absorbing features with the
    tokens of each."""

    label: str
    n: int
    found: int
    main: tuple[int, ...]
    f1: float
    missed: float | None
    absorbed: float | None
    by: tuple[tuple[int, int], ...]

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


def first_letter_absorption(model: Transformer, coder: SparseCoder | CrossLayerTarget, tokens: Tensor, *, seed: int = 0
                            ) -> list[Absorption]:
    """Absorption of the first letters of words, on the tokens that begin a word (after a space).

    Cost: a forward pass, and two fits of a probe. Raises `AcdcError` where fewer than two letters begin 20 words.
    """
    check_on_model(model, coder)
    words = np.array([[_word(model.token_text(token)) for token in row] for row in tokens[:, 1:].tolist()])
    begins = words != ""
    written, active = [], []
    with frozen(model), torch.no_grad():
        for some, own in zip(tokens.split(WINDOWS_AT_ONCE), np.split(begins, range(WINDOWS_AT_ONCE, len(begins),
                                                                                 WINDOWS_AT_ONCE)), strict=True):
            here = read(model, some, list({*coder.reads, coder.target}))
            chosen = torch.from_numpy(own).to(some.device)
            written.append(here[coder.target][:, 1:][chosen].float().cpu())
            active.append(coder.encode(*(here[name][:, 1:][chosen] for name in coder.reads)).float().cpu())
    words = words[begins]
    return absorption(torch.cat(written), torch.cat(active), coder.decoder.float().cpu(),
                      np.array([word[0] for word in words.tolist()]), words, seed=seed)


def _word(text: str) -> str:
    """The word that a token begins, in small letters; empty for a token that begins none."""
    word = text[1:].lower() if text[:1] == " " else ""
    return word if word.isascii() and word.isalpha() else ""


def absorption(
    written: Float[Tensor, "token d_out"],
    active: Float[Tensor, "token feature"],
    decoder: Float[Tensor, "feature d_out"],
    labels: Shaped[np.ndarray, " token"],
    words: Shaped[np.ndarray, " token"],
    *,
    seed: int = 0,
) -> list[Absorption]:
    """Absorption for each label that 20 words have or more. `words`: the word type of each token; each token is judged
    by a probe fitted on the half of the words that it is not of. Errors as `first_letter_absorption`."""
    types = {label: np.unique(words[labels == label]) for label in np.unique(labels).tolist()}
    kept = [label for label, own in types.items() if len(own) >= LEAST_WORDS]
    if len(kept) < 2:
        raise AcdcError(f"{len(kept)} of {len(types)} labels have {LEAST_WORDS} words or more, and two are needed; "
                        "give more text")
    rng = np.random.default_rng(seed)
    first = np.concatenate([rng.permutation(types[label])[::2] for label in kept])
    among, half = np.isin(labels, kept), np.isin(words, first)
    logits, units = np.full((len(labels), len(kept)), -np.inf), []
    for side in (False, True):
        own = _fit(written, labels, words, among & (half == side))
        other = half != side
        logits[other] = np.log(own.read(written[torch.from_numpy(other)].float()).clamp(min=1e-30).numpy())
        units.append(torch.stack([torch.nn.functional.normalize(own.direction(label), dim=0) for label in kept]))
    best = np.array(kept)[logits.argmax(1)]
    unit = torch.stack(units)[torch.from_numpy((~half).astype(int))]  # of each token, by the side that it is not of
    return [_of_label(label, labels, (best == label) & among, active, decoder, unit[:, i])
            for i, label in enumerate(kept)]


def _fit(written: Tensor, labels: np.ndarray, words: np.ndarray, rows: np.ndarray) -> Probe:
    n = int(rows.sum())
    none, own = np.zeros(n, dtype=int), words[rows]
    return fit(written[torch.from_numpy(rows)], Labels("label", none, none, none.astype(bool), labels[rows], own, own))


def _of_label(label: str, labels: np.ndarray, told: np.ndarray, active: Tensor, decoder: Tensor, unit: Tensor
              ) -> Absorption:
    positive = torch.from_numpy(labels == label)
    main, f1 = _main_features(active > 0, positive)
    found = positive & torch.from_numpy(told)
    n, n_found = int(positive.sum()), int(found.sum())
    if f1 < LEAST_F1 or n_found < LEAST_FOUND:
        return Absorption(label, n, n_found, (), f1, None, None, ())
    fires = (active[:, main] > 0).any(1)
    usual = float((active[:, main] * (unit @ decoder[main].T))[found & fires].sum(1).median())
    missed = (found & ~fires).nonzero()[:, 0]
    along = unit[missed] @ decoder.T
    most = (active[missed] * along).max(1)
    cosine = along.gather(1, most.indices[:, None])[:, 0] / decoder[most.indices].norm(dim=1).clamp(min=1e-12)
    absorbing = most.indices[(most.values >= LEAST_SHARE * usual) & (cosine >= LEAST_COSINE) & (most.values > 0)]
    features, counts = absorbing.unique(return_counts=True)
    by = sorted(zip(features.tolist(), counts.tolist(), strict=True), key=lambda item: -item[1])
    return Absorption(label, n, n_found, tuple(main), f1, len(missed) / n_found, len(absorbing) / n_found, tuple(by))


def _main_features(on: Tensor, positive: Tensor) -> tuple[list[int], float]:
    """The features that together tell the label best, and the F1 of any of them being active."""
    main: list[int] = []
    best, covered = 0.0, torch.zeros_like(positive)
    while len(main) < MOST_MAIN:
        hits = (on & (positive & ~covered)[:, None]).sum(0) + int((covered & positive).sum())
        fired = (on & ~covered[:, None]).sum(0) + int(covered.sum())
        f1 = 2 * hits / (fired + positive.sum()).clamp(min=1)
        top = int(f1.argmax())
        if float(f1[top]) < best + (GAIN if main else 1e-9):
            break
        main.append(top)
        best, covered = float(f1[top]), covered | on[:, top]
    return main, best


def mean_rates(found: Sequence[Absorption]) -> tuple[float, float, int] | None:
    """Missed and absorbed, means over the labels that have main features, and how many these are; None for none."""
    told = [(one.missed, one.absorbed) for one in found if one.missed is not None and one.absorbed is not None]
    if not told:
        return None
    missed, absorbed = (float(np.mean(column)) for column in zip(*told, strict=True))
    return missed, absorbed, len(told)

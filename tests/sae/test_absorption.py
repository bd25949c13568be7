"""Absorption: high in a coder whose special features write the general direction too, low in one of true features."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from acdc.errors import AcdcError
from acdc.sae.absorption import absorption, mean_rates

LETTERS, WORDS, D = "abcd", 40, 96


class Hierarchy:
    """Words of four letters; a token holds the direction of its letter and 0.8 of its word's. `taken`: a third of the
    words, whose own feature also writes the letter in an absorbing coder."""

    def __init__(self, copies: int = 8) -> None:
        g = torch.Generator().manual_seed(0)
        directions = normalize(torch.randn(len(LETTERS) * (1 + WORDS), D, generator=g), dim=1)
        self.letters, self.own = directions[: len(LETTERS)], directions[len(LETTERS) :]
        self.word = torch.arange(len(self.own)).repeat(copies)
        self.letter = self.word // WORDS
        self.words = np.array([f"{LETTERS[w // WORDS]}{w}" for w in self.word.tolist()])
        self.labels = np.array([word[0] for word in self.words])
        noise = 0.02 * torch.randn(len(self.word), D, generator=g)
        self.x = self.letters[self.letter] + 0.8 * self.own[self.word] + noise
        self.taken = self.word % 3 == 0

    def coder(self, *, absorbing: bool = False, silent: bool = False):
        """Activations and decoder. `silent`: the letters' features are off on the words that are taken."""
        of_letter = torch.nn.functional.one_hot(self.letter, len(LETTERS)).float()
        if absorbing or silent:
            of_letter[self.taken] = 0
        of_word = 0.8 * torch.nn.functional.one_hot(self.word, len(self.own)).float()
        own = self.own.clone()
        if absorbing:
            places = torch.arange(len(own))
            own[places % 3 == 0] += self.letters[places // WORDS][places % 3 == 0] / 0.8
        return torch.cat([of_letter, of_word], 1), torch.cat([self.letters, own])


def measured(data: Hierarchy, **how):
    active, decoder = data.coder(**how)
    return absorption(data.x, active, decoder, data.labels, data.words)


def test_a_coder_that_absorbs():
    data = Hierarchy()
    found = measured(data, absorbing=True)
    assert [one.label for one in found] == list(LETTERS) and [one.main for one in found] == [(0,), (1,), (2,), (3,)]
    missed, absorbed, n = mean_rates(found)
    share = float(data.taken.float().mean())
    assert n == 4 and missed == pytest.approx(share, abs=0.05) and absorbed == pytest.approx(missed, abs=0.02)
    absorbers = {feature - 4 for one in found for feature, _ in one.by}
    assert absorbers and all(word % 3 == 0 for word in absorbers)
    assert sum(tokens for _, tokens in found[0].by) == round(found[0].absorbed * found[0].found)


def test_a_coder_of_the_true_features_and_one_that_leaves_tokens_out():
    data = Hierarchy()
    assert mean_rates(measured(data))[:2] == (0, 0)
    missed, absorbed, _ = mean_rates(measured(data, silent=True))
    assert missed > 0.25 and absorbed < 0.02, "nothing does the work of a feature that is only silent"


def test_a_split_feature_has_several_main_ones():
    data = Hierarchy()
    active, decoder = data.coder()
    halves = active[:, :1] * torch.stack([data.word % 2 == 0, data.word % 2 == 1], 1)
    active, decoder = torch.cat([halves, active[:, 1:]], 1), torch.cat([decoder[:1], decoder])
    one = absorption(data.x, active, decoder, data.labels, data.words)[0]
    assert sorted(one.main) == [0, 1] and one.f1 == 1 and one.missed == 0


def test_what_is_not_defined():
    data = Hierarchy()
    active, decoder = data.coder()
    active[:, :4] = 0
    found = absorption(data.x, active, decoder, data.labels, data.words)
    assert all(one.main == () and one.missed is None and one.absorbed is None for one in found)
    assert mean_rates(found) is None
    few = data.word % WORDS < 10
    with pytest.raises(AcdcError, match="0 of 4 labels have 20 words"):
        absorption(data.x[few], active[few], decoder, data.labels[few.numpy()], data.words[few.numpy()])

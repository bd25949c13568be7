"""Where a coder's training takes its activations from: a model that reads windows of tokens, in random order."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from acdc.annotation.sites import check_after, read, width
from acdc.discovery.journal import hash_of
from acdc.errors import AcdcError
from acdc.learning import generator
from acdc.models import weights_hash
from acdc.transformer import Transformer

Pair = tuple[Float[Tensor, "token d_in"], Float[Tensor, "token d_out"]]
KEPT_BYTES = 2 * 2**30


@runtime_checkable  # so that the shape checker of the tests can check it
class Source(Protocol):
    """Where activations come from: what is read and what is to be rebuilt, for the tokens of each step."""

    @property
    def header(self) -> Mapping[str, Any]: ...
    def batch(self, step: int) -> Pair: ...


@dataclass(eq=False)
class ModelActivations:
    """Activations of a model that reads windows of tokens, in random order, again and again; the same by seed.

    The first position is left out: many models put a value of enormous norm there, whatever the token.
    `windows_at_once`: how many windows tokens are mixed from; 0: as many as fit in 2 GiB, and where these are
    all, the model runs over them only once. Cost: else a forward pass up to the site for each token of an epoch.
    """

    model: Transformer
    tokens: Int[Tensor, "window pos"]
    site: str
    target: str
    batch_size: int = 1024
    seed: int = 0
    windows_at_once: int = 0
    _buffer: tuple[int, Pair] | None = None
    _kept: tuple[Tensor, Pair] | None = None

    def __post_init__(self) -> None:
        check_after(self.model, self.site, self.target)
        if self.tokens.shape[1] < 2:
            raise AcdcError("windows of one token: the first position is left out; give a longer context")
        if not self.windows_at_once:
            wide = width(self.model, self.site) + (width(self.model, self.target) if self.site != self.target else 0)
            a_window = (self.tokens.shape[1] - 1) * wide * self.model.dtype.itemsize
            self.windows_at_once = max(1, KEPT_BYTES // (2 * a_window))  # as they are, and mixed
        self.windows_at_once = min(self.windows_at_once, len(self.tokens))
        self.per_buffer = self.windows_at_once * (self.tokens.shape[1] - 1) // self.batch_size
        if not self.per_buffer:
            raise AcdcError(
                f"{self.tokens[:, 1:].numel():,} tokens do not fill a step of {self.batch_size:,}; give "
                "more text or fewer tokens a step"
            )

    @property
    def header(self) -> Mapping[str, Any]:
        return {
            "model": weights_hash(self.model),
            "tokens": hash_of(self.tokens.cpu().numpy()),
            "site": self.site,
            "target": self.target,
            "batch_size": self.batch_size,
            "windows": self.windows_at_once,
            "source_seed": self.seed,
        }

    def batch(self, step: int) -> Pair:
        number, place = divmod(step, self.per_buffer)
        if self._buffer is None or self._buffer[0] != number:
            self._buffer = (number, self._fill(number))
        rows = slice(place * self.batch_size, (place + 1) * self.batch_size)
        reads, rebuilt = self._buffer[1]
        return reads[rows], rebuilt[rows]

    def _fill(self, number: int) -> Pair:
        epoch, place = divmod(number, len(self.tokens) // self.windows_at_once)
        order = torch.randperm(len(self.tokens), generator=generator(self.seed, "windows", epoch))
        chosen = order[place * self.windows_at_once : (place + 1) * self.windows_at_once].sort().values
        if self._kept is None or not torch.equal(self._kept[0], chosen):
            self._kept = (chosen, activations(self.model, self.tokens[chosen], self.site, self.target))
        reads, rebuilt = self._kept[1]
        mixed = torch.randperm(len(reads), generator=generator(self.seed, "tokens", number))
        return reads[mixed], rebuilt[mixed]


def activations(model: Transformer, tokens: Int[Tensor, "window pos"], site: str, target: str) -> Pair:
    """What a site and a target hold at all but the first position of each window."""
    found = [read(model, some, list({site, target})) for some in tokens.split(16)]
    reads, rebuilt = (torch.cat([one[name][:, 1:].flatten(0, 1) for one in found]) for name in (site, target))
    return reads, rebuilt

"""What most tests share: tiny models of every family, with token batches."""

import pytest
import torch
from tiny_models import FAMILIES, VOCAB, tiny_hf

import acdc.pieces
from acdc.task import Batch, Example
from acdc.transformer import Transformer


def make_batch(n: int = 3, length: int = 9, seed: int = 0, first: int = 3) -> Batch:
    """Random prompts that differ from position `first` on."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(0, VOCAB, (n, length), generator=generator)
    corrupted = clean.clone()
    corrupted[:, first] = (clean[:, first] + 1 + torch.randint(0, VOCAB - 1, (n,), generator=generator)) % VOCAB
    corrupted[0, length - 2] = (clean[0, length - 2] + 1) % VOCAB
    answer = torch.randint(0, VOCAB, (n,), generator=generator)
    places = torch.stack([torch.randperm(length, generator=generator) for _ in range(n)]).tolist()
    examples = tuple(Example(f"prompt {i}", f"corrupted {i}", " a", " b", f"template {i % 2}",
                             {"subject": place[0], "verb": place[1]}) for i, place in enumerate(places))
    return Batch(clean, corrupted, answer, (answer + 1) % VOCAB, examples)


def tiny(family: str, dtype: torch.dtype = torch.float64) -> Transformer:
    return Transformer(tiny_hf(family, dtype), None, family)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True, scope="session")
def _runs_are_short() -> None:
    """Runs leave nothing to go on from, however slow the machine; tests of going on say otherwise."""
    acdc.pieces.SECONDS = float("inf")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny models are faster so, and much faster where other processes run."""
    torch.set_num_threads(1)

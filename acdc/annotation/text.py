"""Running text as tokens: what lenses, sparse autoencoders and model edits are fitted on."""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from acdc import input_file
from acdc.errors import AcdcError
from acdc.transformer import Transformer

PYTHON = "python"  # the name of the text that every Python carries: the topics of its language reference


def read_text(source: str | Path) -> str:
    """The text of a UTF-8 file, or for "python" the topics of Python's own reference (about 700,000 characters).

    Raises `AcdcError` for a file that is missing, not text, or empty.
    """
    if str(source) == PYTHON and not Path(source).exists():
        from pydoc_data.topics import topics  # only where it is asked for

        return "\n\n".join(topics[name] for name in sorted(topics))
    try:
        text = input_file.read_text(source, input_file.LARGE)
    except OSError as error:
        raise AcdcError(f"cannot read the text {str(source)!r} ({error.strerror}); give a UTF-8 text file, or "
                        f"{PYTHON!r} for Python's own reference") from error
    except UnicodeDecodeError as error:
        raise AcdcError(f"{str(source)!r} is not UTF-8 text (byte {error.start:,}); give a plain text file") from error
    if not text.strip():
        raise AcdcError(f"the text {str(source)!r} is empty; give a file with running text")
    return text


def windows(model: Transformer, text: str, context: int, n: int | None = None) -> Int[Tensor, "window pos"]:
    """The text's tokens in windows of `context` that follow each other, the first `n` of them; the rest is dropped.

    Each starts with the tokenizer's begin token where it has one that it adds. Raises `AcdcError` for a text that does
    not fill `n` windows (or one), a model without a tokenizer, and a context beyond what the model takes.
    """
    if model.tokenizer is None:
        raise AcdcError(f"{model.name} has no tokenizer to read text with; load it with one")
    longest = getattr(model.hf.config, "max_position_embeddings", None)
    if context < 2 or (longest is not None and context > longest):
        raise AcdcError(f"a context of {context:,} tokens: give at least 2, and what the model takes ({longest})")
    begin = model.tokenizer("a")["input_ids"][:1]
    begin = begin if begin == [model.tokenizer.bos_token_id] else []
    tokens = torch.tensor(model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    size = context - len(begin)
    found = len(tokens) // size
    if found < (n or 1):
        raise AcdcError(f"the text has {len(tokens):,} tokens, which is {found:,} windows of {context:,}; {n or 1:,} "
                        "asked for. Give more text, a shorter context or fewer windows")
    rows = tokens[: size * (n or found)].view(-1, size)
    return torch.cat([torch.tensor(begin, dtype=torch.long).expand(len(rows), -1), rows], dim=1).to(model.device)


def next_token_loss(logits: Float[Tensor, "window pos vocab"], tokens: Int[Tensor, "window pos"]
                    ) -> Float[Tensor, " window"]:
    """The mean cross-entropy of each window's next tokens, in nats."""
    predicted, own = logits[:, :-1].float().flatten(0, 1), tokens[:, 1:]
    return cross_entropy(predicted, own.flatten(), reduction="none").view(own.shape).mean(1)

"""Which templates or words belong to the part of a task that a circuit is found on, and which to the part held out.

A circuit found on `train` and measured on `test` has seen none of the wordings (by template), or none of the words
that fill them (by word).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from acdc.errors import AcdcError, unknown_name

PARTS, KINDS = ("train", "test"), ("template", "word")
Item = TypeVar("Item")


@dataclass(frozen=True)
class HeldOut:
    """One part of a task, `train` or `test`, or all of it (None).

    `by`: what the parts do not share, `template` (if None) or `word`.
    """

    part: str | None = None
    by: str | None = None

    def __post_init__(self) -> None:
        if self.part is not None and self.part not in PARTS:
            raise unknown_name("split", self.part, PARTS)
        if self.by is None:
            object.__setattr__(self, "by", "template")
        elif self.by not in KINDS:
            raise unknown_name("way to split a task", self.by, KINDS)

    def of_templates(self, templates: Sequence[Item]) -> list[Item]:
        """Every second one, from the first (train) or the second (test). One alone cannot be split."""
        if self.part is None or self.by != "template":
            return list(templates)
        if len(templates) < 2:
            raise AcdcError(
                f"a task of {len(templates)} template(s) of one length cannot be split by template; split it by "
                "word, or use templates of all lengths (same_length=False) if there are more"
            )
        return list(templates[PARTS.index(self.part) :: 2])

    def of_words(self, words: Sequence[Item]) -> list[Item]:
        """Every second one, from the first (train) or the second (test)."""
        if self.part is None or self.by != "word":
            return list(words)
        return list(words[PARTS.index(self.part) :: 2])

    @property
    def provenance(self) -> dict[str, str | None]:
        return {"split": self.part, "by": self.by if self.part else None}

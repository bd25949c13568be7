"""What a user's mistake looks like: one exception that says what was given, what exists and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class AcdcError(Exception):
    """A mistake that the user can mend. The message names what was given, what was expected, what to do."""


def unknown_name(kind: str, given: str, known: Iterable[str]) -> AcdcError:
    """The error for a name that is not in a table: it suggests the nearest one and lists a few dozen at most."""
    names = list(known)
    near = get_close_matches(given, names, n=1)
    suggestion = f" Did you mean {near[0]!r}?" if near else ""
    shown = ", ".join(names[:30]) + (f", ... ({len(names)} in all)" if len(names) > 30 else "")
    return AcdcError(f"unknown {kind} {given!r}.{suggestion} Known: {shown}")

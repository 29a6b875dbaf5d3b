"""Errors that the caller can fix. Their message is one line: what is wrong, and the nearest valid value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

LONGEST = 2000  # characters of another library's message


class ZooError(ValueError):
    """Raised for a wrong name, option or argument."""


class WeightsError(ZooError):
    """Raised for weights that are missing, damaged, or do not fit the model."""


class ExportError(ZooError):
    """Raised for an export that failed, or whose outputs differ from the model's."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown word: near matches, or all known words if none is near.

    Args:
        word: word that is not known.
        known: known words.

    Returns:
        `` (did you mean a, b?)``, or `` (known: a, b, c)`` for at most 30 known words, or nothing.
    """
    known = list(known)
    matches = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if matches:
        return f" (did you mean {', '.join(matches)}?)"
    return f" (known: {', '.join(known)})" if len(known) <= 30 else ""


def reason_of(error: Mapping[str, Any]) -> str:
    """Return the message of one of pydantic's errors, without the prefix that it puts before a validator's own."""
    return str(error["msg"]).removeprefix("Value error, ")


def one_line(error: BaseException | str) -> str:
    """Return the message of an error, or the name of its class if it has none, as one line that a terminal can show.

    Line breaks become spaces, other control characters become replacement characters. Of a message that quotes a whole
    file only the first ``LONGEST`` characters remain.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)

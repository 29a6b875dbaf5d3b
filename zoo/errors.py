"""Errors that are the caller's to mend: one line that names what is wrong and the nearest right thing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ZooError(ValueError):
    """A wrong name, option or argument."""


class WeightsError(ZooError):
    """Weights that are missing, damaged, or do not fit the model."""


class ExportError(ZooError):
    """An export that failed, or whose outputs differ from the model's."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """' (did you mean a, b?)', or what is known if nothing is near."""
    known = list(known)
    matches = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if matches:
        return f" (did you mean {', '.join(matches)}?)"
    return f" (known: {', '.join(known)})" if len(known) <= 30 else ""

"""What TensorBoard shows of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator


def curves_in(folder: Path) -> dict[str, list[Any]]:
    """Return the points of each curve by its tag, with ``step`` and ``value``."""
    shown = EventAccumulator(str(folder), size_guidance={SCALARS: 0})
    shown.Reload()
    return {tag: shown.Scalars(tag) for tag in shown.Tags()[SCALARS]}

"""Folders of the checkout and of the shared data."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"


def shared(*parts: str) -> Path:
    """A path below ../shared, or skip the test."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {path.relative_to(SHARED.parent)}, which is not on this machine")
    return path

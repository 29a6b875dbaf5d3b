"""Entry points: how installed packages offer families, export targets and tasks."""

from __future__ import annotations

import functools
import logging
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from zoo.errors import ZooError, one_line

log = logging.getLogger("rescalenet")


@functools.cache
def find_plugins(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name, none of them imported."""
    return {point.name: point for point in entry_points(group=group)}


def load_plugin(point: EntryPoint) -> Any:
    """Import what an entry point names.

    Raises:
        ZooError: it cannot be imported; the message names the package.
    """
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        package = f"package {point.dist.name}" if point.dist else "its package"
        raise ZooError(
            f"{point.value} ({point.group}) cannot be imported ({one_line(error)}); install {package} again or "
            "remove it"
        ) from None


def load_plugins(group: str) -> list[Any]:
    """Import what all entry points of a group name.

    One that cannot be imported is left out with a warning: a broken package must not stop every command.
    """
    found = []
    for point in find_plugins(group).values():
        try:
            found.append(load_plugin(point))
        except ZooError as error:
            log.warning("left out: %s", error)
    return found

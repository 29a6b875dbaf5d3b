"""Weights from other places, by name: torchvision's, timm's, repositories on a hub, files on a server, local files.

``zoo.weights.SOURCES`` names the functions here that open them. What is converted is kept in the cache of
``zoo.sources.cache`` and is then a weights file like any other.
"""

from zoo.sources.commands import convert, describe, list_convertible
from zoo.sources.push import push

__all__ = ["convert", "describe", "list_convertible", "push"]

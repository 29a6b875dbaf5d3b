"""A pytest plugin that runs timm's own ``tests/test_models.py`` on the zoo's nets alone.

timm's file reads the names when it is imported, so they are replaced before. Tests run for every net but the two
largest; those of pruning, which are long, for one net of each kind. ``RESCALENET_ALL=1`` leaves nothing out.
"""

from __future__ import annotations

import os

import pytest
import timm

import zoo.export.timm

TAGS = zoo.export.timm.TAGS
KINDS = ("rescalenet18", "rescalenet26", "rescalenext50_32x4d", "rescalenet20_cifar", "rescalevgg11")
LARGE = ("rescalenext101_32x16d", "rescalenext101_32x32d")
SHIPPED = {f"{name}.{tag}" for name, tags in TAGS.items() for tag, entry in tags.items() if ":" not in entry.weights}
# Backward passes of our own do not compile to TorchScript, which torch deprecates, and fx does not trace them.
NOT_HERE = ("torchscript", "_fx")
MARKERS = ("base", "cfg", "cfg_nonstd", "forward", "backward", "features", "torchscript", "fxforward", "fxbackward")

_list_models = timm.list_models


def list_models(filter="", module="", **settings):
    """Return timm's names that are ours, of whatever module: all of ours have forward_intermediates."""
    return [name for name in _list_models(filter, **settings) if name.split(".")[0] in TAGS]


timm.list_models = list_models
timm.list_pretrained = lambda filter="", **settings: list_models(filter, pretrained=True, include_tags=True)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers of timm's configuration."""
    for marker in (*MARKERS, "timeout(seconds)"):
        config.addinivalue_line("markers", f"{marker}: timm's")


def wanted(item: pytest.Item) -> bool:
    """Return whether a test is of one of our nets, possible, and not too long."""
    name = item.callspec.params.get("model_name") if hasattr(item, "callspec") else None
    if not isinstance(name, str) or name.split(".")[0] not in TAGS or any(part in item.name for part in NOT_HERE):
        return False
    if "pretrained" in item.name:
        return name in SHIPPED  # the others need a network
    if os.environ.get("RESCALENET_ALL") == "1":
        return True
    net, _, tag = name.partition(".")
    if "default_cfgs" in item.name:
        return tag == zoo.export.timm.DEFAULTS.get(net, "")
    return name in KINDS or not (tag or net in LARGE or "prune" in item.name)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that are wanted."""
    kept = [item for item in items if wanted(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept

"""Tags of timm for the weights that ``zoo.create_model`` loads by name.

timm's names have neither ``:`` nor ``/``. A tag is therefore the name of the weights with dots: ``torchvision.TAG`` for
``torchvision:TAG``, ``torchvision.BUILDER.TAG`` where a net has several builders, and ``timm.TAG`` likewise. Weights
that ship keep their tag.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torchvision.models import get_model_weights

from zoo.sources import tables, timm, torchvision
from zoo.transforms import AnyTransform
from zoo.weights import get_weights, weight_tags


@dataclass(frozen=True)
class Tag:
    """Weights, and what is known of them before they are fetched.

    Attributes:
        weights: name for ``zoo.create_model``.
        transform: input that they expect; None for those of timm.
        classes: class names; () for those of timm.
        in_chans: number of input channels.
        licence: licence that their owner states; None if unknown.
        url: address of the original; None for weights that ship.
        timm_name: name with tag in timm's own registry; None for weights of others.
    """

    weights: str
    transform: AnyTransform | None = None
    classes: tuple[str, ...] = ()
    in_chans: int = 3
    licence: str | None = None
    url: str | None = None
    timm_name: str | None = None


TAGS: dict[str, dict[str, Tag]] = {}  # by net and tag
DEFAULTS: dict[str, str] = {}  # tag that pretrained=True takes, by net; nets without weights are not in it


def read_tags(name: str) -> dict[str, Tag]:
    """Enter a net into ``TAGS`` and ``DEFAULTS``, and return its tags, the default first.

    The default is torchvision's own for its first builder, else the first tag that ships, else the first of timm. So a
    net that has ImageNet weights starts from these, as users of timm expect, whatever small weights ship beside them.

    Args:
        name: name of a registered net.
    """
    found: dict[str, Tag] = {}
    for builder, tag in sorted(_rows(torchvision)[name], key=functools.partial(_preference, name)):
        weights = f"{torchvision.PREFIX}{builder}:{tag}"
        about = torchvision.describe(weights)
        meta: dict[str, Any] = about["meta"]
        licence = None if meta["licence"] == "unknown" else meta["licence"]
        short = _short("torchvision", tables.TORCHVISION, name, builder, tag)
        found[short] = Tag(weights, about["transform"], about["classes"], licence=licence, url=meta["url"])
    for tag in weight_tags(name):
        entry = get_weights(f"{name}.{tag}")
        found[tag] = Tag(
            entry.name, entry.transform, entry.classes, entry.config.in_chans, licence=entry.meta.get("licence")
        )
    for architecture, tag in _rows(timm)[name]:
        short = _short("timm", tables.TIMM, name, architecture, tag)
        found[short] = Tag(f"{timm.PREFIX}{architecture}.{tag}", timm_name=f"{architecture}.{tag}")
    TAGS[name] = found
    if found:
        DEFAULTS[name] = next(iter(found))
    return found


@functools.cache
def _rows(source: ModuleType) -> dict[str, list[tuple[str, str]]]:
    """Return the foreign names and tags of a source's weights by our net."""
    rows: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for ours, theirs, tag in source.tags():
        rows[ours].append((theirs, tag))
    return rows


def _preference(name: str, row: tuple[str, str]) -> tuple[int, bool]:
    """Return the order of torchvision's weights: by builder, torchvision's default first."""
    builder, tag = row
    default: Any = getattr(get_model_weights(builder), "DEFAULT")  # noqa: B009  (an alias unknown to type checkers)
    return tables.TORCHVISION[name].index(builder), tag != default.name


def _short(origin: str, table: dict[str, tuple[str, ...]], name: str, theirs: str, tag: str) -> str:
    """Return the tag, without the foreign name if it is the first of the net."""
    return f"{origin}.{tag}" if table[name][0] == theirs else f"{origin}.{theirs}.{tag}"

"""Class names of converted detectors: COCO's, or those that are given."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from zoo.errors import WeightsError, ZooError

log = logging.getLogger("rescalenet")

CATEGORIES = tuple(MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])  # of COCO by id, from 0 to 90
NO_CLASS = ("__background__", "N/A")
NAMES = tuple(name for name in CATEGORIES if name not in NO_CLASS)  # of the 80 classes, by COCO's id

IDS = len(CATEGORIES) - 1  # classes of a detector that has one for each of COCO's ids
_OBJECTS = tuple(i for i, name in enumerate(CATEGORIES) if name not in NO_CLASS)

Classes = str | Sequence[str] | None


class Kept(NamedTuple):
    """The classes of a checkpoint that stay.

    Attributes:
        labels: labels of these classes in the checkpoint, from 1, rising.
        names: names of these classes; None if they are not known.
    """

    labels: tuple[int, ...]
    names: tuple[str, ...] | None


def kept_classes(classes: Classes, count: int, layout: str, *, usual: int) -> Kept:
    """Return the classes of a checkpoint that stay, with their names.

    Args:
        classes: ``coco`` (those with COCO's names), ``all``, or names in order of the labels; None for ``coco`` where
            the number of classes is ``usual``, which is logged, else ``all``.
        count: number of classes of the checkpoint, without the background.
        layout: name of the checkpoint's layout, for messages.
        usual: number of classes that detectors of this layout have if they are of COCO.

    Raises:
        ZooError: another word, or names of which one is not text or occurs twice.
        WeightsError: another number of names than of classes, or ``coco`` for a checkpoint that is not of COCO.
    """
    every = tuple(range(1, count + 1))
    objects = None  # those with COCO's names
    if count == len(NAMES):
        objects = every
    elif count == usual == IDS:
        objects = _OBJECTS
    if classes is None and count == usual:
        log.warning(
            "%s checkpoint: its %d classes are taken for COCO's; if they are others, give their names or classes='all'",
            layout,
            count,
        )
        classes = "coco"
    if classes in (None, "all"):
        return Kept(every, None)
    if classes == "coco" or tuple(classes) == CATEGORIES:
        if objects is None:
            raise WeightsError(f"{layout} checkpoint: it has {count} classes, COCO has {len(NAMES)}; give their names")
        return Kept(objects, NAMES)
    if isinstance(classes, str):
        raise ZooError(f"classes={classes!r}: must be coco, all, or the names of the classes")
    assert classes is not None
    names = tuple(classes)
    if len(names) not in (count, len(objects or every)):
        raise WeightsError(f"{layout} checkpoint: {len(names)} class names for {count} classes")
    _check_names(names)
    return Kept(every if len(names) == count or objects is None else objects, names)


def _check_names(names: Sequence[str]) -> None:
    """Refuse names of which one is not text or occurs twice."""
    for name in names:
        if not isinstance(name, str):
            raise ZooError(f"class name {name!r} has type {type(name).__name__}: must be text; give str(name)")
        if names.count(name) > 1:
            raise ZooError(f"class name {name!r} occurs twice: give each class a name of its own")

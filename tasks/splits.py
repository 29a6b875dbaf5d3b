"""Training and evaluation sets: the official ones, or the training set divided by a list or a share of each class."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Protocol, TypeVar

from tasks.errors import DataError
from tasks.files import LeftOut, find_file
from tasks.textfiles import read_names

Samples = TypeVar("Samples")


class SplitSection(Protocol):
    """The keys of a config's ``data`` section that choose the split."""

    @property
    def split(self) -> str:
        """``official`` or ``holdout``."""

    @property
    def holdout(self) -> str | None:
        """File that lists the held-out samples."""


def read_holdout(name: str | None, known: Collection[str]) -> set[str]:
    """Read the names of the samples that ``data.holdout`` lists, one on each line.

    Args:
        name: path of the list, or of one that ships; None is an error.
        known: names of all training samples.

    Raises:
        DataError: there is no list, it cannot be read (``tasks.textfiles.read_names``), or it has names that are not
            among the training samples.
    """
    if name is None:
        raise DataError("data.split=holdout needs data.holdout, the list of held-out images")
    listed = find_file(name)
    if listed is None:
        raise DataError(f"data.holdout={name}: no such file")
    known = set(known)
    # a name may begin or end with a space, but a list is more likely to have one by mistake
    names = {name if name in known else name.strip() for name in read_names(listed)}
    if unknown := sorted(names - known):
        raise DataError(f"{name}: {len(unknown)} names are not in the training set, e.g. {unknown[0]!r}")
    return names


def choose_share(names: Sequence[str], labels: Sequence[int], share: float, seed: int) -> set[str]:
    """Choose a share of the samples of each class, as a function of their names and the seed alone.

    The samples of a class are ranked by a hash of seed and name. So a sample that is added or removed changes the
    choice by one sample of its class at most, and the order of the samples does not matter.

    Args:
        names: name of each sample.
        labels: class of each sample.
        share: share of the samples to choose, above 0 and below 1; the number in a class is rounded, and is at least
            1 and less than all where the class has two samples or more.
        seed: seed of the choice.
    """
    classes: dict[int, list[str]] = defaultdict(list)
    for name, label in zip(names, labels, strict=True):
        classes[label].append(name)
    chosen: set[str] = set()
    for members in classes.values():
        count = min(max(1, round(share * len(members))), len(members) - 1)
        chosen.update(sorted(members, key=lambda name: _rank(name, seed))[:count])
    return chosen


def _rank(name: str, seed: int) -> bytes:
    """Return a hash of a name and the seed, the same on every machine."""
    return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()


def split_sets(
    section: SplitSection,
    train: Samples,
    names: Collection[str],
    *,
    load_val: Callable[[], Samples],
    select: Callable[[Callable[[str], bool]], Samples],
) -> tuple[Samples, Samples]:
    """Return the sets to train on and to evaluate, according to ``data.split``.

    Args:
        section: ``data`` section of the config.
        train: all training samples.
        names: names of the training samples.
        load_val: function that loads the official evaluation set.
        select: function from a condition on names to the training samples that fulfil it.

    Raises:
        DataError: see ``read_holdout``; or the list has all samples, so that none is left to train on.
    """
    if section.split == "official":
        return train, load_val()
    held_out = read_holdout(section.holdout, names)
    if len(held_out) == len(set(names)):
        raise DataError(f"data.holdout={section.holdout}: has all {len(held_out)} samples, none is left to train on")
    return select(lambda name: name not in held_out), select(lambda name: name in held_out)


def require_same_classes(train: Sequence[str], val: Sequence[str], where: str) -> None:
    """Refuse a training and an evaluation set with different classes.

    Args:
        train, val: class names in order.
        where: names of the two sets, with which the message begins.

    Raises:
        DataError: the classes differ.
    """
    if tuple(train) != tuple(val):
        odd = sorted(set(train) ^ set(val))
        raise DataError(f"{where} have different classes, e.g. {odd[0]!r}")


def describe_sets(
    train: int, val: int, unit: str, *, classes: int | None = None, left_out: Sequence[LeftOut] = ()
) -> list[str]:
    """Return lines about what a run trains on and evaluates, and what the search for the samples left out.

    Args:
        train: number of training samples.
        val: number of evaluation samples; 0: unknown.
        unit: plural noun of the samples.
        classes: number of classes; None: there are none.
        left_out: counts of the files that were left out for each set; those of one search for both count once.
    """
    evaluated = f"; val: {val} {unit}" if val else ""
    return [f"train: {_count(train, unit, classes)}{evaluated}", *_left_out_lines(left_out)]


def describe_set(samples: int, unit: str, *, classes: int | None = None, left_out: Sequence[LeftOut] = ()) -> list[str]:
    """Return lines about one set, as that of an evaluation; see ``describe_sets``."""
    return [_count(samples, unit, classes), *_left_out_lines(left_out)]


def _count(samples: int, unit: str, classes: int | None) -> str:
    if classes is None:
        return f"{samples} {unit}"
    return f"{samples} {unit} in {classes} {'class' if classes == 1 else 'classes'}"


def _left_out_lines(left_out: Sequence[LeftOut]) -> list[str]:
    total = sum({id(counts): counts for counts in left_out}.values(), LeftOut())
    return [f"left out: {total}"] if total else []

"""Which classes of a checkpoint stay, and what they are called."""

import logging

import pytest

from tasks.detection.class_names import CATEGORIES, IDS, NAMES, kept_classes
from zoo.errors import WeightsError, ZooError


def kept(classes, count, usual=IDS):
    return kept_classes(classes, count, "a layout", usual=usual)


def test_cocos_ids():
    """Ten of the 90 ids have no object: the labels that stay are the ids of the 80 names."""
    assert (IDS, len(NAMES)) == (90, 80)
    for classes in ("coco", CATEGORIES):
        labels, names = kept(classes, 90)
        assert names == NAMES
        assert [CATEGORIES[i] for i in labels] == list(NAMES)
        assert (labels[0], labels[-1]) == (1, 90)
    assert kept("coco", 80, usual=80) == (tuple(range(1, 81)), NAMES)


def test_the_usual_number_is_taken_for_coco_with_a_warning(caplog):
    caplog.set_level(logging.WARNING, logger="rescalenet")
    assert kept(None, 90).names == kept(None, 80, usual=80).names == NAMES
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "its 90 classes are taken for COCO's" in caplog.text
    assert kept(None, 80) == (tuple(range(1, 81)), None)
    assert kept(None, 90, usual=80) == (tuple(range(1, 91)), None)
    assert len(caplog.records) == 2


def test_names_of_ones_own():
    own = [f"part {i}" for i in range(90)]
    assert kept(own, 90) == (tuple(range(1, 91)), tuple(own))
    assert kept("all", 90) == (tuple(range(1, 91)), None)
    assert kept(own[:80], 90) == (kept("coco", 90).labels, tuple(own[:80]))  # names of the objects
    assert kept(["a", "b"], 2) == ((1, 2), ("a", "b"))


@pytest.mark.parametrize(
    ("classes", "count", "error", "message"),
    [
        ("some", 90, ZooError, "classes='some': must be coco, all, or the names of the classes"),
        (["a"], 90, WeightsError, "a layout checkpoint: 1 class names for 90 classes"),
        (["a"] * 81, 80, WeightsError, "81 class names for 80 classes"),
        ("coco", 5, WeightsError, "it has 5 classes, COCO has 80; give their names"),
        (CATEGORIES, 5, WeightsError, "it has 5 classes, COCO has 80"),
    ],
)
def test_what_does_not_fit(classes, count, error, message):
    with pytest.raises(error, match=message):
        kept(classes, count)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["cat", "dog", "cat"], "class name 'cat' occurs twice"),
        (["cat", 3, "dog"], "class name 3 has type int: must be text"),
    ],
)
def test_names_that_no_class_can_have(names, reason):
    with pytest.raises(ZooError, match=reason):
        kept(names, 3)

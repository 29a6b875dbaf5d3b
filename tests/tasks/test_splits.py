"""Held-out samples: a share of each class, by name and seed."""

import random

import pytest

from tasks.errors import DataError
from tasks.files import LeftOut
from tasks.splits import choose_share, describe_set, describe_sets, read_holdout, split_sets

NAMES = [f"{c}/{i}.png" for c, count in (("a", 100), ("b", 15), ("c", 2), ("d", 1)) for i in range(count)]
LABELS = ["abcd".index(name[0]) for name in NAMES]


def of_class(chosen, name):
    return sum(each.startswith(name) for each in chosen)


def test_a_share_of_each_class():
    chosen = choose_share(NAMES, LABELS, 0.1, seed=0)
    assert [of_class(chosen, c) for c in "abcd"] == [10, 2, 1, 0]
    assert [of_class(choose_share(NAMES, LABELS, 0.9, seed=0), c) for c in "abcd"] == [90, 14, 1, 0]


def test_the_share_depends_on_names_and_seed_only():
    chosen = choose_share(NAMES, LABELS, 0.2, seed=3)
    mixed = list(zip(NAMES, LABELS, strict=True))
    random.Random(1).shuffle(mixed)
    assert choose_share(*map(list, zip(*mixed, strict=True)), 0.2, seed=3) == chosen
    assert choose_share(NAMES, LABELS, 0.2, seed=4) != chosen
    # a sample that is removed changes at most one other's side
    fewer = choose_share(NAMES[1:], LABELS[1:], 0.2, seed=3)
    assert len(fewer ^ (chosen - {NAMES[0]})) <= 1
    # stored, because runs resume on other machines
    assert sorted(choose_share(NAMES, LABELS, 0.03, seed=0)) == [
        "a/5.png",
        "a/52.png",
        "a/62.png",
        "b/8.png",
        "c/1.png",
    ]


def test_lists_of_windows_and_lists_of_all_or_nothing(tmp_path):
    listed = tmp_path / "held.txt"
    listed.write_bytes("a/1.png\r\n\r\na/2.png  \r\n".encode("utf-8-sig"))
    assert read_holdout(str(listed), NAMES) == {"a/1.png", "a/2.png"}
    listed.write_text("\n")
    with pytest.raises(DataError, match="held.txt: is empty"):
        read_holdout(str(listed), NAMES)

    class Section:
        split, holdout = "holdout", str(listed)

    listed.write_text("\n".join(NAMES))
    with pytest.raises(DataError, match=r"data.holdout=.*held.txt: has all 118 samples, none is left to train on"):
        split_sets(Section(), NAMES, NAMES, load_val=list, select=lambda chosen: list(filter(chosen, NAMES)))


def test_what_a_run_trains_on():
    hidden, empty = LeftOut(hidden=2), LeftOut(empty=1)
    assert describe_sets(8, 2, "images", classes=1) == ["train: 8 images in 1 class; val: 2 images"]
    assert describe_sets(8, 0, "pairs") == ["train: 8 pairs"]
    assert describe_sets(8, 2, "images", left_out=[hidden, empty])[1:] == ["left out: 2 hidden, 1 empty"]
    assert describe_sets(8, 2, "images", left_out=[hidden, hidden])[1:] == ["left out: 2 hidden"]
    assert describe_set(3, "videos", classes=2, left_out=[empty, LeftOut()]) == [
        "3 videos in 2 classes",
        "left out: 1 empty",
    ]

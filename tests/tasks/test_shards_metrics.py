"""Shared modules: each rank's part, metrics of classifiers, held-out lists, inputs that are read one by one."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from tasks import config, shards
from tasks.errors import DataError, UserError
from tasks.files import find_files
from tasks.metrics import ClassCounts, class_numbers
from tasks.report import Sheet, best_classes, class_lines, prediction_line
from tasks.splits import read_holdout, require_same_classes, split_sets


def rank(index: int, count: int) -> SimpleNamespace:
    return SimpleNamespace(process_index=index, num_processes=count)


@pytest.mark.parametrize("length", [0, 1, 2, 7, 12])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_parts_of_all_ranks_are_the_list(length, count):
    parts = [list(shards.own_part(length, rank(i, count))) for i in range(count)]
    assert sorted(number for part in parts for number in part) == list(range(length))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_each_rank_loads_its_part_in_order():
    batches = list(shards.own_loader(range(7), rank(1, 2), 2, collate=shards.as_list))
    assert batches == [[1, 3], [5]]
    assert list(shards.own_loader(range(1), rank(1, 2), 2)) == []


def test_shares_of_a_batch():
    assert [shards.own_batch_size(size, rank(0, 4)) for size in (1, 4, 9, 256)] == [1, 1, 2, 64]


def test_results_are_gathered_in_order(monkeypatch):
    others = [(1, "b"), (3, "d")]
    monkeypatch.setattr(shards, "gather_object", lambda own: own + others)
    assert shards.gather_in_order({4: "e", 0: "a", 2: "c"}) == list("abcde")


def test_chunks():
    assert list(shards.chunks(iter(range(5)), 2)) == [[0, 1], [2, 3], [4]]
    assert list(shards.chunks([], 2)) == []


def test_counts_of_batches_are_counts_of_all():
    scores, labels = torch.rand(50, 7), torch.randint(0, 7, (50,))
    whole, parts = ClassCounts.zero(7), ClassCounts.zero(7)
    whole.add(scores, labels)
    for part, true in zip(scores.split(8), labels.split(8), strict=True):
        parts.add(part, true)
    assert torch.equal(whole.confusion, parts.confusion)
    assert whole.top5 == parts.top5
    assert whole.metrics()["top1"] == pytest.approx(100 * float((scores.argmax(1) == labels).double().mean()))
    assert whole.metrics()["images"] == 50


def test_classes_that_never_occur_do_not_count():
    counts = ClassCounts(torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]]), 6)
    assert counts.metrics()["mean_class"] == pytest.approx(100 * (3 / 4 + 1) / 2)
    assert counts.macro_f1() == pytest.approx(100 * (6 / 7 + 4 / 5) / 2)
    rows = counts.table(["a", "b", "c"], "videos")
    assert rows[0] == {"class": "a", "videos": 4, "recall": 0.75, "precision": 1.0, "taken_for": "b"}
    assert rows[2]["recall"] is rows[2]["precision"] is None
    lines = class_lines(rows, {"top1": 83.333333333}, "videos")
    assert lines[1].split() == ["a", "4", "75.0%", "100.0%", "b"]
    assert lines[3].split() == ["c", "0", "-", "-"]
    assert lines[4] == "top1 83.3333"


def test_class_numbers_follow_the_weights():
    weights = SimpleNamespace(name="w", classes=("ant", "bee", "cat"))
    assert class_numbers(["cat", "ant"], weights) == [2, 0]
    with pytest.raises(DataError, match=r"class 'bees' is not one of w \(did you mean bee\?\)"):
        class_numbers(["bees"], weights)


def section(split: str, holdout: object = None) -> SimpleNamespace:
    return SimpleNamespace(split=split, holdout=None if holdout is None else str(holdout))


def test_held_out_samples_are_in_one_set_only(tmp_path):
    listed = tmp_path / "holdout.txt"
    listed.write_text("b\nd\n")
    names = list("abcd")

    def select(chosen):
        return list(filter(chosen, names))

    def load_val():
        raise AssertionError("the official evaluation set stays closed")

    assert split_sets(section("holdout", listed), names, names, load_val=load_val, select=select) == (
        ["a", "c"],
        ["b", "d"],
    )
    assert split_sets(section("official"), names, names, load_val=lambda: ["x"], select=select) == (names, ["x"])
    listed.write_text("b\nz\n")
    with pytest.raises(DataError, match="1 names are not in the training set, e.g. 'z'"):
        read_holdout(str(listed), names)
    with pytest.raises(DataError, match=r"needs data\.holdout"):
        read_holdout(None, names)
    assert config.read_holdout is read_holdout


def test_different_classes_are_named():
    require_same_classes(["a", "b"], ("a", "b"), "x and y")
    with pytest.raises(DataError, match="^x and y have different classes, e.g. 'c'$"):
        require_same_classes(["a", "b"], ["a", "c", "b"], "x and y")


def test_inputs_are_required():
    with pytest.raises(UserError, match="no input"):
        find_files([], (".png",), "images")


@dataclass
class Found:
    file: str
    classes: list[str]
    scores: list[float]


def test_lines_and_sheet_of_predictions(tmp_path):
    classes, scores = best_classes(torch.tensor([0.2, 0.7, 0.1]), ["a", "b", "c"], 2)
    assert classes == ["b", "a"]
    found = Found("x.png", classes, scores)
    assert prediction_line(found) == "x.png: b 70.0%, a 20.0%"
    sheet = Sheet()
    sheet.write(tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()

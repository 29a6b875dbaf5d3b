"""Boxes by where they are, and tiles merged by them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.detection.boxes import BoxIndex, area, overlap_area
from tasks.detection.predict import CLIPPED, Instance, merge_tiles


def some_boxes(seed, count, extent, largest):
    random = np.random.RandomState(seed)
    corners = random.rand(count, 2) * extent - extent / 4
    sides = largest ** random.rand(count, 2)
    sides[random.rand(count) < 0.05] = 0
    return [tuple(map(float, box)) for box in np.concatenate([corners, corners + sides], 1)]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.sampled_from([3, 50, 400]), st.sampled_from([1.5, 30, 500]))
def test_all_boxes_that_overlap_are_near(seed, count, extent, largest):
    boxes = some_boxes(seed, count, extent, largest)
    index = BoxIndex()
    for number, box in enumerate(boxes):
        near = list(index.near(box))
        for other in boxes[:number]:
            if overlap_area(box, other) > 0:
                assert other in near
        assert all(other in boxes[:number] for other in near)
        index.add(box)


def merged_by_pairs(parts, iou=0.5):
    """Every pair is compared, as the rule reads."""
    order = sorted(range(len(parts)), key=lambda i: (parts[i][1], -parts[i][0].score))
    kept = []
    for i in order:
        instance, cut = parts[i]
        for other in kept:
            shared = overlap_area(instance.box, other.box)
            union = area(instance.box) + area(other.box) - shared
            same = shared / union > iou or (cut and shared / area(instance.box) > CLIPPED)
            if same and other.label == instance.label:
                break
        else:
            kept.append(instance)
    return sorted(kept, key=lambda instance: -instance.score)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 80))
def test_tiles_are_merged_as_by_all_pairs(seed, count):
    random = np.random.RandomState(seed)
    boxes = [box for box in some_boxes(seed, count, 60, 30) if area(box) > 0]
    parts = [(Instance("ab"[random.randint(2)], float(random.rand()), box), random.rand() < 0.3) for box in boxes]
    assert merge_tiles(parts) == merged_by_pairs(parts)


def test_tiles_of_a_slide_are_merged_with_few_comparisons():
    """The number of comparisons grows with the number of boxes, not with its square."""
    counts = []
    for count in (1000, 8000):
        boxes = [
            (20.0 * (i % 400), 20.0 * (i // 400), 20.0 * (i % 400) + 15, 20.0 * (i // 400) + 15) for i in range(count)
        ]
        index, compared = BoxIndex(), 0
        for box in boxes:
            compared += sum(1 for _ in index.near(box))
            index.add(box)
        counts.append(compared / count)
    assert counts[1] < 1.5 * counts[0]

"""Extents of many masks at once against numpy and pycocotools one by one."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

from tasks.detection.extents import Extent, examine
from tasks.detection.masks import LONGEST_OUTLINE

HEIGHT, WIDTH = 40, 60

coordinate = st.one_of(
    st.integers(-9, 70),
    st.floats(-9, 70),
    st.floats(0, 40).map(lambda value: round(value, 2)),
)
polygon = st.one_of(
    st.lists(coordinate, max_size=9),  # of any length, odd ones too
    st.integers(3, 140).flatmap(lambda corners: st.lists(coordinate, min_size=2 * corners, max_size=2 * corners)),
)
odd = st.sampled_from([math.nan, math.inf, -2001.0, 2061.0, 1e308, 10**30, 10**400, True, "1", None, [1.0]])
runs = st.lists(st.integers(0, HEIGHT * WIDTH), max_size=8).map(
    lambda ends: np.diff([0, *sorted(ends), HEIGHT * WIDTH]).tolist()
)
segmentation = st.one_of(
    st.lists(polygon, max_size=3),
    runs.map(lambda counts: {"size": [HEIGHT, WIDTH], "counts": counts}),
    st.tuples(polygon, odd, st.integers(0, 300)).map(lambda s: [[*s[0][: s[2]], s[1], *s[0][s[2] :]]]),
    st.sampled_from([{}, 0, "text", {"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]}, [5], [[1] * 8, 5]]),
)


def alone(segmentation):
    """Extent of a mask as numpy and pycocotools measure it alone; whether it can be used."""
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [HEIGHT, WIDTH]:
            return False
        return pixels(rle.frPyObjects(segmentation, HEIGHT, WIDTH), None)
    if not isinstance(segmentation, list) or not all(isinstance(part, list) for part in segmentation):
        return False
    for part in segmentation:
        if any(type(value) not in (int, float) for value in part):
            return False
        for coordinates, side in ((part[0::2], WIDTH), (part[1::2], HEIGHT)):
            if not all(-2000 <= value <= side + 2000 for value in coordinates):
                return False
    parts = [np.asarray(part, dtype=np.float64).reshape(-1, 2) for part in segmentation if drawn(part)]
    if not parts:
        return Extent() if segmentation else None
    lowest, highest = np.min([part.min(0) for part in parts], axis=0), np.max([part.max(0) for part in parts], axis=0)
    (x1, y1), (x2, y2) = np.clip([lowest, highest], 0, (WIDTH, HEIGHT)).tolist()
    area = sum(0.5 * abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) for x, y in (part.T for part in parts))
    outline = sum(float(np.abs(part - np.roll(part, 1, axis=0)).max(1).sum()) for part in parts)
    inside = (lowest >= 0).all() and (highest <= (WIDTH, HEIGHT)).all()
    if inside and area >= max(16.0, 2 * outline):
        return Extent((*lowest.tolist(), *highest.tolist()), (x1, y1, x2, y2), area)
    encoded = rle.merge(rle.frPyObjects([part.ravel().tolist() for part in parts], HEIGHT, WIDTH))
    return pixels(encoded, (x1, y1, x2, y2))


def drawn(part):
    return len(part) >= 6 and len(part) % 2 == 0


def pixels(encoded, drawn):
    area, (x, y, w, h) = float(rle.area(encoded)), rle.toBbox(encoded).tolist()
    box = (x, y, x + w, y + h)
    return Extent(box, drawn or box, area) if area else Extent()


def compare(segmentations):
    found = examine(segmentations, [(HEIGHT, WIDTH)] * len(segmentations))
    for one, segmentation in zip(found, segmentations, strict=True):
        expected = alone(segmentation)
        assert isinstance(one, str) if expected is False else one == expected  # to the bit


@settings(max_examples=200, deadline=None)
@given(st.lists(segmentation, max_size=12))
def test_many_masks_are_measured_as_each_alone(segmentations):
    compare(segmentations)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(st.lists(segmentation, max_size=12))
def test_many_masks_are_measured_as_each_alone_often(segmentations):
    compare(segmentations)


def test_ordinary_outlines():
    """Circles of every size and number of corners, several in a mask: most are measured without their pixels."""
    random = np.random.RandomState(0)
    masks = []
    for _ in range(2000):
        parts = []
        for _ in range(random.randint(1, 4)):
            angles = np.linspace(0, 2 * np.pi, random.randint(3, 200), endpoint=False)
            radius, x, y = random.uniform(1, 20), random.uniform(0, WIDTH), random.uniform(0, HEIGHT)
            part = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)
            parts.append(part.clip(0, (WIDTH, HEIGHT)).round(2).ravel().tolist())
        masks.append(parts)
    compare(masks)
    areas = [found.area for found in examine(masks, [(HEIGHT, WIDTH)] * len(masks))]
    assert sum(not area.is_integer() for area in areas) > 500


def test_images_of_different_sizes():
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    small, large = examine([square, square], [(20, 20), (100, 50)])
    assert small == Extent((10, 10, 20, 20), (10, 10, 20, 20), 100.0)
    assert large == Extent((10, 10, 30, 30), (10, 10, 30, 30), 400.0)


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[1.0, True, 2.0, 2.0, 3.0, 3.0]], "not lists of numbers"),
        ([[0.0, 0.0, 10**400, 5.0, 5.0, 5.0]], "not finite or far outside"),
        ([[0.0, 0.0, math.nan, 5.0, 5.0, 5.0]], "not finite or far outside"),
        ([[0.0, 0.0, 1500.0, 0.0] * 1500], f"an outline of more than {LONGEST_OUTLINE}"),
    ],
)
def test_what_is_refused(segmentation, reason):
    beside, found = examine([[[0, 0, 30, 0, 30, 30]], segmentation], [(HEIGHT, WIDTH)] * 2)
    assert beside.area == 450
    assert reason in found

"""The comparison of exported graphs: what it accepts, and what it notices."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from zoo.errors import ExportError
from zoo.export.graphs import Graph, Port
from zoo.export.verification import TOLERANCE, compare, expected_at, fitting_samples, require_contrast


class Sum(nn.Module):
    def forward(self, x):
        return x.sum((1, 2, 3))[:, None]


def graph(*samples, module=None, outputs=(("logits", ("batch", 1)),), compares="values"):
    source = Port("images", ("batch", 3, "height", "width"))
    ports = tuple(Port(name, axes, "int64" if name == "labels" else "float32") for name, axes in outputs)
    calls = tuple((sample,) for sample in samples)
    return Graph("model", module or Sum(), (source,), ports, calls, "noise", compares=compares)


def outputs(made):
    return [expected for _, expected in expected_at(made, made.samples)]


SAMPLES = [torch.randn(n, 3, side, side) for n, side in ((1, 8), (1, 8), (3, 8), (2, 10))]


@pytest.mark.parametrize(
    ("dynamic", "count"), [({"batch", "size"}, 4), ({"batch"}, 3), ({"size"}, 2), (frozenset(), 2)]
)
def test_samples_that_a_target_takes(dynamic, count):
    """One of another size has another batch too, so that a target with one batch takes it not."""
    assert len(fitting_samples(graph(*SAMPLES), frozenset(dynamic))) == count


def test_a_fixed_axis_is_not_free_in_any_target():
    fixed = Graph("model", Sum(), (Port("images", ("batch", 3, 8, 8)),), (), tuple((x,) for x in SAMPLES), "noise")
    assert len(fitting_samples(fixed, frozenset({"batch", "size"}))) == 3


def shifted(by):
    return lambda inputs: [inputs[0].sum((1, 2, 3))[:, None] * (1 + by)]


def test_differences_are_relative_to_the_largest_output():
    made = graph(*SAMPLES)
    found = compare(made, shifted(5e-5), expected_at(made, made.samples), TOLERANCE)
    assert found.relative == pytest.approx(5e-5, rel=0.2)
    largest = max(float(Sum()(x).abs().max()) for x in SAMPLES)
    assert found.absolute == pytest.approx(5e-5 * largest, rel=0.2)
    with pytest.raises(ExportError, match=r"model: outputs differ by \S+ \(relative\) at images \(1, 3, 8, 8\)"):
        compare(made, shifted(2e-4), expected_at(made, made.samples), TOLERANCE)


@pytest.mark.parametrize(
    "runner",
    [
        lambda inputs: [np.full((len(inputs[0]), 1), math.nan, np.float32)],
        lambda inputs: [inputs[0].sum((1, 2, 3))],  # another shape
        lambda inputs: [inputs[0].sum((1, 2, 3))[:1, None]],
    ],
)
def test_what_is_no_number_or_has_another_shape_differs(runner):
    made = graph(SAMPLES[2])
    with pytest.raises(ExportError, match="outputs differ by inf"):
        compare(made, runner, expected_at(made, made.samples), TOLERANCE)


def test_the_number_of_outputs_counts():
    made = graph(SAMPLES[0])
    with pytest.raises(ExportError, match="model: 2 outputs, not 1"):
        compare(made, lambda inputs: [inputs[0], inputs[0]], expected_at(made, made.samples), TOLERANCE)


class Zero(nn.Module):
    def forward(self, x):
        return x.new_ones(len(x), 1)


def test_outputs_must_depend_on_the_input():
    require_contrast(graph(*SAMPLES), outputs(graph(*SAMPLES)))
    made = graph(*SAMPLES, module=Zero())
    with pytest.raises(ExportError, match="its output logits is the same for all inputs"):
        require_contrast(made, outputs(made))


class Found(nn.Module):
    """Objects as a detector gives them, at places that depend on the input."""

    def __init__(self, count=20, move=0.0, swap=False, lose=0, score=0.0):
        super().__init__()
        self.count, self.move, self.swap, self.lose, self.score = count, move, swap, lose, score

    def forward(self, image):
        corner = torch.arange(self.count, dtype=torch.float32)[:, None] * 10 + image.mean()
        boxes = torch.cat([corner, corner, corner + 8, corner + 8], 1) + self.move
        labels, scores = torch.arange(self.count) % 3 + 1, torch.linspace(0.9, 0.1, self.count) + self.score
        order = torch.arange(self.count)
        if self.swap:
            order[:2] = order[:2].flip(0)
        order = order[self.lose :]
        return boxes[order], labels[order], scores[order]


OBJECTS = (("boxes", ("objects", 4)), ("labels", ("objects",)), ("scores", ("objects",)))


def detector(**settings):
    module = Found(**settings)
    made = Graph("model", module, (Port("image", (3, "height", "width")),), (), ((torch.rand(3, 8, 8),),), "noise")
    ports = tuple(Port(name, axes, "int64" if name == "labels" else "float32") for name, axes in OBJECTS)
    return Graph("model", module, made.inputs, ports, made.samples, "noise", compares="objects")


def test_boxes_may_differ_by_a_hundredth_of_a_pixel():
    torch.manual_seed(0)
    made = detector()

    def runner(by, **settings):
        other = Found(move=by, **settings)
        return lambda inputs: [x.numpy() for x in other(torch.from_numpy(inputs[0]))]

    assert compare(made, runner(0.009), expected_at(made, made.samples), TOLERANCE).absolute == pytest.approx(
        0.009, rel=0.01
    )
    with pytest.raises(ExportError, match="outputs differ by"):
        compare(made, runner(0.011), expected_at(made, made.samples), TOLERANCE)
    assert (
        compare(made, runner(0.0, swap=True), expected_at(made, made.samples), TOLERANCE).relative < 1e-6
    )  # neighbours in the order
    with pytest.raises(ExportError, match="outputs differ by inf"):
        compare(made, runner(0.0, lose=1), expected_at(made, made.samples), TOLERANCE)  # 1 of 20 is more than 2 %
    with pytest.raises(ExportError, match="outputs differ by"):
        compare(made, runner(0.0, score=2e-4), expected_at(made, made.samples), TOLERANCE)


def test_a_detector_that_finds_nothing_is_refused():
    made = detector(count=0)
    with pytest.raises(ExportError, match="no object is found in noise: nothing could be compared"):
        require_contrast(made, outputs(made))

"""Exports run in their target's own runtime."""

import sys

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import zoo
from tests.helpers.batchnorm import relative_error, train_statistics_
from tests.helpers.nets import CLIPS, NARROW, narrow, samples
from zoo.convert import from_batchnorm
from zoo.errors import ExportError
from zoo.export.images import export_net


@pytest.mark.parametrize("scheme", ["rescale", pytest.param("bn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", NARROW)
def test_onnx_agrees_in_onnxruntime(kind, scheme, tmp_path):
    model = narrow(kind, scheme=scheme).train()
    zoo.calibrate(model, [samples(kind, 4, 64)])
    for parameter in model.parameters():  # far from what zeros and ones would hide
        if parameter.ndim <= 1:
            nn.init.normal_(parameter, 0.5, 0.2)
    # VGG pools to 7x7 and the exporter wants a size that this divides
    side = 224 if kind == "vgg" else 65
    size = (5, side, side) if kind in CLIPS else (side, side)
    inputs = [torch.randn(count, 3, *size) for count in (1, 2, 5)]
    if kind != "vgg":
        inputs.append(samples(kind, 2, 48, 97))
    made = export_net(model, inputs, tmp_path / "net", folded=False)
    assert made.worst <= 1e-4
    assert model.training
    session = onnxruntime.InferenceSession(tmp_path / "net/model.onnx")
    sides = [side, side] if kind == "vgg" else ["height", "width"]
    assert session.get_inputs()[0].shape == ["batch", 3, *size[:-2], *sides]
    x = np.random.RandomState(0).standard_normal((3, 3, *size)).astype(np.float32)
    expected = model.eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(
        session.run(None, {"clips" if kind in CLIPS else "images": x})[0],
        expected,
        rtol=1e-3,
        atol=1e-4 * abs(expected).max(),
    )


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("form", ["gained", *(pytest.param(f, marks=pytest.mark.slow) for f in ("folded", "balanced"))])
def test_converted_nets_export_in_every_form(form, folded, tmp_path):
    original = train_statistics_(narrow("basic", scheme="bn"), hostile=True)
    model = from_batchnorm(original, form=form)
    export_net(model, [samples("basic", count, 33, 49) for count in (1, 2)], tmp_path / "net", folded=folded)
    x = samples("basic", 2, 33, 49)
    (found,) = onnxruntime.InferenceSession(tmp_path / "net/model.onnx").run(None, {"images": x.numpy()})
    assert relative_error(torch.from_numpy(found), original(x).detach()) < 1e-5


class Different(nn.Module):
    """A net whose export cannot agree: it notices that it is being exported."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        y = x.mean((2, 3)) * self.weight
        return y + 1 if torch.compiler.is_exporting() else y


def test_a_file_that_disagrees_is_not_left_behind(tmp_path):
    inputs = [torch.randn(count, 3, 8, 8) for count in (1, 2)]
    with pytest.raises(ExportError, match=r"model: outputs differ by .* at images \(1, 3, 8, 8\)"):
        export_net(Different(), inputs, tmp_path / "net", folded=False)
    assert list(tmp_path.iterdir()) == []


def test_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "zoo.export.onnx", raising=False)
    with pytest.raises(ExportError, match=r"needs onnxruntime: pip install 'rescalenet-zoo\[onnx\]'"):
        export_net(Different(), [torch.randn(1, 3, 8, 8)], tmp_path / "net", folded=False)


class Constant(nn.Module):
    """A net whose output does not depend on its input."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x.mean((1, 2, 3))[:, None] * 0 + self.weight


def test_an_export_is_not_compared_on_constants(tmp_path):
    inputs = [torch.randn(count, 3, 8, 8) for count in (1, 2)]
    with pytest.raises(ExportError, match="its output logits is the same for all inputs .* nothing could be compared"):
        export_net(Constant(), inputs, tmp_path / "net", folded=False)
    assert list(tmp_path.iterdir()) == []

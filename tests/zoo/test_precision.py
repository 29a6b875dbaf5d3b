"""Nothing of float64 is made on a device that has none, such as MPS; the stand-in for one is the CPU.

On such a device a float64 tensor comes from a copy to the CPU (``precise``) or from float64 tensors. It meets a float32
one, which is on the device, only where one is copied into the other. What asks for the CPU by name is there.
"""

import importlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import zoo
from tests.helpers.nets import narrow, samples
from tests.helpers.transformers import SCHEMES, SMALL, batch
from zoo import precision
from zoo.nets.transformer import sinusoids

COPIES = ("copy_", "_to_copy")
MODULES = ("calibration", "folding", "nets.vgg", "convert.centering", "convert.rescaled")


class NoFloat64(TorchDispatchMode):
    """Raises an error where an operation on the device has or makes float64."""

    def __init__(self):
        super().__init__()
        self.copying = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        given, made = (
            {x.dtype for x in tree_leaves(values) if isinstance(x, torch.Tensor) and x.is_floating_point()}
            for values in ((args, kwargs), result)
        )
        if torch.float64 in given:
            assert given == {torch.float64} or name in COPIES, f"{name} of {given}: on two devices"
        elif torch.float64 in made:
            on_cpu = not given and (kwargs or {}).get("device") == torch.device("cpu")
            assert self.copying or on_cpu, f"{name} makes float64 on the device"
        return result


@pytest.fixture
def device(monkeypatch):
    """The stand-in: the code takes the CPU for a device without float64."""
    mode, precise = NoFloat64(), precision.precise

    def copied(x):
        mode.copying = True
        try:
            return precise(x)
        finally:
            mode.copying = False

    for module in MODULES:
        monkeypatch.setattr(importlib.import_module(f"zoo.{module}"), "precise", copied)
    monkeypatch.setattr(precision, "precise", copied)
    for name in ("zoo.precision.lacks_float64", "zoo.calibration.lacks_float64"):
        monkeypatch.setattr(name, lambda device: True)
    with mode:
        yield mode


@pytest.mark.parametrize("options", [{}, {"scheme": "bn"}, {"scheme": "nf"}, {"weight_scale": True, "post_bias": True}])
@pytest.mark.parametrize("kind", ["cifar", "vgg", "replicate"])
def test_nets_for_images_and_clips(kind, options, device):
    model = narrow(kind, **options)
    x = samples(kind, 2, 32)
    zoo.calibrate(model, [x])
    if options.get("post_bias") and kind != "replicate":
        zoo.convert.center_inputs_(model, [x])
    model.train()(x).square().sum().backward()
    assert zoo.fold(model)(x).dtype == torch.float32
    if options.get("scheme") == "bn" and kind != "replicate":
        zoo.convert.rescaled(model.eval())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nets_for_text(scheme, device):
    sizes = {"source_vocabulary": 40, "target_vocabulary": 40}
    model = zoo.create_model("rescale_transformer_tiny", scheme=scheme, **{**SMALL, **sizes, "activation": "gelu"})
    pair = batch()
    zoo.calibrate(model, [pair], forward=lambda net, pair: net(*pair))
    loss, _ = model.train()(*pair, pair[1], 0.1)
    loss.backward()
    with torch.no_grad():
        assert zoo.fold(model)(*pair).dtype == torch.float32


def test_the_stand_in_can_fail(device):
    x = torch.ones(2)
    for forbidden in (
        lambda: x.double(),
        lambda: x.sum(dtype=torch.float64),
        lambda: precision.precise(x) + x,
    ):
        with pytest.raises(AssertionError, match=r"on the device|on two devices"):
            forbidden()
    assert precision.precise(x).dtype == torch.float64


def test_positions_are_computed_where_float64_is(monkeypatch):
    """The stand-in for a device without float64 is the meta device, on which a net is made."""
    made = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            made.extend((x.device.type, x.dtype) for x in tree_leaves(result) if isinstance(x, torch.Tensor))
            return result

    with torch.device("meta"), Record():
        assert sinusoids(5, 4).is_meta
    assert {device for device, _ in made} == {"meta"}  # a net that is planned takes no memory
    made.clear()
    monkeypatch.setattr("zoo.precision.lacks_float64", lambda device: device.type == "meta")
    with torch.device("meta"), Record():
        assert sinusoids(5, 4).is_meta
    assert ("cpu", torch.float64) in made
    assert ("meta", torch.float64) not in made


def test_positions_and_devices():
    expected = sinusoids(3, 5)
    assert expected.dtype == torch.float32
    torch.testing.assert_close(expected[:, 4], torch.zeros(3))
    torch.testing.assert_close(expected[0, :2], torch.tensor([2.0, 2e-4]).sin(), rtol=1e-6, atol=0)
    assert precision.lacks_float64(torch.device("mps"))
    assert not precision.lacks_float64(torch.device("cpu"))

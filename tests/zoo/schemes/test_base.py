"""Schemes: what they declare is what their nets are, and how another one is registered."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import zoo
from zoo.registry import build_model
from zoo.schemes import TEXT_SCHEMES, VISION_SCHEMES, TextScheme, VisionScheme, base

KINDS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, FrozenBatchNorm2d)


def test_the_tables():
    assert tuple(VISION_SCHEMES) == (
        *("rescale", "bn", "frozen_bn", "gn", "none"),
        *("fixup", "skipinit", "nf", "sum_rescaled"),
    )
    assert tuple(TEXT_SCHEMES) == ("rescale", "post_ln", "pre_ln", "none", "t_fixup", "deepnorm", "dyt", "derf")
    for table in (VISION_SCHEMES, TEXT_SCHEMES):
        assert all(cls.name == name for name, cls in table.items())
        with pytest.raises(TypeError):
            table["x"] = table["none"]
    assert [name for name, cls in VISION_SCHEMES.items() if cls.needs_weights] == ["frozen_bn"]


@pytest.mark.parametrize("name", VISION_SCHEMES)
@pytest.mark.parametrize("net", ["rescalenet18", "rescalevgg16", "rescale_r3d_18"])
def test_normalized_vision_schemes_have_norms(name, net):
    config = zoo.ModelConfig(net, name, 3, 3, {"width": 0.1})
    if name not in zoo.model_info(net).schemes:
        assert (net, VISION_SCHEMES[name].residual_only) == ("rescalevgg16", True)
        with pytest.raises(zoo.ZooError, match=f"{net} does not support scheme {name!r}; it does: rescale, bn, "):
            build_model(config)
        return
    with torch.device("meta"):
        model = build_model(config)
    assert any(isinstance(module, KINDS) for module in model.modules()) is VISION_SCHEMES[name].normalized


@pytest.mark.parametrize("name", TEXT_SCHEMES)
def test_normalized_text_schemes_have_norms(name):
    with torch.device("meta"):
        model = zoo.create_model("rescale_transformer_tiny", scheme=name)
    assert any(isinstance(module, KINDS) for module in model.modules()) is TEXT_SCHEMES[name].normalized


def test_class_names_are_unique():
    """A class name in a message, a log or a diff means one class of the package."""
    seen: dict[str, str] = {}
    for table in (VISION_SCHEMES, TEXT_SCHEMES):
        for cls in table.values():
            assert cls.__name__ not in seen
            seen[cls.__name__] = cls.__module__


@dataclass(frozen=True)
class Linear(VisionScheme):
    """No activation."""

    name: ClassVar[str] = "linear"
    slope: float = 1.0

    def activation(self):
        return nn.Identity()


@pytest.fixture
def registered():
    assert base.register_scheme(Linear) is Linear
    yield
    del VisionScheme.registered["linear"]


def test_a_registered_scheme_is_known_everywhere(registered):
    info = zoo.model_info("rescalenet18")
    assert info.schemes[-1] == "linear"
    assert info.scheme_options["linear"] == {"post_bias": False, "slope": 1.0}
    model = zoo.create_model("rescalenet18", scheme="linear", slope=2.0, width=0.1, num_classes=2)
    assert model.scheme == Linear(slope=2.0)
    assert not any(isinstance(module, nn.ReLU) for module in model.modules())
    assert "linear" not in TEXT_SCHEMES
    with pytest.raises(zoo.ZooError, match="scheme Linear: the name 'linear' is registered already; choose another"):
        base.register_scheme(Linear)


def test_schemes_that_cannot_be_registered():
    class Plain(TextScheme):
        name = "plain"

    @dataclass(frozen=True)
    class Free(VisionScheme):
        name: ClassVar[str] = "free"
        slope: float = dataclasses.field(default_factory=float)

    @dataclass(frozen=True)
    class Neither(base.Scheme):
        name: ClassVar[str] = "neither"

    for cls, message in (
        (Plain, "scheme Plain: must be a frozen dataclass"),
        (Free, "scheme Free: option 'slope' must have a default"),
        (Neither, "scheme Neither: must derive from VisionScheme or TextScheme"),
    ):
        with pytest.raises(zoo.ZooError, match=message):
            base.register_scheme(cls)
        assert cls.name not in {**VISION_SCHEMES, **TEXT_SCHEMES}


def test_names_of_version_0_1_0():
    import zoo.schemes

    with pytest.warns(DeprecationWarning, match=r"zoo.schemes.Branch is Place now"):
        assert zoo.schemes.Branch is base.Place
    with pytest.warns(DeprecationWarning, match=r"zoo.schemes.Rescale is VisionRescale now"):
        assert zoo.schemes.Rescale is VISION_SCHEMES["rescale"]
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = zoo.schemes.Nothing

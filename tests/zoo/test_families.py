"""The registry from outside: nets and families of other packages, the detectors' family, free options."""

import dataclasses
import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest
import torch
from torch import nn

import zoo
from zoo import families, options, plugins, specs

TRANSFORM = zoo.InputTransform.imagenet(16, 16)
DETECTORS = [f"{kind}_rcnn_{net}_fpn" for kind in ("faster", "mask") for net in zoo.list_models(input_kind="images")]


# -- a net that is not part of the zoo --------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TinyLayout:
    OPTIONS: ClassVar = ("width", "noise")

    width: int = 8
    noise: float = zoo.free(0.0)


class Tiny(zoo.Backbone):
    """One convolution, one feature level."""

    residual = False
    pooled = True

    def __init__(self, layout, scheme, num_classes, in_chans):
        super().__init__()
        self.layout, self.scheme, self.num_features = layout, scheme, layout.width
        self.stem = nn.Conv2d(in_chans, layout.width, 3, 2, 1)
        self.levels = (zoo.FeatureLevel(layout.width, 2, "stem"),)
        self.reset_classifier(num_classes)

    def forward_levels(self, x, indices=None):
        return [self.stem(x)]

    def forward_head(self, x, pre_logits=False):
        x = x.mean((2, 3))
        return x if pre_logits else self.fc(x)

    def truncate(self, level):
        self.reset_classifier(0)


@pytest.fixture
def tiny():
    """The name of a registered net that is removed again after the test."""
    zoo.register_model(
        zoo.ModelSpec(
            name="tiny",
            family=Tiny,
            layout=TinyLayout(),
            num_classes=10,
            input_size=16,
            min_size=4,
            paper="https://example.org",
            schemes=("rescale", "none"),
        )
    )
    yield "tiny"
    del specs.MODELS["tiny"]


def test_a_net_from_outside_is_listed_created_saved_and_loaded(tiny, tmp_path):
    assert tiny in zoo.list_models(input_kind="images", task="classification")
    info = zoo.model_info(tiny)
    assert (info.schemes, info.task) == (("rescale", "none"), "classification")
    assert info.options == {"width": 8, "noise": 0.0}
    model = zoo.create_model(tiny, num_classes=2, width=4)
    path = tmp_path / "tiny.safetensors"
    zoo.save_weights(model, path, transform=TRANSFORM, classes=["a", "b"])
    again = zoo.create_model(tiny, str(path), noise=0.5)  # free to differ
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(again(x), model(x))
    assert again.layout == TinyLayout(4, 0.5)
    with pytest.raises(zoo.ZooError, match="have option width=4, not 8; leave it out"):
        zoo.create_model(tiny, str(path), width=8)
    with pytest.raises(zoo.ZooError, match="tiny does not support scheme 'bn'; it does: rescale, none"):
        zoo.create_model(tiny, scheme="bn")
    assert [tuple(m.shape) for m in zoo.create_model(tiny, features_only=True)(x)] == [(2, 8, 8, 8)]


def test_a_net_from_outside_carries_a_detector(tiny):
    with torch.device("meta"):
        detector = zoo.create_model("faster_rcnn_tiny_fpn", num_classes=2)
    assert detector.backbone.strides[:1] == [2]
    assert "faster_rcnn_tiny_fpn" in zoo.list_models(task="detection")


def test_a_removed_net_is_unknown():
    with pytest.raises(zoo.ZooError, match="unknown model 'tiny'"):
        zoo.create_model("tiny")


# -- a family that is not part of the zoo -----------------------------------------------------------


class Doubled(nn.Module):
    """The sum of the logits of two nets."""

    def __init__(self, config, parts):
        super().__init__()
        self.config, self.num_classes, self.parts = config, config.num_classes, nn.ModuleList(parts)

    def forward(self, x):
        return sum(part(x) for part in self.parts)


class DoubledFamily:
    def names(self):
        return ["doubled_tiny"]

    def info(self, name):
        return dataclasses.replace(zoo.model_info(self.part(name)), name=name, family="Doubled", task="doubling")

    def create(self, name, weights=None, **given):
        part = self.part(name)
        if weights is None:
            parts = [zoo.create_model(part, **given) for _ in range(2)]
            return Doubled(dataclasses.replace(parts[0].config, name=name), parts)
        entry = zoo.get_weights(weights, model=name)
        config = dataclasses.replace(entry.config, name=part)
        model = Doubled(entry.config, [zoo.build_model(config) for _ in range(2)])
        model.load_state_dict(entry.load())
        return model

    def part(self, name):
        return name.removeprefix("doubled_")


@pytest.fixture
def doubled(tiny):
    zoo.register_family("doubled_*", DoubledFamily())
    yield "doubled_tiny"
    del families.FAMILIES["doubled_*"]


def test_a_family_from_outside_is_listed_created_saved_and_loaded(doubled, tmp_path):
    assert zoo.list_models(task="doubling") == zoo.list_models("doubled*") == [doubled]
    assert zoo.model_info(doubled).options["width"] == 8
    model = zoo.create_model(doubled, num_classes=2, width=4)
    path = tmp_path / "doubled.safetensors"
    zoo.save_weights(model, path, transform=TRANSFORM, classes=["a", "b"])
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(zoo.create_model(doubled, str(path))(x), model(x))
    with pytest.raises(zoo.WeightsError, match="are of doubled_tiny, not of tiny"):
        zoo.create_model("tiny", str(path))
    with pytest.raises(zoo.ZooError, match="unknown model 'large'"):
        zoo.create_model("doubled_large")


@pytest.mark.parametrize("pattern", ["doubled_*", "*_rcnn_*_fpn"])
def test_a_pattern_is_registered_once(doubled, pattern):
    with pytest.raises(zoo.ZooError, match="is registered already"):
        zoo.register_family(pattern, DoubledFamily())


# -- detectors and entry points ---------------------------------------------------------------------


def test_detectors_are_models_like_others():
    assert set(zoo.list_models(task="detection")) == set(zoo.list_models(input_kind="image_lists")) == set(DETECTORS)
    assert set(DETECTORS) < set(zoo.list_models())
    assert zoo.list_models("mask_rcnn*", pretrained=True) == ["mask_rcnn_rescalenet18_fpn"]
    info = zoo.model_info("mask_rcnn_rescalenet18_fpn")
    assert (info.weights, info.num_classes, info.input_kind, info.task) == (("nuclei",), 80, "image_lists", "detection")
    assert info.options["fpn_channels"] == 256
    model = zoo.create_model("mask_rcnn_rescalenet18_fpn", "nuclei")
    assert (model.num_classes, model.has_masks) == (1, True)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("mask_rcnn_rescalenet19_fpn", {}, r"unknown model 'rescalenet19' \(did you mean rescalenet18"),
        ("mask_rcnn_rescale_r3d_18_fpn", {}, "rescale_r3d_18 takes clips, not images"),
        ("retina_rcnn_rescalenet18_fpn", {}, "unknown detector .*: must be faster_rcnn_BACKBONE_fpn or mask"),
        ("mask_rcn_rescalenet18_fpn", {}, r"unknown model .*\(did you mean mask_rcnn_rescalenet18_fpn"),
        ("mask_rcnn_rescalenet18_fpn", {"features_only": True}, "has no option 'features_only'"),
        ("mask_rcnn_rescalenet18_fpn", {"in_chans": 1}, "has no option 'in_chans'"),
        ("mask_rcnn_rescalenet18_fpn", {"weights": "nuclei", "mask_width": 9}, "option mask_width=48, not 9"),
        ("mask_rcnn_rescalenet18_fpn", {"weights": "nuclei", "scheme": "gn"}, "are of scheme 'rescale', not 'gn'"),
    ],
)
def test_mistakes_with_detectors_are_one_clear_error(name, given, message):
    with torch.device("meta"), pytest.raises(zoo.ZooError, match=message):
        zoo.create_model(name, **given)


def test_a_family_is_imported_when_a_name_matches():
    code = """
import sys, zoo
zoo.create_model("rescalenet20_cifar")
assert "tasks" not in sys.modules
assert zoo.model_info("faster_rcnn_rescalenet18_fpn").task == "detection"
assert "tasks.detection.detector" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def fresh_plugins():
    """Entry points are read anew after the test."""
    yield
    plugins.find_plugins.cache_clear()


def test_an_error_tells_what_to_install(fresh_plugins, monkeypatch, caplog):
    monkeypatch.setattr(plugins, "entry_points", lambda group: [])
    plugins.find_plugins.cache_clear()
    with pytest.raises(zoo.ZooError, match=r"no installed package makes mask_rcnn_rescalenet18_fpn, .* install resc"):
        zoo.create_model("mask_rcnn_rescalenet18_fpn", "nuclei")
    assert zoo.list_models("mask*") == []
    point = EntryPoint("broken_*", "no_such_module:FAMILY", families.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point])
    plugins.find_plugins.cache_clear()
    with pytest.raises(zoo.ZooError, match=r"^no_such_module:FAMILY .* cannot be imported .*install its package"):
        zoo.model_info("broken_net")
    assert zoo.list_models("resc*vgg*") == [f"rescalevgg{depth}" for depth in (11, 13, 16, 19)]
    assert "left out: no_such_module:FAMILY (rescalenet.families) cannot be imported" in caplog.text


# -- options and old names --------------------------------------------------------------------------


FREE = ("max_length", "global_pool", "drop_path_rate", "branch_noise")


@pytest.mark.parametrize("name", ["rescalenet50", "rescalevgg16", "rescale_r3d_18", "rescale_transformer_tiny"])
def test_dropout_pooling_and_the_longest_sentence_are_free(name):
    spec = specs.get_spec(name)
    expected = {key for key in spec.layout.OPTIONS if key.endswith("drop_rate") or key in FREE}
    assert options.free_options(spec.layout) == expected
    assert expected


def test_contradictions_know_lists_and_tuples():
    options.refuse_contradictions({"a": (1, 2), "b": 3}, {"a": [1, 2], "b": 4}, {"b"}, "w")
    with pytest.raises(zoo.ZooError, match=r"weights w have option a=\[1, 2\], not \(1, 3\); leave it out"):
        options.refuse_contradictions({"a": (1, 3)}, {"a": (1, 2)}, (), "w")


def test_takes_is_the_old_name_of_input_kind():
    with pytest.warns(DeprecationWarning, match="input_kind"):
        assert zoo.list_models(takes="text") == zoo.list_models(input_kind="text")
    with pytest.warns(DeprecationWarning, match="input_kind"):
        assert zoo.model_info("rescale_r3d_18").takes == "clips"
    with pytest.warns(DeprecationWarning, match="input_kind"):
        assert specs.get_spec("rescale_r3d_18").takes == "clips"

"""Arguments at the door: each public function takes numbers of numpy, and refuses anything else in one line."""

import functools
import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

import zoo
from tests.helpers.weights import TRANSFORM
from zoo import arguments
from zoo.sources import convert, describe, list_convertible

NAME = "rescalenet20_cifar"
WIDTH = {"width": 0.0625}
TEXT = {"dim": 8, "hidden": 8, "heads": 2, "encoder_layers": 1, "decoder_layers": 1}
TEXT |= {"source_vocabulary": 12, "target_vocabulary": 12}
DETECTOR = {"num_classes": 3, "body": WIDTH, "fpn_channels": 8, "box_width": 8, "mask_convs": (8, 8), "mask_width": 8}
IMAGE = {"size": 3, "resize": 300, "mean": (0.5,) * 3, "std": (0.5,) * 3}
CLIP = {**IMAGE, "frames": 3, "interval": 1.0, "fps": None}
OBJECTS = {"min_size": 3, "max_size": 300, "mean": (0.5,) * 3, "std": (0.5,) * 3}
LANGUAGES = {"source": "en", "target": "de", "source_model": "", "target_model": None}
CONFIG = {"name": NAME, "scheme": "rescale", "num_classes": 3, "in_chans": 3, "options": WIDTH}

VALUES = (
    *(np.int64(5), np.uint8(2), True, np.bool_(True), -1, 5.0, 5.5, np.float32(5.5), math.nan, math.inf, 10**30),
    *(
        "5",
        "a",
        b"5",
        None,
        [5],
        (5,),
        {},
        Path("x"),
        object(),
        torch.tensor(2),
        torch.tensor([1, 2]),
        np.array([2, 1]),
    ),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A net, and the path of its weights."""
    model, path = net(), tmp_path_factory.mktemp("weights") / "w.safetensors"
    zoo.save_weights(model, path, transform=TRANSFORM, classes=list("abcde"))
    return model, path


def net(**options):
    return zoo.create_model(NAME, **{"num_classes": 5, **WIDTH, **options})


@functools.cache
def wide():
    return zoo.create_model("rescalenet50", num_classes=2, **WIDTH)


def detector(**options):
    return zoo.create_model(f"mask_rcnn_{NAME}_fpn", **{**DETECTOR, **options})


def text(**options):
    return zoo.create_model("rescale_transformer_tiny", **{**TEXT, **options})


def saved(made, **more):
    """Save a net in the folder of the fixture, with other arguments."""
    arguments = {"path": made[1].with_name("x.safetensors"), "transform": TRANSFORM, "classes": list("abcde"), **more}
    model = arguments.pop("model", made[0])
    return zoo.save_weights(model, arguments.pop("path"), **arguments)


def with_field(cls, fields, key):
    return lambda made, value: cls(**{**fields, key: value})


X = torch.zeros(1, 3, 32, 32)
TENSORS = (torch.tensor(2), torch.tensor([1, 2]))
NOT = ()  # of the values, none is taken
INTEGERS = (np.int64(5), np.uint8(2), torch.tensor(2))
RATES = (np.int64(5), np.uint8(2), 5.0, 5.5, np.float32(5.5), torch.tensor(2))
NUMBERS = (*RATES, 10**30)
FLAGS = (True, np.bool_(True))
LEVELS = (np.uint8(2), torch.tensor(2), None, torch.tensor([1, 2]), np.array([1, 2]))
# name of the argument: function of the fixture and a value, and the values that it takes
CALLS = {
    "create_model name": (lambda made, v: zoo.create_model(v), NOT),
    "num_classes": (lambda made, v: net(num_classes=v), (*INTEGERS, None)),
    "in_chans": (lambda made, v: net(in_chans=v), (*INTEGERS, None)),
    "scheme": (lambda made, v: net(scheme=v), (None,)),
    "weights": (lambda made, v: net(weights=v), (None,)),
    "num_classes with weights": (lambda made, v: zoo.create_model(NAME, made[1], num_classes=v), (*INTEGERS, None)),
    "in_chans with weights": (lambda made, v: zoo.create_model(NAME, made[1], in_chans=v), (*INTEGERS, None)),
    "width": (lambda made, v: zoo.create_model(NAME, width=v), (np.int64(5), np.uint8(2), 5.0, 5.5, np.float32(5.5))),
    "drop_rate": (lambda made, v: net(drop_rate=v), NOT),
    "gn_groups": (lambda made, v: net(scheme="gn", gn_groups=v), (np.int64(5), np.uint8(2))),
    "multiplier": (lambda made, v: net(multiplier=v), FLAGS),
    "features_only": (lambda made, v: net(features_only=v), FLAGS),
    "out_indices": (
        lambda made, v: net(features_only=True, out_indices=v),
        LEVELS,
    ),
    "one of out_indices": (
        lambda made, v: net(features_only=True, out_indices=(0, v)),
        (np.uint8(2), -1, torch.tensor(2)),
    ),
    "detector num_classes": (lambda made, v: detector(num_classes=v), (*INTEGERS, None)),
    "detector min_size": (lambda made, v: detector(min_size=v), (*INTEGERS, None)),
    "detector mean": (lambda made, v: detector(mean=v), (None,)),
    "detector fpn_channels": (lambda made, v: detector(fpn_channels=v), (np.int64(5), np.uint8(2))),
    "detector body": (lambda made, v: detector(body=v), ({},)),
    "max_length": (lambda made, v: text(max_length=v), (np.int64(5), np.uint8(2))),
    "share": (lambda made, v: text(share=v), NOT),
    "get_weights": (lambda made, v: zoo.get_weights(v), NOT),
    "get_weights model": (lambda made, v: zoo.get_weights(made[1], model=v), (None,)),
    "is_weights_name": (lambda made, v: zoo.is_weights_name(v), ("5", "a", Path("x"))),
    "list_models filter": (lambda made, v: zoo.list_models(v), ("5", "a")),
    "list_models kind": (lambda made, v: zoo.list_models(input_kind=v), (None,)),
    "list_models task": (lambda made, v: zoo.list_models(task=v), (None,)),
    "list_models pretrained": (lambda made, v: zoo.list_models("x", pretrained=v), FLAGS),
    "model_info": (lambda made, v: zoo.model_info(v), NOT),
    "save_weights model": (lambda made, v: saved(made, model=v), NOT),
    "save_weights path": (lambda made, v: saved(made, path=v), NOT),
    "save_weights transform": (lambda made, v: saved(made, transform=v), NOT),
    "save_weights classes": (lambda made, v: saved(made, classes=v), NOT),
    "save_weights meta": (lambda made, v: saved(made, meta=v), (None, {})),
    "save_weights dtype": (lambda made, v: saved(made, dtype=v), (None,)),
    "reset_classifier": (lambda made, v: net().reset_classifier(v), INTEGERS),
    "global_pool": (lambda made, v: net().reset_classifier(3, v), (None,)),
    "freeze": (lambda made, v: net().freeze(v), (np.uint8(2), torch.tensor(2))),
    "set_grad_checkpointing": (lambda made, v: net().set_grad_checkpointing(v), FLAGS),
    "forward_intermediates": (
        lambda made, v: made[0].forward_intermediates(X, v),
        LEVELS,
    ),
    "prune": (lambda made, v: net().prune_intermediate_layers(v), LEVELS),
    "truncate": (lambda made, v: net().truncate(v), (np.uint8(2), torch.tensor(2))),
    "group_matcher": (lambda made, v: made[0].group_matcher(v), FLAGS),
    "get_classifier": (lambda made, v: made[0].get_classifier(v), FLAGS),
    "nominal": (lambda made, v: made[0].nominal(v, X), NOT),
    "fold": (lambda made, v: zoo.fold(v), NOT),
    "calibrate model": (lambda made, v: zoo.calibrate(v, [X]), NOT),
    "calibrate batches": (lambda made, v: zoo.calibrate(net(), v), NOT),
    "calibrate batch": (lambda made, v: isinstance(v, torch.Tensor) or zoo.calibrate(net(), [v]), TENSORS),
    "calibrate force": (lambda made, v: zoo.calibrate(net(), [X], force=v), FLAGS),
    "calibrate forward": (lambda made, v: zoo.calibrate(net(), [X], forward=v), (None,)),
    "calibrate reduce": (lambda made, v: zoo.calibrate(net(), [X], reduce=v), (None,)),
    "center_inputs_ batches": (lambda made, v: zoo.convert.center_inputs_(net(post_bias=True), v), NOT),
    "inflate": (lambda made, v: zoo.convert.inflate(v), NOT),
    "inflate name": (lambda made, v: zoo.convert.inflate(made[0], v), NOT),
    "inflate kernel": (lambda made, v: zoo.convert.inflate(made[0], "rescale_slowonly_r20_cifar", kernel=v), NOT),
    "inflate scheme": (lambda made, v: zoo.convert.inflate(wide(), scheme=v), NOT),
    "inflate num_classes": (lambda made, v: zoo.convert.inflate(wide(), num_classes=v), NOT),
    "inflate weights": (lambda made, v: zoo.convert.inflate(wide(), weights=v), NOT),
    "rescaled": (lambda made, v: zoo.convert.rescaled(v), NOT),
    "from_batchnorm": (lambda made, v: zoo.convert.from_batchnorm(v), NOT),
    "from_batchnorm name": (lambda made, v: zoo.convert.from_batchnorm(OrderedDict(), v), NOT),
    "from_batchnorm classes": (
        lambda made, v: zoo.convert.from_batchnorm(net(scheme="bn", num_classes=1), classes=v),
        (None,),
    ),
    "convert source": (lambda made, v: convert(v, made[1].with_name("y.safetensors")), NOT),
    "convert out": (lambda made, v: convert(made[1], v), NOT),
    "describe": (lambda made, v: describe(v), ("5", "a")),
    "list_convertible": (lambda made, v: list_convertible(v), ("5", "a")),
    "push source": (lambda made, v: zoo.push(v, "a/b"), NOT),
    "push repository": (lambda made, v: zoo.push(made[1], v), NOT),
    "push private": (lambda made, v: zoo.push(made[1], "a/b", private=v), NOT),
    "push checkpoint": (lambda made, v: zoo.push(made[1], "a/b", checkpoint=v), NOT),
    "push licence": (lambda made, v: zoo.push(made[1], "a/b", licence=v), NOT),
    "from_fairseq": (lambda made, v: zoo.convert.from_fairseq(v), NOT),
    "from_reference": (lambda made, v: zoo.convert.from_reference(v, NAME), NOT),
    "param_groups model": (lambda made, v: zoo.param_groups(v, 0.1), NOT),
    "param_groups weight_decay": (lambda made, v: zoo.param_groups(made[0], v), NUMBERS),
    "param_groups layer_decay": (lambda made, v: zoo.param_groups(made[0], 0.1, layer_decay=v), NUMBERS),
    "param_groups head_lr": (lambda made, v: zoo.param_groups(made[0], 0.1, head_lr=v), NUMBERS),
    "param_groups multiplier_lr": (lambda made, v: zoo.param_groups(made[0], 0.1, multiplier_lr=v), NUMBERS),
    "coefficients k": (lambda made, v: zoo.coefficients(v, 3), (*INTEGERS, 10**30)),
    "coefficients c": (lambda made, v: zoo.coefficients(1, v), NUMBERS),
    "branch_statistics": (lambda made, v: zoo.branch_statistics(v), NOT),
    "register_model": (lambda made, v: zoo.register_model(v), NOT),
    "register_scheme": (lambda made, v: zoo.register_scheme(v), NOT),
    "register_source": (lambda made, v: zoo.register_source(v), NOT),
    "register_transform": (lambda made, v: zoo.register_transform(v), NOT),
    "size": (with_field(zoo.InputTransform, IMAGE, "size"), INTEGERS),
    "mean": (with_field(zoo.InputTransform, IMAGE, "mean"), NOT),
    "std": (with_field(zoo.InputTransform, IMAGE, "std"), NOT),
    "interpolation": (with_field(zoo.InputTransform, IMAGE, "interpolation"), NOT),
    "channel_order": (with_field(zoo.InputTransform, IMAGE, "channel_order"), NOT),
    "frames": (with_field(zoo.VideoTransform, CLIP, "frames"), INTEGERS),
    "interval": (with_field(zoo.VideoTransform, CLIP, "interval"), (*RATES, None)),
    "fps": (with_field(zoo.VideoTransform, CLIP, "fps"), (*RATES, None)),
    "crop_mode": (with_field(zoo.VideoTransform, CLIP, "crop_mode"), NOT),
    "min_size": (with_field(zoo.DetectionTransform, OBJECTS, "min_size"), INTEGERS),
    "language": (with_field(zoo.TextTransform, LANGUAGES, "source"), ("5", "a")),
    "source_model": (with_field(zoo.TextTransform, LANGUAGES, "source_model"), ("5", "a")),
    "target_model": (with_field(zoo.TextTransform, LANGUAGES, "target_model"), ("5", "a", None)),
    **{
        f"build_model {key}": (
            lambda made, v, key=key: zoo.build_model(zoo.ModelConfig(**{**CONFIG, key: v})),
            {"num_classes": INTEGERS, "in_chans": INTEGERS}.get(key, NOT),
        )
        for key in CONFIG
        if key != "options"
    },
}


def taken(value, values):
    """Whether a value is among those that are taken; tensors and arrays are compared as text, with their types."""
    return any(type(value) is type(other) and str(value) == str(other) for other in values)


@pytest.mark.parametrize("argument", CALLS)
def test_values_are_taken_or_refused_in_one_line(argument, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESCALENET_OFFLINE", "1")
    call, expected = CALLS[argument]
    for value in VALUES:
        if taken(value, expected):
            call(made, value)
        else:
            with pytest.raises(zoo.ZooError) as caught:
                call(made, value)
            assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_numpy_become_pythons_and_can_be_saved(tmp_path):
    model = zoo.create_model(
        NAME,
        num_classes=np.int64(2),
        in_chans=np.int32(3),
        width=np.float32(0.0625),
        branch_drop_rate=np.float64(0.5),
        scheme=np.str_("rescale"),
    )
    assert [type(value) for value in (model.num_classes, model.config.num_classes, model.config.in_chans)] == [int] * 3
    assert model.config.options == {"width": 0.0625, "branch_drop_rate": 0.5}
    assert {type(value) for value in model.config.options.values()} == {float}
    model.reset_classifier(np.int64(3))
    path = tmp_path / "w.safetensors"
    zoo.save_weights(model, path, transform=TRANSFORM, classes=np.array(["a", "b", "c"]).tolist())
    assert zoo.create_model(NAME, path, width=np.float64(0.0625)).config == model.config
    found = detector(fpn_channels=np.int64(8), out_indices=np.array([1, 2]), box_convs=[np.int64(8)])
    assert found.config.options["out_indices"] == [1, 2]


def test_lists_are_taken_for_tuples():
    assert detector(mask_convs=[8, 8]).config.options["mask_convs"] == [8, 8]
    assert zoo.InputTransform(32, 32, [0.5] * 3, np.full(3, 0.5)).std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: net(num_classes=True), r"num_classes=True: must be a whole number from 0 to 1000000"),
        (lambda: net(num_classes="5"), r"num_classes='5': must be a whole number"),
        (lambda: net(in_chans=0), r"in_chans=0: must be a whole number from 1 to 10000"),
        (lambda: zoo.list_models(task="detecton"), r"task='detecton': unknown \(did you mean detection\?\)"),
        (lambda: zoo.calibrate(net(), [[X, torch.zeros(1)]]), "does not take a batch of type list .*; give its inputs"),
        (
            lambda: zoo.convert.inflate(wide(), scheme="bn"),
            "rescale_i3d_r50 with .* has no option 'scheme'",
        ),
        (lambda: zoo.calibrate(net(), X), r"batches is a Tensor: must be a list of batches"),
        (lambda: zoo.create_model(3), r"name of a model=3: must be text, not int"),
        (lambda: net(width=1e20), r"option width=1e\+20: must be below 2\*\*31"),
        (lambda: net(width=3e8), r"no net can be built with options"),
        (lambda: net(drop_rate=math.nan), r"option drop_rate=nan"),
    ],
)
def test_messages_have_the_argument_and_what_is_allowed(call, message):
    with pytest.raises(zoo.ZooError, match=message):
        call()


def test_checks_give_pythons_values():
    for value, expected in ((np.uint8(3), 3), (torch.tensor(3), 3), (True, None)):
        if expected is None:
            with pytest.raises(zoo.ZooError):
                arguments.whole_number(value, "n")
        else:
            assert type(arguments.whole_number(value, "n")) is int
    assert arguments.as_python({"a": (np.int8(1), [np.array([1.5])])}) == {"a": (1, [[1.5]])}

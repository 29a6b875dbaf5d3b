"""Names and options: what is there, and one clear error for what is not."""

import dataclasses

import pytest
import torch

import zoo
from zoo import registry, specs
from zoo.schemes.vision import SCHEMES


def test_list_models_filters():
    assert zoo.list_models("rescalevgg*") == [f"rescalevgg{depth}" for depth in (11, 13, 16, 19)]
    assert zoo.list_models("resnet*") == []
    assert zoo.list_models() == sorted(zoo.list_models())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: zoo.create_model("rescalenet5"), r"unknown model 'rescalenet5' \(did you mean rescalenet50, "),
        (lambda: zoo.create_model("rescalenet50", scheme="batchnorm"), r"unknown scheme 'batchnorm' \(known: rescale"),
        (lambda: zoo.create_model("rescalenet50", scheme="frozen_bn"), "scheme 'frozen_bn' requires weights"),
        (
            lambda: zoo.create_model("rescalenet50", multiplyer=False),
            r"no option 'multiplyer' \(did you mean multiplier",
        ),
        (
            lambda: zoo.create_model("rescalenet50", scheme="bn", c=3),
            r"rescalenet50 with scheme 'bn' has no option 'c'",
        ),
        (lambda: zoo.create_model("rescalevgg16", c=3), "has no option 'c'"),
        (lambda: zoo.create_model("rescalenet50", c=-1), r"option c=-1.0: must be > 0"),
        (lambda: zoo.create_model("rescalenet50", c="many"), r"option c='many': Input should be a valid number"),
        (
            lambda: zoo.create_model("rescalenet50", stem="conv9"),
            r"option stem='conv9': Input should be 'conv7', 'deep' or",
        ),
        (lambda: zoo.create_model("rescalenet50", width=True), "option width=True: Input should be a valid number"),
        (
            lambda: zoo.create_model("rescalenet50", multiplier="no"),
            "option multiplier='no': Input should be a valid b",
        ),
        (lambda: zoo.create_model("rescalenet50", width=object()), "option width=.*is not JSON"),
        (lambda: zoo.create_model("rescalenet50", first_index=2), "option first_index=2"),
        (lambda: zoo.create_model("rescalenet50", projection_gain=0.0), "option projection_gain=0.0"),
        (lambda: zoo.create_model("rescalenet50", drop_rate=1.0), "option drop_rate=1.0"),
        (lambda: zoo.create_model("rescalenet50", width=0), "option width=0"),
        (
            lambda: zoo.create_model("rescalenet18", stride_in_1x1=True),
            "stride_in_1x1=True: requires bottleneck blocks, not basic",
        ),
        (lambda: zoo.create_model("rescalenet18", scheme="gn", gn_groups=0), "option gn_groups=0"),
        (lambda: zoo.create_model("rescalenet18", num_classes=-1), "num_classes=-1"),
        (lambda: zoo.create_model("rescalenet18", in_chans=0), "in_chans=0"),
        (
            lambda: zoo.create_model("rescalenet18", out_indices=(1,)),
            r"out_indices=\(1,\): requires features_only",
        ),
        (
            lambda: zoo.create_model("rescalenet18", features_only=True, out_indices=(5,)),
            r"out_indices=\(5,\): .* 0 to 4",
        ),
        (lambda: zoo.create_model("rescalenet18", features_only=True, out_indices=(2, 1)), "increasing"),
        (lambda: zoo.model_info("vgg16"), r"did you mean rescalevgg16"),
    ],
)
def test_wrong_names_and_options(call, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        call()


def test_registering_twice_or_with_a_dot_is_refused():
    spec = specs.MODELS["rescalenet18"]
    with pytest.raises(ValueError, match="'rescalenet18' is registered already"):
        registry.register_model(spec)
    with pytest.raises(ValueError, match="the dot is for weight tags"):
        registry.register_model(dataclasses.replace(spec, name="a.b"))


def test_a_net_without_a_scheme_refuses_it(monkeypatch):
    spec = dataclasses.replace(specs.MODELS["rescalenet18"], schemes=("bn",))
    monkeypatch.setitem(specs.MODELS, "rescalenet18", spec)
    with pytest.raises(ValueError, match="rescalenet18 does not support scheme 'gn'; it does: bn"):
        zoo.create_model("rescalenet18", scheme="gn")


def test_model_info_tells_schemes_and_options():
    info = zoo.model_info("rescalenet50")
    assert info.schemes == tuple(SCHEMES)
    assert info.options["stem"] == "conv7"
    assert info.scheme_options["rescale"]["first_index"] == 1
    assert "c" not in zoo.model_info("rescalevgg16").scheme_options["rescale"]
    assert (info.num_classes, info.input_size, info.min_size) == (1000, 224, 32)

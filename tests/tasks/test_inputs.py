"""The input of a run that starts from weights."""

import logging

import pytest

import zoo
from tasks.errors import ConfigError
from tasks.inputs import choose

STORED = zoo.InputTransform(224, 232, (0.1,) * 3, (0.3,) * 3, "bicubic", "BGR")


def test_what_is_not_given_is_the_weights():
    assert choose(STORED, {}, weights="w") == STORED
    chosen = choose(STORED, {"mean": (0.1,) * 3, "size": 112, "resize": 128}, weights="w")
    assert chosen == zoo.InputTransform(112, 128, (0.1,) * 3, (0.3,) * 3, "bicubic", "BGR")


def test_a_size_alone_keeps_the_ratio_of_the_weights(caplog):
    with caplog.at_level(logging.INFO, logger="rescalenet"):
        chosen = choose(STORED, {"size": 112}, weights="w")
    assert (chosen.size, chosen.resize) == (112, 116)
    assert caplog.messages == ["data.size=112: the weights w have 224"]
    assert choose(zoo.InputTransform.imagenet(), {"size": 112}).resize == 256  # without weights: as it always was


@pytest.mark.parametrize("key", ["mean", "std"])
def test_another_scale_than_the_weights_is_refused(key):
    stored = getattr(STORED, key)[0]
    with pytest.raises(
        ConfigError, match=rf"data.{key}=\[0.5, 0.5, 0.5\]: weights w were trained with \[{stored}, .*out"
    ):
        choose(STORED, {key: (0.5,) * 3}, weights="w")
    assert getattr(choose(STORED, {key: (0.5,) * 3}), key) == (0.5,) * 3


def test_sizes_that_do_not_fit():
    with pytest.raises(ConfigError, match=r"data.size=240: must be <= data.resize=232"):
        choose(STORED, {"size": 240, "resize": 232}, weights="w")
    with pytest.raises(ConfigError, match=r"data.size=300: must be <= data.resize=256"):
        choose(zoo.InputTransform.imagenet(), {"size": 300})
    assert choose(STORED, {"size": 448}, weights="w").resize == 464

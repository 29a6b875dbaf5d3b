"""The input of a run that starts from weights."""

import logging

import pytest
import torch

import zoo
from tasks.errors import ConfigError
from tasks.inputs import _statistics, choose, standardise

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 2, 4, 5)])
def test_standardisation_of_images_and_clips(shape, dtype):
    transform = zoo.InputTransform(8, 8, (0.1, 0.2, 0.3), (0.5, 0.25, 0.2))
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    x = standardise(pixels, transform, dtype)
    assert (x.dtype, x.shape) == (dtype, pixels.shape)
    for channel, (mean, std) in enumerate(zip(transform.mean, transform.std, strict=True)):
        right = (pixels[:, channel].double() / 255 - mean) / std
        rounding = 1e-6 if dtype == torch.float32 else 1e-14
        torch.testing.assert_close(x[:, channel].double(), right, rtol=0, atol=rounding)


def test_no_step_copies_the_statistics_to_the_device_again():
    """One made in evaluation serves training, too."""
    transform = zoo.InputTransform(8, 8, (0.11,) * 3, (0.5,) * 3)
    with torch.inference_mode():
        standardise(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), transform, torch.float32)
    arguments = transform.mean, transform.std, torch.float32, torch.device("cpu")
    first, again = _statistics(*arguments), _statistics(*arguments)
    assert all(a is b for a, b in zip(first, again, strict=True))
    assert not any(tensor.is_inference() for tensor in first)

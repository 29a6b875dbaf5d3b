"""Narrow nets and random inputs for them."""

from collections.abc import Iterable

import torch

import zoo

# One narrow net for each family and block; everything is checked on these, counts and shapes on all nets.
IMAGES = {
    "basic": ("rescalenet18", {"width": 0.125}),
    "bottleneck": ("rescalenet50", {"width": 0.125}),
    "grouped": ("rescalenext50_32x4d", {"width": 0.25}),
    "cifar": ("rescalenet20_cifar", {"width": 0.5}),
    "vgg": ("rescalevgg16", {"width": 0.0625, "drop_rate": 0.0}),
}
CLIPS = {
    "r3d": ("rescale_r3d_18", {"width": 0.125}),
    "r2plus1d": ("rescale_r2plus1d_18", {"width": 0.125}),
    "i3d": ("rescale_i3d_r50", {"width": 0.125}),
    "replicate": ("rescale_r3d_10", {"width": 0.25, "temporal_padding": "replicate"}),
}
NARROW = {**IMAGES, **CLIPS}
VISION = zoo.list_models(input_kind="images") + zoo.list_models(input_kind="clips")  # nets of text: test_transformer.py

# Schemes whose code differs in layers and joins only: checked on images, clips and a net without branches.
BASELINES = ("fixup", "skipinit", "nf", "sum_rescaled")
BASELINE_KINDS = ("bottleneck", "replicate", "vgg")


def pairs(kind: str, schemes: Iterable[str]) -> list[tuple[str, str]]:
    """A kind with each of the schemes that are checked on it."""
    return [(kind, scheme) for scheme in schemes if scheme not in BASELINES or kind in BASELINE_KINDS]


def wake_(model: torch.nn.Module) -> None:
    """Give values to the weights and multipliers that are 0 at init, so that every layer has an effect."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.any() and (parameter.ndim > 1 or name.endswith("multiplier")):
                parameter.normal_(0, 0.1)


def narrow(kind: str, **extra: object):
    """A fresh narrow net with 5 classes."""
    name, options = NARROW[kind]
    return zoo.create_model(name, num_classes=5, **{**options, **extra})


def samples(kind: str, count: int, height: int, width: int | None = None, *, chans: int = 3, **settings):
    """Random input for a narrow net: images, or clips of 5 frames."""
    frames = (5,) if kind in CLIPS else ()
    return torch.randn(count, chans, *frames, height, width or height, **settings)


def natural_images(count: int, size: int) -> torch.Tensor:
    """Images with a 1/f amplitude spectrum, as photographs have, each channel with mean 0 and variance 1."""
    frequency = torch.fft.fftfreq(size)
    amplitude = 1 / (frequency[:, None] ** 2 + frequency**2).sqrt().clamp(min=1 / size)
    x = torch.fft.ifft2(torch.fft.fft2(torch.randn(count, 3, size, size)) * amplitude).real
    return (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True)

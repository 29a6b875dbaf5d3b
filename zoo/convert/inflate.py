"""Inflation of image nets to video nets (Carreira and Zisserman 2017, arXiv:1705.07750, section 2.3)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from zoo.arguments import instance_of, shown
from zoo.errors import ZooError
from zoo.nets.base import Backbone, ModelConfig
from zoo.registry import build_model, model_info
from zoo.specs import MODELS
from zoo.states import load_state

Kernel = Literal["centre", "mean"]


def inflate(model: Backbone, name: str | None = None, *, kernel: Kernel = "centre", **options: Any) -> Backbone:
    """Return a video net that starts as the image net: same scheme, classes, biases, multipliers and statistics.

    On a clip of equal frames, ``centre`` gives the image net's logits, and so does ``mean`` with
    ``temporal_padding="replicate"``. With zeros before the first and after the last frame ``mean`` does not, because
    the kernel's sum near the ends lacks frames (docs/video.md has numbers).

    Args:
        model: bottleneck ResNet with the usual stem.
        name: name of the video net; None for the I3D of the same depth.
        kernel: distribution of the 2D kernel over the frames: ``centre`` puts it at the middle frame and zeros at the
            others, ``mean`` divides it evenly.
        options: options of the video net; it keeps those of the image net that it has (scheme, width, shortcut,
            dropout).

    Raises:
        ZooError: an image net that has no inflated counterpart, or a ``name`` that is not its counterpart.
    """
    # check the pair of nets
    config = instance_of(model, "inflate", Backbone).config
    if model.dims != 2:
        raise ZooError(f"inflate: {config.name} takes clips already")
    if not isinstance(kernel, str) or kernel not in ("centre", "mean"):
        raise ZooError(f"kernel={shown(kernel)}: must be 'centre' or 'mean'")
    if name is None:
        name = config.name.replace("rescalenet", "rescale_i3d_r")
        if name not in MODELS:
            raise ZooError(f"inflate: {config.name} has no I3D of the same depth; give the name of a video net")
    info = model_info(name)
    if info.input_kind != "clips":
        raise ZooError(f"inflate: {name} takes {info.input_kind}; give the name of a video net")
    known = {**info.options, **info.scheme_options[config.scheme]}
    left_out = sorted(set(config.options) - set(known))
    if left_out:
        named = ", ".join(f"{key}={config.options[key]!r}" for key in left_out)
        raise ZooError(f"inflate: {name} does not have the options {named} of this {config.name}; choose another net")
    # the video net, in the image net's place and type; frozen statistics become trained ones again
    scheme = "bn" if config.scheme == "frozen_bn" else config.scheme
    merged = {**config.options, **options}
    clips = build_model(ModelConfig(name, scheme, config.num_classes, config.in_chans, merged))
    assert isinstance(clips, Backbone)
    like = next(model.parameters())
    clips.to(like.device, like.dtype)
    own, state = clips.state_dict(), dict(model.state_dict())
    if config.scheme == "frozen_bn":
        state |= {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
    # kernels (O, I, h, w) become (O, I, frames, h, w); everything else is copied
    for key, value in own.items():
        if key in state and value.ndim == 5:
            state[key] = _inflated(state[key], value.shape[2], kernel)
    load_state(clips, state, f"{config.name} inflated to {name}")
    return clips


def _inflated(weight: Tensor, frames: int, kernel: Kernel) -> Tensor:
    """Return the 3D kernel (O, I, frames, h, w) of a 2D kernel (O, I, h, w)."""
    if kernel == "mean":
        return (weight / frames).unsqueeze(2).expand(-1, -1, frames, -1, -1).contiguous()
    out = torch.zeros(*weight.shape[:2], frames, *weight.shape[2:], dtype=weight.dtype, device=weight.device)
    out[:, :, frames // 2] = weight
    return out

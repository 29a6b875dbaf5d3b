"""Weights of image nets become video nets (Carreira and Zisserman 2017, arXiv:1705.07750, section 2.3)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.nets.base import Backbone
from zoo.registry import create_model, list_models, model_info
from zoo.states import load_state

Kernel = Literal["centre", "mean"]


def inflate(model: Backbone, name: str | None = None, *, kernel: Kernel = "centre", **options: Any) -> Backbone:
    """A video net that starts as the image net, with its scheme, classes, biases, multipliers and statistics.

    On a clip of equal frames, ``centre`` gives the image net's logits, and so does ``mean`` with
    ``temporal_padding="replicate"``. With zeros before the first and after the last frame ``mean`` does not: the frames
    near the ends see less (docs/video.md has figures).

    Args:
        model: a bottleneck ResNet with the usual stem.
        name: of the video net; default: the I3D of the same depth.
        kernel: a kernel's weights at each frame: ``centre`` puts the 2D kernel at the middle frame and zeros at the
            others, ``mean`` divides it evenly.
        options: of the video net; those of the image net's that it has (scheme, width, shortcut, dropout) are kept.

    Raises:
        ZooError: an image net that no video net is an inflation of, or that ``name`` is not.
    """
    config = model.config
    if model.dims != 2:
        raise ZooError(f"inflate: {config.name} takes clips already")
    if kernel not in ("centre", "mean"):
        raise ZooError(f"kernel={kernel!r}: 'centre' or 'mean' expected")
    if name is None:
        name = config.name.replace("rescalenet", "rescale_i3d_r")
        if name not in list_models():
            raise ZooError(f"inflate: there is no I3D of {config.name}; give the name of a video net")
    info = model_info(name)
    if info.input_kind != "clips":
        raise ZooError(f"inflate: {name} takes {info.input_kind}; give the name of a video net")
    known = {**info.options, **info.scheme_options[config.scheme]}
    left_out = sorted(set(config.options) - set(known))
    if left_out:
        there = ", ".join(f"{key}={config.options[key]!r}" for key in left_out)
        raise ZooError(f"inflate: {name} has nothing like {there} of this {config.name}")
    clips = create_model(
        name,
        scheme="bn" if config.scheme == "frozen_bn" else config.scheme,
        num_classes=config.num_classes,
        in_chans=config.in_chans,
        **{**config.options, **options},
    )
    like = next(model.parameters())
    clips.to(like.device, like.dtype)
    own, state = clips.state_dict(), dict(model.state_dict())
    if config.scheme == "frozen_bn":
        state |= {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
    for key, value in own.items():
        if key in state and value.ndim == 5:
            state[key] = _inflated(state[key], value.shape[2], kernel)
    load_state(clips, state, f"{config.name} inflated to {name}")
    return clips


def _inflated(weight: Tensor, frames: int, kernel: Kernel) -> Tensor:
    """(O, I, h, w) -> (O, I, frames, h, w)."""
    if kernel == "mean":
        return (weight / frames).unsqueeze(2).expand(-1, -1, frames, -1, -1).contiguous()
    out = torch.zeros(*weight.shape[:2], frames, *weight.shape[2:], dtype=weight.dtype, device=weight.device)
    out[:, :, frames // 2] = weight
    return out

"""Checkpoints that detectron2 writes of a model with a backbone of the zoo: what they state of it, and the way back.

A state dict has tensors alone. Where a net has its strides, and what the value of a pixel is worth, show in no tensor
of it. ``zoo.export.detectron2`` therefore stores the net's config and its input in one more tensor, the description,
which detectron2 saves and loads with the others.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.building import WithoutInit, planned
from zoo.convert.batchnorm import Conversion, checked_classes, checked_state
from zoo.convert.checkpoints import read_checkpoint
from zoo.errors import WeightsError, ZooError
from zoo.families import ReadsDetectron2, find_family
from zoo.headers import Header, read_header, write_header
from zoo.nets.base import Backbone, FeatureExtractor, ModelConfig
from zoo.registry import build_model
from zoo.states import load_state
from zoo.transforms import DetectionTransform, InputTransform

log = logging.getLogger("rescalenet")

LAYOUT = "detectron2 with a backbone of the zoo"
KEY = "zoo_description"  # name of the description in the backbone's state
LENGTH = 4096  # values of a description: detectron2 loads tensors of equal shapes only
BODY = "body.body."  # prefix of the net's own keys in the backbone's state

AnyInput = InputTransform | DetectionTransform


def feature_names(net: Backbone) -> list[str]:
    """Return detectron2's names of a net's feature levels, finest first: ``layer1`` of a ResNet is its ``res2``."""
    names = [level.module for level in net.levels]
    return [f"res{int(name[5:]) + 1}" if name.startswith("layer") else name for name in names]


def pixel_settings(transform: AnyInput, format: str) -> dict[str, list[float]]:
    """Return PIXEL_MEAN and PIXEL_STD of weights, on the 0..255 scale and in the order of ``format``."""
    step = 1 if format == transform.channel_order else -1
    return {
        "PIXEL_MEAN": [round(255 * value, 4) for value in transform.mean[::step]],
        "PIXEL_STD": [round(255 * value, 4) for value in transform.std[::step]],
    }


def write_description(config: ModelConfig, transform: AnyInput) -> Tensor:
    """Return the description of a net and its input, (LENGTH,) float32.

    The values are the codes of the characters of a weights file's header. They are floats, so that a moving average of
    the state leaves them as they are.

    Args:
        config: config of the net; its number of classes becomes 0.
        transform: input that its weights expect.

    Raises:
        ZooError: options that take more than LENGTH characters.
    """
    header = Header(dataclasses.replace(config, num_classes=0), transform, (), {})
    text = write_header(header, Path(config.name))
    if len(text) > LENGTH:
        raise ZooError(
            f"{config.name}: its options take {len(text)} characters in detectron2; must be {LENGTH} at most"
        )
    return torch.tensor(list(text.ljust(LENGTH).encode("ascii")), dtype=torch.float32)


def read_description(codes: Tensor, source: str) -> Header:
    """Return the config and the input in a description.

    Args:
        codes: description.
        source: name of the checkpoint, for messages.

    Raises:
        WeightsError: a tensor that is no description.
    """
    codes = codes.detach().float().cpu()
    if codes.ndim != 1 or len(codes) > LENGTH or not bool(((codes >= 0) & (codes < 127.5)).all()):
        raise WeightsError(f"{source}: {KEY} is no text; the checkpoint is damaged")
    text = bytes(codes.round().int().tolist()).decode("ascii").rstrip()
    header = read_header(text, Path(source))
    if not isinstance(header.transform, AnyInput):
        raise WeightsError(f"{source}: {KEY} describes an input of kind {header.transform.kind!r}; must be of images")
    return header


def described_in(path: str | Path) -> Header | None:
    """Return the description in a checkpoint of detectron2; None for a file without one, or none of this machine."""
    file = Path(path)
    if file.suffix not in (".pth", ".pt") or not file.is_file():
        return None
    try:
        state = read_checkpoint(file)  # its tensors are mapped, not read
    except WeightsError:  # detectron2 reads files that are not read here, and names those that it cannot read
        return None
    return next((read_description(state[key], str(file)) for key in state if key.rpartition(".")[2] == KEY), None)


class OwnCheckpoint(NamedTuple):
    """A checkpoint with a backbone of the zoo, in its parts.

    Attributes:
        description: the net's config and its input.
        body: tensors of the net by its own keys.
        rest: tensors of pyramid and heads, by detectron2's keys.
    """

    description: Header
    body: dict[str, Tensor]
    rest: dict[str, Tensor]


def is_own(keys: Any) -> bool:
    """Return whether keys are of a checkpoint of detectron2 with a backbone of the zoo."""
    return any(key.rpartition(".")[2] == KEY for key in keys)


def split_own(state: Mapping[str, Tensor], source: str) -> OwnCheckpoint:
    """Return the parts of a checkpoint with a backbone of the zoo.

    Args:
        state: state dict of detectron2's model, or of the backbone alone.
        source: name of the checkpoint, for messages.

    Raises:
        WeightsError: no such backbone, or several.
    """
    found = [key for key in state if key.rpartition(".")[2] == KEY]
    if len(found) != 1:
        raise WeightsError(
            f"{source}: {len(found)} backbones of the zoo; must be one, as zoo.export.detectron2 stores it since 0.2"
        )
    prefix = found[0].removesuffix(KEY)
    inside = f"{prefix}{BODY}"
    return OwnCheckpoint(
        read_description(state[found[0]], source),
        {key.removeprefix(inside): value for key, value in state.items() if key.startswith(inside)},
        {key: value for key, value in state.items() if not key.startswith(prefix) or _is_pyramid(key, prefix)},
    )


def _is_pyramid(key: str, prefix: str) -> bool:
    """Return whether a key is of the pyramid: of a backbone without one, the prefix is the same but for the body."""
    return bool(re.match(r"fpn_|top_block\.", key.removeprefix(prefix)))


def read_body(own: OwnCheckpoint, source: str) -> Backbone:
    """Return the whole net of a backbone, in eval mode. detectron2 has no head, so that it is fresh.

    Args:
        own: checkpoint in its parts.
        source: name of the checkpoint, for messages.

    Raises:
        WeightsError: tensors that are missing, left over or of other shapes.
    """
    config = own.description.config
    skeleton = planned(lambda: build_model(config), source)
    if not isinstance(skeleton, Backbone):
        raise WeightsError(f"{source}: {KEY} names {config.name}, which takes no images")
    every, levels = skeleton.state_dict().keys(), skeleton.levels
    last = [level.module for level in levels if any(key.startswith(f"{level.module}.") for key in own.body)]
    if last and last[-1] != levels[-1].module and any(key.startswith(f"{levels[-1].module}.") for key in every):
        raise WeightsError(
            f"{source}: has {config.name} up to {last[-1]} alone; the whole net requires the last level in "
            "MODEL.ZOO.OUT_FEATURES"
        )
    head = tuple(sorted(every - {key[len("body.") :] for key in FeatureExtractor(skeleton, None).state_dict()}))
    with WithoutInit() if all(key.endswith("bias") for key in head) else torch.no_grad():
        net = build_model(config)
    assert isinstance(net, Backbone)
    net.to(next(value for value in own.body.values() if value.is_floating_point()).dtype)
    load_state(net, own.body, source, fresh=head)
    log.info("%s: %s without its head (%s), which detectron2 does not have", source, config.name, ", ".join(head))
    return net.eval()


def convert_detectron2(
    state: Mapping[str, Tensor], name: str | None = None, *, source: str = LAYOUT, classes: Any = None, **options: Any
) -> Conversion:
    """Return what ``from_detectron2`` makes, with its input and classes.

    Args:
        state: state dict of detectron2's model.
        name: see ``from_detectron2``.
        source: name of the checkpoint, for messages.
        classes: class names of a detector in order of its labels; None for numbers, or COCO's where there are 80.
        options: see ``from_detectron2``.

    Raises:
        ZooError: see ``from_detectron2``.
    """
    own = split_own(checked_state(state), source)
    net = read_body(own, source)
    config, transform = net.config, own.description.transform
    assert isinstance(transform, AnyInput)
    # the whole detector
    if name is not None and (family := find_family(name)) is not None:
        if not isinstance(family, ReadsDetectron2):
            raise WeightsError(f"{source}: {name} cannot be read from detectron2; leave the name out")
        settings = options if classes is None else {**options, "classes": classes}
        return family.from_detectron2(own.rest, name, net=net, transform=transform, source=source, **settings)
    # the backbone alone
    if name not in (None, config.name):
        raise WeightsError(f"{source}: its backbone is {config.name}, not {name}; leave the name out")
    if options:
        raise WeightsError(
            f"{source}: its description has every option of the backbone; leave {next(iter(options))} out"
        )
    if own.rest:
        log.info("%s: %d tensors are not of the backbone and were left out", source, len(own.rest))
    if isinstance(transform, DetectionTransform):
        transform = InputTransform(224, 256, transform.mean, transform.std, channel_order=transform.channel_order)
    return Conversion(net, LAYOUT, None, None, transform, checked_classes(classes, 0))


def from_detectron2(checkpoint: str | Path | Mapping[str, Tensor], name: str | None = None, **options: Any) -> Any:
    """Return the net, or the detector, that detectron2 trained with a backbone of the zoo.

    Nothing in the file is executed.

    Args:
        checkpoint: path of a checkpoint that detectron2 wrote, such as ``model_final.pth``, or its state dict.
        name: ``mask_rcnn_BACKBONE_fpn`` or ``faster_rcnn_BACKBONE_fpn`` for the whole detector; None, or the backbone's
            own name, for the backbone, whose head is fresh.
        options: options of a detector: ``classes``, ``min_size``, ``max_size`` and fields that its tensors do not show,
            such as ``anchor_scale``.

    Returns:
        The net in eval mode, with the features that it has in detectron2, or a detector with the same detections.

    Raises:
        ZooError: an unknown name or option.
        zoo.WeightsError: another kind of file, or a detector that none of the zoo equals, with the reason.
    """
    if isinstance(checkpoint, Mapping):
        return convert_detectron2(checkpoint, name, **options).model
    return convert_detectron2(read_checkpoint(checkpoint), name, source=str(checkpoint), **options).model

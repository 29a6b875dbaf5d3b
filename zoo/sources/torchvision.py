"""Weights of torchvision: ``torchvision:BUILDER:TAG``, or ``torchvision:TAG`` for a given net.

torchvision fetches them into torch.hub's folder (``TORCH_HOME``). It checks the hash in a file's name when it downloads
it, not when it finds it there; here it is checked both times.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch.hub
from torchvision.models import WeightsEnum, get_model_weights

from zoo.errors import WeightsError, one_line, suggestion
from zoo.files import sha256_of
from zoo.sources.cache import offline
from zoo.sources.conversion import Original, open_converted
from zoo.sources.tables import DEFAULT_EPS, TORCHVISION, TORCHVISION_EPS, net_of, split_name
from zoo.transforms import IMAGENET_MEAN, IMAGENET_STD, AnyTransform, DetectionTransform, InputTransform, VideoTransform
from zoo.weights import Weights

PREFIX = "torchvision:"


def open_weights(name: str, model: str | None) -> Weights:
    """Return the entry of weights of torchvision; see ``zoo.weights.Source``."""
    builder, tag = resolve(name, model)
    full = f"{PREFIX}{builder}:{tag}"
    return open_converted(full, net_of(TORCHVISION, builder), lambda: fetch(full))


def resolve(name: str, model: str | None) -> tuple[str, str]:
    """Return torchvision's builder and the tag of its weights.

    Args:
        name: ``torchvision:TAG`` or ``torchvision:BUILDER:TAG``.
        model: name of our net; None for any.

    Raises:
        WeightsError: a name of another form, an unknown builder or tag, or weights of another net.
    """
    parts = name.removeprefix(PREFIX).split(":")
    if len(parts) > 2 or not all(parts):
        raise WeightsError(f"{name!r}: must be torchvision:TAG or torchvision:BUILDER:TAG")
    builder, tag = split_name(name, parts, model, TORCHVISION)
    return builder, member(name, builder, tag).name  # DEFAULT is another name of one of them


def member(name: str, builder: str, tag: str) -> WeightsEnum:
    """Return torchvision's entry of weights.

    Args:
        name: name that was asked for, for messages.
        builder: torchvision's builder.
        tag: tag of its weights.

    Raises:
        WeightsError: unknown tag, or weights without a classifier.
    """
    known = get_model_weights(builder)
    if tag not in known.__members__:
        raise WeightsError(
            f"{name!r}: torchvision has no weights {tag!r} of {builder}{suggestion(tag, known.__members__)}"
        )
    found = known[tag]
    if not found.meta.get("categories"):  # VGG16's IMAGENET1K_FEATURES: NaN in the classifier
        raise WeightsError(f"{name!r}: torchvision's {tag} has no valid classifier; take {_usual_tag(builder)}")
    return found


def _usual_tag(builder: str) -> str:
    """Return the tag that torchvision takes by default."""
    default: Any = getattr(get_model_weights(builder), "DEFAULT")  # noqa: B009  (an alias that type checkers do not see)
    return str(default.name)


def describe(name: str, model: str | None = None) -> dict[str, Any]:
    """Return what torchvision's metadata states about weights, which need not be on this machine."""
    builder, tag = resolve(name, model)
    entry = member(name, builder, tag)
    return {
        "weights": f"{PREFIX}{builder}:{tag}",
        "model": net_of(TORCHVISION, builder),
        "transform": input_transform(entry),
        "classes": tuple(entry.meta["categories"]),
        "meta": _stated(entry),
    }


def tags() -> list[tuple[str, str, str]]:
    """Return our net, builder and tag of all weights in the table."""
    return [
        (ours, builder, entry.name)
        for ours, row in TORCHVISION.items()
        for builder in row
        for entry in get_model_weights(builder)
        if entry.meta.get("categories")
    ]


def fetch(name: str) -> Original:
    """Fetch weights through torchvision.

    Args:
        name: ``torchvision:BUILDER:TAG``.

    Raises:
        WeightsError: no network, a download that failed, or a file with another hash than its name states.
    """
    builder, tag = resolve(name, None)
    entry = member(name, builder, tag)
    path = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(urlparse(entry.url).path)
    # a file that is here already is checked before it is read
    if path.is_file():
        _check_hash(name, path)
    elif setting := offline():
        raise WeightsError(f"{name}: {path} is missing and {setting} forbids the download; unset it or copy the file")
    # torchvision prints to standard output, which belongs to the commands
    try:
        with contextlib.redirect_stdout(sys.stderr):
            state = entry.get_state_dict(progress=True, check_hash=True, weights_only=True, map_location="cpu")
    except Exception as error:  # urllib, http, pickle and torch have no common class of errors
        raise WeightsError(f"{name}: {entry.url} could not be fetched or read ({one_line(error)}); try again") from None
    return Original(
        state=state,
        sha256=_check_hash(name, path),
        model=net_of(TORCHVISION, builder),
        transform=input_transform(entry),
        classes=tuple(entry.meta["categories"]),
        eps=TORCHVISION_EPS.get((builder, tag), DEFAULT_EPS),
        meta=_stated(entry),
    )


def _check_hash(name: str, path: Path) -> str:
    """Return a file's sha256, after a check that it begins as the file's name states.

    Raises:
        WeightsError: it does not. The folder is shared with other programs, so nothing in it is removed here.
    """
    digest = sha256_of(path)
    stated = torch.hub.HASH_REGEX.search(path.name)
    if stated is not None and not digest.startswith(stated[1]):
        raise WeightsError(
            f"{name}: sha256 of {path} begins with {digest[:8]}, not as its name states; delete the file"
        )
    return digest


def input_transform(entry: WeightsEnum) -> AnyTransform:
    """Return the input transform of torchvision's metadata as one of ours.

    Detectors of torchvision resize and standardise by themselves, with the sizes and ImageNet's mean and std that are
    their builders' defaults. Video nets resize to 128 x 171 px, which is the short side 128 px for videos of 4:3; their
    metadata states clips of 16 frames at 15 frames a second in its text only.

    Raises:
        WeightsError: a kind of transform that is not known.
    """
    preset = entry.transforms()
    kind = type(preset).__name__  # the classes are not public
    if kind == "ImageClassification":
        (size,), (resize,) = preset.crop_size, preset.resize_size
        return InputTransform(size, resize, tuple(preset.mean), tuple(preset.std), preset.interpolation.value)
    if kind == "VideoClassification":
        size, resize = preset.crop_size[0], preset.resize_size[0]
        return VideoTransform(16, 1, 15, size, resize, tuple(preset.mean), tuple(preset.std))
    if kind == "ObjectDetection":
        return DetectionTransform(800, 1333, IMAGENET_MEAN, IMAGENET_STD)
    raise WeightsError(f"{entry}: input transform {kind} is not known")


def _stated(entry: WeightsEnum) -> dict[str, Any]:
    """Return licence, metrics and addresses from torchvision's metadata."""
    meta: dict[str, Any] = {"url": entry.url, "licence": entry.meta.get("license", "unknown")}
    for data, metrics in entry.meta.get("_metrics", {}).items():
        meta |= {"data": data, "metrics": dict(metrics), "protocol": "as torchvision states; not measured here"}
    if "recipe" in entry.meta:
        meta["recipe"] = entry.meta["recipe"]
    return meta

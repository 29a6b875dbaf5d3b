"""Weights of timm: ``timm:ARCHITECTURE.TAG``, or ``timm:TAG`` for a given net.

They are repositories ``timm/ARCHITECTURE.TAG`` on a hub, whose ``config.json`` has what timm knows of them. They are
read from there, so timm need not be installed; only the list of its names comes from the package itself.
"""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any, cast

import yaml
from huggingface_hub import metadata_load
from safetensors import SafetensorError
from safetensors.torch import load_file
from torchvision.models import ResNet50_Weights

from zoo.errors import WeightsError, ZooError, one_line
from zoo.files import sha256_of
from zoo.jsontext import read_json
from zoo.sources.conversion import Original, open_converted
from zoo.sources.hub import CARD, CONFIG, LONGEST_CONFIG, WEIGHTS, download, download_checked
from zoo.sources.tables import DEFAULT_EPS, TIMM, net_of, split_name
from zoo.transforms import InputTransform
from zoo.weights import Weights

log = logging.getLogger("rescalenet")

PREFIX = "timm:"
_TAG = re.compile(r"[A-Za-z0-9_]+")


def open_weights(name: str, model: str | None) -> Weights:
    """Return the entry of weights of timm; see ``zoo.weights.Source``."""
    architecture, tag = resolve(name, model)
    full = f"{PREFIX}{architecture}.{tag}"
    return open_converted(full, net_of(TIMM, architecture), lambda: fetch(full))


def resolve(name: str, model: str | None) -> tuple[str, str]:
    """Return timm's architecture and the tag of its weights.

    Args:
        name: ``timm:TAG`` or ``timm:ARCHITECTURE.TAG``.
        model: name of our net; None for any.

    Raises:
        WeightsError: a name of another form, or an architecture or a net that the table lacks.
    """
    architecture, dot, tag = name.removeprefix(PREFIX).rpartition(".")
    parts = [architecture, tag] if dot else [tag]
    architecture, tag = split_name(name, parts, model, TIMM)
    if not _TAG.fullmatch(tag):
        raise WeightsError(f"{name!r}: must be timm:TAG or timm:ARCHITECTURE.TAG")
    return architecture, tag


def tags() -> list[tuple[str, str, str]]:
    """Return our net, architecture and tag of all weights in the table, from the installed timm.

    Raises:
        ZooError: timm is not installed.
    """
    try:
        import timm
    except ImportError:
        raise ZooError("timm's names are known to timm only: pip install 'rescalenet-zoo[timm]'") from None
    return [
        (ours, architecture, name.removeprefix(f"{architecture}."))
        for ours, row in TIMM.items()
        for architecture in row
        for name in timm.list_pretrained(f"{architecture}.*")
    ]


def describe(name: str, model: str | None = None) -> dict[str, Any]:
    """Return what timm's metadata states about weights; a small file is fetched for it."""
    architecture, tag = resolve(name, model)
    full = f"{PREFIX}{architecture}.{tag}"
    config = _read_config(full, download(full, f"timm/{architecture}.{tag}", CONFIG, None))
    return {
        "weights": full,
        "model": net_of(TIMM, architecture),
        "transform": input_transform(full, config),
        "classes": _classes(config, tag) or (),
        "meta": _stated(full, f"timm/{architecture}.{tag}", config, None),
    }


def fetch(name: str) -> Original:
    """Fetch weights of timm from the hub.

    Args:
        name: ``timm:ARCHITECTURE.TAG``.

    Raises:
        WeightsError: no network, a download that failed, or a repository that is not one of timm.
    """
    architecture, tag = resolve(name, None)
    repository = f"timm/{architecture}.{tag}"
    config_path = download(name, repository, CONFIG, None)
    config = _read_config(name, config_path)
    transform, classes = input_transform(name, config), _classes(config, tag)
    revision = config_path.parent.name  # the commit, so that all files are of the same one
    path = download_checked(name, repository, WEIGHTS, revision, None)
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{name}: {path} is not a complete safetensors file ({one_line(error)})") from None
    return Original(
        state=state,
        sha256=sha256_of(path),
        model=net_of(TIMM, architecture),
        transform=transform,
        classes=classes,
        eps=DEFAULT_EPS,
        meta=_stated(name, repository, config, revision),
    )


def _read_config(name: str, path: Path) -> dict[str, Any]:
    """Return the entries of timm's ``config.json``, those about the weights beside the others.

    Raises:
        WeightsError: a file of another form.
    """
    try:
        content = read_json(path, longest=LONGEST_CONFIG)
        return {**content.pop("pretrained_cfg", {}), **content}
    except (ZooError, TypeError, AttributeError) as error:
        raise WeightsError(f"{name}: {CONFIG} is not of timm ({one_line(error)})") from None


def input_transform(name: str, config: dict[str, Any]) -> InputTransform:
    """Return the input transform of timm's metadata, at the input size, not at the larger test size of some weights.

    timm resizes the short side to ``floor(size / crop_pct)`` and crops the centre.

    Raises:
        WeightsError: metadata without these entries, or with another way to crop.
    """
    try:
        size, crop = int(config["input_size"][1]), float(config["crop_pct"])
        mean, std = (tuple(float(x) for x in config[key]) for key in ("mean", "std"))
        interpolation = cast(Any, config["interpolation"])  # InputTransform checks it
        if config.get("crop_mode", "center") != "center":
            raise ValueError(f"crop_mode={config['crop_mode']!r}")
        return InputTransform(size, math.floor(size / crop), mean, std, interpolation)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise WeightsError(f"{name}: {CONFIG} has no valid input transform ({error!r})") from None


def _licence(value: Any) -> str | None:
    """Return a licence as metadata states it, one name or several; None for anything else.

    YAML can state a value of a few hundred bytes whose text would fill the memory.
    """
    names = value if isinstance(value, list) else [value]
    return ", ".join(names) or None if all(isinstance(name, str) for name in names) else None


def _licence_of_card(name: str, card: Path) -> str | None:
    """Return the licence in the front matter of a card; None if there is none, or none that can be read."""
    try:
        return _licence((metadata_load(card) or {}).get("license"))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        log.warning("%s: the front matter of its card cannot be read (%s)", name, one_line(error))
        return None


def _classes(config: dict[str, Any], tag: str) -> tuple[str, ...] | None:
    """Return the class names: those in the metadata, or ImageNet's, whose order is the same in torchvision.

    Raises:
        WeightsError: metadata whose class names are no list.
    """
    if labels := config.get("label_names"):
        if not isinstance(labels, list):
            raise WeightsError(f"{CONFIG} has label_names of type {type(labels).__name__}: must be a list of names")
        return tuple(map(str, labels))
    if config.get("num_classes") == 1000 and tag.endswith("in1k"):
        return tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
    return None


def _stated(name: str, repository: str, config: dict[str, Any], revision: str | None) -> dict[str, Any]:
    """Return licence and addresses from timm's metadata; the licence may be in the card only."""
    licence = _licence(config.get("license")) or _licence_of_card(name, download(name, repository, CARD, revision))
    meta: dict[str, Any] = {"url": f"https://huggingface.co/{repository}", "licence": licence or "unknown"}
    if revision is not None:
        meta["revision"] = revision
    for key in ("origin_url", "paper_ids"):
        if key in config:
            meta[key] = config[key]
    return meta

"""What can be done with sources of weights besides loading: describing them, listing them, converting into a file."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zoo.arguments import file_path, text
from zoo.convert.rescaled import Form
from zoo.errors import WeightsError, ZooError
from zoo.files import sha256_of
from zoo.registry import create_model, list_models
from zoo.saving import check_ending
from zoo.sources import https, local, timm, torchvision
from zoo.sources.conversion import FORM, Original, convert_original, log_licence
from zoo.weights import ENDINGS, Weights, get_weights, is_weights_name, weights_name

log = logging.getLogger("rescalenet")

STATED = (torchvision, timm)  # sources whose owner states what the weights are, apart from the weights


class Convertible(NamedTuple):
    """Weights of another project that ``create_model`` loads by name.

    Attributes:
        model: name of our net.
        weights: full name of the weights.
        metrics: metrics that their owner states.
    """

    model: str
    weights: str
    metrics: dict[str, float]


def list_convertible(filter: str = "*") -> list[Convertible]:
    """Return the weights of torchvision, and of timm if it is installed, that have a net here.

    Args:
        filter: shell pattern that the names of our nets match.

    Raises:
        ZooError: nothing; without timm its rows are missing, which is logged.
    """
    filter, here = text(filter, "filter"), set(list_models())
    rows = [(ours, f"{torchvision.PREFIX}{builder}:{tag}") for ours, builder, tag in torchvision.tags()]
    try:
        rows += [(ours, f"{timm.PREFIX}{architecture}.{tag}") for ours, architecture, tag in timm.tags()]
    except ZooError as error:
        log.warning("left out: %s", error)
    found = []
    for ours, name in rows:
        if ours in here and fnmatch.fnmatchcase(ours, filter):
            stated = torchvision.describe(name)["meta"] if name.startswith(torchvision.PREFIX) else {}
            found.append(Convertible(ours, name, stated.get("metrics", {})))
    return sorted(found, key=lambda row: (row.model, row.weights))


def describe(name: str) -> dict[str, Any] | None:
    """Return what the owner of weights states about them; they need not be on this machine.

    Args:
        name: full name, ``torchvision:BUILDER:TAG`` or ``timm:ARCHITECTURE.TAG``.

    Returns:
        A dict with weights, model, transform, classes and meta; None for sources that state nothing apart from the
        weights.

    Raises:
        WeightsError: a name that the source does not know.
    """
    name = text(name, "name of weights")
    module = next((module for module in STATED if name.startswith(module.PREFIX)), None)
    return None if module is None else module.describe(name)


def convert(
    source: str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    form: Form = FORM,
    eps: float | None = None,
    classes: str | Sequence[str] | None = None,
    **options: Any,
) -> Weights:
    """Convert weights with BatchNorm, or a checkpoint of the authors' code, into a weights file.

    Args:
        source: ``torchvision:BUILDER:TAG``, ``timm:ARCHITECTURE.TAG``, an address with its sha256, weights of this zoo
            of scheme ``bn``, or the path of a checkpoint (.safetensors, .pth, .pt, .pkl, .pyth).
        out: path of the safetensors file to write.
        name: name of our net; None for the one that fits. Required for a checkpoint of the authors' code.
        form: form of the converted net, see ``zoo.convert.from_batchnorm``.
        eps: eps of the norms; None for the source's.
        classes: class names; for detectors also ``all`` or ``coco`` (``tasks.detection.convert``); None for the
            source's, or numbers.
        options: options that the keys of a checkpoint do not show, such as ``stride_in_1x1``.

    Returns:
        The entry of the file.

    Raises:
        ZooError: an output of another ending, or that is the source.
        WeightsError: a source that cannot be read, or that the converter does not take.
    """
    source, out = weights_name(source), file_path(out, "out")
    check_ending(out)
    if out.exists() and Path(source).exists() and out.samefile(source):
        raise ZooError(f"{out}: is the source itself, which would be lost; give the result another name")
    original = _fetch(source)
    convert_original(
        _public_name(source), original, model=name, form=form, eps=eps, classes=classes, options=options
    ).write(out)
    log_licence(source, original.meta.get("licence"))
    return get_weights(str(out))


def _fetch(source: str) -> Original:
    """Return the weights of a name or a path."""
    for module in STATED:
        if source.startswith(module.PREFIX):
            return module.fetch(source)
    if https.matches(source) and not https.is_ours(source):
        return https.fetch(source)
    # weights of this zoo, by name or path, or a checkpoint in a file
    path = Path(source)
    if path.is_file() and not (path.suffix == ".safetensors" and local.is_own_weights(path)):
        return local.fetch(path, sha256_of(path))
    if not is_weights_name(source) or path.suffix in ENDINGS[1:]:
        raise WeightsError(f"{source}: no such file, and no name of weights; see rescalenet list --convertible")
    entry = get_weights(source)
    if entry.config.scheme not in ("bn", "frozen_bn"):
        raise WeightsError(f"{entry.name}: scheme {entry.config.scheme!r}; only bn is converted")
    return Original(
        state=create_model(entry.config.name, entry.name),
        sha256=entry.sha256 or "",
        model=entry.config.name,
        transform=entry.transform,
        classes=entry.classes,
        meta={key: entry.meta[key] for key in ("data", "licence", "metrics", "protocol") if key in entry.meta},
    )


def _public_name(source: str) -> str:
    """Return the source as the file names it: without the folders of this machine."""
    path = Path(source)
    return path.name if path.exists() else source

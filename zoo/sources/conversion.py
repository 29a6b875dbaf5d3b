"""From the weights of another project to a weights file of this one, through the cache."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zoo.convert.batchnorm import checked_classes, convert_batchnorm
from zoo.convert.detectron2 import LAYOUT, convert_detectron2, is_own
from zoo.convert.reference import from_reference, is_reference
from zoo.convert.rescaled import Form
from zoo.errors import WeightsError
from zoo.registry import model_info
from zoo.saving import save_weights
from zoo.sources.cache import Request, converted_path, find_converted, locked, record_converted, was_converted
from zoo.transforms import AnyTransform, InputTransform
from zoo.weights import Weights, get_weights

log = logging.getLogger("rescalenet")

CONVERTER = 2  # raised when the same source gives another file, so that it is converted again
FORM: Form = "gained"  # form of what is loaded by name


@dataclass(frozen=True)
class Original:
    """Weights of another project, fetched.

    Attributes:
        state: state dict, or a net with BatchNorm.
        sha256: sha256 of the file.
        model: name of our net; None for the one that the converter finds.
        transform: input that the weights expect; None if the source does not state it.
        classes: class names in order of the logits; None if the source does not state them.
        eps: eps of the norms; None for the converter's own rule.
        meta: licence, metrics, address: what the source states.
    """

    state: Mapping[str, Tensor] | nn.Module
    sha256: str
    model: str | None = None
    transform: AnyTransform | None = None
    classes: tuple[str, ...] | None = None
    eps: float | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Converted:
    """A converted net with what its weights file states."""

    net: Any
    transform: AnyTransform
    classes: tuple[str, ...]
    meta: dict[str, Any]

    def write(self, path: Path) -> str:
        """Write the weights file and return its sha256."""
        return save_weights(self.net, path, transform=self.transform, classes=self.classes, meta=self.meta)


def convert_original(
    source: str,
    original: Original,
    *,
    model: str | None = None,
    form: Form = FORM,
    eps: float | None = None,
    classes: str | Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Converted:
    """Convert weights of another project, and note where they come from.

    Args:
        source: full name of the source.
        original: weights of the source.
        model: name of our net; None for the original's.
        form: form of the converted net, see ``zoo.convert.from_batchnorm``.
        eps: eps of the norms; None for the original's.
        classes: class names in order of the logits, or a word (``zoo.sources.convert``); None for the original's, or
            numbers.
        options: options that the keys do not show, see ``zoo.convert.from_batchnorm``.

    Raises:
        WeightsError: weights that the converter does not take.
    """
    model = model or original.model
    classes = original.classes if classes is None else classes
    # of the authors' code: without norms already
    if isinstance(original.state, Mapping) and is_reference(original.state):
        if options:
            raise WeightsError(f"{source}: a checkpoint of the authors' code takes no option {next(iter(options))!r}")
        if form != FORM or eps is not None:
            raise WeightsError(f"{source}: a checkpoint of the authors' code has no norms: leave form and eps out")
        return _convert_reference(source, original, model, classes)
    # of detectron2, around a net of this zoo
    if isinstance(original.state, Mapping) and is_own(original.state):
        if form != FORM or eps is not None:
            raise WeightsError(f"{source}: {LAYOUT}, whose scheme stays as it is: leave form and eps out")
        own = convert_detectron2(original.state, model, source=source, classes=classes, **(options or {}))
        assert own.transform is not None
        return Converted(
            own.model,
            own.transform,
            own.classes or _numbers(own.model.num_classes),
            {
                **original.meta,
                "source": source,
                "source_sha256": original.sha256,
                "licence": original.meta.get("licence", "unknown"),
                "layout": own.layout,
            },
        )
    # with BatchNorm
    eps = original.eps if eps is None else eps
    try:
        done = convert_batchnorm(original.state, model, eps=eps, form=form, classes=classes, **(options or {}))
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from None
    if original.model is None and not isinstance(original.state, nn.Module):
        log.info(
            "%s: read as a %s; strides, pools and activations are not in its keys and are taken for the usual ones",
            source,
            done.layout,
        )
    meta = {
        **original.meta,
        "source": source,
        "source_sha256": original.sha256,
        "licence": original.meta.get("licence", "unknown"),
        "layout": done.layout,
        "form": form,
        "converter": CONVERTER,
    }
    if done.eps is not None:
        meta["eps"] = done.eps
    return Converted(
        done.model,
        original.transform or done.transform or _usual_transform(done.model.config.name, source),
        done.classes or _numbers(done.model.num_classes),
        meta,
    )


def open_converted(
    source: str, model: str | None, fetch: Callable[[], Original], *, content: str | None = None
) -> Weights:
    """Return the entry of converted weights, from the cache or after fetching and converting them.

    Args:
        source: full name of the source, which becomes the name of the entry.
        model: name of our net; None for the one that the converter finds.
        fetch: function that fetches the original.
        content: sha256 of the original where the name does not determine it.

    Raises:
        WeightsError: weights that cannot be fetched or converted.
    """
    request = Request(source, model, FORM, None, CONVERTER, content)
    found = find_converted(request, report=False)
    if found is None:
        with locked(request.key, source):
            found = find_converted(request)  # another process may have converted it meanwhile
            if found is None:
                found = _convert(request, fetch())
    path, sha256 = found
    return dataclasses.replace(get_weights(str(path)), name=source, sha256=sha256)


def _convert(request: Request, original: Original) -> tuple[Path, str]:
    """Convert into the cache, log the licence the first time, and return the path and its sha256."""
    first = not was_converted(original.sha256)
    done = convert_original(request.source, original, model=request.model, form=request.form, eps=request.eps)
    path = converted_path(request.key, original.sha256)
    sha256 = done.write(path)
    for each in {request, dataclasses.replace(request, model=done.net.config.name)}:  # found with the name or without
        record_converted(each, request.key, original.sha256, sha256)
    if first:
        log_licence(request.source, original.meta.get("licence"))
    log.info("%s: converted, form %s, stored as %s", request.source, request.form, path)
    return path, sha256


def log_licence(source: str, licence: str | None) -> None:
    """Log the licence of weights that are loaded for the first time.

    It is a warning, so that it is shown where logging is not set up.
    """
    if licence in (None, "unknown"):
        log.warning("%s: licence unknown: its owner states none; ask before you use or share the weights", source)
    else:
        log.warning("%s: licence: %s", source, licence)


def _usual_transform(model: str, source: str) -> AnyTransform:
    """Return ImageNet's transform for weights whose source does not state the input, which is logged.

    Raises:
        WeightsError: a net that does not take single images.
    """
    kind = model_info(model).input_kind
    if kind != "images":
        raise WeightsError(f"{source}: it does not state its input, and none is usual for {kind}; give a named source")
    log.warning("%s: it does not state its input; assumed: ImageNet's mean and std, 256 px, centre 224 px", source)
    return InputTransform.imagenet()


def _numbers(count: int) -> tuple[str, ...]:
    """Return names of classes that have none."""
    return tuple(map(str, range(count)))


def _convert_reference(
    source: str, original: Original, model: str | None, classes: str | Sequence[str] | None
) -> Converted:
    """Convert a checkpoint of the authors' RescaleNet code, which has no norms and ImageNet's input.

    Raises:
        WeightsError: no name of the net, which the keys do not show, or tensors that do not fit.
    """
    assert isinstance(original.state, Mapping)
    if model is None:
        raise WeightsError(f"{source}: a checkpoint of the authors' code; give the net's name (--name rescalenet50)")
    net = from_reference(original.state, model)
    meta = {"source": source, "source_sha256": original.sha256, "licence": original.meta.get("licence", "unknown")}
    names = checked_classes(classes, net.num_classes) or _numbers(net.num_classes)
    return Converted(net, InputTransform.imagenet(), names, meta)

"""Saving weights: nothing is written that ``zoo.create_model`` would not load again with the same outputs."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save as serialize
from torch import Tensor, nn

from zoo.arguments import file_path, shown
from zoo.errors import WeightsError, ZooError
from zoo.files import atomic_write
from zoo.headers import HEADER_KEY, Header, write_header
from zoo.modules import without_wrappers
from zoo.nets.base import ModelConfig, Net
from zoo.registry import model_info, skeleton
from zoo.states import check_shapes, require_finite, shapes_of
from zoo.structure import first_difference
from zoo.transforms import AnyTransform, check_input

log = logging.getLogger("rescalenet")

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # that weights may be stored in


class Named(Protocol):
    """A model that can be built again by name: a net, or a task's model around one."""

    config: ModelConfig
    num_classes: int

    def modules(self) -> Iterator[nn.Module]:
        """Yield the model and all modules inside it."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors by name."""
        ...


def save_weights(
    model: Named,
    path: str | Path,
    *,
    transform: AnyTransform,
    classes: Sequence[str],
    meta: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> str:
    """Write a model as a weights file that ``create_model`` loads.

    The wrappers of ``torch.compile``, of data-parallel training and of averaged weights are left out. ``create_model``
    gives float32: float64 values are stored as they are, and rounded when they are loaded.

    Args:
        model: model with ``config`` and ``num_classes``.
        path: path that ends in ``.safetensors``, in which ``~``, ``$NAME`` and ``${NAME}`` are replaced; a temporary
            file beside it is written first.
        transform: input that the model expects.
        classes: class names in order of the logits, as many as the model has classes; no name occurs twice.
        meta: metrics, data, licence, recipe: what JSON takes, with finite numbers.
        dtype: type of the stored floating-point tensors (``torch.float16`` halves the file); None keeps theirs.

    Returns:
        The file's sha256.

    Raises:
        ZooError: wrong ending; class names that are not text, occur twice or are too few or many; a transform to
            another kind of input than the model's; a folded net, or one whose tensors, modules or settings are not
            those of its config; values that are not finite in ``dtype``; ``meta`` that JSON does not take. Nothing is
            written then.

    >>> import tempfile, zoo
    >>> model = zoo.create_model("rescalenet20_cifar", num_classes=2, width=0.25)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/pets.safetensors"
    ...     sha256 = zoo.save_weights(
    ...         model, path, transform=zoo.InputTransform.imagenet(32, 36), classes=["cat", "dog"]
    ...     )
    ...     again = zoo.create_model("rescalenet20_cifar", path)
    >>> again.config == model.config
    True
    """
    # check before anything is written: name, model, classes, header
    path = file_path(path, "path")
    check_ending(path)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in DTYPES):
        raise ZooError(f"{path}: dtype={shown(dtype)}: must be one of {', '.join(map(str, DTYPES))}, or None")
    if not (dataclasses.is_dataclass(transform) and isinstance(getattr(transform, "kind", None), str)):
        raise ZooError(
            f"{path}: transform={shown(transform)}: must be a transform, such as zoo.InputTransform.imagenet()"
        )
    if not isinstance(meta, Mapping | None):
        raise ZooError(f"{path}: meta={shown(meta)}: must be a dict or None")
    model = _unwrapped(model, path)
    _check_classes(classes, model, path)
    check_input(transform, model_info(model.config.name).input_kind, str(path))
    text = write_header(Header(model.config, transform, tuple(classes), dict(meta or {})), path)
    # its tensors
    state = {key: _stored(key, value, dtype, path) for key, value in model.state_dict().items()}
    _check_built_again(model, state, path)
    content = serialize(_apart(state), metadata={HEADER_KEY: text, "format": "pt"})

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    atomic_write(path, write)
    return hashlib.sha256(content).hexdigest()


def check_ending(path: Path) -> None:
    """Check that a path is the name of a weights file.

    Raises:
        ZooError: another ending than ``.safetensors``.
    """
    if path.suffix != ".safetensors":
        raise ZooError(f"{path}: the name of a weights file ends in .safetensors")


def _unwrapped(model: Any, path: Path) -> Named:
    """Return the model inside of the wrappers of torch (``zoo.modules.without_wrappers``).

    Raises:
        ZooError: a folded net, or something that has no config to be built again from.
    """
    model = without_wrappers(model)
    if not (hasattr(model, "config") and hasattr(model, "num_classes")):
        raise ZooError(
            f"{path}: a {type(model).__name__} has no config and num_classes to be built again from: save the whole "
            "model that zoo.create_model made (without features_only)"
        )
    if any(isinstance(module, Net) and module.folded for module in model.modules()):
        raise ZooError(
            f"{path}: a folded net has no named form to load again: save the net before zoo.fold, or export it"
        )
    return model


def _check_classes(classes: Sequence[str], model: Named, path: Path) -> None:
    """Check the class names of a model.

    Raises:
        ZooError: a model whose config has another number, another number of names, a name that is not text, or one that
            occurs twice.
    """
    if model.num_classes != model.config.num_classes:
        raise ZooError(
            f"{path}: the model has num_classes={model.num_classes}, its config {model.config.num_classes}: parts of "
            "it were removed, so create_model would not load it; save the whole model"
        )
    if isinstance(classes, str | bytes) or not isinstance(classes, Sequence):
        raise ZooError(f"{path}: classes={shown(classes)}: must be a list of names, as text")
    if len(classes) != model.num_classes:
        raise ZooError(f"{path}: {len(classes)} class names for a model with {model.num_classes} classes")
    seen = set()
    for name in classes:
        if not isinstance(name, str):
            raise ZooError(f"{path}: class name {name!r} has type {type(name).__name__}: must be text; give str(name)")
        if name in seen:
            raise ZooError(f"{path}: class name {name!r} occurs twice: give each class a name of its own")
        seen.add(name)


def _stored(key: str, value: Tensor, dtype: torch.dtype | None, path: Path) -> Tensor:
    """Return a tensor as the file stores it.

    Raises:
        ZooError: NaN, infinities, or values beyond the range of ``dtype``.
    """
    if value.is_meta:
        raise ZooError(f"{path}: {key} is on the meta device and has no values")
    stored = value.detach().cpu()
    if not stored.is_floating_point():
        return stored.contiguous()
    require_finite(stored, key, str(path))
    if dtype is None or dtype == stored.dtype:
        return stored.contiguous()
    converted = stored.to(dtype).contiguous()
    if not bool(converted.isfinite().all()):
        largest = float(stored.abs().max())
        raise ZooError(
            f"{path}: {key} has values up to {largest:.4g}, the largest of {dtype} is {torch.finfo(dtype).max:.4g}: "
            "leave dtype out"
        )
    return converted


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that share no memory, which a safetensors file cannot express: layers may have one weight."""
    seen: set[int] = set()
    apart = {}
    for key, value in state.items():
        address = value.untyped_storage().data_ptr()
        apart[key] = value.clone() if address in seen else value
        seen.add(address)
    return apart


def _check_built_again(model: Any, state: Mapping[str, Tensor], path: Path) -> None:
    """Check that a model is the one which ``create_model`` would build and load its state into.

    Raises:
        ZooError: tensors that are missing, left over or of another shape, or modules with other settings.
    """
    expected = skeleton(model.config, str(path))
    if expected is None:
        log.info("%s: the family of %s has no build, so its tensors are not compared", path, model.config.name)
        return
    try:
        check_shapes(shapes_of(expected.state_dict()), shapes_of(state), str(path))
        reason = first_difference(expected, model)
    except WeightsError as error:
        reason = str(error).removeprefix(f"{path}: ")
    if reason is not None:
        raise ZooError(
            f"{path}: {reason}: parts of the model were replaced, wrapped, removed or changed by hand, so create_model "
            "would not build it again; save its state_dict with torch.save instead"
        )

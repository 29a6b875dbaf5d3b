"""Weights: entries with metadata and input transforms, their sources by name, verified loading.

A weights file is a safetensors file whose header has a JSON entry under ``rescalenet`` (``zoo.headers``): model,
scheme, options, classes, input transform, metrics. One file is therefore all that is needed to build the model again.
``zoo.saving`` writes it. ``weights/index.json`` lists the files that ship, with their sha256.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from zoo._moved import moved_names
from zoo.arguments import instance_of, shown, text
from zoo.building import planned
from zoo.errors import WeightsError, ZooError, one_line, suggestion
from zoo.files import expand_path, is_address, sha256_of
from zoo.headers import HEADER_KEY, LONGEST, read_header
from zoo.nets.base import ModelConfig
from zoo.states import check_shapes, require_finite, shapes_of
from zoo.transforms import AnyTransform

ENDINGS = (".safetensors", ".pth", ".pt", ".pkl", ".pyth")  # of files with weights, ours and those of other projects


@dataclass(frozen=True)
class Weights:
    """One set of weights: the file, the model, the input that it expects and the metrics that it reaches.

    Attributes:
        name: ``model.tag``, or the path of a file.
        path: path of the safetensors file.
        config: model, scheme, options, classes and input channels.
        transform: input that the model expects.
        classes: class names in order of the logits.
        meta: everything else: metrics with protocol, data, licence, recipe, number of parameters.
        sha256: hash of the file; None for files that no index lists.
    """

    name: str
    path: Path
    config: ModelConfig
    transform: AnyTransform
    classes: tuple[str, ...]
    meta: dict[str, Any]
    sha256: str | None = None

    def transforms(self) -> Callable[..., Any]:
        """Return the transform to the model's input.

        Returns:
            A callable: from a PIL image or uint8 tensor; for video nets from a clip, for text nets from sentences.
        """
        return self.transform.build()

    def scheme_for(self, asked: str | None) -> str:
        """Return the scheme of a model with these weights: their own, or ``frozen_bn`` for ``bn`` weights.

        Args:
            asked: scheme that was asked for; None for the weights' own.

        Raises:
            ZooError: any other scheme was asked for.
        """
        own = self.config.scheme
        if asked not in (None, own) and (asked, own) != ("frozen_bn", "bn"):
            raise ZooError(f"weights {self.name} are of scheme {own!r}, not {asked!r}; leave scheme out")
        return asked or own

    def check(self, build: Callable[[], nn.Module]) -> None:
        """Check that the file has the tensors of a model with its config, before memory is taken for either.

        Args:
            build: function that returns a fresh model of ``config``; it is called on the meta device.

        Raises:
            WeightsError: a file that is missing or damaged, a config that no model can be built from, or other tensors.
        """
        model = planned(build, self.name)
        with _opened(self.path) as file:
            found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        check_shapes(shapes_of(model.state_dict()), found, self.name)

    def load(self) -> dict[str, Tensor]:
        """Return the state dict in float32 (integers unchanged), after a check of the file's hash.

        Raises:
            WeightsError: a file that is missing, damaged or has another hash, or values that are not finite.
        """
        # the file is the one that the index lists
        if self.sha256 is not None:
            digest = sha256_of(_readable(self.path))
            if digest != self.sha256:
                raise WeightsError(
                    f"{self.path}: sha256 is {digest[:12]}..., the index lists {self.sha256[:12]}...; "
                    "the file is damaged or was changed: install it again"
                )
        # its tensors, of which many are stored in half precision
        with _opened(self.path) as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        state = {k: v.float() if v.is_floating_point() and v.dtype != torch.float64 else v for k, v in state.items()}
        for key, value in state.items():
            require_finite(value, key, self.name)
        return state


# -- entries from files ------------------------------------------------------------------------------


def _readable(path: Path) -> Path:
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    return path


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file whose header is not too long to be read.

    Raises:
        WeightsError: a file that is missing or damaged.
    """
    try:
        with _readable(path).open("rb") as start:
            length = int.from_bytes(start.read(8), "little")
        if length > LONGEST:
            raise WeightsError(
                f"{path}: not a complete safetensors file (its first 8 bytes are the length of its header, {length}: "
                f"must be at most {LONGEST}); get it again"
            )
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a complete safetensors file ({one_line(error)}); get it again") from None


def _from_file(path: Path) -> Weights:
    """Return the entry in a file's header; its tensors are not read.

    Raises:
        WeightsError: a file that is missing, damaged or has no valid entry.
    """
    entry = _own_entry(path)
    if entry is None:
        raise WeightsError(f"{path}: its header has no {HEADER_KEY!r} entry; write weights with zoo.save_weights")
    return entry


def _own_entry(path: Path) -> Weights | None:
    """Return the entry in a safetensors file's header; None if it is not a weights file of this zoo."""
    with _opened(path) as file:
        text = (file.metadata() or {}).get(HEADER_KEY)
    if text is None:
        return None
    header = read_header(text, path)
    return Weights(str(path), path, header.config, header.transform, header.classes, header.meta)


def _from_path(name: str, model: str | None) -> Weights:
    """Return the entry of a weights file, or of a checkpoint of another project after its conversion."""
    path = Path(name)
    entry = _own_entry(path) if path.suffix == ENDINGS[0] else None
    return _later("zoo.sources.local:open_weights")(name, model) if entry is None else entry


# -- the index of the weights that ship --------------------------------------------------------------


def weights_dir() -> Path:
    """Return the folder of the weights that ship, in a checkout as in a wheel."""
    return Path(str(resources.files("zoo._weights").joinpath("index.json"))).parent


@functools.cache
def _index() -> dict[str, dict[str, Any]]:
    return json.loads((weights_dir() / "index.json").read_text(encoding="utf-8"))


def _from_index(name: str, model: str | None) -> Weights:
    full = name if "." in name or model is None else f"{model}.{name}"
    if full not in _index():
        hint = suggestion(full, list_weights())
        raise WeightsError(f"unknown weights {name!r}{hint}; a file ends in {', '.join(ENDINGS)}")
    record = _index()[full]
    return dataclasses.replace(_from_file(weights_dir() / record["file"]), name=full, sha256=record["sha256"])


def list_weights() -> list[str]:
    """Return the sorted names (``model.tag``) of all weights that can be loaded by name.

    >>> import zoo
    >>> [name for name in zoo.list_weights() if name.startswith("rescale_r3d")]
    ['rescale_r3d_10.shapes']
    """
    return sorted(_index())


def weight_tags(model: str) -> tuple[str, ...]:
    """Return the tags of the weights of one model."""
    return tuple(name.split(".", 1)[1] for name in list_weights() if name.split(".", 1)[0] == model)


# -- sources: from a name to an entry ----------------------------------------------------------------


class Source(NamedTuple):
    """One way to name weights.

    Attributes:
        form: form of the names, for messages.
        matches: whether a name is of this form.
        open: function from such a name, and the name of the model that the weights are for (None for any), to the
            entry; it raises ``WeightsError``.
    """

    form: str
    matches: Callable[[str], bool]
    open: Callable[[str, str | None], Weights]


def _later(function: str) -> Callable[[str, str | None], Weights]:
    """Return a function that imports ``module:function`` when it is called: sources convert, and converters load."""
    return lambda name, model: resolve_name(function)(name, model)


SOURCES = [  # the first that matches a name opens it; a tag alone matches none and belongs to the last
    Source("torchvision:TAG", lambda n: n.startswith("torchvision:"), _later("zoo.sources.torchvision:open_weights")),
    Source("timm:TAG", lambda name: name.startswith("timm:"), _later("zoo.sources.timm:open_weights")),
    Source("hf-hub:OWNER/NAME", lambda n: n.startswith("hf-hub:"), _later("zoo.sources.hub:open_weights")),
    Source(
        "https://ADDRESS#sha256=HEX",
        lambda name: name.startswith(("https://", "http://")),
        _later("zoo.sources.https:open_weights"),
    ),
    Source("PATH.safetensors", lambda name: name.endswith(ENDINGS), _from_path),
    Source("MODEL.TAG", lambda name: "." in name, _from_index),  # register_model refuses dots in a model's name
]


def register_source(source: Source) -> None:
    """Add a source of weights. It comes before the earlier sources, so that it can claim a prefix.

    Args:
        source: source such as ``Source("https://...", lambda name: name.startswith("https://"), download)``.

    Raises:
        ZooError: a form that is taken.
    """
    instance_of(source, "register_source", Source)
    if source.form in [other.form for other in SOURCES]:
        raise ZooError(f"a source of weights named {source.form!r} is registered already")
    SOURCES.insert(0, source)


Name = str | os.PathLike[str]


def is_weights_name(name: Name) -> bool:
    """Return whether a name is of weights (``model.tag``, a path, ...) rather than of a model.

    The weights need not exist.

    >>> import zoo
    >>> zoo.is_weights_name("rescalenet20_cifar.cifar10"), zoo.is_weights_name("rescalenet20_cifar")
    (True, False)
    """
    text = weights_name(name)
    return any(source.matches(text) for source in SOURCES)


def weights_name(name: Name) -> str:
    """Return the name of weights as text, in which ``~``, ``$NAME`` and ``${NAME}`` are replaced but in an address.

    Raises:
        WeightsError: something else than text or a path, or an unknown variable or user.
    """
    text = os.fspath(name) if isinstance(name, str | os.PathLike) else None
    if not isinstance(text, str):
        raise WeightsError(
            f"weights={shown(name)}: must be a name such as 'rescalenet20_cifar.cifar10' or the path of a file; "
            "zoo.list_weights() has the names"
        )
    if is_address(text) or not text:
        return text
    try:
        return expand_path(text)
    except ZooError as error:
        raise WeightsError(f"weights={error}") from None


def get_weights(name: Name, *, model: str | None = None) -> Weights:
    """Return the entry of weights; their tensors are not read.

    Args:
        name: ``model.tag``, a tag (with ``model``), the path of a file, as text or as a path object, or the name of
            weights of another project (docs/weights.md), which are fetched and converted if the cache lacks them. In
            a path ``~``, ``$NAME`` and ``${NAME}`` are replaced.
        model: name of the model that the weights must be of; None for any.

    Raises:
        WeightsError: unknown name (with near matches), a file that is missing or damaged, or weights of another model.

    >>> import zoo
    >>> weights = zoo.get_weights("rescalenet20_cifar.cifar10")
    >>> weights.config.scheme, weights.transform.size, weights.classes[:2]
    ('rescale', 32, ('airplane', 'automobile'))
    """
    model = None if model is None else text(model, "model")
    entry = open_weights(name, model)
    if model is not None and entry.config.name != model:
        raise WeightsError(f"weights {weights_name(name)!r} are of {entry.config.name}, not of {model}")
    return entry


def open_weights(name: Name, model: str | None) -> Weights:
    """Return the entry of weights of any model.

    Args:
        name: name as in ``get_weights``.
        model: name of the model that a tag alone refers to; a full name may be of another.

    Raises:
        WeightsError: an unknown name, or a file that is missing or damaged.
    """
    text = weights_name(name)
    source = next((source for source in SOURCES if source.matches(text)), SOURCES[-1])
    return source.open(text, model)


__getattr__ = moved_names(__name__, {"Named": "zoo.saving:Named", "save_weights": "zoo.saving:save_weights"})

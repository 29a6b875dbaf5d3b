"""Weights: entries with metadata and transforms, verified loading, saving.

A weights file is a safetensors file whose header carries a JSON entry under ``rescalenet``: model, scheme,
options, classes, input transform, metrics. So one file is all that is needed to build the model again.
``weights/index.json`` lists the files that ship, with their sha256."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import pydantic
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from zoo.calibration import HasDataBias
from zoo.errors import WeightsError, ZooError, suggestion
from zoo.files import atomic_write
from zoo.nets.base import ModelConfig, Net
from zoo.transforms import AnyTransform

log = logging.getLogger("rescalenet")

HEADER_KEY = "rescalenet"


@dataclass(frozen=True)
class Weights:
    """One set of weights: where it is, what it is of, what it expects and what it reaches.

    Attributes:
        name: ``model.tag``, or the path of a file.
        config: model, scheme, options, classes and input channels.
        transform: the input it expects.
        classes: class names in order of the logits.
        meta: everything else: metrics with protocol, data, licence, recipe, number of parameters.
        sha256: of the file; None for files that no index lists.
    """

    name: str
    path: Path
    config: ModelConfig
    transform: AnyTransform
    classes: tuple[str, ...]
    meta: dict[str, Any]
    sha256: str | None = None

    def transforms(self) -> Callable[..., Any]:
        """The transform to the net's input: from a PIL image or uint8 tensor, of video nets a clip, or sentences."""
        return self.transform.build()

    def scheme_for(self, asked: str | None) -> str:
        """The scheme to build a net of: the weights' own, or ``frozen_bn`` for ``bn`` weights.

        Raises:
            ZooError: any other scheme was asked for.
        """
        own = self.config.scheme
        if asked not in (None, own) and (asked, own) != ("frozen_bn", "bn"):
            raise ZooError(f"weights {self.name} are of scheme {own!r}, not {asked!r}; leave scheme out")
        return asked or own

    def load(self) -> dict[str, Tensor]:
        """The state dict, hash checked, in float32 (integers as they are).

        Raises:
            WeightsError: if the file is missing, damaged or has another hash.
        """
        if self.sha256 is not None:
            with _readable(self.path).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != self.sha256:
                raise WeightsError(
                    f"{self.path}: sha256 is {digest[:12]}..., the index says {self.sha256[:12]}...; "
                    "the file is damaged or was changed: install it again"
                )
        try:
            with safe_open(_readable(self.path), framework="pt") as file:
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{self.path}: not a complete safetensors file ({error}); get it again") from None
        return {k: v.float() if v.is_floating_point() and v.dtype != torch.float64 else v for k, v in state.items()}


def _readable(path: Path) -> Path:
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    return path


def weights_dir() -> Path:
    """The folder of the weights that ship, in a checkout as in a wheel."""
    return Path(str(resources.files("zoo._weights").joinpath("index.json"))).parent


@functools.cache
def _index() -> dict[str, dict[str, Any]]:
    return json.loads((weights_dir() / "index.json").read_text(encoding="utf-8"))


def list_weights() -> list[str]:
    """Names (``model.tag``) of all weights that can be loaded by name."""
    return sorted(_index())


def weight_tags(model: str) -> tuple[str, ...]:
    """Tags of the weights of one net."""
    return tuple(name.split(".", 1)[1] for name in list_weights() if name.split(".", 1)[0] == model)


def get_weights(name: str, *, model: str | None = None) -> Weights:
    """The weights ``name``: ``model.tag``, a tag (with ``model``), or a path ending in ``.safetensors``.

    Raises:
        WeightsError: unknown name (with near matches), a file that is missing or damaged, or weights of another model.
    """
    if name.endswith(".safetensors"):
        entry = _from_file(Path(name))
    else:
        full = name if "." in name or model is None else f"{model}.{name}"
        if full not in _index():
            hint = suggestion(full, list_weights())
            raise WeightsError(f"unknown weights {name!r}{hint}; a file's path ends in .safetensors")
        record = _index()[full]
        entry = dataclasses.replace(_from_file(weights_dir() / record["file"]), name=full, sha256=record["sha256"])
    if model is not None and entry.config.name != model:
        raise WeightsError(f"weights {name!r} are of {entry.config.name}, not of {model}")
    return entry


def _from_file(path: Path) -> Weights:
    try:
        with safe_open(_readable(path), framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER_KEY)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a complete safetensors file ({error}); get it again") from None
    if header is None:
        raise WeightsError(f"{path}: its header has no {HEADER_KEY!r} entry; write weights with zoo.save_weights")
    try:
        entry = json.loads(header)
        return Weights(
            name=str(path),
            path=path,
            config=pydantic.TypeAdapter(ModelConfig).validate_python(entry["config"]),
            transform=pydantic.TypeAdapter(AnyTransform).validate_python(entry["transform"]),
            classes=tuple(entry["classes"]),
            meta=entry["meta"],
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = " ".join(repr(error).split())
        raise WeightsError(f"{path}: its {HEADER_KEY!r} header entry is not valid ({reason})") from None


class Named(Protocol):
    """A net that can be built again by name: a backbone, or a task's net around one."""

    config: ModelConfig
    num_classes: int

    def modules(self) -> Iterator[nn.Module]: ...

    def state_dict(self) -> dict[str, Any]: ...


def save_weights(
    model: Named,
    path: str | Path,
    *,
    transform: AnyTransform,
    classes: Sequence[str],
    meta: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> str:
    """Write a model as a weights file that ``create_model`` (or its task) loads. Returns the file's sha256.

    Args:
        model: with ``config`` and ``num_classes``.
        path: must end in ``.safetensors``; written to a temporary file first.
        classes: names in order of the logits; as many as the model has classes.
        meta: metrics, data, licence, recipe.
        dtype: for floating-point tensors (``torch.float16`` halves the file); None keeps them.

    Raises:
        ZooError: wrong ending, wrong number of class names, or a folded net.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ZooError(f"{path}: the name of a weights file ends in .safetensors")
    if any(isinstance(module, Net) and module.folded for module in model.modules()):
        raise ZooError(
            f"{path}: a folded net has no named form to load again: save the net before zoo.fold, or export it"
        )
    if len(classes) != model.num_classes:
        raise ZooError(f"{len(classes)} class names for a model with {model.num_classes} classes")
    state = {}
    for key, value in model.state_dict().items():
        convert = dtype if dtype is not None and value.is_floating_point() else value.dtype
        state[key] = value.detach().cpu().to(convert).contiguous()
    entry = {
        "config": dataclasses.asdict(model.config),
        "transform": dataclasses.asdict(transform),
        "classes": list(classes),
        "meta": dict(meta or {}),
    }
    header = {HEADER_KEY: json.dumps(entry), "format": "pt"}
    content = serialize(state, metadata=header)

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    atomic_write(path, write)
    return hashlib.sha256(content).hexdigest()


def adapt(state: dict[str, Tensor], stored: ModelConfig, model: Net) -> dict[str, Tensor]:
    """Fit a state dict to a model that differs in head, input channels or frozen statistics; each change is logged."""
    config = model.config
    state = dict(state)
    if config.num_classes != stored.num_classes:
        dropped = [key for key in state if key.startswith("fc.")]
        for key in dropped:
            del state[key]
        if config.num_classes:
            log.info("new last layer: %d classes instead of the weights' %d", config.num_classes, stored.num_classes)
    if config.in_chans != stored.in_chans:
        key = next(k for k, p in model.named_parameters() if p.ndim >= 4)
        weight = state[key].mean(1, keepdim=True) * stored.in_chans / config.in_chans
        state[key] = weight.expand(-1, config.in_chans, *weight.shape[2:]).contiguous()
        log.info("stem adapted: %d input channels instead of the weights' %d", config.in_chans, stored.in_chans)
    return frozen_statistics(state, stored.scheme, config.scheme)


def frozen_statistics(state: dict[str, Tensor], stored: str, scheme: str) -> dict[str, Tensor]:
    """A state of scheme ``stored`` for a net of ``scheme``: frozen BatchNorm counts no batches."""
    if (scheme, stored) != ("frozen_bn", "bn"):
        return state
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str, *, fresh: tuple[str, ...] = ()) -> None:
    """Load every tensor, or raise one error that names what does not fit.

    Args:
        source: where the state comes from, for the message.
        fresh: prefixes of keys that keep their initialization.

    Raises:
        WeightsError: missing or unexpected keys (with near matches) or wrong shapes.
    """
    own = model.state_dict()
    kept = {key: value for key, value in own.items() if key.startswith(fresh)} if fresh else {}
    needed = own.keys() - kept.keys()
    missing = sorted(needed - state.keys())
    if unexpected := sorted(state.keys() - needed):
        hint = suggestion(unexpected[0], missing) if missing else ""
        raise WeightsError(f"{source}: {len(unexpected)} unexpected keys, the first {unexpected[0]!r}{hint}")
    if missing:
        raise WeightsError(f"{source}: {len(missing)} keys are missing, the first {missing[0]!r}")
    for key in needed:
        if state[key].shape != own[key].shape:
            shapes = f"shape {tuple(state[key].shape)}, the model {tuple(own[key].shape)}"
            raise WeightsError(f"{source}: {key} has {shapes}")
    model.load_state_dict({**kept, **state})
    for name, module in model.named_modules():
        if isinstance(module, HasDataBias) and f"{name}.{module.data_bias_name}" in kept:
            module.calibrated = False  # its own initialization was put back, no checkpoint's

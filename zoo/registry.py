"""Models by name: the one registry of the zoo."""

from __future__ import annotations

import dataclasses
import fnmatch
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import pydantic

from zoo.errors import ZooError, suggestion
from zoo.nets import resnet, resnet3d, transformer, vgg  # noqa: F401  (importing them registers their nets)
from zoo.nets.base import Backbone, FeatureExtractor, ModelConfig, Net
from zoo.specs import MODELS, ModelSpec, Takes, get_spec, register_model
from zoo.weights import adapt, get_weights, load_state, weight_tags

__all__ = [
    "ModelInfo",
    "ModelSpec",
    "Takes",
    "build_model",
    "create_model",
    "get_spec",
    "list_models",
    "model_info",
    "register_model",
]


@dataclass(frozen=True)
class ModelInfo:
    """What ``model_info`` tells about a net.

    Attributes:
        schemes: values of ``scheme=`` that it supports.
        options: options of the architecture, with their defaults.
        scheme_options: for each scheme, its options with their defaults.
        weights: tags of the weights that can be loaded by name.
        takes: images, clips or text.
        num_classes: default; 0 for nets that take text, whose options tell the sizes of their vocabularies.
        input_size: side of the square input in pixels the net was designed for; min_size the smallest; 0 for text.
        frames: length of the clips the net was designed for (any works); None for nets that take none.
    """

    name: str
    family: str
    schemes: tuple[str, ...]
    options: dict[str, Any]
    scheme_options: dict[str, dict[str, Any]]
    weights: tuple[str, ...]
    takes: Takes
    num_classes: int
    input_size: int
    min_size: int
    frames: int | None
    paper: str


def list_models(filter: str = "*", *, pretrained: bool = False, takes: Takes | None = None) -> list[str]:
    """Sorted names of the registered nets that match the shell pattern ``filter``.

    Args:
        pretrained: only nets that have weights by name.
        takes: only nets with this input.
    """
    names = [n for n in fnmatch.filter(sorted(MODELS), filter) if takes in (None, MODELS[n].takes)]
    return [n for n in names if weight_tags(n)] if pretrained else names


def model_info(name: str) -> ModelInfo:
    """Schemes, options, weights and defaults of a net.

    Raises:
        ZooError: unknown name, with near matches.
    """
    spec = get_spec(name)
    return ModelInfo(
        name=name,
        family=spec.family.__name__,
        schemes=spec.supported,
        options={key: getattr(spec.layout, key) for key in spec.layout.OPTIONS},
        scheme_options={s: {f.name: f.default for f in spec.family.scheme_options(s).values()} for s in spec.supported},
        weights=weight_tags(name),
        takes=spec.takes,
        num_classes=spec.num_classes,
        input_size=spec.input_size,
        min_size=spec.min_size,
        frames=spec.frames,
        paper=spec.paper,
    )


def _checked(options: dict[str, Any], owner: Any, where: str) -> dict[str, Any]:
    """Option values checked against the type hints of the dataclass ``owner``."""
    hints = typing.get_type_hints(owner if isinstance(owner, type) else type(owner))
    checked = {}
    for key, value in options.items():
        try:
            checked[key] = pydantic.TypeAdapter(hints[key]).validate_python(value)
        except pydantic.ValidationError as error:
            raise ZooError(f"{where}: option {key}={value!r}: {error.errors()[0]['msg']}") from None
    return checked


def build_model(config: ModelConfig) -> Net:
    """A fresh net from its config, whatever its scheme: for code that loads a state into it next.

    Raises:
        ZooError: unknown name, scheme or option (with near matches).
    """
    spec = get_spec(config.name)
    known_schemes = spec.family.schemes
    if config.scheme not in known_schemes:
        raise ZooError(f"unknown scheme {config.scheme!r}{suggestion(config.scheme, known_schemes)}")
    if config.scheme not in spec.supported:
        raise ZooError(f"{config.name} does not support scheme {config.scheme!r}; it does: {', '.join(spec.supported)}")
    for key, value in {"num_classes": config.num_classes, "in_chans": config.in_chans}.items():
        if spec.takes == "text":
            if value:
                raise ZooError(f"{config.name} takes text: not {key}, but source_vocabulary and target_vocabulary")
            continue
        least = 0 if key == "num_classes" else 1
        if not isinstance(value, int) or value < least:
            raise ZooError(f"{config.name}: {key}={value!r}: a whole number of at least {least} is needed")
    of_scheme = spec.family.scheme_options(config.scheme)
    known = [*spec.layout.OPTIONS, *of_scheme]
    for key in config.options:
        if key not in known:
            raise ZooError(f"{config.name} with scheme {config.scheme!r} has no option {key!r}{suggestion(key, known)}")
    cls = known_schemes[config.scheme]
    split = {k: v for k, v in config.options.items() if k in of_scheme}
    scheme = cls(**_checked(split, cls, config.name))
    own = {k: v for k, v in config.options.items() if k not in of_scheme}
    layout = dataclasses.replace(spec.layout, **_checked(own, spec.layout, config.name))
    model = spec.family.build(layout, scheme, config)
    model.config = config
    return model


@overload
def create_model(
    name: str,
    weights: str | None = None,
    *,
    scheme: str | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    features_only: Literal[False] = False,
    out_indices: None = None,
    **options: Any,
) -> Backbone: ...


@overload
def create_model(
    name: str,
    weights: str | None = None,
    *,
    scheme: str | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    features_only: Literal[True],
    out_indices: Sequence[int] | None = None,
    **options: Any,
) -> FeatureExtractor: ...


def create_model(
    name: str,
    weights: str | None = None,
    *,
    scheme: str | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    **options: Any,
) -> Backbone | FeatureExtractor:
    """A net by name, fresh or with weights.

    Args:
        name: one of ``list_models()``.
        weights: a tag (``"cifar10"``), ``"name.tag"`` or a path ending in ``.safetensors``; None for a fresh net.
        scheme: ``rescale`` (the default without weights), ``bn``, ``frozen_bn``, ``gn`` or ``none``; of nets that take
            text ``rescale``, ``post_ln``, ``pre_ln``, ``none``, ``t_fixup``, ``deepnorm`` or ``dyt``. With weights it
            comes from them; a contradiction is an error, except ``frozen_bn`` for ``bn`` weights.
        num_classes: classes of the last layer, 0 for no head. None: the weights' or the net's own number.
            Another number than the weights' gives a new last layer, which is logged.
        in_chans: input channels, 3 by default. Another number than the weights' adapts the stem, which is logged.
        features_only: return the maps ``out_indices`` (default all levels) as a list; see ``feature_info``.
        options: options of the net and the scheme (``model_info(name)``).

    Returns:
        ``Backbone``, or ``FeatureExtractor`` if ``features_only``; for the name of a net that takes text, always a
        ``zoo.Transformer``.

    Raises:
        ZooError: unknown name, scheme or option (with near matches), or one that contradicts the weights.
        zoo.WeightsError: weights that are missing, damaged or do not fit.
    """
    spec = get_spec(name)
    if out_indices is not None and not features_only:
        raise ZooError("out_indices is for features_only=True")
    if features_only and not issubclass(spec.family, Backbone):
        raise ZooError(f"features_only: {name} takes {spec.takes} and has no feature maps")
    if weights is None:
        scheme = scheme or "rescale"
        if scheme in spec.family.schemes and spec.family.schemes[scheme].needs_weights:
            raise ZooError(f"scheme {scheme!r} needs weights: its statistics are never trained")
        classes = spec.num_classes if num_classes is None else num_classes
        usual = 0 if spec.takes == "text" else 3
        model: Any = build_model(ModelConfig(name, scheme, classes, usual if in_chans is None else in_chans, options))
    else:
        entry = get_weights(weights, model=name)
        stored = entry.config
        scheme = entry.scheme_for(scheme)
        info = model_info(name)
        defaults = {**info.options, **info.scheme_options.get(stored.scheme, {})}  # build_model refuses unknown schemes
        for key, value in options.items():
            # what no weight depends on is free; build_model refuses unknown ones
            if key.endswith("drop_rate") or key == "max_length" or key not in defaults:
                continue
            if value != (there := stored.options.get(key, defaults[key])):
                raise ZooError(f"weights {entry.name} have option {key}={there!r}, not {value!r}; leave it out")
        config = ModelConfig(
            name,
            scheme,
            stored.num_classes if num_classes is None else num_classes,
            stored.in_chans if in_chans is None else in_chans,
            {**stored.options, **options},
        )
        model = build_model(config)
        state = adapt(entry.load(), stored, model)
        new_head = config.num_classes != stored.num_classes
        load_state(model, state, entry.name, fresh=("fc.",) if new_head else ())
    return FeatureExtractor(model, out_indices) if features_only else model

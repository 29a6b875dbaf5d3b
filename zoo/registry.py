"""Models by name: the one registry of the zoo.

Nets are registered with ``register_model``, models around them, such as detectors, as a family (``zoo.families``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

from torch import nn

from zoo.arguments import as_python, choice, flag, shown, text, whole_number
from zoo.building import WithoutInit, planned
from zoo.errors import ZooError, one_line, suggestion
from zoo.families import Family, all_families, find_family, register_family
from zoo.nets import resnet, resnet3d, transformer, vgg  # noqa: F401  (importing them registers their nets)
from zoo.nets.base import MOST_CHANNELS, MOST_CLASSES, Backbone, FeatureExtractor, ModelConfig, Net
from zoo.options import checked, free_options, refuse_contradictions
from zoo.pretrained_cfg import set_pretrained_cfg
from zoo.specs import MODELS, TASKS, InputKind, ModelInfo, ModelSpec, get_spec, register_model
from zoo.states import adapt, load_state
from zoo.transforms import check_input
from zoo.weights import Name, get_weights, list_weights, weight_tags, weights_name

__all__ = [
    "Family",
    "InputKind",
    "ModelInfo",
    "ModelSpec",
    "build_model",
    "create_model",
    "get_spec",
    "list_models",
    "model_info",
    "register_family",
    "register_model",
]


def list_models(
    filter: str = "*",
    *,
    pretrained: bool = False,
    input_kind: InputKind | None = None,
    task: str | None = None,
    takes: InputKind | None = None,
) -> list[str]:
    """Return the sorted names of the models that ``create_model`` makes: registered nets and detectors around them.

    Args:
        filter: shell pattern that the names match.
        pretrained: whether only models with weights that can be loaded by name are listed.
        input_kind: kind of input of the models that are listed: ``images``, ``clips``, ``text``, or ``image_lists`` for
            detectors; None for all.
        task: task of the models that are listed: ``classification``, ``video``, ``translation`` or ``detection``; None
            for all.
        takes: ``input_kind`` under its name of version 0.1.0; deprecated.

    >>> import zoo
    >>> zoo.list_models("rescalevgg*")
    ['rescalevgg11', 'rescalevgg13', 'rescalevgg16', 'rescalevgg19']
    >>> zoo.list_models("*rescalenet18*")
    ['faster_rcnn_rescalenet18_fpn', 'mask_rcnn_rescalenet18_fpn', 'rescalenet18']
    >>> zoo.list_models(pretrained=True, task="classification")
    ['rescalenet18', 'rescalenet20_cifar']
    """
    if takes is not None:
        warnings.warn("list_models(takes=...) is named input_kind", DeprecationWarning, stacklevel=2)
        input_kind = takes
    text(filter, "filter")
    if input_kind is not None and text(input_kind, "input_kind") not in TASKS:
        choice(input_kind, "input_kind", {*TASKS, *(info.input_kind for info in _of_families())})
    if task is not None and text(task, "task") not in TASKS.values():
        choice(task, "task", {*TASKS.values(), *(info.task for info in _of_families())})
    names = [*MODELS, *(name for family in all_families() for name in family.names())]
    if flag(pretrained, "pretrained"):
        names = [name for name in names if weight_tags(name)]
    found = [model_info(name) for name in sorted(fnmatch.filter(names, filter))]
    return [info.name for info in found if input_kind in (None, info.input_kind) and task in (None, info.task)]


def _of_families() -> list[ModelInfo]:
    """Return the descriptions of the models of all families, which may have tasks of their own."""
    return [family.info(name) for family in all_families() for name in family.names()]


def model_info(name: str) -> ModelInfo:
    """Return the schemes, options, weights and defaults of a model.

    Args:
        name: one of ``list_models()``.

    Raises:
        ZooError: unknown name, with near matches.

    >>> import zoo
    >>> info = zoo.model_info("rescalenet50")
    >>> info.num_classes, info.options["stem"], info.scheme_options["gn"]["gn_groups"]
    (1000, 'conv7', 32)
    >>> zoo.model_info("mask_rcnn_rescalenet50_fpn").task
    'detection'
    """
    if family := _family_of(name):
        return family.info(name)
    spec = get_spec(name)
    return ModelInfo(
        name=name,
        family=spec.family.__name__,
        schemes=spec.supported,
        options={key: getattr(spec.layout, key) for key in spec.layout.OPTIONS},
        scheme_options={s: {f.name: f.default for f in spec.family.scheme_options(s).values()} for s in spec.supported},
        weights=weight_tags(name),
        input_kind=spec.input_kind,
        task=TASKS[spec.input_kind],
        num_classes=spec.num_classes,
        input_size=spec.input_size,
        min_size=spec.min_size,
        frames=spec.frames,
        paper=spec.paper,
    )


def _family_of(name: str) -> Family | None:
    """Return the family that makes the models of a name; None for registered nets.

    Raises:
        ZooError: a name that is neither a registered net's nor matches a family.
    """
    if text(name, "name of a model") in MODELS:
        return None
    if family := find_family(name):
        return family
    pretrained = {weights.split(".", 1)[0] for weights in list_weights()}
    if name in pretrained:
        raise ZooError(
            f"no installed package makes {name}, although its weights are here: install rescalenet-zoo again "
            "(in a checkout: pip install -e .), which registers its detectors"
        )
    raise ZooError(f"unknown model {name!r}{suggestion(name, sorted({*MODELS, *pretrained}))}")


def build_model(config: ModelConfig) -> Net:
    """Return a fresh net of any scheme from its config, for code that then loads a state into it.

    Args:
        config: config of a registered net.

    Raises:
        ZooError: unknown name, scheme or option (with near matches).
    """
    spec = get_spec(config.name)
    # check the scheme
    known_schemes = spec.family.schemes
    if text(config.scheme, "scheme") not in known_schemes:
        raise ZooError(f"unknown scheme {config.scheme!r}{suggestion(config.scheme, known_schemes)}")
    if config.scheme not in spec.supported:
        raise ZooError(f"{config.name} does not support scheme {config.scheme!r}; it does: {', '.join(spec.supported)}")
    # check classes and channels; a net of text has none, its vocabularies are options
    for key, value in {"num_classes": config.num_classes, "in_chans": config.in_chans}.items():
        if spec.input_kind == "text":
            if value:
                raise ZooError(f"{config.name} takes text: not {key}, but source_vocabulary and target_vocabulary")
            continue
        least, most = (0, MOST_CLASSES) if key == "num_classes" else (1, MOST_CHANNELS)
        checked_number: dict[str, Any] = {key: whole_number(value, f"{config.name}: {key}", least, most)}
        config = dataclasses.replace(config, **checked_number)
    # check the options: some belong to the scheme, the others to the layout
    if not isinstance(config.options, Mapping):
        raise ZooError(f"{config.name}: options={shown(config.options)}: must be a dict")
    config = dataclasses.replace(config, options=as_python(dict(config.options)))
    of_scheme = spec.family.scheme_options(config.scheme)
    known = [*spec.layout.OPTIONS, *of_scheme]
    for key in config.options:
        if key not in known:
            raise ZooError(f"{config.name} with scheme {config.scheme!r} has no option {key!r}{suggestion(key, known)}")
    # build scheme and layout, then the net
    cls = known_schemes[config.scheme]
    scheme = cls(**checked({k: v for k, v in config.options.items() if k in of_scheme}, cls, config.name))
    own = {k: v for k, v in config.options.items() if k not in of_scheme}
    layout = dataclasses.replace(spec.layout, **checked(own, spec.layout, config.name))
    try:
        model = spec.family.build(layout, scheme, config)
    except (OverflowError, MemoryError, RuntimeError) as error:  # a size beyond torch's or the machine's
        if isinstance(error, NotImplementedError | RecursionError):
            raise
        raise ZooError(
            f"{config.name}: no net can be built with options {shown(config.options)}: {one_line(error)}"
        ) from error
    model.config = config
    set_pretrained_cfg(model, spec, config)
    return model


def skeleton(config: ModelConfig, source: str) -> nn.Module | None:
    """Return the model that weights with this config are loaded into, on the meta device: shapes without memory.

    Args:
        config: config in the weights.
        source: name of the weights, for messages.

    Returns:
        The model; None if it is of a family that has no ``build``.

    Raises:
        zoo.WeightsError: a config that no model can be built from.
    """
    family = _family_of(config.name)
    build: Any = build_model if family is None else getattr(family, "build", None)
    return None if build is None else planned(lambda: build(config), source)


@overload
def create_model(
    name: str,
    weights: Name | None = None,
    *,
    scheme: str | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    features_only: Literal[False] = False,
    out_indices: Sequence[int] | None = None,
    **options: Any,
) -> Any: ...


@overload
def create_model(
    name: str,
    weights: Name | None = None,
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
    weights: Name | None = None,
    *,
    scheme: str | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    **options: Any,
) -> Any:
    """Return a model by name, fresh or with weights.

    Args:
        name: one of ``list_models()``.
        weights: a tag (``"cifar10"``), ``"name.tag"``, a path ending in ``.safetensors``, or weights of others such as
            ``"torchvision:IMAGENET1K_V2"`` (docs/weights.md), which are converted exactly; None for a fresh
            model.
        scheme: one of ``model_info(name).schemes``; None for the weights' own, or ``rescale`` without weights. Another
            scheme than the weights' is an error, except ``frozen_bn`` for ``bn`` weights.
        num_classes: number of classes, 0 for no last layer; None for the weights' or the model's own number. Another
            number than the weights' gives a new last layer, which is logged.
        in_chans: number of input channels; None for the weights' or 3. Another number than the weights' adapts the
            stem, which is logged. Not for detectors.
        features_only: whether to return the maps ``out_indices`` as a list; see ``feature_info``. Not for detectors.
        out_indices: levels of the feature maps, with ``features_only`` or for detectors; None for all.
        options: options of the model and the scheme (``model_info(name)``).

    Returns:
        A ``zoo.Backbone`` (images, clips), a ``zoo.Transformer`` (text), or what the name's family makes, for example
        a ``tasks.detection.detector.Detector``; ``zoo.FeatureExtractor`` if ``features_only``. The name decides, so
        type checkers see ``Any``.

    Raises:
        ZooError: unknown name, scheme or option (with near matches), or one that contradicts the weights.
        zoo.WeightsError: weights that are missing, damaged or do not fit.

    >>> import torch, zoo
    >>> model = zoo.create_model("rescalenet20_cifar", "cifar10").eval()
    >>> model(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    >>> features = zoo.create_model("rescalenet20_cifar", features_only=True, out_indices=(1, 2))
    >>> features.feature_info.channels(), [tuple(x.shape) for x in features(torch.zeros(1, 3, 32, 32))]
    ([16, 32], [(1, 16, 32, 32), (1, 32, 16, 16)])
    """
    # a model of a family gets only the arguments that were given
    if family := _family_of(name):
        named = {"scheme": scheme, "num_classes": num_classes, "in_chans": in_chans, "out_indices": out_indices}
        given = {key: value for key, value in named.items() if value is not None}
        for key in ("num_classes", "in_chans"):
            if key in given:
                given[key] = whole_number(given[key], key, most=MOST_CLASSES)
        if flag(features_only, "features_only"):
            given["features_only"] = True
        return family.create(name, None if weights is None else weights_name(weights), **given, **options)
    # a registered net, fresh or with weights
    spec = get_spec(name)
    scheme = None if scheme is None else text(scheme, "scheme")
    if out_indices is not None and not flag(features_only, "features_only"):
        raise ZooError(f"out_indices={shown(out_indices)}: requires features_only=True")
    if flag(features_only, "features_only") and not issubclass(spec.family, Backbone):
        raise ZooError(f"features_only: {name} takes {spec.input_kind} and has no feature maps")
    if weights is None:
        model = _fresh(spec, scheme or "rescale", num_classes, in_chans, options)
    else:
        model = _pretrained(spec, weights, scheme, num_classes, in_chans, options)
    if not features_only:
        return model
    assert isinstance(model, Backbone)
    return FeatureExtractor(model, out_indices)


def _fresh(spec: ModelSpec, scheme: str, num_classes: int | None, in_chans: int | None, options: dict[str, Any]) -> Net:
    """Return a net without weights; the arguments are those of ``create_model``."""
    if scheme in spec.family.schemes and spec.family.schemes[scheme].needs_weights:
        raise ZooError(f"scheme {scheme!r} requires weights, because it never trains its statistics; give weights")
    classes = spec.num_classes if num_classes is None else num_classes
    usual = 0 if spec.input_kind == "text" else 3
    return build_model(ModelConfig(spec.name, scheme, classes, usual if in_chans is None else in_chans, options))


def options_with_weights(stored: ModelConfig, given: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """Return the options of weights together with those that were given, on which no weight may depend.

    ``build_model`` refuses unknown schemes and options.

    Args:
        stored: config of the weights.
        given: options of the net and its scheme.
        weights: name of the weights, for the message.

    Raises:
        ZooError: an option on which weights depend has another value than theirs.
    """
    spec, info = get_spec(stored.name), model_info(stored.name)
    free, of_scheme = free_options(spec.layout), info.scheme_options.get(stored.scheme, {})
    if stored.scheme in info.schemes:
        free |= free_options(spec.family.schemes[stored.scheme])
    refuse_contradictions(given, {**info.options, **of_scheme, **stored.options}, free, weights)
    return {**stored.options, **given}


def _pretrained(
    spec: ModelSpec,
    weights: Name,
    scheme: str | None,
    num_classes: int | None,
    in_chans: int | None,
    options: dict[str, Any],
) -> Net:
    """Return a net with weights; the arguments are those of ``create_model``."""
    entry = get_weights(weights, model=spec.name)
    stored = entry.config
    scheme = entry.scheme_for(scheme)
    # the weights' config, with another last layer or stem where asked for
    num_classes = None if num_classes is None else whole_number(num_classes, "num_classes", most=MOST_CLASSES)
    in_chans = None if in_chans is None else whole_number(in_chans, "in_chans", 1, MOST_CHANNELS)
    config = ModelConfig(
        spec.name,
        scheme,
        stored.num_classes if num_classes is None else num_classes,
        stored.in_chans if in_chans is None else in_chans,
        options_with_weights(stored, options, entry.name),
    )
    check_input(entry.transform, spec.input_kind, entry.name)
    entry.check(lambda: build_model(stored))
    # the net; a new last layer needs its random init
    fresh = ("fc.",) if config.num_classes != stored.num_classes else ()
    with contextlib.nullcontext() if fresh else WithoutInit():
        model = build_model(config)
    set_pretrained_cfg(model, spec, stored, entry.transform, entry.classes)
    load_state(model, adapt(entry.load(), stored, model), entry.name, fresh=fresh)
    return model

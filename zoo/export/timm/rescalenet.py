"""Entry points and default configs of timm for the zoo's nets, and what they make.

timm finds an entry point by the name of the model, takes its default configs from the global ``default_cfgs`` of the
module that defines it, and lists it under that module's name: ``timm.list_models(module="rescalenet")``.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, get_pretrained_cfg, register_model
from timm.models._features import FeatureGetterNet
from timm.models._pretrained import PretrainedCfg
from torch import nn

from zoo.errors import ZooError, suggestion
from zoo.export.timm.tags import DEFAULTS, TAGS, Tag, read_tags
from zoo.nets.base import Backbone, ModelConfig
from zoo.pretrained_cfg import describe
from zoo.registry import create_model, list_models, model_info
from zoo.specs import ModelSpec, get_spec
from zoo.weights import ENDINGS, list_weights

__all__ = ["FeatureNet", "create", "default_cfgs", "register"]  # timm appends the names of the nets

default_cfgs: dict[str, Any] = {}  # timm's, by net

_ADDRESSES = ("url", "file", "hf_hub_id", "state_dict")  # entries of a config that name weights for timm's own loader


class UnknownArgument(ZooError, TypeError):
    """Raised for an argument that a net does not take; timm expects a TypeError."""


class FeatureNet(FeatureGetterNet):
    """timm's extractor by ``forward_intermediates``, with a switch for checkpointing."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Store only the inputs of blocks for backward (``zoo.Backbone.set_grad_checkpointing``)."""
        model: Any = self.model
        model.set_grad_checkpointing(enable)


# -- registration ------------------------------------------------------------------------------------


def register(name: str) -> None:
    """Register a net with timm, with all weights that can be loaded by name.

    Args:
        name: name of a registered net that takes images.

    Raises:
        ZooError: unknown name, or a net that takes something else.
    """
    spec = get_spec(name)
    if spec.input_kind != "images":
        raise ZooError(f"{name} takes {spec.input_kind}; timm's models take images")
    tags = read_tags(name)
    sketch = _sketch(spec)
    cfgs: dict[str, Any] = {f"{name}.{tag}": _default_cfg(spec, sketch, entry) for tag, entry in tags.items()}
    default_cfgs.update(generate_default_cfgs(cfgs or {name: _default_cfg(spec, sketch, None)}))
    entry_point = _entry_point(name)
    setattr(sys.modules[__name__], name, entry_point)
    register_model(entry_point)


def _sketch(spec: ModelSpec) -> Backbone:
    """Return a net without memory that has the levels of the registered one; residual nets get one block a stage."""
    layout = spec.layout
    if spec.family.residual and hasattr(layout, "depths"):
        layout = dataclasses.replace(layout, depths=(1,) * len(layout.depths))
    config = ModelConfig(spec.name, spec.supported[0], spec.num_classes, 3, {})
    with torch.device("meta"):
        net = spec.family.build(layout, spec.family.schemes[config.scheme](), config)
    net.config = config
    assert isinstance(net, Backbone)
    return net


def _default_cfg(spec: ModelSpec, sketch: Backbone, tag: Tag | None) -> PretrainedCfg:
    """Return timm's config of a net with the weights of a tag, or without weights."""
    size: dict[str, Any] = {"input_size": spec.input_size, "in_chans": 3 if tag is None else tag.in_chans}
    if tag is None:
        return PretrainedCfg(**describe(sketch, **size, num_classes=spec.num_classes), paper_ids=spec.paper)
    names = tag.classes if tag.url is None else ()  # timm knows ImageNet's
    cfg = describe(sketch, **size, num_classes=len(tag.classes), transform=tag.transform, classes=names)
    if tag.timm_name is None:
        about: dict[str, Any] = {
            "file": tag.weights,
            "license": tag.licence,
            "origin_url": tag.url,
            "paper_ids": spec.paper,
        }
        return PretrainedCfg(**cfg, **about)
    # weights of timm keep what timm knows of them, such as another size at test time
    changed: dict[str, Any] = dict.fromkeys((*_ADDRESSES, "hf_hub_filename", "source", "tag"))
    changed |= {key: cfg[key] for key in ("architecture", "first_conv", "classifier")}
    changed |= {"file": tag.weights, "custom_load": False}
    of_timm: Any = get_pretrained_cfg(tag.timm_name)
    return dataclasses.replace(of_timm, **changed)


def _entry_point(name: str) -> Callable[..., nn.Module]:
    """Return the function that timm calls for a net."""

    def entry_point(pretrained: bool = False, **arguments: Any) -> nn.Module:
        return create(name, pretrained, **arguments)

    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__doc__ = f"Return {name}; the arguments are those of ``zoo.export.timm.rescalenet.create``."
    return entry_point


# -- making nets -------------------------------------------------------------------------------------


def create(
    name: str,
    pretrained: bool = False,
    *,
    pretrained_cfg: str | Mapping[str, Any] | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    pretrained_model_args: Mapping[str, Any] | None = None,
    cache_dir: Any = None,
    features_only: bool = False,
    out_indices: Any = None,
    feature_cls: Any = "getter",
    output_stride: int | None = None,
    device: Any = None,
    dtype: torch.dtype | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    **options: Any,
) -> nn.Module:
    """Return a net of the zoo as ``timm.create_model`` does, or its feature maps.

    Args:
        name: name of a registered net.
        pretrained: whether to load weights.
        pretrained_cfg: tag, a name of weights that ``zoo.create_model`` takes, or timm's config; None for the default.
        pretrained_cfg_overlay: entries that replace those of the config; an address of weights (``file``, ``url``,
            ``hf_hub_id``) is loaded by timm itself, as a state dict of this net.
        pretrained_model_args: arguments of the source of a checkpoint, from timm.
        cache_dir: folder of timm's own downloads; the zoo's is set by ``RESCALENET_HOME``.
        features_only: whether to return the maps of ``out_indices`` as a list, from a ``FeatureNet``.
        out_indices: levels of the maps; None for all.
        feature_cls: only ``getter``: timm's other extractors take a net apart or hook into it, and would give the
            trunk at the scale at which it is stored.
        output_stride: the net's own stride; dilated stages do not exist here.
        device: device of the parameters.
        dtype: type of the parameters.
        num_classes: number of classes; None for the weights' or the net's own.
        in_chans: number of input channels; None for the weights' or 3.
        options: ``scheme``, and options of the net and its scheme (``zoo.model_info(name)``).

    Raises:
        ZooError: an argument that does not fit, with the reason; one that is unknown is a TypeError too.
    """
    _refuse_unknown(name, options)
    getter = feature_cls == "getter" or (isinstance(feature_cls, type) and issubclass(feature_cls, FeatureGetterNet))
    if not getter:
        raise ZooError(f"{name}: feature_cls={feature_cls!r}: must be 'getter'")
    # weights of the zoo come with the net; others are loaded by timm
    weights = _weights(name, pretrained_cfg, pretrained_cfg_overlay) if pretrained else None
    with torch.device(device) if device is not None else nullcontext():
        classes = 0 if features_only else num_classes
        net = create_model(name, weights, num_classes=classes, in_chans=in_chans, **options)
    net = net.to(dtype) if dtype is not None else net
    stride = net.levels[-1].reduction
    if output_stride not in (None, stride):
        raise ZooError(f"{name}: output_stride={output_stride}: must be {stride}; stages are not dilated")
    # a tag that timm knows has its config there
    cfg: Any = pretrained_cfg
    if weights is not None and isinstance(cfg, str) and cfg not in TAGS[name]:
        if net.pretrained_cfg.get("channel_order"):
            raise ZooError(f"weights {weights} expect BGR images and timm gives RGB; load them with zoo.create_model")
        cfg = {**net.pretrained_cfg, "file": weights}
    extractor = FeatureNet if feature_cls == "getter" else feature_cls
    levels = tuple(range(len(net.levels))) if out_indices is None else out_indices
    model = build_model_with_cfg(
        lambda **_: net,
        name,
        pretrained and weights is None,
        pretrained_cfg=cfg,
        pretrained_cfg_overlay=dict(pretrained_cfg_overlay or {}),
        pretrained_model_args=dict(pretrained_model_args or {}),
        cache_dir=cache_dir,
        feature_cfg={"feature_cls": extractor, "out_indices": levels},
        features_only=features_only,
        in_chans=net.in_chans,
        num_classes=net.num_classes,
    )
    model._model_args = {"scheme": net.config.scheme, **net.config.options}  # with which timm builds the net again
    return model


def _refuse_unknown(name: str, options: Mapping[str, Any]) -> None:
    """Check that a net takes the options in one of its schemes.

    Raises:
        UnknownArgument: it does not.
    """
    info = model_info(name)
    known = {"scheme", *info.options, *(key for of_scheme in info.scheme_options.values() for key in of_scheme)}
    for key in options:
        if key not in known:
            raise UnknownArgument(f"{name} takes no argument {key!r}{suggestion(key, sorted(known))}")


def _weights(name: str, cfg: Any, overlay: Mapping[str, Any] | None) -> str | None:
    """Return the name of the weights that the zoo loads; None if timm loads those that the config names.

    Raises:
        ZooError: a tag that is neither one of the net's nor a name of weights.
    """
    if any((overlay or {}).get(key) for key in _ADDRESSES) or not (cfg is None or isinstance(cfg, str)):
        return None
    tag = cfg or DEFAULTS.get(name)
    if tag is None:
        return None
    if tag in TAGS[name]:
        return TAGS[name][tag].weights
    if ":" in tag or tag.endswith(ENDINGS) or tag in list_weights():
        return tag
    raise ZooError(f"{name} has no weights {tag!r}{suggestion(tag, sorted(TAGS[name]))}")


for _name in list_models(input_kind="images"):
    register(_name)

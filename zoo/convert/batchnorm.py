"""Conversion of BatchNorm checkpoints of other projects: keys by ``zoo.convert.layouts``, values by ``rescaled``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.arguments import shown
from zoo.building import WithoutInit, planned
from zoo.convert.layouts import LAYOUTS, Imported
from zoo.convert.layouts.facts import module_facts
from zoo.convert.rescaled import FORMS, SCHEME_OPTIONS, Form, rescaled
from zoo.errors import WeightsError, ZooError, one_line
from zoo.families import ReadsBatchNorm, all_families, find_family
from zoo.modules import evaluating, without_prefixes, without_wrappers
from zoo.nets.base import Backbone
from zoo.options import free_options
from zoo.registry import build_model
from zoo.specs import MODELS, get_spec
from zoo.states import check_shapes, load_state, shapes_of
from zoo.transforms import AnyTransform

log = logging.getLogger("rescalenet")


@dataclass(frozen=True)
class Conversion:
    """A converted net, and what was known about its source.

    Attributes:
        model: the net, of scheme ``rescale``.
        layout: name of the layout of the source.
        form: form of the conversion; None if nothing had to be converted but the names.
        eps: eps of the norms that was used; None if the source has no norm.
        transform: input transform, where the layout fixes it.
        classes: class names in order of the logits, where they were given or the layout fixes them.
    """

    model: Any
    layout: str
    form: Form | None
    eps: float | None
    transform: AnyTransform | None
    classes: tuple[str, ...] | None = None


def from_batchnorm(
    model_or_state_dict: nn.Module | Mapping[str, Tensor],
    name: str | None = None,
    *,
    eps: float | None = None,
    form: Form = "gained",
    **options: Any,
) -> Any:
    """Return a net without normalization that has the outputs and features of a trained net with BatchNorm.

    It is an ordinary net of the zoo: it trains, folds and exports. docs/convert.md lists the sources, derives the
    conversion and compares the forms.

    Args:
        model_or_state_dict: net or state dict of torchvision, timm, detectron2, SlowFast or PyTorchVideo, or a net of
            the zoo with ``scheme="bn"``. The wrappers of torch.compile and of data-parallel training are left out.
        name: name of the net; None to infer it from the shapes.
        eps: eps of the norms; None for the module's own, the layout's, or 1e-5.
        form: ``gained``, ``folded`` or ``balanced`` (``zoo.convert.rescaled``).
        options: options that the keys do not show (``stride_in_1x1``), or of the result (``c``, dropout rates); for
            detectors also ``classes``, see ``tasks.detection.convert``.

    Returns:
        A ``zoo.Backbone`` in the dtype of the source (float32 for half precision), or a detector. It is in the mode of
        the net given, and in eval mode if a state dict was given.

    Raises:
        ZooError: unknown form or option.
        zoo.WeightsError: a source that is not recognised or that no net of the zoo equals, with the reason.
    """
    return convert_batchnorm(model_or_state_dict, name, eps=eps, form=form, **options).model


def convert_batchnorm(
    model_or_state_dict: nn.Module | Mapping[str, Tensor],
    name: str | None = None,
    *,
    eps: float | None = None,
    form: Form = "gained",
    classes: str | Sequence[str] | None = None,
    **options: Any,
) -> Conversion:
    """Return what ``from_batchnorm`` makes, together with what its source shows of the input.

    Args:
        model_or_state_dict: see ``from_batchnorm``, as for the other arguments.
        name: name of the net.
        eps: eps of the norms.
        form: form of the conversion.
        classes: class names in order of the logits, or a word that a family takes; None for the layout's names.
        options: options of the net.

    Raises:
        ZooError: unknown form or option.
        zoo.WeightsError: a source that is not recognised or does not fit.
    """
    if form not in FORMS:
        raise ZooError(f"form={form!r}: must be one of {', '.join(FORMS)}")
    if eps is not None and not (isinstance(eps, int | float) and 0 <= eps < 1):
        raise ZooError(f"eps={eps!r}: must be a number from 0 to 1")
    if not isinstance(name, str | None):
        raise ZooError(f"name={name!r}: must be the name of a net, or None")
    source = without_wrappers(model_or_state_dict)
    done = _conversion(source, name, eps, form, classes, options)
    done.model.train(source.training if isinstance(source, nn.Module) else False)
    return done


def _conversion(
    source: Any,
    name: str | None,
    eps: float | None,
    form: Form,
    classes: str | Sequence[str] | None,
    options: dict[str, Any],
) -> Conversion:
    """Return the conversion of a net of the zoo, of a net of another project, or of a model of a family."""
    # a net of the zoo
    if isinstance(source, Backbone):
        if name not in (None, source.config.name):
            raise ZooError(f"name={name!r}: the net given is {source.config.name}; leave the name out")
        if eps is not None:
            raise ZooError(f"eps={eps}: the net given has an eps in each of its norms; leave it out")
        done = rescaled(source, form, **options)
        return Conversion(done, "RescaleNet model zoo", form, None, None, checked_classes(classes, done.num_classes))
    # a foreign one
    facts = module_facts(source) if isinstance(source, nn.Module) else {}
    state = checked_state(source.state_dict() if isinstance(source, nn.Module) else source)
    own_eps = facts.pop("eps", None)
    eps = own_eps if eps is None else eps
    layout = next((layout for layout in LAYOUTS if layout.matches(state.keys())), None)
    # a model of a family: where its name was asked for, or no layout of nets matches
    asked = None if name is None else find_family(name)
    if layout is None or asked is not None:
        model = source if isinstance(source, nn.Module) else None
        settings = options if classes is None else {**options, "classes": classes}
        for family in all_families() if asked is None else [asked]:
            if not isinstance(family, ReadsBatchNorm):
                continue
            found = family.from_batchnorm(state, name, model=model, eps=eps, form=form, **settings)
            if found is not None:
                return found
        if asked is not None and layout is not None:
            raise WeightsError(f"{layout.name} checkpoint: of a net alone, not of {name}; leave the name out")
        raise WeightsError(_not_known(state))
    of_result = {key: options.pop(key) for key in list(options) if key in _options_of_the_result()}
    for key, value in facts.items():
        if options.setdefault(key, value) != value:
            raise ZooError(f"option {key}={options[key]!r}: the net given has {key}={value!r}; leave it out")
    imported = layout.read(state, name, options)
    used = next(value for value in (eps, imported.eps, 1e-5) if value is not None)
    net = load_imported(imported, used, layout.name)
    names = checked_classes(classes, net.num_classes)
    if isinstance(source, nn.Module) and own_eps in (None, used):  # another eps was asked for: another function
        _compare(source, net)
    return Conversion(rescaled(net, form, **of_result), layout.name, form, used, imported.transform, names)


def checked_classes(classes: str | Sequence[str] | None, count: int) -> tuple[str, ...] | None:
    """Return the class names of a net as they were given.

    Raises:
        ZooError: a word, or something else than a list of texts.
        WeightsError: another number of names than of classes.
    """
    if classes is None:
        return None
    if isinstance(classes, str):
        raise ZooError(f"classes={classes!r}: is for detectors; a net takes a list of names")
    if not isinstance(classes, Sequence) or not all(isinstance(name, str) for name in classes):
        raise ZooError(f"classes={shown(classes)}: must be a list of names, as text")
    if len(classes) != count:
        raise WeightsError(f"{len(classes)} class names for a net with {count} classes")
    return tuple(classes)


def _not_known(state: Mapping[str, Tensor]) -> str:
    """Return the message about a state dict that no layout matches."""
    if any(key.rpartition(".")[2] in ("pre_bias", "multiplier") for key in state):
        return (
            "a state dict of a net of this zoo without norms, which has nothing to convert: load it into its net and "
            "write zoo.save_weights, or take the .safetensors file of the run"
        )
    return (
        f"not a known BatchNorm checkpoint: its first key is {next(iter(state))!r}; "
        f"known are {', '.join(layout.name for layout in LAYOUTS)}, and detectors"
    )


def _options_of_the_result() -> set[str]:
    """Return the names of the options that no weight of the source depends on."""
    of_nets = (free_options(spec.layout) for spec in MODELS.values())
    return set(SCHEME_OPTIONS).union(*of_nets)


def _compare(source: nn.Module, net: Backbone) -> None:
    """Check that a module computes what the net that was read from it computes, as keys do not show a forward.

    Raises:
        WeightsError: a module that cannot be run, or other outputs.
    """
    spec = get_spec(net.config.name)
    side = max(65, spec.min_size)  # odd, so that incomplete windows differ too
    frames = () if spec.frames is None else (5,)
    like = next(source.parameters())
    x = torch.randn(2, net.config.in_chans, *frames, side, side, generator=torch.Generator().manual_seed(0))
    try:
        with evaluating(source), torch.no_grad():
            theirs = source(x.to(like))
            ours = net(x.to(next(net.parameters()))) if isinstance(theirs, Tensor) else None
    except Exception as error:  # a stranger's forward
        raise WeightsError(
            f"{type(source).__name__} does not run on images of {side} px ({one_line(error)}), so its outputs cannot "
            "be compared; give its state_dict() if its forward is that of a plain net"
        ) from None
    if not isinstance(theirs, Tensor) or ours is None or theirs.shape != ours.shape:
        raise WeightsError(
            f"{type(source).__name__} does not return logits ({net.config.num_classes} classes), so its outputs cannot "
            "be compared; give its state_dict() if its forward is that of a plain net"
        )
    if not torch.isfinite(theirs).all():
        log.info("%s has outputs that are not finite, so the conversion is not compared with it", type(source).__name__)
        return
    difference = float((ours.to(theirs) - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))
    if not difference < (1e-3 if theirs.dtype in (torch.float32, torch.float64) else 0.1):
        raise WeightsError(
            f"{type(source).__name__} computes something else than {net.config.name} with its weights: outputs differ "
            f"by {difference:.2g} of the largest; its forward is not that of a plain net"
        )


def checked_state(state: Any) -> dict[str, Tensor]:
    """Return a state dict whose floating-point tensors are float32 or float64, without prefixes that all keys have.

    Raises:
        zoo.WeightsError: anything but a mapping of names to real tensors.
    """
    if not isinstance(state, Mapping) or not state:
        raise WeightsError(f"a checkpoint of type {type(state).__name__}: must be a net, or a state dict with tensors")
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise WeightsError(
                f"{key!r} of the checkpoint is a {type(value).__name__}, not a tensor; give the state dict inside"
            )
        if value.is_complex():
            raise WeightsError(f"{key!r} of the checkpoint is complex: must be real")
    if not any(value.is_floating_point() for value in state.values()):
        raise WeightsError("the checkpoint has whole numbers only: must have floating-point weights")
    return without_prefixes(
        {
            str(key): value.float() if value.is_floating_point() and value.element_size() < 4 else value
            for key, value in state.items()
        }
    )


def load_imported(imported: Imported, eps: float, source: str) -> Backbone:
    """Return the net of the zoo that a foreign checkpoint is, with its norms.

    Args:
        imported: content of the checkpoint in our keys.
        eps: eps of the norms.
        source: name of the layout, for messages.

    Raises:
        zoo.WeightsError: tensors that do not fit or have no values.
    """
    skeleton = planned(lambda: build_model(imported.config), source)
    check_shapes(shapes_of(skeleton.state_dict()), shapes_of(imported.state), source)
    if any(value.is_meta for value in imported.state.values()):
        raise WeightsError(
            f"{source} checkpoint: its tensors are on the meta device and have no values; load them first"
        )
    with WithoutInit():
        net = build_model(imported.config)
    assert isinstance(net, Backbone)
    floats = [value for value in imported.state.values() if value.is_floating_point()]
    net.to(floats[0].dtype)
    load_state(net, imported.state, source)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.eps = eps
    return net.eval()

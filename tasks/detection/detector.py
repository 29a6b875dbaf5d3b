"""Faster and Mask R-CNN by name: ``faster_rcnn_<backbone>_fpn`` and ``mask_rcnn_<backbone>_fpn``.

``FAMILY`` is registered in the entry-point group ``rescalenet.families``, so ``zoo.create_model`` makes them too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

import zoo
from tasks.detection.build import IMAGENET, build_detector, check_options, parse_name
from tasks.detection.convert import from_batchnorm
from tasks.detection.from_detectron2 import read_own
from tasks.detection.rcnn import Detector, DetectorOptions, Standardize, Target
from zoo.arguments import shown, whole_number
from zoo.building import WithoutInit
from zoo.convert import Conversion, Form
from zoo.errors import WeightsError, ZooError
from zoo.families import Family
from zoo.options import free_options, refuse_contradictions
from zoo.registry import options_with_weights
from zoo.specs import MODELS, TASKS, ModelInfo
from zoo.states import frozen_statistics, load_state
from zoo.transforms import LONGEST_SIDE, AnyTransform, DetectionTransform
from zoo.weights import weight_tags

__all__ = ["FAMILY", "Detector", "DetectorOptions", "Standardize", "Target", "create_detector"]

log = logging.getLogger("rescalenet")

CLASSES = 80  # COCO's, without the background
_PAPERS = {"faster": "https://arxiv.org/abs/1506.01497", "mask": "https://arxiv.org/abs/1703.06870"}
_PREDICTORS = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.")


def create_detector(
    name: str,
    weights: str | None = None,
    *,
    weights_backbone: str | None = None,
    scheme: str | None = None,
    num_classes: int | None = None,
    min_size: int | None = None,
    max_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: Any,
) -> Detector:
    """Create a detector by name: fresh, on a pretrained backbone, or with weights of its own.

    ``zoo.create_model`` calls this function for names of detectors.

    Args:
        name: ``faster_rcnn_BACKBONE_fpn`` or ``mask_rcnn_BACKBONE_fpn``, with a net for images as backbone.
        weights: weights of the whole detector: a tag, ``name.tag`` or a path ending in ``.safetensors``.
        weights_backbone: weights of the backbone alone, as ``zoo.create_model`` accepts them.
        scheme: scheme of the backbone, and of the heads if they are ``4conv1fc``; None for the weights' or ``rescale``.
        num_classes: number of classes without the background; None for the weights' or COCO's 80. Another number than
            the weights' gives new last layers, which is logged.
        min_size: short side of images in evaluation, in pixels; None for the weights' or 800.
        max_size: limit of the long side in evaluation, in pixels; None for the weights' or 1333.
        mean: mean of each channel of the input on the 0..1 scale; None for the weights' or ImageNet's.
        std: standard deviation of each channel likewise.
        options: fields of ``DetectorOptions``.

    Raises:
        ZooError: the name or an option is unknown, or an option contradicts the weights.
        zoo.WeightsError: weights are missing, damaged or do not fit.
    """
    _, backbone = parse_name(name)
    if weights is not None and weights_backbone is not None:
        raise ZooError("weights and weights_backbone: a detector's weights contain the backbone's; give one of them")
    # Take from the weights: options, scheme, classes and input.
    entry = None
    source: AnyTransform = IMAGENET
    if weights is not None:
        entry = zoo.get_weights(weights, model=name)
        entry.check(lambda: _build(entry.config))
        source, stored = entry.transform, entry.config.options
        check_options(name, {**stored, **options})  # unknown options come before contradictions
        known = dataclasses.asdict(check_options(name, stored))
        refuse_contradictions(options, known, free_options(DetectorOptions) | {"body"}, entry.name)
        if body := options.get("body"):
            of_weights = zoo.ModelConfig(backbone, entry.config.scheme, 0, 3, known["body"])
            options["body"] = options_with_weights(of_weights, body, entry.name)
        scheme = entry.scheme_for(scheme)
        options = {**stored, **options}
        num_classes = entry.config.num_classes if num_classes is None else num_classes
    elif weights_backbone is not None:
        source = zoo.get_weights(weights_backbone, model=backbone).transform
    checked = check_options(name, options)
    if scheme == "frozen_bn" and checked.heads == "4conv1fc":
        raise ZooError("heads='4conv1fc' with scheme 'frozen_bn': heads have no statistics to freeze; use '2fc'")
    # Make the backbone. With weights of the detector its state is loaded below.
    classes = CLASSES if num_classes is None else num_classes
    fresh = _PREDICTORS if entry is not None and classes != entry.config.num_classes else ()
    with WithoutInit() if entry is not None and not fresh else contextlib.nullcontext():
        if entry is None:
            net = zoo.create_model(backbone, weights_backbone, scheme=scheme, num_classes=0, **checked.body)
        else:
            assert scheme is not None
            net = zoo.build_model(zoo.ModelConfig(backbone, scheme, 0, 3, checked.body))
        # Make the detector.
        if not isinstance(source, zoo.InputTransform | DetectionTransform):
            raise WeightsError(f"{weights or weights_backbone}: has a {source.kind} transform; must be of images")
        input = _input_transform(source, min_size, max_size, mean, std, fixed=weights or weights_backbone)
        model = build_detector(name, net, classes, options, input)
    if entry is not None:
        _load(model, entry, fresh)
    return model


def _build(config: zoo.ModelConfig) -> Detector:
    """Return a fresh detector of any scheme from its config, with the default input.

    Raises:
        ZooError: an unknown name or option, or a wrong value.
    """
    checked = check_options(config.name, config.options)
    net = zoo.build_model(zoo.ModelConfig(parse_name(config.name)[1], config.scheme, 0, config.in_chans, checked.body))
    assert isinstance(net, zoo.Backbone)
    return build_detector(config.name, net, config.num_classes, config.options, IMAGENET)


def _load(model: Detector, entry: zoo.Weights, fresh: tuple[str, ...]) -> None:
    """Load the detector's weights. Keys that begin with ``fresh`` stay as initialised, which is logged."""
    state, config = entry.load(), model.config
    if fresh:
        log.info("new last layers: %d classes instead of the weights' %d", config.num_classes, entry.config.num_classes)
        state = {key: value for key, value in state.items() if not key.startswith(fresh)}
    state = frozen_statistics(state, entry.config.scheme, config.scheme)
    load_state(model, state, entry.name, fresh=fresh)


def _input_transform(
    source: DetectionTransform | zoo.InputTransform,
    min_size: int | None,
    max_size: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    *,
    fixed: str | None,
) -> DetectionTransform:
    """Make the input transform of a detector.

    Args:
        source: transform of the weights, or the default one; its channel order stays.
        min_size: short side, or None for the source's.
        max_size: limit of the long side, or None for the source's.
        mean: mean of each channel, or None for the source's.
        std: standard deviation of each channel, or None for the source's.
        fixed: name of weights that were trained with the mean and std of ``source``; None if there are none.

    Raises:
        ZooError: a mean or std contradicts the weights.
    """
    for key, side in {"min_size": min_size, "max_size": max_size}.items():
        if side is not None:
            whole_number(side, f"{key} in pixels", 1, LONGEST_SIDE)
    for key, given in {"mean": mean, "std": std}.items():
        if given is not None and (
            isinstance(given, str) or not isinstance(given, Iterable) or not getattr(given, "ndim", 1)
        ):
            raise ZooError(f"{key}={shown(given)}: must be one number for each channel")
    for key, given, stored in (("mean", mean, source.mean), ("std", std, source.std)):
        if fixed is not None and given is not None and tuple(given) != tuple(stored):
            raise ZooError(f"weights {fixed} were trained with {key}={stored}, not {tuple(given)}; leave it out")
    sizes = source if isinstance(source, DetectionTransform) else IMAGENET
    return DetectionTransform(
        min_size or sizes.min_size,
        max_size or max(sizes.max_size, min_size or 0),
        tuple(source.mean if mean is None else mean),
        tuple(source.std if std is None else std),
        source.channel_order,
    )


class DetectorFamily:
    """The detectors as a family of ``zoo``'s registry; its methods are described in ``zoo.families.Family``."""

    def names(self) -> list[str]:
        """Return both kinds of detectors on every registered net for images."""
        nets = [name for name, spec in MODELS.items() if spec.input_kind == "images"]
        return [f"{kind}_rcnn_{net}_fpn" for kind in _PAPERS for net in nets]

    def info(self, name: str) -> ModelInfo:
        """Return the ``zoo.model_info`` of a detector; the backbone's own options are given as the option ``body``."""
        kind, backbone = parse_name(name)
        body = zoo.model_info(backbone)
        return ModelInfo(
            name=name,
            family=Detector.__name__,
            schemes=body.schemes,
            options=dataclasses.asdict(DetectorOptions()),
            scheme_options={scheme: {} for scheme in body.schemes},
            weights=weight_tags(name),
            input_kind="image_lists",
            task=TASKS["image_lists"],
            num_classes=CLASSES,
            input_size=IMAGENET.min_size,
            min_size=body.min_size,
            frames=None,
            paper=_PAPERS[kind],
        )

    def create(self, name: str, weights: str | None = None, **options: Any) -> Detector:
        """Create a detector for ``zoo.create_model``; see ``create_detector``."""
        return create_detector(name, weights, **options)

    def build(self, config: zoo.ModelConfig) -> Detector:
        """Return a fresh detector of any scheme from its config, with the default input."""
        return _build(config)

    def from_batchnorm(
        self,
        state: Mapping[str, Tensor],
        name: str | None,
        *,
        model: nn.Module | None,
        eps: float | None,
        form: Form,
        **options: Any,
    ) -> Conversion | None:
        """Return the conversion of a detector; see ``tasks.detection.convert.from_batchnorm``."""
        return from_batchnorm(state, name, model=model, eps=eps, form=form, **options)

    def from_detectron2(
        self,
        state: Mapping[str, Tensor],
        name: str,
        *,
        net: zoo.Backbone,
        transform: zoo.InputTransform | DetectionTransform,
        source: str,
        **options: Any,
    ) -> Conversion:
        """Return the detector that detectron2 trained; see ``tasks.detection.from_detectron2.read_own``."""
        return read_own(state, name, net=net, transform=transform, source=source, **options)


FAMILY: Family = DetectorFamily()

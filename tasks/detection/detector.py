"""Faster and Mask R-CNN by name: ``faster_rcnn_<backbone>_fpn`` and ``mask_rcnn_<backbone>_fpn``.

torchvision's detection framework (anchors, proposals, sampling, losses, post-processing) around a backbone of the zoo.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

import zoo
from tasks.detection.fpn import BodyWithFPN
from tasks.detection.heads import ConvsLinear, HeadStyle, TwoLinear, box_predictor, conv_stack, mask_predictor
from zoo.errors import ZooError, suggestion
from zoo.families import Family
from zoo.options import free, free_options, plain, refuse_contradictions
from zoo.specs import MODELS, TASKS, ModelInfo
from zoo.states import frozen_statistics, load_state
from zoo.transforms import IMAGENET_MEAN, IMAGENET_STD, AnyTransform, DetectionTransform
from zoo.weights import weight_tags

log = logging.getLogger("rescalenet")

Target = dict[str, Tensor]
IMAGENET = DetectionTransform(800, 1333, IMAGENET_MEAN, IMAGENET_STD)
CLASSES = 80  # COCO's, without the background
_PAPERS = {"faster": "https://arxiv.org/abs/1506.01497", "mask": "https://arxiv.org/abs/1703.06870"}
_NAME = re.compile(r"(faster|mask)_rcnn_(.+)_fpn")
_PREDICTORS = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.")


@dataclass(frozen=True)
class DetectorOptions:
    """Options of a detector; the defaults are torchvision's and detectron2's.

    Attributes:
        heads: style of the heads, ``2fc`` or ``4conv1fc`` (``tasks.detection.heads``).
        out_indices: feature levels of the backbone; None for the last four strides it has.
        fpn_channels: channels of the pyramid.
        box_width: width of the box head's linear layers.
        box_convs: channels of the box head's convolutions (4conv1fc only).
        mask_convs: channels of the mask head's convolutions.
        mask_width: channels of the mask head's upsampling layer.
        anchor_scale: side of a level's anchors over its stride.
        aspect_ratios: heights of anchors over their widths.
        canonical_size: side in pixels of the boxes that are pooled from the level of stride 16.
        rpn_samples: anchors that each image is trained on.
        box_samples: proposals that each image is trained on.
        proposals_train: proposals after the RPN's non-maximum suppression, in training.
        proposals_test: the same in evaluation.
        score_thresh: smallest score of a final box.
        nms_thresh: largest IoU of two final boxes of a class.
        detections: largest number of final boxes of an image.
        body: options of the backbone and its scheme, as ``zoo.create_model`` accepts them.
    """

    heads: HeadStyle = "2fc"
    out_indices: tuple[int, ...] | None = None
    fpn_channels: int = 256
    box_width: int = 1024
    box_convs: tuple[int, ...] = (256, 256, 256, 256)
    mask_convs: tuple[int, ...] = (256, 256, 256, 256)
    mask_width: int = 256
    anchor_scale: float = 8.0
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    canonical_size: int = 224
    # sampling and post-processing: no weight depends on them
    rpn_samples: int = free(256)
    box_samples: int = free(512)
    proposals_train: int = free(2000)
    proposals_test: int = free(1000)
    score_thresh: float = free(0.05)
    nms_thresh: float = free(0.5)
    detections: int = free(100)
    body: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = ("fpn_channels", "box_width", "mask_width", "anchor_scale", "canonical_size")
        counts = ("rpn_samples", "box_samples", "proposals_train", "proposals_test", "detections")
        for field in sizes + counts:
            if not getattr(self, field) > 0:
                raise ZooError(f"option {field}={getattr(self, field)}: must be greater than 0")
        if not self.mask_convs or not self.aspect_ratios or min(*self.mask_convs, *self.aspect_ratios) <= 0:
            raise ZooError("options mask_convs and aspect_ratios: at least one value each, greater than 0")


class Standardize(GeneralizedRCNNTransform):
    """torchvision's transform in and out of the net, with a channel order and without resizing in training.

    The augmentation sets the sizes of training images; resizing masks again would blur them.

    Args:
        transform: sizes, mean, standard deviation and channel order.
        size_divisible: number that the padded sides of a batch are multiples of.
    """

    def __init__(self, transform: DetectionTransform, size_divisible: int) -> None:
        mean, std = list(transform.mean), list(transform.std)
        super().__init__(transform.min_size, transform.max_size, mean, std, size_divisible, _skip_resize=True)
        self.reverse = transform.channel_order == "BGR"

    def normalize(self, image: Tensor) -> Tensor:
        return super().normalize(image.flip(0) if self.reverse else image)

    def resize(self, image: Tensor, target: Target | None = None) -> tuple[Tensor, Target | None]:
        """The image with its short side at ``min_size`` and its long side at most ``max_size``.

        Sizes are computed in integers, so that an exported net rounds as Python does.
        """
        if self.training:
            return image, target
        tracing = torch.jit.is_tracing()
        sides = torch._shape_as_tensor(image)[-2:] if tracing else torch.tensor(image.shape[-2:])
        by_short = sides * self.min_size[-1] // sides.min()
        size: Any = torch.minimum(by_short, sides * self.max_size // sides.max()).clamp(min=1).unbind()
        if not tracing:
            size = [int(side) for side in size]
        resized = F.interpolate(image[None], size=tuple(size), mode="bilinear", align_corners=False)[0]
        return resized, target


class Detector(GeneralizedRCNN):
    """A detector of torchvision's form.

    ``model(images, targets)`` in training mode gives a dict of losses, ``model(images)`` in eval mode a list of dicts
    with ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels of the image, ``labels`` (N,) from 1, ``scores`` (N,) and, for
    Mask R-CNN, ``masks`` (N, 1, H, W) of probabilities. Images are float RGB tensors (3, H, W) in 0..1; targets have
    ``boxes``, ``labels`` and, for Mask R-CNN, ``masks`` (N, H, W).

    An image's detections do not depend on its batch-mates: in eval mode, images of different sizes go through the
    net apart, so that none is padded to another's size.

    Attributes:
        config: name, scheme, classes and options.
        num_classes: number of classes without the background.
        input: input transform.

    Args:
        config: config that ``create_detector`` makes.
        body: backbone.
        options: options of the detector.
        input: input transform.
    """

    backbone: BodyWithFPN

    def __init__(
        self,
        config: zoo.ModelConfig,
        body: zoo.FeatureExtractor,
        options: DetectorOptions,
        input: DetectionTransform,
    ) -> None:
        # backbone with its pyramid; a scheme for the layers around it only with 4conv1fc
        scheme = body.body.scheme if options.heads == "4conv1fc" else None
        backbone = BodyWithFPN(body, options.fpn_channels, plain=scheme is None)
        classes = config.num_classes + 1
        levels = backbone.names[:-1]

        def pool(size: int) -> MultiScaleRoIAlign:
            return MultiScaleRoIAlign(levels, size, sampling_ratio=2, canonical_scale=options.canonical_size)

        # region proposals
        anchors = AnchorGenerator(
            tuple((int(options.anchor_scale * stride),) for stride in backbone.strides),
            (options.aspect_ratios,) * len(backbone.strides),
        )
        rpn = RegionProposalNetwork(
            anchors,
            RPNHead(options.fpn_channels, len(options.aspect_ratios)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=options.rpn_samples,
            positive_fraction=0.5,
            pre_nms_top_n={"training": options.proposals_train, "testing": options.proposals_test},
            post_nms_top_n={"training": options.proposals_train, "testing": options.proposals_test},
            nms_thresh=0.7,
        )
        # heads for boxes and, for Mask R-CNN, masks
        box_head: nn.Module
        if scheme is None:
            box_head = TwoLinear(options.fpn_channels, 7, options.box_width)
        else:
            box_head = ConvsLinear(options.fpn_channels, 7, options.box_convs, options.box_width, scheme)
        heads = RoIHeads(
            pool(7),
            box_head,
            box_predictor(options.box_width, classes),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=options.box_samples,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=options.score_thresh,
            nms_thresh=options.nms_thresh,
            detections_per_img=options.detections,
        )
        if _split(config.name)[0] == "mask":
            heads.mask_roi_pool = pool(14)
            heads.mask_head = conv_stack(options.fpn_channels, options.mask_convs, scheme)
            heads.mask_predictor = mask_predictor(options.mask_convs[-1], options.mask_width, classes)
        super().__init__(backbone, rpn, heads, Standardize(input, backbone.strides[-2]))
        self.config, self.num_classes, self.input = config, config.num_classes, input

    @property
    def has_masks(self) -> bool:
        """Whether it is a Mask R-CNN."""
        return self.roi_heads.has_mask()

    def freeze(self, levels: int) -> None:
        """Freeze the first ``levels`` (0 to 5) of stem and stages; see ``zoo.FeatureExtractor.freeze``."""
        self.backbone.body.freeze(levels)

    def forward(self, images: Sequence[Tensor], targets: list[Target] | None = None) -> Any:
        if self.training or len(images) == 1:
            return super().forward(list(images), targets)
        sizes = {image.shape for image in images}
        found: list[Any] = [None] * len(images)
        for size in sizes:
            indices = [i for i, image in enumerate(images) if image.shape == size]
            for i, result in zip(indices, super().forward([images[i] for i in indices]), strict=True):
                found[i] = result
        return found

    def calibration_pass(self, images: Sequence[Tensor], targets: list[Target]) -> None:
        """The forward that ``zoo.calibrate`` observes: heads on true boxes and on the RPN's first 64 proposals.

        Args:
            images: images in the size of training.
            targets: true boxes of each image.
        """
        self.transform.train()  # training images come in their final size
        batch, _ = self.transform(list(images))
        features = self.backbone(batch.tensors)
        proposals, _ = self.rpn(batch, features)
        true = [target["boxes"].to(boxes) for target, boxes in zip(targets, proposals, strict=True)]
        mixed = [torch.cat([boxes, others[:64]]) for boxes, others in zip(true, proposals, strict=True)]
        heads = self.roi_heads
        heads.box_predictor(heads.box_head(heads.box_roi_pool(features, mixed, batch.image_sizes)))
        if self.has_masks:
            positives = true if sum(map(len, true)) else mixed
            heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, positives, batch.image_sizes)))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that take no weight decay."""
        return zoo.nets.base.no_weight_decay(self)


def is_detector(name: str) -> bool:
    """Whether ``create_detector`` makes the models of this name."""
    return _NAME.fullmatch(name) is not None


def _split(name: str) -> tuple[str, str]:
    """Kind (faster or mask) and backbone of a detector's name.

    Raises:
        ZooError: not a detector's name, or a backbone that does not take images.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ZooError(f"unknown detector {name!r}: must be faster_rcnn_BACKBONE_fpn or mask_rcnn_BACKBONE_fpn")
    if (kind := zoo.model_info(match[2]).input_kind) != "images":
        raise ZooError(f"{name}: {match[2]} takes {kind}, not images")
    return match[1], match[2]


def _options(name: str, values: dict[str, Any]) -> DetectorOptions:
    """Checked options.

    Raises:
        ZooError: an unknown option (with near matches) or a value of the wrong type.
    """
    known = [field.name for field in dataclasses.fields(DetectorOptions)]
    for key in values:
        if key not in known:
            raise ZooError(f"{name} has no option {key!r}{suggestion(key, known)}")
    try:
        return pydantic.TypeAdapter(DetectorOptions).validate_python(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # the message of __post_init__
            raise ZooError(f"{name}: {first['msg'].removeprefix('Value error, ')}") from None
        raise ZooError(f"{name}: option {first['loc'][0]}={first['input']!r}: {first['msg']}") from None


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
    """A detector by name, fresh, on a pretrained backbone, or with weights of its own.

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
        ZooError: unknown name or option, or one that contradicts the weights.
        zoo.WeightsError: weights that are missing, damaged or do not fit.
    """
    _, backbone = _split(name)
    if weights is not None and weights_backbone is not None:
        raise ZooError("weights and weights_backbone: a detector's weights contain the backbone's; give one of them")
    # what the weights fix: options, scheme, classes and input
    entry = None
    source: AnyTransform = IMAGENET
    if weights is not None:
        entry = zoo.get_weights(weights, model=name)
        source, stored = entry.transform, entry.config.options
        _options(name, {**stored, **options})  # refuses unknown options
        known = dataclasses.asdict(_options(name, stored))
        refuse_contradictions(options, known, free_options(DetectorOptions), entry.name)
        scheme = entry.scheme_for(scheme)
        options = {**stored, **options}
        num_classes = entry.config.num_classes if num_classes is None else num_classes
    elif weights_backbone is not None:
        source = zoo.get_weights(weights_backbone, model=backbone).transform
    checked = _options(name, options)
    if scheme == "frozen_bn" and checked.heads == "4conv1fc":
        raise ZooError("heads='4conv1fc' with scheme 'frozen_bn': heads have no statistics to freeze; use '2fc'")
    # the backbone; with weights of the detector its state is loaded below
    if entry is None:
        net = zoo.create_model(backbone, weights_backbone, scheme=scheme, num_classes=0, **checked.body)
    else:
        assert scheme is not None
        net = zoo.build_model(zoo.ModelConfig(backbone, scheme, 0, 3, checked.body))
    assert isinstance(net, zoo.Backbone)
    indices = _last_strides(net) if checked.out_indices is None else checked.out_indices
    # the detector
    assert isinstance(source, zoo.InputTransform | DetectionTransform)
    input = _input(source, min_size, max_size, mean, std, fixed=weights or weights_backbone)
    config = zoo.ModelConfig(
        name,
        net.config.scheme,
        CLASSES if num_classes is None else num_classes,
        3,
        {**plain(options), "body": dict(net.config.options)},
    )
    if config.num_classes < 1:
        raise ZooError(f"num_classes={config.num_classes}: must be at least 1 (the background does not count)")
    model = Detector(config, zoo.FeatureExtractor(net, indices), checked, input)
    if entry is not None:
        _load(model, entry)
    return model


def _load(model: Detector, entry: zoo.Weights) -> None:
    """Load the detector's weights; other classes keep the last layers' initialization, which is logged."""
    state, config = entry.load(), model.config
    fresh: tuple[str, ...] = ()
    if config.num_classes != entry.config.num_classes:
        fresh = _PREDICTORS
        log.info("new last layers: %d classes instead of the weights' %d", config.num_classes, entry.config.num_classes)
        state = {key: value for key, value in state.items() if not key.startswith(fresh)}
    state = frozen_statistics(state, entry.config.scheme, config.scheme)
    load_state(model, state, entry.name, fresh=fresh)


def _last_strides(net: zoo.Backbone) -> tuple[int, ...]:
    """The deepest level of each stride, of the last four strides."""
    deepest = {level.reduction: i for i, level in enumerate(net.levels)}
    return tuple(deepest.values())[-4:]


def _input(
    source: DetectionTransform | zoo.InputTransform,
    min_size: int | None,
    max_size: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    *,
    fixed: str | None,
) -> DetectionTransform:
    """The input transform of a detector.

    Args:
        source: transform of the weights, or the default one; its channel order stays.
        min_size: short side that was asked for.
        max_size: limit of the long side that was asked for.
        mean: mean that was asked for.
        std: standard deviation that was asked for.
        fixed: name of weights that were trained with the mean and std of ``source``; None if there are none.

    Raises:
        ZooError: a mean or std that contradicts the weights.
    """
    for key, asked, stored in (("mean", mean, source.mean), ("std", std, source.std)):
        if fixed is not None and asked is not None and tuple(asked) != tuple(stored):
            raise ZooError(f"weights {fixed} were trained with {key}={stored}, not {tuple(asked)}; leave it out")
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
        """Both kinds of detectors on every registered net for images."""
        nets = [name for name, spec in MODELS.items() if spec.input_kind == "images"]
        return [f"{kind}_rcnn_{net}_fpn" for kind in _PAPERS for net in nets]

    def info(self, name: str) -> ModelInfo:
        """What ``zoo.model_info`` returns; the backbone's own options are given as the option ``body``."""
        kind, backbone = _split(name)
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
        """What ``zoo.create_model`` returns: see ``create_detector``."""
        return create_detector(name, weights, **options)


FAMILY: Family = DetectorFamily()

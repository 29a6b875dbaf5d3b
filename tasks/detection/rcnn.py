"""Faster and Mask R-CNN around a backbone of the zoo.

The framework (anchors, proposals, sampling, losses, post-processing) is torchvision's.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

import zoo
from tasks.detection.conventions import AlignedPool, ExactAnchors, RoundedAnchors, paste_at_centres
from tasks.detection.found import Found, masks_in_boxes
from tasks.detection.fpn import BodyWithFPN
from tasks.detection.heads import (
    ConvsLinear,
    HeadStyle,
    ProposalHead,
    TwoLinear,
    box_predictor,
    conv_stack,
    mask_predictor,
)
from tasks.detection.views import View, detect_in_views
from zoo.errors import ZooError
from zoo.options import free
from zoo.transforms import DetectionTransform

Target = dict[str, Tensor]
AT_ONCE = 256  # objects whose masks are computed at a time


@dataclass(frozen=True)
class DetectorOptions:
    """Options of a detector; the defaults are torchvision's and detectron2's.

    Attributes:
        heads: style of the heads, ``2fc`` or ``4conv1fc`` (``tasks.detection.heads``).
        out_indices: feature levels of the backbone; None for the last four strides it has.
        fpn_channels: channels of the pyramid.
        rpn_convs: 3x3 convolutions of the region proposal network.
        box_width: width of the box head's linear layers.
        box_convs: channels of the box head's convolutions (4conv1fc only).
        mask_convs: channels of the mask head's convolutions.
        mask_width: channels of the mask head's upsampling layer.
        anchor_scale: side of a level's anchors over its stride.
        aspect_ratios: heights of anchors over their widths.
        conventions: whether anchors, RoI pooling and masks are torchvision's or detectron2's
            (``tasks.detection.conventions``).
        canonical_size: side in pixels of the boxes that are pooled from the level of stride 16.
        rpn_samples: anchors that each image is trained on.
        box_samples: proposals that each image is trained on.
        proposals_train: proposals after the RPN's non-maximum suppression, in training.
        proposals_test: proposals after the RPN's non-maximum suppression, in evaluation.
        score_thresh: smallest score of a final box.
        nms_thresh: largest IoU of two final boxes of a class.
        detections: largest number of final boxes of an image.
        body: options of the backbone and its scheme, as ``zoo.create_model`` accepts them.
    """

    heads: HeadStyle = "2fc"
    out_indices: tuple[int, ...] | None = None
    fpn_channels: int = 256
    rpn_convs: int = 1
    box_width: int = 1024
    box_convs: tuple[int, ...] = (256, 256, 256, 256)
    mask_convs: tuple[int, ...] = (256, 256, 256, 256)
    mask_width: int = 256
    anchor_scale: float = 8.0
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    conventions: Literal["torchvision", "detectron2"] = "torchvision"
    canonical_size: int = 224
    # Sampling and post-processing are free to change: no weight depends on them.
    rpn_samples: int = free(256)
    box_samples: int = free(512)
    proposals_train: int = free(2000)
    proposals_test: int = free(1000)
    score_thresh: float = free(0.05)
    nms_thresh: float = free(0.5)
    detections: int = free(100)
    body: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = ("fpn_channels", "rpn_convs", "box_width", "mask_width", "anchor_scale", "canonical_size")
        counts = ("rpn_samples", "box_samples", "proposals_train", "proposals_test", "detections")
        for field in sizes + counts:
            if not getattr(self, field) > 0:
                raise ZooError(f"option {field}={getattr(self, field)}: must be > 0")
        for field in ("mask_convs", "aspect_ratios"):
            if not all(value > 0 for value in getattr(self, field) or (0,)):
                raise ZooError(f"option {field}={getattr(self, field)}: must be one or more values > 0")
        if not all(value > 0 for value in self.box_convs):
            raise ZooError(f"option box_convs={self.box_convs}: must be values > 0")


class Standardize(GeneralizedRCNNTransform):
    """torchvision's transform in and out of the net, with a channel order and without resizing in training.

    The augmentation sets the sizes of training images; resizing masks again would blur them.

    Args:
        transform: sizes, mean, standard deviation and channel order.
        size_divisible: number that the padded sides of a batch are multiples of.
        exact_masks: whether masks are sampled at the centres of pixels, as detectron2 does, instead of pasted at whole
            pixels.

    Attributes:
        whole_masks: whether masks are pasted into images; otherwise ``postprocess`` leaves them in their boxes.
    """

    def __init__(self, transform: DetectionTransform, size_divisible: int, *, exact_masks: bool = False) -> None:
        mean, std = list(transform.mean), list(transform.std)
        super().__init__(transform.min_size, transform.max_size, mean, std, size_divisible, _skip_resize=True)
        self.reverse = transform.channel_order == "BGR"
        self.exact_masks, self.whole_masks = exact_masks, True

    def normalize(self, image: Tensor) -> Tensor:
        """Standardise an RGB image (3, H, W), in the channel order of the transform."""
        image = image.flip(0) if self.reverse else image
        mean, std = (
            torch.as_tensor(values, dtype=image.dtype, device=image.device)[:, None, None]
            for values in (self.image_mean, self.image_std)
        )
        return (image - mean).div_(std)  # in place: a copy of a photograph takes 300 MB

    def resize(self, image: Tensor, target: Target | None = None) -> tuple[Tensor, Target | None]:
        """Resize an image to a short side of ``min_size``, or less where the long side would exceed ``max_size``.

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

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Return detections in pixels of the images as they were given, with masks of their size."""
        if self.whole_masks and not self.exact_masks:
            return super().postprocess(result, image_shapes, original_image_sizes)
        masks = [found.pop("masks") for found in result if "masks" in found]
        result = super().postprocess(result, image_shapes, original_image_sizes)
        for found, mask, size in zip(result, masks, original_image_sizes, strict=False):
            found["masks"] = paste_at_centres(mask, found["boxes"], size) if self.whole_masks else mask
        return result


class Heads(RoIHeads):
    """torchvision's heads, with a threshold for each class and masks that are computed some at a time.

    Attributes:
        thresholds: lowest score of each label, the background's first, (classes,); None: ``score_thresh`` for all.
    """

    thresholds: Tensor | None = None
    score_thresh: float
    detections_per_img: int
    mask_roi_pool: Any
    mask_head: Any
    mask_predictor: Any

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[Target] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return the detections of each image, with masks (N, 1, m, m) in their boxes, and the losses in training."""
        if self.training or not self.has_mask() or torch.jit.is_tracing():
            return super().forward(features, proposals, image_shapes, targets)
        pool = self.mask_roi_pool
        self.mask_roi_pool = None  # torchvision computes the boxes
        try:
            found, losses = super().forward(features, proposals, image_shapes, targets)
        finally:
            self.mask_roi_pool = pool
        for i, (one, size) in enumerate(zip(found, image_shapes, strict=True)):
            own = {name: level[i : i + 1] for name, level in features.items()}
            one["masks"] = self.masks_of(own, one["boxes"], one["labels"], size)
        return found, losses

    def masks_of(self, features: dict[str, Tensor], boxes: Tensor, labels: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the probabilities (N, 1, m, m) of the masks in boxes (N, 4) of an image.

        The layers take a megabyte for each object, so that ``AT_ONCE`` are computed at a time.

        Args:
            features: pyramid of the image.
            boxes: x1, y1, x2, y2 in pixels of the net's input.
            labels: label of each box, (N,).
            size: height and width of the net's input.
        """
        masks = []
        for some, of in zip(boxes.split(AT_ONCE), labels.split(AT_ONCE), strict=True):
            logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, [some], [size])))
            masks.append(logits[torch.arange(len(of), device=of.device), of][:, None].sigmoid())
        return torch.cat(masks)

    def postprocess_detections(
        self, class_logits: Tensor, box_regression: Tensor, proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return the boxes, scores and labels of each image, the best ``detections_per_img`` above the thresholds."""
        decode = super().postprocess_detections
        if self.thresholds is None:
            return decode(class_logits, box_regression, proposals, image_shapes)
        # Take all above the lowest threshold: a class that is not reported must not use up the limit.
        lowest, limit = self.score_thresh, self.detections_per_img
        self.score_thresh, self.detections_per_img = float(self.thresholds.min()) - 1e-6, sys.maxsize
        try:
            each = decode(class_logits, box_regression, proposals, image_shapes)
        finally:
            self.score_thresh, self.detections_per_img = lowest, limit
        kept = []
        for boxes, scores, labels in zip(*each, strict=True):
            keep = torch.where(scores >= self.thresholds.to(scores)[labels])[0][:limit]
            kept.append((boxes[keep], scores[keep], labels[keep]))
        boxes, scores, labels = zip(*kept, strict=True)
        return list(boxes), list(scores), list(labels)


class Detector(GeneralizedRCNN):
    """A detector of torchvision's form.

    ``model(images, targets)`` in training mode returns a dict of losses, ``model(images)`` in eval mode a list of dicts
    with ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels of the image, ``labels`` (N,) from 1, ``scores`` (N,) and, for
    Mask R-CNN, ``masks`` (N, 1, H, W) of probabilities. Images are float RGB tensors (3, H, W) in 0..1; targets have
    ``boxes``, ``labels`` and, for Mask R-CNN, ``masks`` (N, H, W).

    An image's detections do not depend on the rest of its batch: in eval mode, images of different sizes go through the
    net separately, so that none is padded to another's size.

    Attributes:
        config: name, scheme, classes and options.
        num_classes: number of classes without the background.
        input: input transform.
        views: views of an image whose objects ``detect`` merges; (): the image as it is.

    Args:
        config: config that ``create_detector`` makes.
        body: backbone.
        options: options of the detector.
        input: input transform.
        masks: whether it is a Mask R-CNN.
    """

    backbone: BodyWithFPN
    views: tuple[View, ...] = ()

    def __init__(
        self,
        config: zoo.ModelConfig,
        body: zoo.FeatureExtractor,
        options: DetectorOptions,
        input: DetectionTransform,
        *,
        masks: bool,
    ) -> None:
        # Make the backbone with its pyramid. Only with 4conv1fc do the layers around it follow the scheme.
        scheme = body.body.scheme if options.heads == "4conv1fc" else None
        backbone = BodyWithFPN(body, options.fpn_channels, plain=scheme is None)
        classes = config.num_classes + 1
        levels = backbone.names[:-1]

        exact = options.conventions == "detectron2"

        def pool(size: int) -> nn.Module:
            if exact:
                return AlignedPool(levels, backbone.strides[:-1], size, options.canonical_size)
            return MultiScaleRoIAlign(levels, size, sampling_ratio=2, canonical_scale=options.canonical_size)

        # Make the region proposal network.
        sides = [options.anchor_scale * stride for stride in backbone.strides]
        if exact:
            anchors: AnchorGenerator = ExactAnchors(sides, options.aspect_ratios, backbone.strides)
        else:
            anchors = RoundedAnchors(
                tuple((int(side),) for side in sides), (options.aspect_ratios,) * len(backbone.strides)
            )
        rpn = RegionProposalNetwork(
            anchors,
            ProposalHead(options.fpn_channels, len(options.aspect_ratios), options.rpn_convs),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=options.rpn_samples,
            positive_fraction=0.5,
            pre_nms_top_n={"training": options.proposals_train, "testing": options.proposals_test},
            post_nms_top_n={"training": options.proposals_train, "testing": options.proposals_test},
            nms_thresh=0.7,
        )
        # Make the heads for boxes and, for Mask R-CNN, masks.
        box_head: nn.Module
        if scheme is None:
            box_head = TwoLinear(options.fpn_channels, 7, options.box_width)
        else:
            box_head = ConvsLinear(options.fpn_channels, 7, options.box_convs, options.box_width, scheme)
        heads = Heads(
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
        if masks:
            heads.mask_roi_pool = pool(14)
            heads.mask_head = conv_stack(options.fpn_channels, options.mask_convs, scheme)
            heads.mask_predictor = mask_predictor(options.mask_convs[-1], options.mask_width, classes)
        super().__init__(backbone, rpn, heads, Standardize(input, backbone.strides[-2], exact_masks=exact))
        self.config, self.num_classes, self.input = config, config.num_classes, input

    @property
    def strides(self) -> list[int]:
        """Pixels of the input per position of each level of the pyramid."""
        return self.backbone.strides

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

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor], threshold: float = 0.0) -> list[Found]:
        """Return the objects with a score of at least ``threshold`` in each image, with masks in their boxes.

        The net must be in eval mode. A mask takes some bytes for each row of its box; in ``forward`` it takes four for
        each pixel of the image. ``tasks.detection.choice`` sets other limits than those of the weights for a while.

        Args:
            images: float RGB tensors (3, H, W) in 0..1.
            threshold: lowest score.
        """
        self.transform.whole_masks = False
        try:
            outputs: list[dict[str, Tensor]] = (
                [detect_in_views(self, image, self.views) for image in images] if self.views else self(images)
            )
        finally:
            self.transform.whole_masks = True
        found = []
        for image, output in zip(images, outputs, strict=True):
            keep = output["scores"] >= threshold
            boxes, labels, scores = (output[key][keep].cpu() for key in ("boxes", "labels", "scores"))
            size = int(image.shape[-2]), int(image.shape[-1])
            masks = None
            if "masks" in output:
                inside = output["masks"][keep].float().cpu()  # (N, 1, m, m)
                masks = masks_in_boxes(inside, boxes.float(), size, at_centres=self.transform.exact_masks)
            found.append(Found(boxes, labels, scores, size, masks))
        return found

    def calibration_pass(self, images: Sequence[Tensor], targets: list[Target]) -> None:
        """Run the forward that ``zoo.calibrate`` observes: heads on true boxes and on the RPN's first 64 proposals.

        Args:
            images: images in the size of training.
            targets: true boxes of each image.
        """
        self.transform.train()  # training images come in their final size
        batch, _ = self.transform(list(images))
        features = self.backbone(batch.tensors)
        proposals, _ = self.rpn(batch, features)  # (P, 4) for each image
        true = [target["boxes"].to(boxes) for target, boxes in zip(targets, proposals, strict=True)]
        mixed = [torch.cat([boxes, others[:64]]) for boxes, others in zip(true, proposals, strict=True)]
        heads = self.roi_heads
        heads.box_predictor(heads.box_head(heads.box_roi_pool(features, mixed, batch.image_sizes)))
        if self.has_masks:
            positives = true if sum(map(len, true)) else mixed
            heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, positives, batch.image_sizes)))

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters without weight decay."""
        return zoo.nets.base.no_weight_decay(self)

    def input_parameters(self) -> list[Tensor]:
        """Return no parameters: the backbone knows those of its first layer."""
        return []

    def output_parameters(self) -> list[Tensor]:
        """Return the parameters of the predictors of the RPN, of boxes and of masks (with its upsampling)."""
        head, heads = self.rpn.head, self.roi_heads
        predictors = [head.cls_logits, head.bbox_pred, heads.box_predictor]
        if self.has_masks:
            predictors.append(heads.mask_predictor)
        return [parameter for predictor in predictors for parameter in predictor.parameters()]

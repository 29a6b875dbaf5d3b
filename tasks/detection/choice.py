"""Which objects of an image are reported: thresholds by class, the largest number, suppression, augmented views."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from tasks.detection.rcnn import Detector
from tasks.detection.views import View

LEFT_OUT = math.inf  # threshold of a class that is not reported


@dataclass(frozen=True)
class Choice:
    """Settings of a detector for some images, in place of those that its weights have.

    Attributes:
        thresholds: lowest score of each label, from 1; ``LEFT_OUT`` for a class that is not reported. None: the
            detector's ``score_thresh`` for all.
        detections: largest number of objects of an image, or of a tile; None: the detector's.
        nms: largest IoU of two objects of a class; None: the detector's.
        views: views of an image whose objects are merged; (): the image as it is.
    """

    thresholds: tuple[float, ...] | None = None
    detections: int | None = None
    nms: float | None = None
    views: tuple[View, ...] = ()

    @classmethod
    def of_classes(
        cls,
        classes: Sequence[str],
        thresholds: Mapping[str, float],
        only: frozenset[str] | None = None,
        **others: object,
    ) -> Choice:
        """Return a choice by the names of classes.

        Args:
            classes: names of the detector's classes.
            thresholds: lowest score of each class.
            only: classes to report; None: all.
            others: further attributes.
        """
        lowest = tuple(thresholds[name] if only is None or name in only else LEFT_OUT for name in classes)
        return cls(thresholds=lowest, **others)  # type: ignore[arg-type]

    def reporting(self, number: int, model: Detector) -> Choice:
        """Return the choice by which a detector reports at least this number of objects of an image, if it finds them.

        Where the metrics count more objects than a detector reports, they measure its limit.
        """
        own = self.detections or model.roi_heads.detections_per_img
        return replace(self, detections=number) if number > own else self

    def shown(self, classes: Sequence[str]) -> float | dict[str, float] | None:
        """Return the thresholds as JSON has them: one number, or one for each class that is reported."""
        if self.thresholds is None:
            return None
        named = {name: value for name, value in zip(classes, self.thresholds, strict=True) if value != LEFT_OUT}
        return next(iter(named.values())) if len(set(named.values())) == 1 else named

    @contextmanager
    def applied(self, model: Detector) -> Iterator[None]:
        """Have a detector report what is chosen, until the end of the context.

        The number of proposals is at least twice that of the objects, which are found among them.
        """
        heads, rpn = model.roi_heads, model.rpn
        before = (heads.thresholds, heads.detections_per_img, heads.nms_thresh, model.views)
        proposals = rpn._pre_nms_top_n["testing"], rpn._post_nms_top_n["testing"]
        if self.thresholds is not None:
            heads.thresholds = torch.tensor([LEFT_OUT, *self.thresholds])  # of the background first
        if self.nms is not None:
            heads.nms_thresh = self.nms
        if self.detections is not None:
            heads.detections_per_img = self.detections
            for limits, number in zip((rpn._pre_nms_top_n, rpn._post_nms_top_n), proposals, strict=True):
                limits["testing"] = max(number, 2 * self.detections)
        model.views = self.views
        try:
            yield
        finally:
            heads.thresholds, heads.detections_per_img, heads.nms_thresh, model.views = before
            rpn._pre_nms_top_n["testing"], rpn._post_nms_top_n["testing"] = proposals

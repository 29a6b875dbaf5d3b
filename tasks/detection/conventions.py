"""Anchors in single precision, and detectron2's conventions where they differ from torchvision's.

A pixel is a square here, whose centre lies at half a pixel: anchors keep their fractions, RoI align shifts boxes by
half a position and samples each bin about once a position, and a mask is sampled at the centres of the image's pixels.
torchvision rounds anchors, samples each bin four times without the shift, and pastes masks at whole pixels.

Under autocast torchvision's anchors, and with them all boxes, have the dtype of the feature maps. bfloat16 has 8 bits,
so that coordinates above 1024 px are multiples of 8 px. Here anchors have float32 (``at_least_single``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align


def at_least_single(x: Tensor) -> Tensor:
    """Return a tensor in float32 if it has less than that, as under autocast; otherwise the tensor itself."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class RoundedAnchors(AnchorGenerator):
    """torchvision's anchors, in float32 also where the feature maps have less."""

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        """Convert the anchors of a position to the dtype of the feature maps, or float32."""
        super().set_cell_anchors(torch.promote_types(dtype, torch.float32), device)


class ExactAnchors(RoundedAnchors):
    """Anchors that are not rounded, at the exact strides of the levels.

    Args:
        sizes: side in pixels of the anchors of each level.
        aspect_ratios: heights of anchors over their widths.
        strides: pixels per position of each level.
    """

    def __init__(self, sizes: Sequence[float], aspect_ratios: Sequence[float], strides: Sequence[int]) -> None:
        super().__init__(tuple((size,) for size in sizes), (tuple(aspect_ratios),) * len(sizes))
        self.level_strides = tuple(strides)

    def generate_anchors(
        self,
        scales: list[int],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008  (torchvision's signature)
    ) -> Tensor:
        """Return the anchors of a level around its origin, (A, 4) as x1, y1, x2, y2."""
        corners = []
        for size in scales:
            for ratio in aspect_ratios:
                width = math.sqrt(size**2 / ratio)
                height = ratio * width
                corners.append([-width / 2, -height / 2, width / 2, height / 2])
        return torch.tensor(corners, dtype=dtype, device=device)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return the anchors of each image, (A, 4), for maps (N, C, h, w)."""
        like = feature_maps[0]
        self.set_cell_anchors(like.dtype, like.device)
        strides = [[torch.tensor(stride, device=like.device)] * 2 for stride in self.level_strides]
        levels = self.grid_anchors([level.shape[-2:] for level in feature_maps], strides)
        return [torch.cat(levels) for _ in image_list.image_sizes]


class AlignedPool(nn.Module):
    """RoI align of boxes shifted by half a position, with as many samples a bin as the bin has positions.

    Args:
        names: names of the levels.
        strides: pixels per position of each level.
        size: positions along each side of the result.
        canonical_scale: side in pixels of the boxes that are pooled from the level of stride 16.
    """

    def __init__(self, names: Sequence[str], strides: Sequence[int], size: int, canonical_scale: int) -> None:
        super().__init__()
        self.names, self.strides, self.size = list(names), list(strides), size
        self.canonical_scale = canonical_scale

    def forward(self, features: dict[str, Tensor], boxes: list[Tensor], image_sizes: list[tuple[int, int]]) -> Tensor:
        """Return the features (R, C, size, size) of boxes (R_i, 4) in each image."""
        # boxes with the number of their image, and their level
        rois = torch.cat([torch.cat([torch.full_like(b[:, :1], i), b], dim=1) for i, b in enumerate(boxes)])
        side = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
        finest = int(math.log2(self.strides[0]))
        level = torch.floor(4 + torch.log2(side / self.canonical_scale + 1e-8))
        level = level.clamp(finest, finest + len(self.names) - 1) - finest
        # each level on its own, then back into the order of the boxes
        places = [torch.where(level == i)[0] for i in range(len(self.names))]
        pooled = [
            roi_align(features[name], rois[place], self.size, 1 / stride, -1, aligned=True)
            for name, stride, place in zip(self.names, self.strides, places, strict=True)
        ]
        return torch.cat(pooled)[torch.cat(places).argsort()]


def in_box(pixels: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return where the centres of pixels lie between two sides of a box: -1 at ``low`` and 1 at ``high``.

    Args:
        pixels: numbers of rows or columns.
        low, high: places of the sides in pixels of the image; broadcast with ``pixels``.
    """
    return (pixels + 0.5 - low) / (high - low) * 2 - 1


def paste_at_centres(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return masks sampled at the centres of an image's pixels: (N, 1, m, m) in boxes (N, 4) -> (N, 1, H, W).

    Args:
        masks: probabilities.
        boxes: x1, y1, x2, y2 in pixels of the image.
        size: H and W.
    """

    def paste(mask: Tensor, box: Tensor) -> Tensor:
        x1, y1, x2, y2 = box[:, :, None].unbind(1)  # (N, 1) each
        y = in_box(torch.arange(size[0], device=box.device, dtype=box.dtype), y1, y2)  # (N, H)
        x = in_box(torch.arange(size[1], device=box.device, dtype=box.dtype), x1, x2)  # (N, W)
        # sums in place of expand: a traced graph keeps the size of the image open
        across, down = x[:, None, :] + 0 * y[:, :, None], y[:, :, None] + 0 * x[:, None, :]  # (N, H, W)
        grid = torch.stack([across, down], dim=-1)
        return F.grid_sample(mask, grid.to(mask.dtype), align_corners=False)

    if torch.jit.is_tracing() or not len(masks):
        return paste(masks, boxes)
    # one at a time, as the grid of a hundred large masks needs gigabytes
    return torch.cat([paste(mask[None], box[None]) for mask, box in zip(masks, boxes, strict=True)])

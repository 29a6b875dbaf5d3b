"""Eight numbers of a net's output on a fixed input, by which two builds of the same weights are compared.

The input is a formula, so no file is needed. The net runs in float64: the kernels of other processors add in another
order, which moves float32 results by up to 9e-7 and float64 results by nothing that eight digits show.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from zoo.text import EOS, UNK
from zoo.transforms import AnyTransform, DetectionTransform, InputTransform, TextTransform, VideoTransform

COUNT = 8  # numbers of a fingerprint
SIDE = 64  # of images and clips, in pixels
FRAMES = 8  # of a clip
BATCH = 4  # images or clips: two classes give enough logits
SCENE = 128  # side of a detector's image, in pixels: its coarsest map then has 2 x 2 positions
BOXES = ((8.0, 8.0, 40.0, 40.0), (20.0, 30.0, 120.0, 100.0))  # x1, y1, x2, y2 in a detector's image
SOURCE, TARGET = 9, 6  # tokens of a sentence and of its translation, </s> among them


def waves(*shape: int) -> Tensor:
    """Return float64 values in 0..1: a sine over the elements in order of memory.

    The sine is taken in float64 and rounded to multiples of 1/255, as pictures have: last bits of another machine's
    sine do not show.
    """
    sine = torch.sin(0.1 * torch.arange(math.prod(shape), dtype=torch.float64))
    return ((127.5 + 127.5 * sine).round() / 255).view(shape)


def tokens(count: int, vocabulary: int) -> list[int]:
    """Return different ids above the special ones."""
    return [UNK + 1 + (7 * i + 3) % (vocabulary - UNK - 1) for i in range(count)]


def fingerprint(model: Any, transform: AnyTransform) -> list[float]:
    """Return the first eight numbers of the output on the fixed input of the weights' kind.

    - Classification of images and clips: logits of a batch.
    - Detection: RPN objectness, class scores, box offsets and masks of two fixed boxes, in turn, before any sorting or
      suppression.
    - Translation: logits of eight tokens after the last token of a fixed pair.

    A copy of the model runs, in eval mode and in float64.

    Args:
        model: net that ``zoo.create_model`` gives, or a detector of torchvision's form.
        transform: input transform of its weights.

    Returns:
        Eight numbers with 9 significant digits.
    """
    model = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        numbers = _output(model, transform).flatten()[:COUNT]
    return [float(f"{number:.9g}") for number in numbers.tolist()]


def _output(model: Any, transform: AnyTransform) -> Tensor:
    if isinstance(transform, TextTransform):
        size = model.layout.target_vocabulary
        source = torch.tensor([[*tokens(SOURCE - 1, model.layout.source_vocabulary), EOS]])
        logits = model(source, torch.tensor([[EOS, *tokens(TARGET - 1, size)]]))  # (1, TARGET, size)
        return logits[0, -1, tokens(COUNT, size)]  # the first tokens are special ones, some of them never trained
    if isinstance(transform, DetectionTransform):
        return _detector_output(model, _standardised(waves(1, 3, SCENE, SCENE), transform))
    frames = (FRAMES,) if isinstance(transform, VideoTransform) else ()
    channels = len(transform.mean)
    return model(_standardised(waves(BATCH, channels, *frames, SIDE, SIDE), transform))


def _detector_output(model: Any, image: Tensor) -> Tensor:
    """Return numbers of every part of a Faster or Mask R-CNN, in turn."""
    maps = model.backbone(image)
    heads, boxes, size = model.roi_heads, [torch.tensor(BOXES).to(image)], [(SCENE, SCENE)]
    objectness, _ = model.rpn.head(list(maps.values()))
    parts = [objectness[0], *heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, boxes, size)))]
    if heads.has_mask():
        parts.append(heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(maps, boxes, size))))
    return torch.stack([part.flatten()[: COUNT // 2] for part in parts], 1).flatten()


def _standardised(x: Tensor, transform: InputTransform | VideoTransform | DetectionTransform) -> Tensor:
    """Standardise values in 0..1: (N, C, ...) -> the same shape."""
    mean, std = (torch.tensor(v).to(x).view(-1, *[1] * (x.ndim - 2)) for v in (transform.mean, transform.std))
    return (x - mean) / std

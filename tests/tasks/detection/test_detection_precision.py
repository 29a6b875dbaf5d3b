"""Under autocast, anchors, proposals, boxes, masks and losses have float32, also beyond 1024 px."""

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_map

from tests.helpers.detection import sample, sharpened, small

SIZE = (160, 1120)  # height and width of the image, in pixels
SETTINGS = [
    ("mask", {}, torch.bfloat16),
    ("mask", {}, torch.float16),
    ("faster", {}, torch.bfloat16),
    ("mask", {"conventions": "detectron2"}, torch.bfloat16),
    ("mask", {"heads": "4conv1fc", "rpn_convs": 2}, torch.bfloat16),
]


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def seen(module, kept):
    """Keep what a module is given and returns."""

    def keep(_, given, returned):
        kept.append(tree_map(lambda value: value.cpu() if torch.is_tensor(value) else value, (given, returned)))

    return module.register_forward_hook(keep)


def decoded(deltas, boxes, weights, size):
    """The boxes of deltas (N, 4) from boxes (N, 4), in float64, within an image (height, width)."""
    deltas, boxes = deltas.double().numpy(), boxes.double().numpy()
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    dx, dy, dw, dh = (deltas / np.array(weights)).T
    dw, dh = (np.minimum(d, np.log(1000 / 16)) for d in (dw, dh))
    x, y = boxes[:, 0] + width / 2 + dx * width, boxes[:, 1] + height / 2 + dy * height
    w, h = width * np.exp(dw), height * np.exp(dh)
    corners = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1)
    return np.clip(corners, 0, [size[1], size[0], size[1], size[0]])


def grid_of_anchors(model, levels):
    """The anchors of maps (h, w), in float64: torchvision's formula, computed apart."""
    found = []
    exact = model.transform.exact_masks
    for (height, width), stride in zip(levels, model.strides, strict=True):
        side = 8.0 * stride
        base = []
        for ratio in (0.5, 1.0, 2.0):
            w, h = side / ratio**0.5, side * ratio**0.5
            corners = np.array([-w / 2, -h / 2, w / 2, h / 2])
            base.append(corners if exact else corners.round())
        y, x = np.meshgrid(np.arange(height) * stride, np.arange(width) * stride, indexing="ij")
        shifts = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)
        found.append((shifts + np.array(base)).reshape(-1, 4))
    return np.concatenate(found)


def nearest(boxes, others):
    """The largest distance of one of the boxes from its nearest among the others."""
    return max(np.abs(others - box).max(1).min() for box in boxes)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("detector", "options", "dtype"), SETTINGS)
def test_coordinates_beyond_1024_pixels(detector, options, dtype, device):
    """Proposals and boxes are those that float64 makes of the same outputs of the heads."""
    model = sharpened(small(detector=detector, min_size=SIZE[0], max_size=SIZE[1], **options)).eval().to(device)
    model.roi_heads.score_thresh = 0.0
    proposed, pooled, predicted = [], [], []
    seen(model.rpn.head, proposed)
    seen(model.rpn, pooled)
    seen(model.roi_heads.box_predictor, predicted)
    image = sample(*SIZE)[0].to(device)
    with torch.no_grad(), torch.autocast(device, dtype=dtype):
        found = {name: value.cpu() for name, value in model([image])[0].items()}
    (_, (logits, deltas)), (_, (proposals, _)), (_, (scores, box_deltas)) = proposed[0], pooled[0], predicted[0]
    for tensor in (*logits, *deltas, *proposals, scores, box_deltas, *found.values()):
        assert tensor.dtype in (torch.float32, torch.int64)
    # proposals
    anchors = grid_of_anchors(model, [level.shape[-2:] for level in logits])
    flat = torch.cat([level.view(3, 4, *level.shape[-2:]).permute(2, 3, 0, 1).reshape(-1, 4) for level in deltas])
    all_boxes = decoded(flat, torch.from_numpy(anchors), (1, 1, 1, 1), SIZE)
    assert len(proposals[0]) > 20
    assert proposals[0].max() > 1024
    assert nearest(proposals[0].double().numpy(), all_boxes) < 0.01
    # boxes
    each = [decoded(box_deltas[:, 4 * k : 4 * k + 4], proposals[0], (10, 10, 5, 5), SIZE) for k in range(1, 4)]
    assert len(found["boxes"]) > 5
    assert found["boxes"].max() > 1024
    assert nearest(found["boxes"].double().numpy(), np.concatenate(each)) < 0.01


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("detector", "options", "dtype"), SETTINGS)
def test_losses_are_float32(detector, options, dtype, device):
    model = small(detector=detector, **options).train().to(device)
    image, target = sample(seed=1)
    with torch.autocast(device, dtype=dtype):
        losses = model([image.to(device)], [{name: value.to(device) for name, value in target.items()}])
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()


@pytest.mark.parametrize("conventions", ["torchvision", "detectron2"])
def test_pooling_reads_the_place_of_the_box(conventions):
    """The features of a box at 1100.3 px are those of float32, but for the rounding of the features themselves."""
    model = small(conventions=conventions)
    generator = torch.Generator().manual_seed(0)
    maps = {
        name: torch.randn(1, 32, 1280 // stride, 1280 // stride, generator=generator).bfloat16()
        for name, stride in zip(model.backbone.names, model.strides, strict=True)
    }
    boxes = [torch.tensor([[1100.3, 1101.7, 1180.2, 1190.9], [1030.6, 40.1, 1250.7, 300.4]])]
    pool = model.roi_heads.box_roi_pool
    exact = pool({name: level.float() for name, level in maps.items()}, boxes, [(1280, 1280)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pool(maps, boxes, [(1280, 1280)])
    assert (found.float() - exact).abs().max() < 2**-7 * exact.abs().max()

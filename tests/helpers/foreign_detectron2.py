"""A ResNet with detectron2's keys, written plainly here, and its checkpoints: detectron2's, Caffe2's, torchvision's."""

import re

import torch
from torch import nn


class Conv(nn.Conv2d):
    """A convolution whose norm is its child."""

    def __init__(self, i, o, kernel, stride=1, groups=1):
        super().__init__(i, o, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(o)

    def forward(self, x):
        return self.norm(super().forward(x))


class Block(nn.Module):
    """A bottleneck or, without ``inner``, a basic block."""

    def __init__(self, i, o, inner, stride, groups, first):
        super().__init__()
        if i != o:
            self.shortcut = Conv(i, o, 1, stride)
        if inner:
            self.conv1 = Conv(i, inner, 1, stride if first else 1)
            self.conv2 = Conv(inner, inner, 3, 1 if first else stride, groups)
            self.conv3 = Conv(inner, o, 1)
        else:
            self.conv1, self.conv2 = Conv(i, o, 3, stride), Conv(o, o, 3)

    def forward(self, x):
        y = self.conv2(self.conv1(x).relu())
        if hasattr(self, "conv3"):
            y = self.conv3(y.relu())
        return (y + (self.shortcut(x) if hasattr(self, "shortcut") else x)).relu()


class Trunk(nn.Module):
    """detectron2's ResNet.

    Args:
        depths: blocks in each stage.
        base: channels of the stem.
        inner: channels of the first stage's 3x3; 0 for basic blocks.
        groups: groups of the 3x3.
        first: whether a bottleneck's stride is in its first 1x1.
        classes: classes of the last layer; 0 for none.
    """

    def __init__(self, depths=(2, 2, 2, 2), base=8, inner=8, groups=1, first=True, classes=0):
        super().__init__()
        self.stem = nn.Module()
        self.stem.conv1 = Conv(3, base, 7, 2)
        i, o = base, 4 * base if inner else base
        for n, depth in enumerate(depths):
            blocks = []
            for b in range(depth):
                blocks.append(Block(i, o, inner * 2**n, 2 if n and not b else 1, groups, first))
                i = o
            self.add_module(f"res{n + 2}", nn.Sequential(*blocks))
            o *= 2
        self.linear = nn.Linear(i, classes) if classes else None

    def forward(self, x):
        """C2 to C5, and the logits if there are classes."""
        x = nn.functional.max_pool2d(self.stem.conv1(x).relu(), 3, 2, 1)
        maps = []
        for n in range(2, 6):
            x = getattr(self, f"res{n}")(x)
            maps.append(x)
        return maps if self.linear is None else [*maps, self.linear(x.mean((2, 3)))]


PYRAMID = {
    f"backbone.fpn_{kind}{n}.{leaf}": (2,)
    for kind in ("lateral", "output")
    for n in range(2, 6)
    for leaf in ("weight", "bias")
}
HEADS = {
    "proposal_generator.rpn_head.conv.weight": (4, 4, 3, 3),
    "roi_heads.box_head.fc1.weight": (5, 4),
    "roi_heads.box_predictor.cls_score.weight": (4, 5),
    "roi_heads.box_predictor.bbox_pred.weight": (12, 5),
    "roi_heads.mask_head.predictor.weight": (3, 4, 1, 1),
}


def detector(trunk, prefix="backbone.bottom_up.", pixel_std=None, pixel_mean=(103.53, 116.28, 123.675), parts=None):
    """The state of a detector around a trunk; ``pixel_std`` adds the buffers of old checkpoints."""
    state = {prefix + key: value for key, value in trunk.state_dict().items() if "num_batches" not in key}
    parts = {**PYRAMID, **HEADS} if parts is None else parts
    state |= {key: torch.randn(shape) for key, shape in parts.items()}
    if pixel_std is not None:
        state["pixel_mean"] = torch.tensor(pixel_mean).view(3, 1, 1)
        state["pixel_std"] = torch.tensor(pixel_std).view(3, 1, 1)
    return state


def blobs(trunk, *, statistics):
    """The state of a trunk under Caffe2's names.

    Args:
        trunk: net; its norms must be affine (``make_affine``) unless ``statistics``.
        statistics: whether running statistics are kept, as in the files that were converted again.
    """
    layers = {"conv1": "2a", "conv2": "2b", "conv3": "2c", "shortcut": "1"}
    leaves = {"weight": "s", "bias": "b"}
    if statistics:
        leaves = {"weight": "gamma", "bias": "beta", "running_mean": "running_mean", "running_var": "running_var"}
    found = {}
    for key, value in trunk.state_dict().items():
        *module, leaf = key.split(".")
        if leaf == "num_batches_tracked" or ("norm" in module and leaf not in leaves):
            continue
        end = f"bn_{leaves[leaf]}" if "norm" in module else leaf[0]
        if module[0] == "linear":
            name = f"fc1000_{end}"
        elif module[0] == "stem":
            name = f"res_conv1_{end}" if "norm" in module else f"conv1_{end}"
        else:
            name = f"{module[0]}_{module[1]}_branch{layers[module[2]]}_{end}"
        found[name] = value
    return found


def make_affine(trunk):
    """Give a trunk the norms that detectron2 makes of Caffe2's affine layers: mean 0 and variance 1."""
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()
            module.running_var.fill_(1)
    return trunk


def torchvision_names(trunk):
    """A classification net of torchvision under the names that detectron2's conversion script gives it."""
    return {re.sub("^linear", "stem.fc", key): value for key, value in trunk.state_dict().items()}


# Caffe2's names of a detector's tensors -> detectron2's
CAFFE2 = {
    "fpn_inner_res5_2_sum": "backbone.fpn_lateral5",
    "fpn_inner_res4_5_sum_lateral": "backbone.fpn_lateral4",
    "fpn_inner_res3_3_sum_lateral": "backbone.fpn_lateral3",
    "fpn_inner_res2_2_sum_lateral": "backbone.fpn_lateral2",
    "fpn_res5_2_sum": "backbone.fpn_output5",
    "fpn_res4_5_sum": "backbone.fpn_output4",
    "fpn_res3_3_sum": "backbone.fpn_output3",
    "fpn_res2_2_sum": "backbone.fpn_output2",
    "conv_rpn_fpn2": "proposal_generator.rpn_head.conv",
    "rpn_cls_logits_fpn2": "proposal_generator.rpn_head.objectness_logits",
    "rpn_bbox_pred_fpn2": "proposal_generator.rpn_head.anchor_deltas",
    "fc6": "roi_heads.box_head.fc1",
    "fc7": "roi_heads.box_head.fc2",
    "cls_score": "roi_heads.box_predictor.cls_score",
    "bbox_pred": "roi_heads.box_predictor.bbox_pred",
    "_[mask]_fcn1": "roi_heads.mask_head.mask_fcn1",
    "_[mask]_fcn2": "roi_heads.mask_head.mask_fcn2",
    "_[mask]_fcn3": "roi_heads.mask_head.mask_fcn3",
    "_[mask]_fcn4": "roi_heads.mask_head.mask_fcn4",
    "conv5_mask": "roi_heads.mask_head.deconv",
    "mask_fcn_logits": "roi_heads.mask_head.predictor",
}


def caffe2_heads(classes=3):
    """Blobs of a detector's pyramid and heads for ``classes`` classes and the background, which comes first."""
    sizes = {"cls_score": classes + 1, "bbox_pred": 4 * (classes + 1), "mask_fcn_logits": classes + 1}
    return {
        f"{name}_{leaf}": torch.randn(sizes.get(name, 4), *((2,) if leaf == "w" else ()))
        for name in CAFFE2
        for leaf in "wb"
    }

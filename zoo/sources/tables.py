"""Tables from the names of this zoo to those of torchvision and timm.

The first name of a row is what a tag alone refers to; the others are named in full
(``torchvision:vgg16_bn:IMAGENET1K_V1``).
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.errors import WeightsError, suggestion
from zoo.registry import list_models

TORCHVISION: dict[str, tuple[str, ...]] = {
    "rescalenet18": ("resnet18",),
    "rescalenet34": ("resnet34",),
    "rescalenet50": ("resnet50",),
    "rescalenet101": ("resnet101",),
    "rescalenet152": ("resnet152",),
    "rescalenext50_32x4d": ("resnext50_32x4d",),
    "rescalenext101_32x8d": ("resnext101_32x8d",),
    "rescalenext101_64x4d": ("resnext101_64x4d",),
    "rescale_wide_resnet50_2": ("wide_resnet50_2",),
    "rescale_wide_resnet101_2": ("wide_resnet101_2",),
    "rescalevgg11": ("vgg11", "vgg11_bn"),
    "rescalevgg13": ("vgg13", "vgg13_bn"),
    "rescalevgg16": ("vgg16", "vgg16_bn"),
    "rescalevgg19": ("vgg19", "vgg19_bn"),
    "rescale_r3d_18": ("r3d_18",),
    "rescale_mc3_18": ("mc3_18",),
    "rescale_r2plus1d_18": ("r2plus1d_18",),
    "faster_rcnn_rescalenet50_fpn": ("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"),
    "mask_rcnn_rescalenet50_fpn": ("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"),
}

# torchvision sets this eps when it loads these weights; all others have BatchNorm's default
TORCHVISION_EPS: dict[tuple[str, str], float] = {
    ("fasterrcnn_resnet50_fpn", "COCO_V1"): 0.0,
    ("maskrcnn_resnet50_fpn", "COCO_V1"): 0.0,
}
DEFAULT_EPS = 1e-5  # of torch.nn.BatchNorm2d, and of timm's resnets

TIMM: dict[str, tuple[str, ...]] = {
    "rescalenet18": ("resnet18", "resnet18d"),
    "rescalenet26": ("resnet26", "resnet26d"),
    "rescalenet34": ("resnet34", "resnet34d"),
    "rescalenet50": ("resnet50", "resnet50c", "resnet50d"),
    "rescalenet101": ("resnet101", "resnet101c", "resnet101d"),
    "rescalenet152": ("resnet152", "resnet152c", "resnet152d"),
    "rescalenet200": ("resnet200d",),
    "rescalenext50_32x4d": ("resnext50_32x4d", "resnext50d_32x4d"),
    "rescalenext101_32x4d": ("resnext101_32x4d",),
    "rescalenext101_32x8d": ("resnext101_32x8d",),
    "rescalenext101_32x16d": ("resnext101_32x16d",),
    "rescalenext101_32x32d": ("resnext101_32x32d",),
    "rescalenext101_64x4d": ("resnext101_64x4d",),
    "rescale_wide_resnet50_2": ("wide_resnet50_2",),
    "rescale_wide_resnet101_2": ("wide_resnet101_2",),
}


def net_of(table: Mapping[str, tuple[str, ...]], foreign: str) -> str | None:
    """Return the name in this zoo of an architecture of another project; None if the table lacks it.

    >>> net_of(TORCHVISION, "vgg16_bn"), net_of(TIMM, "resnest50d")
    ('rescalevgg16', None)
    """
    return next((ours for ours, theirs in table.items() if foreign in theirs), None)


def split_name(name: str, parts: list[str], model: str | None, table: Mapping[str, tuple[str, ...]]) -> tuple[str, str]:
    """Return the architecture and the tag of a name, before anything is fetched.

    Args:
        name: name of the weights, for messages.
        parts: the tag, or the architecture and the tag.
        model: name of our net; None for any.
        table: table of the source.

    Raises:
        WeightsError: a tag without a net, an architecture that the table lacks, or weights of another net, unless
            it takes images and ours clips: such weights can be inflated.
    """
    owner = name.partition(":")[0]
    tag = parts[-1]
    # a tag alone belongs to the first architecture of the net
    if len(parts) == 1:
        if model is None:
            raise WeightsError(
                f"{name!r}: the tag alone names no net; see rescalenet list --convertible for full names"
            )
        if model not in table:
            raise WeightsError(f"{name!r}: {owner} has no weights for {model}{suggestion(model, table)}")
        return table[model][0], tag
    # a name in full belongs to one net
    architecture = parts[0]
    found = net_of(table, architecture)
    if found is None:
        hint = suggestion(architecture, [theirs for row in table.values() for theirs in row])
        raise WeightsError(f"{name!r}: architecture {architecture!r} is not convertible{hint}")
    if model not in (None, found) and not _inflates(found, str(model)):
        raise WeightsError(f"weights {name!r} are of {found}, not of {model}")
    return architecture, tag


def _inflates(found: str, model: str) -> bool:
    """Return whether one net takes images and the other, into which it can be inflated, clips."""
    return found in list_models(input_kind="images") and model in list_models(input_kind="clips")

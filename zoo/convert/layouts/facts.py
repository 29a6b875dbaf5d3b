"""What the keys of a net do not show, read from its modules: eps, strides, pools, activations, dilations.

A module type that is not in the tables below is refused, as its forward is not known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from zoo.errors import WeightsError, one_line

NORMS = (nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, FrozenBatchNorm2d)
CONVS = (nn.Conv2d, nn.Conv3d)

# Of timm, by class name, as timm need not be installed: the first in training only, the others without parameters.
_OF_TIMM = {"DropPath", "DropBlock2d", "FastAdaptiveAvgPool"}

# children of timm's blocks that are empty in plain ResNets -> what they are
_PLACES = {
    "se": "part of channel or spatial attention (SE, ECA, CBAM, ...), whose factors depend on the input",
    "aa": "anti-aliasing beside a stride",
}
_REASONS = {  # a part of the type's name -> what it is
    "BlurPool": "anti-aliasing beside a stride",
    "GroupNorm": "a norm that depends on the input",
    "LayerNorm": "a norm that depends on the input",
    "InstanceNorm": "a norm that depends on the input",
}


def module_facts(model: nn.Module) -> dict[str, Any]:
    """Return what the keys of a net do not show and our net needs to know.

    Args:
        model: classification net for images or clips, in the form of torchvision or timm; or a detector, of which only
            eps and dtype are read, as its parts are checked by the layout that reads it.

    Returns:
        ``eps``, the eps of all norms, if the net has any; ``stride_in_1x1=True`` if the bottlenecks of a ResNet have
        their stride there; ``stem="cifar"`` for a ResNet whose stem is a 3x3 without stride and pool.

    Raises:
        WeightsError: parameters of different types; norms with different eps; a net that computes something else than
            our net with its parameters: another activation, pool, stride or dilation.
    """
    facts: dict[str, Any] = {}
    # one type
    dtypes = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()}
    if len(dtypes) > 1:
        raise WeightsError(f"{type(model).__name__}: parameters of {' and '.join(sorted(dtypes))}; must be of one type")
    # one eps
    eps = {float(module.eps): name for name, module in model.named_modules() if isinstance(module, NORMS)}
    if len(eps) > 1:
        (first, one), (second, other), *_ = eps.items()
        raise WeightsError(f"{one} has eps {first:g}, {other} {second:g}; the norms of a net must have one eps")
    if eps:
        facts["eps"] = next(iter(eps))
    # the forward
    children = dict(model.named_children())
    if "layer1" in children:
        _check_leaves(model)
        if "conv1" in children:
            facts |= _resnet_facts(model)
    elif {"features", "classifier"} <= children.keys():
        _check_leaves(model)
        _check_vgg(model)
    return facts


def _check_leaves(model: nn.Module) -> None:
    """Refuse a net with a module, among those without children, that no net of the zoo has."""
    leaves = {name: module for name, module in model.named_modules() if next(module.children(), None) is None}
    # parts that plain ResNets lack
    for name, module in leaves.items():
        for place, reason in _PLACES.items():
            if place in name.split(".") and not isinstance(module, nn.Identity):
                raise WeightsError(one_line(f"{name} is {reason}: {module}"))
    # all others
    for name, module in model.named_modules():
        kind = type(module).__name__
        if type(module).__module__.startswith("timm."):
            if (pool := getattr(module, "pool_type", "avg")) not in ("avg", "fast", "fastavg"):
                raise WeightsError(f"{name} is {f'a {pool}' if pool else 'no'} pool; must be an average")
            if kind in _OF_TIMM:
                continue
        if name in leaves and (problem := _problem(module)):
            raise WeightsError(one_line(f"{name} is {problem}: {module}"))


def _problem(module: nn.Module) -> str | None:
    """Return what makes a module without children one that no net of the zoo has; None if nothing does."""
    for kinds, check in _CHECKS.items():
        if isinstance(module, kinds):
            # a subclass may have a forward of its own; torchvision's of 3D convolutions only fix arguments
            own_forward = type(module).forward not in [kind.forward for kind in kinds]
            return "a module whose forward is not known" if own_forward else check(module)
    kind = type(module).__name__
    known = next((reason for part, reason in _REASONS.items() if part in kind), None)
    return known or f"a {kind}, which no net of the zoo has (activations must be ReLU)"


def _no_problem(module: Any) -> None:
    return None


def _conv_problem(conv: Any) -> str | None:
    if set(conv.dilation) != {1}:
        return "dilated, which no convolution of the zoo is (output_stride must be 32)"
    if conv.padding_mode != "zeros":
        return f"padded by {conv.padding_mode!r} instead of zeros"
    if tuple(conv.padding) != tuple(size // 2 for size in conv.kernel_size):
        return "padded by other than half its kernel"
    return None


def _norm_problem(norm: Any) -> str | None:
    if norm.running_mean is None or norm.running_var is None:
        return "a BatchNorm without running statistics"
    return "a BatchNorm without scale and bias" if norm.weight is None else None


def _max_pool_problem(pool: Any) -> str | None:
    geometry = tuple(_one(value) for value in (pool.kernel_size, pool.stride, pool.padding, pool.dilation))
    if geometry not in ((3, 2, 1, 1), (2, 2, 0, 1)) or pool.ceil_mode:
        return "a max pool of another form than the zoo's (3x3 with stride 2, or 2x2), as nets with anti-aliasing have"
    return None


def _avg_pool_problem(pool: Any) -> str | None:
    geometry = tuple(_one(value) for value in (pool.kernel_size, pool.stride, pool.padding))
    if geometry != (2, 2, 0) or not pool.ceil_mode or pool.count_include_pad:
        return (
            "an average pool of another form than the zoo's (2x2, rounded up, padding not counted), as nets with "
            "anti-aliasing have"
        )
    return None


def _one(value: Any) -> Any:
    """Return the number that is given for all dimensions."""
    if isinstance(value, tuple):
        return value[0] if len(set(value)) == 1 else value
    return value


def _adaptive_problem(pool: Any) -> str | None:
    return None if _one(pool.output_size) in (1, 7) else "an adaptive pool to another size than 1 or 7"


_DROPOUTS = (nn.Dropout, nn.Dropout2d, nn.Dropout3d)
_CHECKS: dict[tuple[type[nn.Module], ...], Callable[[Any], str | None]] = {
    CONVS: _conv_problem,
    NORMS: _norm_problem,
    (nn.MaxPool2d,): _max_pool_problem,
    (nn.AvgPool2d,): _avg_pool_problem,
    (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d): _adaptive_problem,
    (nn.ReLU, nn.Identity, nn.Flatten, nn.Linear, nn.MaxPool3d, nn.Sequential, *_DROPOUTS): _no_problem,
}


def _resnet_facts(model: Any) -> dict[str, Any]:
    """Return the facts of a ResNet; its strides, stem and pools must be those of ours."""
    facts: dict[str, Any] = {}
    # the stem
    convs = [model.conv1] if isinstance(model.conv1, nn.Conv2d) else _of_kind(model.conv1, nn.Conv2d)
    strides = [_one(conv.stride) for conv in convs]
    pool = getattr(model, "maxpool", nn.Identity())
    if [_one(conv.kernel_size) for conv in convs] == [3] and strides == [1] and isinstance(pool, nn.Identity):
        facts["stem"] = "cifar"
    elif strides != [2] + [1] * (len(convs) - 1):
        raise WeightsError(f"the stem's strides are {strides}; must be 2 in its first convolution and 1 in others")
    elif not isinstance(pool, nn.MaxPool2d) or _one(pool.kernel_size) != 3:
        raise WeightsError(f"maxpool is {one_line(str(pool))}; must be a 3x3 max pool with stride 2")
    # the blocks: the stride is in the 3x3, or in the first 1x1 of every bottleneck
    in_1x1 = set()
    for name, stage, index, block in _blocks(model):
        expected = 2 if stage > 1 and index == 0 else 1
        strides = [_one(conv.stride) for conv in (block.conv1, block.conv2, getattr(block, "conv3", None)) if conv]
        in_3x3 = [1, expected, 1] if len(strides) == 3 else [expected, 1]
        if strides not in (in_3x3, [expected, 1, 1]):
            raise WeightsError(f"{name} has strides {strides}; a net of the zoo has a stride of {expected} there")
        if expected > 1:
            in_1x1.add(strides != in_3x3)
        _check_shortcut(name, block, expected)
    if len(in_1x1) > 1:
        raise WeightsError("some bottlenecks have their stride in the 1x1, others in the 3x3; must be one of the two")
    return facts | ({"stride_in_1x1": True} if in_1x1 == {True} else {})


def _check_shortcut(name: str, block: Any, stride: int) -> None:
    """Refuse a shortcut with another stride than its block, or a pool where there is no stride."""
    if (downsample := getattr(block, "downsample", None)) is None:
        return
    steps = [_one(m.stride) for m in downsample.modules() if isinstance(m, (nn.Conv2d, nn.AvgPool2d))]
    if sorted(steps) not in ([stride], sorted([stride, 1])):
        raise WeightsError(f"{name}.downsample has strides {steps}; must be {stride} in its first module, as the block")


def _blocks(model: nn.Module) -> Iterator[tuple[str, int, int, Any]]:
    """Yield name, number of the stage from 1, index and module of each residual block."""
    for name, module in model.named_modules():
        if (match := re.fullmatch(r"layer(\d+)\.(\d+)", name)) and hasattr(module, "conv1"):
            yield name, int(match[1]), int(match[2]), module


def _of_kind(module: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [child for child in module.modules() if isinstance(child, kind)]


def _check_vgg(model: Any) -> None:
    """Refuse a VGG whose features are not convolutions, each with a ReLU, and max pools; or with another head."""
    letters = {nn.Conv2d: "c", nn.BatchNorm2d: "n", nn.ReLU: "r", nn.MaxPool2d: "p"}
    features = "".join(letters.get(type(module), "?") for module in model.features)
    if not re.fullmatch("((cr)+p)+|((cnr)+p)+", features):
        raise WeightsError("features: must be convolutions, each with a ReLU or a BatchNorm and a ReLU, and max pools")
    if any(_one(conv.stride) != 1 for conv in _of_kind(model.features, nn.Conv2d)):
        raise WeightsError("features: its convolutions must have stride 1")
    if any(_one(pool.kernel_size) != 2 for pool in _of_kind(model.features, nn.MaxPool2d)):
        raise WeightsError("features: its max pools must be 2x2")
    pool = getattr(model, "avgpool", None)
    if not isinstance(pool, nn.AdaptiveAvgPool2d) or _one(pool.output_size) != 7:
        raise WeightsError(f"avgpool is {one_line(str(pool))}; must be an adaptive average pool to 7x7")
    head = [type(module).__name__ for module in model.classifier if not isinstance(module, (*_DROPOUTS, nn.Identity))]
    if head not in (["Linear", "ReLU"] * 2 + ["Linear"], ["Linear", "ReLU"] * 2):
        raise WeightsError(f"classifier has {', '.join(head)}; must be three linear layers with ReLUs between")

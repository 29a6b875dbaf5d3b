"""ResNets in the layouts of torchvision and timm: ResNet, ResNeXt and Wide ResNet, with deep stems and average pools.

Strides, pools and activations do not show in the keys: ``facts.py`` checks them where a module is given. A state dict
alone is taken for torchvision's net: strides in the 3x3, a 3x3 max pool, ReLU.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from zoo.convert.layouts.base import Imported, Layout
from zoo.convert.layouts.fitting import candidates, fitted, weight_of, with_asked
from zoo.errors import WeightsError
from zoo.nets.base import ModelConfig
from zoo.nets.resnet import ResNet, ResNetConfig, branch, stem

NAME = "torchvision or timm ResNet"

# our modules -> theirs; deep stems are Sequentials of convolution, norm, ReLU, ...
_STEMS = {
    "conv7": {"conv1": "conv1", "norm1": "bn1"},
    "cifar": {"conv1": "conv1", "norm1": "bn1"},
    "deep": {
        "conv1": "conv1.0",
        "norm1": "conv1.1",
        "conv2": "conv1.3",
        "norm2": "conv1.4",
        "conv3": "conv1.6",
        "norm3": "bn1",
    },
}
_SHORTCUTS = {"conv": {"conv": "0", "norm": "1"}, "avgpool": {"conv": "1", "norm": "2"}}

# parts that no net of the zoo has: pattern of their keys, reason
_FOREIGN = {
    r"layer\d+\.\d+\.se\.": "channel or spatial attention (SE, ECA, CBAM, ...), whose factors depend on the input",
    r"layer\d+\.\d+\.conv[12]\.\w+\.": "split or selective-kernel attention in place of a block's 3x3",
    r"layer\d+\.\d+\.convs\.": "Res2Net blocks, whose 3x3 is a chain of smaller ones",
    r".*\baa\.": "anti-aliasing (blur pools) beside its strides",
    r"maxpool\.": "a convolution or blur pool in place of the stem's max pool",
    r"(attn_?pool|global_pool)\.": "attention pooling before the classifier",
}


def foreign_key(key: str, stem: str, shortcut: str) -> str:
    """Return the key in torchvision's or timm's layout of one of our ResNet's keys.

    Args:
        key: key of our net.
        stem, shortcut: options of our net.
    """
    module, _, leaf = key.rpartition(".")
    if module.startswith("stem."):
        return f"{_STEMS[stem][module.removeprefix('stem.')]}.{leaf}"
    block, downsample, part = module.rpartition(".downsample.")
    if downsample:
        return f"{block}.downsample.{_SHORTCUTS[shortcut][part]}.{leaf}"
    return f"{module.replace('.norm', '.bn')}.{leaf}"


@dataclass(frozen=True)
class Architecture:
    """The architecture that the keys and shapes of a checkpoint show.

    Attributes:
        block: kind of the blocks, as in ``ResNetConfig``.
        depths: blocks in each stage.
        groups: groups of a bottleneck's 3x3.
        out_channels: channels of the last stage.
        stem, shortcut: options of the net, as in ``ResNetConfig``.
        post_bias: whether convolutions have biases of their own.
    """

    block: str
    depths: tuple[int, ...]
    groups: int
    out_channels: int
    stem: str
    shortcut: str
    post_bias: bool

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Architecture:
        """Return the architecture of a checkpoint.

        Raises:
            WeightsError: one that our nets cannot have.
        """
        # stages and blocks, each numbered without a gap
        blocks = {(int(m[1]), int(m[2])) for key in state if (m := re.match(r"layer(\d{1,3})\.(\d{1,4})\.", key))}
        counts = Counter(stage for stage, _ in blocks)
        depths = tuple(counts[stage] for stage in range(1, len(counts) + 1))
        if blocks != {(stage, i) for stage, depth in enumerate(depths, 1) for i in range(depth)}:
            raise WeightsError(f"{NAME} checkpoint: its blocks are not numbered layer1.0, layer1.1, ... without a gap")
        block = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
        # channels
        middle, last = _conv(state, "layer1.0.conv2"), "conv3" if block == "bottleneck" else "conv2"
        groups = max(1, _conv(state, "layer1.0.conv1").shape[0] // middle.shape[1])
        final = f"layer{len(depths)}.0.{last}.weight"
        if final not in state or not state[final].numel() or not state[final].ndim:
            raise WeightsError(f"{NAME} checkpoint: {final} is missing or no kernel")
        # the entrance, and the projections: an average pool is the first module of its Sequential
        deep = "conv1.0.weight" in state
        size = 3 if deep else _conv(state, "conv1").shape[-1]
        entrance = "deep" if deep else {7: "conv7", 3: "cifar"}.get(size)
        if entrance is None:
            raise WeightsError(f"{NAME} checkpoint: its stem is a {size}x{size} convolution; must be 7x7, or three 3x3")
        projections = [key for key in state if re.fullmatch(r"layer\d+\.\d+\.downsample\.0\.weight", key)]
        pooled = not projections and any(".downsample." in key for key in state)
        for key in projections:
            if weight_of(NAME, state, key, 4).shape[-1] != 1:
                raise WeightsError(f"{NAME} checkpoint: its shortcut {key} is no 1x1 convolution, as the zoo's are")
        return cls(
            block=block,
            depths=depths,
            groups=groups,
            out_channels=state[final].shape[0],
            stem=entrance,
            shortcut="avgpool" if pooled else "conv",
            post_bias="layer1.0.conv1.bias" in state,
        )

    def __str__(self) -> str:
        grouped = f" with {self.groups} groups" if self.groups > 1 else ""
        return f"{self.block} blocks {self.depths}{grouped}"

    def fits(self, layout: ResNetConfig) -> bool:
        """Return whether a net's layout has these blocks, widths aside."""
        return (layout.block, layout.depths, layout.groups) == (self.block, self.depths, self.groups)

    def of_layout(self, layout: ResNetConfig) -> dict[str, Any]:
        """Return the options that give a net with this layout the checkpoint's architecture."""
        full = branch(layout, layout.base_channels * 2 ** (len(layout.depths) - 1), 1)[-1].channels
        options: dict[str, Any] = {"shortcut": self.shortcut}
        if self.stem != layout.stem:
            options["stem"] = self.stem
        if self.out_channels != full:
            options["width"] = self.out_channels / full
        return options

    def of_scheme(self) -> dict[str, Any]:
        """Return the options of the scheme."""
        return {"post_bias": True} if self.post_bias else {}


def _conv(state: Mapping[str, Tensor], module: str) -> Tensor:
    """Return the weight of a convolution."""
    return weight_of(NAME, state, f"{module}.weight", 4)


def matches(keys: Collection[str]) -> bool:
    """Return whether keys are those of a ResNet of torchvision or timm."""
    begins = any(key.startswith("layer1.0.conv1.") for key in keys)
    return begins and ("conv1.weight" in keys or "conv1.0.weight" in keys)


def read(state: Mapping[str, Tensor], name: str | None, options: Mapping[str, Any]) -> Imported:
    """Return a checkpoint of a ResNet of torchvision or timm in the keys of our ``bn`` net.

    Args:
        state: state dict of the checkpoint.
        name: name of our net; None to find it.
        options: options of our net; ``stride_in_1x1`` does not show in the keys.

    Raises:
        WeightsError: a checkpoint that no net of the zoo fits, with the reason.
    """
    refuse_foreign_parts(state)
    found = Architecture.of(state)
    if found.stem == "cifar" and options.get("stem") != "cifar":
        raise WeightsError(
            f"{NAME} checkpoint: its stem is a 3x3 convolution, and its keys do not show the stride or a pool; "
            "if it has neither give stem='cifar', or give the module"
        )
    specs = candidates(NAME, ResNet, name, str(found), found.fits)
    classes = weight_of(NAME, state, "fc.weight", 2).shape[0] if "fc.weight" in state else 0
    entrance = _conv(state, "conv1.0" if found.stem == "deep" else "conv1")
    configs = [
        ModelConfig(
            name=spec.name,
            scheme="bn",
            num_classes=classes,
            in_chans=entrance.shape[1],
            options=with_asked(NAME, found.of_layout(spec.layout) | found.of_scheme(), options),
        )
        for spec in specs
    ]
    if found.stem == "deep":
        _refuse_other_deep_stems(state, [replace(s.layout, **found.of_layout(s.layout)) for s in specs])
    return fitted(NAME, state, configs, lambda key: foreign_key(key, found.stem, found.shortcut))


def refuse_foreign_parts(state: Mapping[str, Tensor]) -> None:
    """Refuse a ResNet with parts that no net of the zoo has.

    Raises:
        WeightsError: such a part, with its key.
    """
    # parts with keys of their own
    for key in state:
        for pattern, reason in _FOREIGN.items():
            if re.match(pattern, key):
                raise WeightsError(f"{NAME} checkpoint: it has {reason} ({key}); the zoo has no such net")
    # parts that only shapes or missing keys show
    if "bn1.weight" in state and "bn1.running_mean" not in state:
        raise WeightsError(
            f"{NAME} checkpoint: its norms have no running statistics (GroupNorm or LayerNorm), so that what they "
            "compute depends on the input and no weights can replace them"
        )


def _refuse_other_deep_stems(state: Mapping[str, Tensor], layouts: Sequence[ResNetConfig]) -> None:
    """Refuse a deep stem with other channels than those of every net with one of these layouts.

    Raises:
        WeightsError: such a stem, with its channels.
    """
    own = [_conv(state, f"conv1.{number}").shape[0] for number in (0, 3, 6)]
    ours = [[conv.channels for conv in stem(layout)] for layout in layouts]
    if own not in ours:
        raise WeightsError(f"{NAME} checkpoint: its deep stem has {own} channels; the zoo's has {ours[0]}")


LAYOUT = Layout(NAME, matches, read)

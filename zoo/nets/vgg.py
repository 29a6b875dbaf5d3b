"""VGG nets (Simonyan and Zisserman 2014, arXiv:1409.1556), written once for every scheme.

No residual connections: the rescale scheme is the bias before every product alone. With
``post_bias=True`` and scheme ``none`` or ``bn`` the layers are those of torchvision's vgg16/vgg16_bn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.fold import Unscale, activation, folded_conv, folded_linear, needed_shift
from zoo.layers import ChannelBias
from zoo.nets.base import Backbone, FeatureLevel
from zoo.options import free
from zoo.schemes.vision import Scheme
from zoo.specs import ModelSpec, register_model


@dataclass(frozen=True)
class VGGConfig:
    """A VGG's layout. The fields named in ``OPTIONS`` may be given to ``create_model``.

    Attributes:
        depths: 3x3 convolutions before each max pool.
        width: factor on all channel counts, the classifier's too.
        drop_rate: dropout after each hidden layer of the classifier.
    """

    OPTIONS: ClassVar = ("width", "drop_rate")

    depths: tuple[int, ...]
    width: float = 1.0
    drop_rate: float = free(0.5)

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ZooError(f"option width={self.width}: must be greater than 0")
        if not 0 <= self.drop_rate < 1:
            raise ZooError(f"option drop_rate={self.drop_rate}: must be in [0, 1)")


class Stage(nn.Sequential):
    """Convolutions of one resolution as conv1, norm1, act1, ..."""


class VGG(Backbone):
    """A VGG of any scheme. Feature level i is the i-th stage before its max pool; the last follows the last pool."""

    residual = False
    pooled = False

    def __init__(self, config: VGGConfig, scheme: Scheme, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.scheme = scheme
        previous, reduction = in_chans, 1
        levels = []
        self.stage_names = [f"stage{i + 1}" for i in range(len(config.depths))]
        self.to_features = nn.ModuleList(
            Unscale() for _ in config.depths
        )  # from what the net holds to the feature maps
        for i, (name, depth) in enumerate(zip(self.stage_names, config.depths, strict=True)):
            channels = max(1, round(min(64 * 2**i, 512) * config.width))
            stage = Stage()
            for j in range(1, depth + 1):
                make = scheme.first_conv if i == 0 and j == 1 else scheme.conv
                stage.add_module(f"conv{j}", make(previous, channels, 3, mode="fan_out"))
                stage.add_module(f"norm{j}", scheme.norm(channels))
                stage.add_module(f"act{j}", scheme.activation())
                previous = channels
            self.add_module(name, stage)
            levels.append(FeatureLevel(channels, reduction, name))
            reduction *= 2
        self.last_pool: nn.Module = nn.MaxPool2d(2, 2)
        levels.append(FeatureLevel(previous, reduction, "last_pool"))
        self.levels = tuple(levels)
        hidden = max(1, round(4096 * config.width))
        self.num_features = hidden
        self.head_bias = scheme.head_bias(previous)
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(7)
        self.hidden: nn.Module = nn.Sequential(
            scheme.hidden_linear(previous * 49, hidden, first=True),
            scheme.activation(),
            nn.Dropout(config.drop_rate),
            scheme.hidden_linear(hidden, hidden, first=False),
            scheme.activation(),
            nn.Dropout(config.drop_rate),
        )
        self.reset_classifier(num_classes)

    def forward_levels(self, x: Tensor, indices: Sequence[int] | None = None) -> list[Tensor]:
        maps: list[Tensor] = []
        for level, name in enumerate(self.stage_names):
            x = getattr(self, name)(x if level == 0 else nn.functional.max_pool2d(x, 2, 2))
            if indices is None or level in indices:
                maps.append(self.to_features[level](x))
        last = len(self.levels) - 1
        if len(self.stage_names) == last and (indices is None or last in indices):
            maps.append(self.last_pool(x))
        return maps

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.hidden(self.pool(self.head_bias(x)).flatten(1))
        return x if pre_logits else self.fc(x)

    def truncate(self, level: int) -> None:
        for name in self.stage_names[level + 1 :]:
            delattr(self, name)
        self.stage_names = self.stage_names[: level + 1]
        self.to_features = self.to_features[: level + 1]
        if level < len(self.levels) - 1:
            self.levels = self.levels[: level + 1]
        self.head_bias, self.pool, self.hidden, self.fc = (nn.Identity() for _ in range(4))
        self.num_classes = 0

    def fold_(self) -> None:
        stages = [getattr(self, name) for name in self.stage_names]
        places = [(stage, f"{j}") for stage in stages for j in range(1, len(stage) // 3 + 1)]
        shifts = [needed_shift(stage.get_submodule(f"conv{j}")) for stage, j in places] + [None]
        for (stage, j), input_shift, output_shift in zip(places, shifts[:-1], shifts[1:], strict=True):
            conv = stage.get_submodule(f"conv{j}")
            folded, norm = folded_conv(
                conv, stage.get_submodule(f"norm{j}"), input_shift=input_shift, output_shift=output_shift
            )
            setattr(stage, f"conv{j}", folded)
            setattr(stage, f"norm{j}", norm)
            setattr(stage, f"act{j}", activation(output_shift, conv.weight))
        end = 0
        for stage, exit in zip(stages, self.to_features, strict=True):
            end += len(stage) // 3
            assert isinstance(exit, Unscale)
            exit.hold(shifts[end], next(stage.parameters()))  # max pooling lets a shift through
        if not isinstance(self.hidden, nn.Sequential):
            return  # no head
        missing = None
        if isinstance(self.head_bias, ChannelBias):
            missing = self.head_bias.bias.double().repeat_interleave(49)
        self.head_bias = nn.Identity()
        for i, layer in enumerate(self.hidden):
            if isinstance(layer, nn.Linear):
                self.hidden[i] = folded_linear(layer, missing=missing)
                missing = None
            elif isinstance(layer, nn.Dropout):
                self.hidden[i] = nn.Identity()
        self.fc = folded_linear(self.fc)


_PAPER = "https://arxiv.org/abs/1409.1556"

for _name, _depths in {"rescalevgg16": (2, 2, 3, 3, 3), "rescalevgg19": (2, 2, 4, 4, 4)}.items():
    register_model(
        ModelSpec(
            name=_name,
            family=VGG,
            layout=VGGConfig(_depths),
            num_classes=1000,
            input_size=224,
            min_size=32,
            paper=_PAPER,
        )
    )

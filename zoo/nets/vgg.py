"""VGG nets (Simonyan and Zisserman 2014, arXiv:1409.1556), written once for every scheme.

No residual connections: the rescale scheme is the bias before every product alone. With
``post_bias=True`` and scheme ``none`` or ``bn`` the layers are those of torchvision's vgg16/vgg16_bn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from zoo.arguments import flag, whole_number
from zoo.checkpointing import checkpointed
from zoo.errors import ZooError
from zoo.folding import Unscale, folded_linear, needed_shift
from zoo.layers import ChannelBias
from zoo.nets.base import Backbone, FeatureLevel
from zoo.nets.stacks import ConvStack
from zoo.options import free
from zoo.precision import precise
from zoo.schemes.vision import VisionScheme
from zoo.specs import ModelSpec, register_model


@dataclass(frozen=True)
class VGGConfig:
    """A VGG's layout. The fields named in ``OPTIONS`` may be given to ``create_model``.

    Attributes:
        depths: 3x3 convolutions before each max pool.
        width: factor on all channel counts, the classifier's too.
        global_pool: avg for the classifier's own pooling to 7x7, or "" for the last map in place of the classifier,
            which requires 0 classes.
        drop_rate: dropout after each hidden layer of the classifier.
    """

    OPTIONS: ClassVar = ("width", "global_pool", "drop_rate")

    depths: tuple[int, ...]
    width: float = 1.0
    global_pool: Literal["avg", ""] = free("avg")
    drop_rate: float = free(0.5)

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ZooError(f"option width={self.width}: must be > 0")
        if not 0 <= self.drop_rate < 1:
            raise ZooError(f"option drop_rate={self.drop_rate}: must be in [0, 1)")


class VGGStage(ConvStack, nn.Sequential):
    """Convolutions of one resolution as conv1, norm1, act1, ..."""


class VGG(Backbone):
    """A VGG of any scheme. Feature level i is the i-th stage before its max pool; the last follows the last pool."""

    residual = False
    pooled = False
    global_pools = ("avg", "")

    def __init__(self, config: VGGConfig, scheme: VisionScheme, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.scheme = scheme
        self.to_features = nn.ModuleList(Unscale() for _ in config.depths)  # from the stages to the feature levels
        # the stages stage1, stage2, ...
        previous, reduction = in_chans, 1
        levels = []
        for number, depth in enumerate(config.depths, 1):
            channels = max(1, round(min(64 * 2 ** (number - 1), 512) * config.width))
            stage = VGGStage()
            for _ in range(depth):
                make = scheme.first_conv if number == 1 and stage.depth == 0 else scheme.conv
                conv = make(previous, channels, 3, mode="fan_out")
                stage.add_layer(conv, scheme.norm(channels), scheme.activation())
                previous = channels
            self.add_module(f"stage{number}", stage)
            levels.append(FeatureLevel(channels, reduction, f"stage{number}"))
            reduction *= 2
        self.last_pool: nn.Module = nn.MaxPool2d(2, 2)
        levels.append(FeatureLevel(previous, reduction, "last_pool"))
        self.levels = tuple(levels)
        # the head
        hidden = max(1, round(4096 * config.width))
        self.num_features, self.hidden_features = previous, hidden
        self.head_bias = scheme.head_bias(previous)
        self.drop: nn.Module = nn.Identity()
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(7)
        self.hidden: nn.Module = nn.Sequential(
            scheme.hidden_linear(previous * 49, hidden, first=True),
            scheme.activation(),
            nn.Dropout(config.drop_rate),
            scheme.hidden_linear(hidden, hidden, first=False),
            scheme.activation(),
            nn.Dropout(config.drop_rate),
        )
        self.reset_classifier(num_classes, config.global_pool)

    def stages(self) -> list[Any]:
        """Return the stages stage1, stage2, ..."""
        return [getattr(self, f"stage{number}") for number in range(1, len(self.to_features) + 1)]

    def forward_levels(self, x: Tensor, indices: Sequence[int] | None = None) -> list[Tensor]:
        selected = range(len(self.levels)) if indices is None else indices
        maps: list[Tensor] = []
        stages = self.stages()
        for level, stage in enumerate(stages):
            if level > max(selected):
                return maps
            x = x if level == 0 else nn.functional.max_pool2d(x, 2, 2)
            x = checkpointed(stage, x) if self.grad_checkpointing else stage(x)
            if level in selected:
                maps.append(self.to_features[level](x))
        if len(stages) in selected:
            maps.append(self.last_pool(x))
        return maps

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.hidden_features is None or not self.global_pool:
            return super().forward_head(x, pre_logits)
        x = self.hidden(self.pool(self.head_bias(x)).flatten(1))
        return x if pre_logits else self.fc(x)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {
            "stem": r"^stage1\.(?:conv|norm)1\.",
            "blocks": r"^stage(\d+)" if flag(coarse, "coarse") else r"^stage(\d+)\.[a-z]+(\d+)",
            "hidden": r"^hidden\.(\d+)",
        }

    def truncate(self, level: int) -> None:
        level = whole_number(level, "truncate: level", 0, len(self.levels) - 1)
        for number in range(level + 2, len(self.to_features) + 1):
            delattr(self, f"stage{number}")
        self.to_features = self.to_features[: level + 1]
        self.drop_head(level)
        self.pool, self.hidden = nn.Identity(), nn.Identity()

    def fold_(self) -> None:
        # each convolution adds the shift that the next one needs; max pooling commutes with a shift
        stages = self.stages()
        places = [(stage, number) for stage in stages for number in range(1, stage.depth + 1)]
        convs = [layer.conv for stage in stages for layer in stage.layers()]
        shifts = [None, *(needed_shift(conv) for conv in convs[1:]), None]
        for (stage, number), input_shift, output_shift in zip(places, shifts[:-1], shifts[1:], strict=True):
            stage.fold_layer_(number, input_shift=input_shift, output_shift=output_shift)
        # the shift for the next stage is subtracted from each feature level
        end = 0
        for stage, to_features in zip(stages, self.to_features, strict=True):
            end += stage.depth
            assert isinstance(to_features, Unscale)
            to_features.set_shift(shifts[end], next(stage.parameters()))
        if isinstance(self.hidden, nn.Sequential):
            self._fold_head_()

    def _fold_head_(self) -> None:
        """Change the classifier into its deployment form."""
        missing = None  # bias of the pooled features, (C * 7 * 7,)
        if isinstance(self.head_bias, ChannelBias):
            missing = precise(self.head_bias.bias).repeat_interleave(49)  # (C,) in the order of flatten
        self.head_bias = nn.Identity()
        hidden: Any = self.hidden
        for i, layer in enumerate(hidden):
            if isinstance(layer, nn.Linear):
                hidden[i] = folded_linear(layer, missing=missing)
                missing = None
            elif isinstance(layer, nn.Dropout):
                hidden[i] = nn.Identity()
        self.fc = folded_linear(self.fc)


_PAPER = "https://arxiv.org/abs/1409.1556"

for _layers, _depths in {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}.items():
    register_model(
        ModelSpec(
            name=f"rescalevgg{_layers}",
            family=VGG,
            layout=VGGConfig(_depths),
            num_classes=1000,
            input_size=224,
            min_size=32,
            paper=_PAPER,
        )
    )

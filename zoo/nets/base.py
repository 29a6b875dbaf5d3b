"""Features, head, scales and parameter groups: the methods that every net has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from zoo.calibration import HasDataBias
from zoo.errors import ZooError, suggestion
from zoo.joins import Join
from zoo.schemes.vision import VISION_SCHEMES, VisionScheme
from zoo.trunk import TrunkScales


@dataclass(frozen=True)
class FeatureLevel:
    """One feature map.

    Attributes:
        channels: number of channels.
        reduction: input pixels per position, along each side.
        module: name of the module that makes the map.
        frames: input frames per position in time; 1 for nets that take images.
    """

    channels: int
    reduction: int
    module: str
    frames: int = 1


class FeatureInfo:
    """timm's vocabulary for a list of feature maps."""

    def __init__(self, levels: Sequence[FeatureLevel], out_indices: Sequence[int]) -> None:
        self.levels, self.out_indices = tuple(levels), tuple(out_indices)

    def channels(self) -> list[int]:
        """Return the channels of each map."""
        return [level.channels for level in self.levels]

    def reduction(self) -> list[int]:
        """Return the input pixels per position of each map, along each side."""
        return [level.reduction for level in self.levels]

    def frames(self) -> list[int]:
        """Return the input frames per position in time of each map; 1 for nets that take images."""
        return [level.frames for level in self.levels]

    def module_name(self) -> list[str]:
        """Return the name of the module that makes each map."""
        return [level.module for level in self.levels]

    def __len__(self) -> int:
        return len(self.levels)


@dataclass(frozen=True)
class ModelConfig:
    """The arguments that build a model again: ``create_model(name, scheme=..., ..., **options)``."""

    name: str
    scheme: str
    num_classes: int
    in_chans: int
    options: dict[str, Any]


class Net(nn.Module):
    """Base of the registered nets: a net that its config can build again."""

    schemes: ClassVar[Mapping[str, type[Any]]]  # by name
    residual: ClassVar[bool]  # whether the net has residual branches
    num_classes: int  # number of class names in its weights
    config: ModelConfig  # set by create_model
    folded = False  # whether it is in deployment form (zoo.fold)
    trunk_scales = TrunkScales()  # the scales at which blocks store the trunk; no rows in nets without a trunk

    @classmethod
    def build(cls, layout: Any, scheme: Any, config: ModelConfig) -> Net:
        """Return a fresh net. The registry has checked the arguments."""
        raise NotImplementedError

    @classmethod
    def scheme_options(cls, scheme: str) -> dict[str, dataclasses.Field[Any]]:
        """Return the options of a scheme, without those about residual branches if the net has none."""
        owner = cls.schemes[scheme]
        return {f.name: f for f in dataclasses.fields(owner) if cls.residual or f.name not in owner.residual_options}

    def fold_(self) -> None:
        """Change this net, in eval mode and without gradients, into its deployment form; ``zoo.fold`` calls it."""
        raise NotImplementedError

    def nominal(self, name: str, output: Tensor) -> Tensor:
        """Return the value of the formulas at a module's output, given the output that a hook has seen.

        Inside a block the trunk and the branch are stored at a scale (docs/method.md, M10), by which this method
        divides; ``print(net.trunk_scales)`` lists the scales. At the branch's last product and after it, the value is
        the weighted branch that is added; at a projection, the weighted shortcut.

        Args:
            name: qualified name of the module, as ``named_modules`` gives it.
            output: output of the module.

        Raises:
            ZooError: a folded net, an unknown name (with near matches), or a module without a single scale.
        """
        if self.folded:
            raise ZooError("nominal: a folded net has its scales in its weights; call it on the net before zoo.fold")
        names = [known for known, _ in self.named_modules()]
        if name not in names:
            raise ZooError(f"nominal: unknown module {name!r}{suggestion(name, names)}")
        scale = self.trunk_scales.output_scale(self, name)
        return output if scale == 1 else output / scale

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that take no weight decay: biases, multipliers and norm parameters."""
        return no_weight_decay(self)


class Backbone(Net):
    """Base of the nets for images: (N, in_chans, H, W) -> logits (N, num_classes), or features for 0 classes.

    Video nets (``dims`` = 3) take clips (N, in_chans, T, H, W), and their feature maps are (N, C, t, h, w).

    Subclasses set ``scheme``, ``levels`` (all feature levels, finest first) and ``num_features``, call
    ``reset_classifier`` last, and implement ``forward_levels``, ``forward_head`` and ``truncate``.
    """

    schemes = VISION_SCHEMES
    dims: ClassVar[int] = 2  # dimensions of its convolutions
    pooled: ClassVar[bool]  # whether the last layer's input is pooled features
    scheme: VisionScheme
    fc: nn.Module
    levels: tuple[FeatureLevel, ...]
    num_features: int

    @classmethod
    def build(cls, layout: Any, scheme: Any, config: ModelConfig) -> Backbone:
        make: Any = cls
        return make(layout, scheme, config.num_classes, config.in_chans)

    @property
    def feature_info(self) -> FeatureInfo:
        """All feature levels of the net."""
        return FeatureInfo(self.levels, range(len(self.levels)))

    def forward_levels(self, x: Tensor, indices: Sequence[int] | None = None) -> list[Tensor]:
        """Return the feature maps of the levels ``indices`` (None: all), finest first."""
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map (N, C, h, w)."""
        return self.forward_levels(x, (len(self.levels) - 1,))[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits, or the last layer's input if ``pre_logits``, of the last feature map (N, C, h, w)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh last layer for ``num_classes`` classes in place; 0 removes it."""
        self.num_classes = num_classes
        if hasattr(self, "config"):  # not yet in the constructor
            self.config = dataclasses.replace(self.config, num_classes=num_classes)
        like = next(self.parameters())
        self.fc = nn.Identity()
        if num_classes:
            fresh = self.scheme.classifier(self.num_features, num_classes, pooled=self.pooled)
            self.fc = fresh.to(like.device, like.dtype)

    def truncate(self, level: int) -> None:
        """Drop the head and every stage after feature level ``level``."""
        raise NotImplementedError


class FeatureExtractor(nn.Module):
    """A backbone that returns the feature maps ``out_indices`` as a list, without head or unused stages."""

    def __init__(self, body: Backbone, out_indices: Sequence[int] | None) -> None:
        super().__init__()
        count = len(body.levels)
        indices = tuple(range(count)) if out_indices is None else tuple(out_indices)
        if not indices or sorted(set(indices)) != list(indices) or not 0 <= indices[0] <= indices[-1] < count:
            raise ZooError(f"out_indices={out_indices!r}: must be increasing numbers from 0 to {count - 1}")
        body.truncate(indices[-1])
        self.body = body
        self.out_indices = indices
        self.feature_info = FeatureInfo([body.levels[i] for i in indices], indices)
        self.config = body.config
        self.frozen: list[nn.Module] = []

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps (N, C_i, [t_i,] h_i, w_i) that ``feature_info`` describes, of (N, in_chans, [T,] H, W)."""
        return self.body.forward_levels(x, self.out_indices)

    def freeze(self, levels: int) -> None:
        """Freeze the modules of the first ``levels`` feature levels for good: no gradients, statistics or dropout.

        Raises:
            ZooError: more levels than the net has.
        """
        if not 0 <= levels <= len(self.body.levels):
            raise ZooError(f"freeze={levels}: must be 0 to {len(self.body.levels)}, the levels of {self.config.name}")
        for level in self.body.levels[:levels]:
            module = self.body.get_submodule(level.module)
            module.requires_grad_(False).eval()
            self.frozen.append(module)

    def train(self, mode: bool = True) -> FeatureExtractor:
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that take no weight decay."""
        return no_weight_decay(self)


def no_weight_decay(model: nn.Module) -> set[str]:
    """Return the names of all 0-D and 1-D parameters: biases of both kinds, multipliers, norm parameters."""
    return {name for name, p in model.named_parameters() if p.ndim <= 1}


def param_groups(
    model: nn.Module, weight_decay: float, *, multiplier_lr: float = 1.0, bias_lr: float = 1.0
) -> list[dict[str, Any]]:
    """Return groups for an optimizer: weights with decay; biases, norm parameters and multipliers without.

    Args:
        model: any module.
        weight_decay: weight decay of the weights of convolutions and linear layers.
        multiplier_lr: factor on the learning rate of the joins' multipliers, as ``lr_scale`` in their group.
        bias_lr: factor on the learning rate of the biases that are initialised from data.

    Returns:
        The groups that are not empty, with ``params``, ``names``, ``group`` (weights, others, data_biases,
        multipliers), ``weight_decay`` and ``lr_scale``.
    """
    # the group of each parameter whose module decides it
    special: dict[str, str] = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, Join):
            special |= {f"{prefix}{parameter}": "multipliers" for parameter in module.multiplier_parameters()}
        elif isinstance(module, HasDataBias):
            special[f"{prefix}{module.data_bias_name}"] = "data_biases"
    settings = {
        "weights": (weight_decay, 1.0),
        "others": (0.0, 1.0),
        "data_biases": (0.0, bias_lr),
        "multipliers": (0.0, multiplier_lr),
    }
    groups: dict[str, dict[str, Any]] = {
        kind: {"params": [], "names": [], "group": kind, "weight_decay": decay, "lr_scale": scale}
        for kind, (decay, scale) in settings.items()
    }
    # the others: by their number of dimensions
    without_decay = no_weight_decay(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = special.get(name, "others" if name in without_decay else "weights")
            groups[kind]["params"].append(parameter)
            groups[kind]["names"].append(name)
    return [g for g in groups.values() if g["params"]]

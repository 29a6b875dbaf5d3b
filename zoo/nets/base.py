"""Features, head, levels and scales: the methods that every net has."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from zoo import arguments
from zoo.errors import ZooError, suggestion
from zoo.nets.parameters import no_weight_decay
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


class FeatureInfo(list[dict[str, Any]]):
    """timm's description of a list of feature maps: one dict each, with the methods of timm's class of this name.

    The dicts have the keys ``num_chs``, ``reduction``, ``module``, ``index`` (among all levels of the net) and
    ``frames``. timm's own ``FeatureInfo`` reads a list of them.

    Args:
        levels: levels of the maps.
        out_indices: indices of these levels among all of the net.
    """

    def __init__(self, levels: Sequence[FeatureLevel], out_indices: Sequence[int]) -> None:
        super().__init__(
            {
                "num_chs": level.channels,
                "reduction": level.reduction,
                "module": level.module,
                "index": index,
                "frames": level.frames,
            }
            for level, index in zip(levels, out_indices, strict=True)
        )
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


def feature_indices(indices: int | Sequence[int] | None, count: int, argument: str = "indices") -> list[int]:
    """Return the numbers of the feature levels that are asked for, as timm counts them.

    Args:
        indices: increasing numbers, of which negative ones count from the end; a number n for the last n levels; None
            for all.
        count: number of levels.
        argument: name of the argument, for the message.

    Raises:
        ZooError: a number out of range, or numbers that do not increase.

    >>> feature_indices((1, -1), 5), feature_indices(2, 5)
    ([1, 4], [3, 4])
    """
    try:
        if indices is None:
            found = list(range(count))
        elif isinstance(indices, Iterable) and getattr(indices, "ndim", 1) != 0:
            asked = [arguments.whole_number(i, argument, -count, count - 1) for i in indices]
            found = [i + count if i < 0 else i for i in asked]
        else:
            found = list(range(count - arguments.whole_number(indices, argument, 1, count), count))
    except ZooError:
        found = []
    if not found or sorted(set(found)) != found:
        raise ZooError(
            f"{argument}={arguments.shown(indices)}: must be increasing numbers from 0 to {count - 1}, negative ones "
            f"counted from the end, or one number from 1 to {count} for the last levels"
        )
    return found


MOST_CLASSES = 1_000_000
MOST_CHANNELS = 10_000  # of the input


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
    frozen: tuple[nn.Module, ...] = ()  # modules that stay in eval mode; set by freeze
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
        name = arguments.text(name, "nominal: name")
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

    def level_modules(self) -> dict[str, list[str]]:
        """Return the names of the modules of each level, from the input on.

        ``freeze`` counts these levels, and so do the rates of ``param_groups``, without those that have no parameters.
        What belongs to none is the head.
        """
        return {}

    def freeze(self, levels: int) -> None:
        """Freeze the modules of the first ``levels`` levels for good: no gradients, statistics or dropout.

        With all levels frozen the head alone is trained.

        Raises:
            ZooError: more levels than the net has.
        """
        known = list(self.level_modules().values())
        levels = arguments.whole_number(levels, "freeze", None)
        if not 0 <= levels <= len(known):
            raise ZooError(f"freeze={levels}: must be 0 to {len(known)}, the levels of {self.config.name}")
        fixed = [self.get_submodule(name) for names in known[:levels] for name in names]
        for module in fixed:
            module.requires_grad_(False).eval()
        self.frozen += tuple(module for module in fixed if module not in self.frozen)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def input_parameters(self) -> list[Tensor]:
        """Return the parameters of the first layers, which Muon leaves to another optimizer.

        Raises:
            ZooError: a net that does not name them.
        """
        raise ZooError(f"{type(self).__name__}: must implement input_parameters, which names its first layers")

    def output_parameters(self) -> list[Tensor]:
        """Return the parameters of the last layers, which Muon and adaptive gradient clipping leave alone.

        Raises:
            ZooError: a net that does not name them.
        """
        raise ZooError(f"{type(self).__name__}: must implement output_parameters, which names its last layers")


def pool_globally(x: Tensor, kind: str) -> Tensor:
    """Return a feature map (N, C, ...) pooled over all positions, (N, C); the map itself for the kind ""."""
    if not kind:
        return x
    positions = tuple(range(2, x.ndim))
    if kind == "avg":
        return x.mean(positions)
    return x.amax(positions) if kind == "max" else (x.mean(positions) + x.amax(positions)) / 2


class Backbone(Net):
    """Base of the nets for images: (N, in_chans, H, W) -> logits (N, num_classes), or features for 0 classes.

    Video nets (``dims`` = 3) take clips (N, in_chans, T, H, W), and their feature maps are (N, C, t, h, w). The methods
    beside ``forward`` have the names and meanings of timm's models.

    Subclasses set ``scheme``, ``levels`` (all feature levels, finest first), ``num_features`` and ``head_bias``, call
    ``reset_classifier`` last, and implement ``forward_levels`` and ``truncate``. A subclass with
    layers between the pooled features and the last one sets ``hidden_features`` and implements ``forward_head``.
    """

    schemes = VISION_SCHEMES
    dims: ClassVar[int] = 2  # dimensions of its convolutions
    global_pools: ClassVar[tuple[str, ...]] = ("avg", "max", "avgmax", "")  # values of global_pool
    pooled: bool  # whether the last layer's input is pooled features
    scheme: VisionScheme
    fc: nn.Module
    head_bias: nn.Module
    drop: nn.Module
    levels: tuple[FeatureLevel, ...]
    num_features: int  # channels of the last feature map
    hidden_features: int | None = None  # features that enter the last layer, where a hidden layer makes them
    global_pool: str = "avg"  # pooling of the head; "" for none
    grad_checkpointing = False  # whether backward computes blocks again (set_grad_checkpointing)
    pretrained_cfg: Mapping[str, Any] = {}  # input and head in timm's words (zoo.pretrained_cfg); of nets for images
    default_cfg: Mapping[str, Any] = {}  # the same, under timm's older name
    headless = False  # whether ``truncate`` has removed the head

    @classmethod
    def build(cls, layout: Any, scheme: Any, config: ModelConfig) -> Backbone:
        make: Any = cls
        return make(layout, scheme, config.num_classes, config.in_chans)

    @property
    def in_chans(self) -> int:
        """Number of input channels."""
        return self.config.in_chans

    @property
    def head_hidden_size(self) -> int:
        """Number of features that enter the last layer."""
        return self.hidden_features or self.num_features

    @property
    def feature_info(self) -> FeatureInfo:
        """All feature levels of the net."""
        return FeatureInfo(self.levels, range(len(self.levels)))

    def forward_levels(self, x: Tensor, indices: Sequence[int] | None = None) -> list[Tensor]:
        """Return the feature maps of the levels ``indices`` (None: all), finest first; later stages do not run."""
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map (N, C, h, w)."""
        return self.forward_levels(x, (len(self.levels) - 1,))[0]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the last feature map and those of some levels, or the latter alone.

        Args:
            x: images (N, in_chans, H, W), or clips (N, in_chans, T, H, W).
            indices: levels, as ``feature_indices`` takes them.
            norm: argument of timm's interface without effect: no norm follows the last stage.
            stop_early: whether the first result is the last map of ``indices`` instead of the net's.
            output_fmt: layout of the maps; only NCHW.
            intermediates_only: whether the list is returned alone. Stages after the last of ``indices`` do not run.

        Raises:
            ZooError: another ``output_fmt``, or levels that the net does not have.
        """
        if not isinstance(output_fmt, str) or output_fmt != "NCHW":
            raise ZooError(f"output_fmt={str(output_fmt)!r}: must be NCHW")
        selected = feature_indices(indices, len(self.levels))
        if intermediates_only:
            return self.forward_levels(x, selected)
        last = selected[-1] if stop_early else len(self.levels) - 1
        maps = self.forward_levels(x, sorted({*selected, last}))
        return maps[-1], maps[: len(selected)]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits, or the last layer's input if ``pre_logits``, of the last feature map (N, C, h, w)."""
        # the published bias before global pooling acts on the pooled features (N, C): it commutes with means and maxima
        x = self.drop(self.head_bias(pool_globally(x, self.global_pool)))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """Return the last layer, or its name."""
        return "fc" if arguments.flag(name_only, "name_only") else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh last layer for ``num_classes`` classes in place; 0 removes it.

        Args:
            num_classes: number of classes.
            global_pool: pooling of the head: avg, max, avgmax (their mean), or "" for the unpooled map, which requires
                0 classes; None for the current one, or avg if that is "" and there are classes.

        Raises:
            ZooError: a negative number, a pooling that the net does not have, or one that does not go with the number
                of classes.
        """
        num_classes = arguments.whole_number(num_classes, "num_classes", most=MOST_CLASSES)
        pool = global_pool
        if pool is None:
            pool = self.global_pool or ("avg" if num_classes else "")
        if not isinstance(pool, str) or pool not in self.global_pools:
            allowed = ", ".join(repr(known) for known in self.global_pools)
            raise ZooError(f"{type(self).__name__}: global_pool={arguments.shown(pool)}: must be one of {allowed}")
        if num_classes and not pool:
            raise ZooError(f"global_pool='' gives maps, not features for {num_classes} classes; requires 0 classes")
        changed, self.num_classes, self.global_pool = pool != self.global_pool, num_classes, pool
        # a net that lost its head gets a new one for its last map
        head: dict[str, nn.Module] = {"fc": nn.Identity()}
        if self.headless and pool:
            head["head_bias"], self.headless = self.scheme.head_bias(self.num_features), False
        if num_classes:
            head["fc"] = self.scheme.classifier(self.head_hidden_size, num_classes, pooled=self.pooled)
        like = next(self.parameters())
        for name, module in head.items():
            setattr(self, name, module.to(like.device, like.dtype).train(self.training))
        # the config builds the net again; it is set after the net was built
        if (config := getattr(self, "config", None)) is not None:
            options = {**config.options, "global_pool": pool} if changed else config.options
            self.config = dataclasses.replace(config, num_classes=num_classes, options=options)

    def input_parameters(self) -> list[Tensor]:
        products = (module for module in self.modules() if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear))
        return [parameter for first in islice(products, 1) for parameter in first.parameters()]

    def output_parameters(self) -> list[Tensor]:
        return list(self.fc.parameters())

    def level_modules(self) -> dict[str, list[str]]:
        return {level.module: [level.module] for level in self.levels}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Store only the inputs of blocks (of VGG: stages) for backward, which computes them again, or stop doing so.

        Outputs, gradients and the statistics of BatchNorm stay the same. ``zoo.calibrate`` and other forwards without
        gradients do not change.
        """
        self.grad_checkpointing = arguments.flag(enable, "enable")

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's groups of parameters for layer-wise learning rates: regular expressions of names, in order.

        Parameters that match none, those of the head, form the last group.

        Args:
            coarse: whether a stage, not a block, is a group; nets that know no finer groups take stages.
        """
        return {level.module: rf"^{re.escape(level.module)}\." for level in self.levels}

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the feature maps ``indices`` do not need, and return the indices counted from 0.

        Args:
            indices: levels, as ``feature_indices`` takes them.
            prune_norm: argument of timm's interface without effect: no norm follows the last stage.
            prune_head: whether the head is dropped even if the last level is kept.
        """
        selected = feature_indices(indices, len(self.levels))
        if prune_head or selected[-1] < len(self.levels) - 1:
            self.truncate(selected[-1])
        return selected

    def truncate(self, level: int) -> None:
        """Drop the head and every stage after feature level ``level``; ``forward`` then returns its map.

        ``reset_classifier(num_classes, "avg")`` puts a new head on it.
        """
        raise NotImplementedError

    def drop_head(self, level: int) -> None:
        """Drop the head and the levels after ``level``, for ``truncate``."""
        self.levels = self.levels[: level + 1]
        self.num_features, self.hidden_features = self.levels[-1].channels, None
        self.head_bias, self.drop, self.fc = nn.Identity(), nn.Identity(), nn.Identity()
        self.num_classes, self.global_pool, self.pooled, self.headless = 0, "", True, True


class FeatureExtractor(nn.Module):
    """A backbone that returns the feature maps ``out_indices`` as a list, without head or unused stages."""

    def __init__(self, body: Backbone, out_indices: int | Sequence[int] | None) -> None:
        super().__init__()
        indices = tuple(feature_indices(out_indices, len(body.levels), "out_indices"))
        levels = [body.levels[i] for i in indices]
        body.truncate(indices[-1])
        self.body = body
        self.out_indices = indices
        self.feature_info = FeatureInfo(levels, indices)
        self.config = body.config

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps (N, C_i, [t_i,] h_i, w_i) that ``feature_info`` describes, of (N, in_chans, [T,] H, W)."""
        return self.body.forward_levels(x, self.out_indices)

    def freeze(self, levels: int) -> None:
        """Freeze the first ``levels`` feature levels for good; see ``Backbone.freeze``."""
        self.body.freeze(levels)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Store only the inputs of blocks for backward (``Backbone.set_grad_checkpointing``)."""
        self.body.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that take no weight decay."""
        return no_weight_decay(self)

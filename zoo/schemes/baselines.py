"""The schemes for images and clips that RescaleNet is compared with: published ways to do without normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from zoo import baseline_layers
from zoo.baseline_joins import MultiplierJoin, NormalizerFreeJoin, RescaledSumJoin
from zoo.baseline_layers import RELU_GAIN
from zoo.errors import ZooError
from zoo.joins import Join
from zoo.method import he_normal_
from zoo.schemes.base import Growth, Place, register_scheme
from zoo.schemes.vision import Extent, VisionScheme, dimensions, half, he, pointwise


@dataclass(frozen=True)
class SkipInit(VisionScheme):
    """x + m F(x), m a learnable scalar, 0 at init; ordinary biases, He init (De and Smith 2020, arXiv:2002.10444).

    The paper's nets have the activation before the convolutions; here it follows the sum, as in every other net of
    the zoo. At init the blocks with an identity shortcut are the identity in both orders.

    Attributes:
        post_bias: whether each convolution has an ordinary bias, as published.
    """

    name: ClassVar[str] = "skipinit"
    trunk_growth: ClassVar[Growth] = "stays"
    multiplier_init: ClassVar[float] = 0.0
    default_shortcut: ClassVar[str] = "conv"
    residual_only: ClassVar[bool] = True

    post_bias: bool = True

    def gain_of_projection(self) -> float:
        return 2**0.5

    def join(self, place: Place, channels: int) -> Join:
        return MultiplierJoin(0.0)

    def _make_conv(self, in_channels: int, out_channels: int, kernel: Extent, stride: Extent, groups: int) -> Any:
        return _scaled_conv(self, in_channels, out_channels, kernel, stride, groups)


@dataclass(frozen=True)
class Fixup(VisionScheme):
    """Fixup (Zhang, Dauphin, Ma 2019, arXiv:1901.09321), section 3, "Fixup initialization".

    1. The classifier and the last layer of each branch are 0 at init.
    2. The other m - 1 layers of a branch have the standard deviation of He et al. times L^(-1/(2m-2)). L is the number
       of branches. The fan is that of the output, as in the authors' code.
    3. Each branch has a scalar multiplier (1 at init). A scalar bias (0 at init) is before each convolution, the last
       linear layer and each activation. The authors' code has one bias for the first convolution of a branch and the
       projection beside it; here they have one each. The image has none, as in that code.

    The authors train the scalars at a tenth of the learning rate: ``multiplier_lr`` and ``bias_lr`` of
    ``zoo.param_groups``.
    """

    name: ClassVar[str] = "fixup"
    trunk_growth: ClassVar[Growth] = "stays"
    default_shortcut: ClassVar[str] = "conv"
    conv_mode: ClassVar[str] = "fan_out"
    residual_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.post_bias:
            raise ZooError("option post_bias=True: must be False with scheme 'fixup', whose biases are scalars")

    def projection(self, in_channels: int, out_channels: int, *, stride: Extent = 1) -> nn.Module:
        # what a bias after it adds, the bias after the branch's last layer adds too
        conv = self._scalar_conv(in_channels, out_channels, pointwise(stride), stride, 1, after=False)
        return he(conv, mode=self.conv_mode)

    def stem(self, in_channels: int, out_channels: int, kernel_size: Extent, *, stride: Extent = 1) -> nn.Module:
        conv = self._scalar_conv(in_channels, out_channels, kernel_size, stride, 1, before=False)
        return he(conv, mode=self.conv_mode)

    def later_stem(self, in_channels: int, out_channels: int, kernel_size: Extent, *, stride: Extent = 1) -> nn.Module:
        return self.conv(in_channels, out_channels, kernel_size, stride=stride)

    def finish_branch_(self, layers: list[Any]) -> None:
        nn.init.zeros_(layers[-1].weight)

    def join(self, place: Place, channels: int) -> Join:
        return MultiplierJoin(1.0)

    def classifier(self, in_features: int, out_features: int, *, pooled: bool) -> nn.Module:
        linear = baseline_layers.ScalarBiasLinear(in_features, out_features)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        return linear

    def branch_factor(self, place: Place) -> float:
        return place.total ** (-1 / (2 * place.layers - 2)) if place.layers > 1 else 1.0

    def _make_conv(self, in_channels: int, out_channels: int, kernel: Extent, stride: Extent, groups: int) -> Any:
        return self._scalar_conv(in_channels, out_channels, kernel, stride, groups)

    def _scalar_conv(self, i: int, o: int, kernel: Extent, stride: Extent, groups: int, **biases: bool) -> Any:
        two = dimensions(kernel) == 2
        make: Any = baseline_layers.ScalarBiasConv2d if two else baseline_layers.ScalarBiasConv3d
        return make(i, o, kernel, stride, half(kernel), groups=groups, **biases)


@dataclass(frozen=True)
class PreActivation(VisionScheme):
    """Base of the schemes in pre-activation order: the trunk is activated where a branch or the head reads it.

    Feature levels are maps of the trunk, before an activation.
    """

    def trunk_activation(self) -> nn.Module:
        return nn.Identity()

    def final_activation(self) -> nn.Module:
        return nn.ReLU()


@dataclass(frozen=True)
class NormalizerFree(PreActivation):
    """NF-ResNets (Brock, De, Smith 2021, arXiv:2101.08692; Brock, De, Smith, Simonyan 2021, arXiv:2102.06171).

    x_{l+1} = x_l + alpha F(relu(x_l / beta_l)). The filters have mean 0, a fixed norm and a learnable gain
    (``StandardizedConv2d``), so that a branch has variance 1 at init. Then the variance of the trunk is known without
    data: it grows by alpha^2 in each block, and begins again at 1 where a projection shortcut reads the normalized
    input. beta_l is its square root. timm's ``nf_resnet50`` computes the same from the same weights.

    In a net without branches (VGG) the filters are standardized, and that is all.

    Shortcuts are strided 1x1 convolutions as in the authors' ResNets. With ``shortcut="avgpool"``, as in timm, the
    average takes variance from the trunk at each transition.

    Attributes:
        nf_alpha: alpha; 0.2 as published.
        skipinit: whether each branch also has a learnable scalar, 0 at init, as in the authors' code. timm's
            ``nf_resnet50`` has none.
        post_bias: whether each convolution has an ordinary bias, as published.
    """

    name: ClassVar[str] = "nf"
    trunk_growth: ClassVar[Growth] = "grows"
    multiplier_init: ClassVar[float] = 0.0
    default_shortcut: ClassVar[str] = "conv"
    residual_options: ClassVar[tuple[str, ...]] = ("nf_alpha", "skipinit")

    post_bias: bool = True
    nf_alpha: float = 0.2
    skipinit: bool = True

    def __post_init__(self) -> None:
        if not self.nf_alpha > 0:
            raise ZooError(f"option nf_alpha={self.nf_alpha}: must be > 0")

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Extent,
        *,
        stride: Extent = 1,
        groups: int = 1,
        place: Place | None = None,
        mode: str | None = None,
    ) -> nn.Module:
        return self._standardized(in_channels, out_channels, kernel_size, stride, groups, RELU_GAIN)

    def linear_conv(self, in_channels: int, out_channels: int, kernel_size: Extent) -> nn.Module:
        return self._standardized(in_channels, out_channels, kernel_size, 1, 1, 1.0)

    def projection(self, in_channels: int, out_channels: int, *, stride: Extent = 1) -> nn.Module:
        return self._standardized(in_channels, out_channels, pointwise(stride), stride, 1, RELU_GAIN)

    def stem(self, in_channels: int, out_channels: int, kernel_size: Extent, *, stride: Extent = 1) -> nn.Module:
        return self._standardized(in_channels, out_channels, kernel_size, stride, 1, 1.0)

    def later_stem(self, in_channels: int, out_channels: int, kernel_size: Extent, *, stride: Extent = 1) -> nn.Module:
        return self.conv(in_channels, out_channels, kernel_size, stride=stride)

    def first_conv(self, in_channels: int, out_channels: int, kernel_size: int, *, mode: str) -> nn.Module:
        return self.stem(in_channels, out_channels, kernel_size)

    def join(self, place: Place, channels: int) -> Join:
        return NormalizerFreeJoin(self.nf_alpha, 1 + place.added * self.nf_alpha**2, self.skipinit)

    def classifier(self, in_features: int, out_features: int, *, pooled: bool) -> nn.Module:
        linear = nn.Linear(in_features, out_features)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        return linear

    def _standardized(self, i: int, o: int, kernel: Extent, stride: Extent, groups: int, factor: float) -> nn.Module:
        two = dimensions(kernel) == 2
        make: Any = baseline_layers.StandardizedConv2d if two else baseline_layers.StandardizedConv3d
        conv = make(i, o, kernel, stride, half(kernel), groups=groups, bias=self.post_bias, factor=factor)
        he_normal_(conv.weight, gain=1.0)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        return conv


@dataclass(frozen=True)
class RescaledSum(PreActivation):
    """The rescaled sum (Civitelli, Sortino, Lapucci, Bagattini, Galvan, TNNLS 2025, arXiv:2112.12299, section 3).

    x_{l+1} = c (h(x_l) + F(x_l)) with c = sqrt(1/2), and h and F initialized so that both have mean 0 and the variance
    of x_l. The sum then has it too. With He init of the fan-in that is true for the activations, and
    for the gradients as well where a block has as many channels at its end as at its beginning. Mean 0 requires the
    activation before the convolutions, not after the sum. A max pool after the stem (nets for large images) gives the
    trunk another mean: the power then changes in the first stages.

    Attributes:
        sum_shortcut: h: identity = x; scalar = a x with a learnable scalar a, 1 at init; conv = a 1x1 convolution in
            every block. Where a block changes the size or the channels, h is a 1x1 convolution in all three, with
            ``scalar`` times a.
    """

    name: ClassVar[str] = "sum_rescaled"
    trunk_growth: ClassVar[Growth] = "stays"
    default_shortcut: ClassVar[str] = "conv"
    residual_only: ClassVar[bool] = True

    sum_shortcut: Literal["identity", "scalar", "conv"] = "identity"

    @property
    def projects_always(self) -> bool:
        return self.sum_shortcut == "conv"

    def gain_of_projection(self) -> float:
        return 2**0.5  # it reads the activated trunk, as the branch does

    def stem(self, in_channels: int, out_channels: int, kernel_size: Extent, *, stride: Extent = 1) -> nn.Module:
        # no ReLU made the image
        return he(self._make_conv(in_channels, out_channels, kernel_size, stride, 1), gain=1.0)

    def later_stem(self, in_channels: int, out_channels: int, kernel_size: Extent, *, stride: Extent = 1) -> nn.Module:
        return self.conv(in_channels, out_channels, kernel_size, stride=stride)

    def join(self, place: Place, channels: int) -> Join:
        return RescaledSumJoin(self.sum_shortcut == "scalar")

    def _make_conv(self, in_channels: int, out_channels: int, kernel: Extent, stride: Extent, groups: int) -> Any:
        return _scaled_conv(self, in_channels, out_channels, kernel, stride, groups)


def _scaled_conv(scheme: VisionScheme, i: int, o: int, kernel: Extent, stride: Extent, groups: int) -> Any:
    """Return a convolution of i to o channels whose output a join can multiply by a factor."""
    make: Any = baseline_layers.ScaledConv2d if dimensions(kernel) == 2 else baseline_layers.ScaledConv3d
    return make(i, o, kernel, stride, half(kernel), groups=groups, bias=scheme.post_bias)


for _cls in (Fixup, SkipInit, NormalizerFree, RescaledSum):
    register_scheme(_cls)

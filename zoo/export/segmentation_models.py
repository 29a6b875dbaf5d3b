"""The zoo's nets for images among the encoders of segmentation_models_pytorch, done by importing this module.

    import segmentation_models_pytorch as smp
    import zoo.export.segmentation_models

    smp.Unet("rescalenet50", encoder_weights="torchvision.IMAGENET1K_V2", classes=5)

Requires the extra ``segmentation-models``. smp finds an encoder by name in a table, but fetches weights of its own hub
only, after it has made the net. A net of the zoo is made from its weights, whose options it has. Importing this module
therefore replaces smp's ``get_encoder`` and ``get_preprocessing_params``; other encoders are made as before. timm then
has the zoo's nets too (``zoo.export.timm``).
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from torch import Tensor, nn

import zoo
from zoo.errors import ExportError, ZooError, suggestion
from zoo.layers import InputGain
from zoo.registry import model_info
from zoo.transforms import InputTransform
from zoo.weights import open_weights

try:
    import segmentation_models_pytorch as smp
    from segmentation_models_pytorch import encoders as their_encoders
    from segmentation_models_pytorch.encoders._base import EncoderMixin
    from timm.models import get_pretrained_cfg

    from zoo.export.timm.tags import TAGS, Tag, read_tags
except ModuleNotFoundError as error:
    raise ExportError(
        f"the encoders for segmentation_models_pytorch need {error.name}: pip install "
        "'rescalenet-zoo[segmentation-models]'"
    ) from None

__all__ = ["ZooEncoder", "register"]

DEEPEST = 5  # levels below the image that smp's decoders take


class ZooEncoder(nn.Module, EncoderMixin):
    """A net of the zoo as smp's encoder: images (N, in_channels, H, W) -> the image, and maps of strides 2, 4, 8, ...

    The maps of a net without normalization differ by orders of magnitude in power at init. Each is therefore multiplied
    by an ``InputGain`` (docs/method.md, M15): 1 until ``zoo.calibrate(model.encoder, batches)`` measures it.

    Args:
        name: name of a registered net that takes images.
        in_channels: number of input channels; another number than the weights' adapts the stem.
        depth: number of maps.
        weights: tag of the net's weights, as docs/timm.md has them, ``imagenet`` for the first tag of such, or any name
            of weights that ``zoo.create_model`` takes; None for a fresh net.
        output_stride: stride of the last map at depth 5; only 32.
        options: ``scheme``, and options of the net and its scheme (``zoo.model_info(name)``).

    Raises:
        ZooError: unknown weights or options, a depth that the net does not have, or dilated stages.
    """

    _is_torch_scriptable = False

    def __init__(
        self,
        name: str,
        in_channels: int = 3,
        depth: int = DEEPEST,
        weights: str | None = None,
        output_stride: int = 32,
        **options: Any,
    ) -> None:
        super().__init__()
        if output_stride != 32:
            raise ZooError(
                f"{name}: output_stride={output_stride}: must be 32, as stages of the zoo are not dilated; of smp's "
                "decoders DeepLabV3 and DeepLabV3Plus need it, PAN takes encoder_output_stride=32"
            )
        source = None if weights is None else weights_name(name, weights)
        net = zoo.create_model(name, source, num_classes=0, in_chans=in_channels, **options)
        # the deepest level of each stride
        levels = {level.reduction: number for number, level in enumerate(net.levels)}
        strides = [2**number for number in range(1, depth + 1)]
        if not strides or any(stride not in levels for stride in strides):
            known = sum(2**number in levels for number in range(1, DEEPEST + 1))
            raise ZooError(f"{name}: depth={depth}: must be 1 to {known}; its maps have the strides {sorted(levels)}")
        self.net = zoo.FeatureExtractor(net, [levels[stride] for stride in strides])
        self.gains = nn.ModuleList(nn.Identity() if net.scheme.normalized else InputGain() for _ in strides)
        self._depth, self._in_channels, self._output_stride = depth, in_channels, output_stride
        self._out_channels = [in_channels, *self.net.feature_info.channels()]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the image and the maps, finest first."""
        maps = self.net(x)
        pairs = zip(self.gains, maps, strict=True)
        return [x, *(gain(level) * level if isinstance(gain, InputGain) else level for gain, level in pairs)]

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Refuse another number of channels than the net was made with.

        Raises:
            ZooError: another number.
        """
        if in_channels != self._in_channels:
            raise ZooError(f"in_channels={in_channels}: the encoder was made with {self._in_channels}; make another")

    def make_dilated(self, output_stride: int) -> None:
        """Refuse dilated stages.

        Raises:
            ZooError: always.
        """
        raise ZooError(f"output_stride={output_stride}: stages of the zoo are not dilated")


def weights_name(name: str, weights: str) -> str:
    """Return the name of weights for ``zoo.create_model``.

    Args:
        name: name of the net.
        weights: tag with or without the net's name, ``imagenet``, or a name that ``zoo.create_model`` takes.

    Raises:
        ZooError: the net has no ImageNet weights.
    """
    if weights == "imagenet":
        return _imagenet(name).weights
    tag = TAGS[name].get(weights.removeprefix(f"{name}."))
    return weights if tag is None else tag.weights


def _imagenet(name: str) -> Tag:
    """Return the net's first ImageNet weights, which are others' with an address of their own."""
    for tag in TAGS[name].values():
        if tag.url is not None or tag.timm_name is not None:
            return tag
    known = f"one of {', '.join(TAGS[name])}" if TAGS[name] else "a safetensors file"
    raise ZooError(f"{name} has no ImageNet weights; give encoder_weights=None, or {known}")


def preprocessing(name: str, weights: str = "imagenet") -> dict[str, Any]:
    """Return the input of weights as smp's ``get_preprocessing_params`` does.

    Raises:
        ZooError: unknown weights, or weights that do not take images.
    """
    tag = _imagenet(name) if weights == "imagenet" else TAGS[name].get(weights.removeprefix(f"{name}."))
    if tag is not None and tag.timm_name is not None:
        cfg: Any = get_pretrained_cfg(tag.timm_name)
        order, mean, std = "RGB", cfg.mean, cfg.std
    else:
        transform = open_weights(weights, name).transform if tag is None else tag.transform
        if not isinstance(transform, InputTransform):
            raise ZooError(f"weights {weights} are of no net for images")
        order, mean, std = transform.channel_order, transform.mean, transform.std
    return {"input_space": order, "input_range": [0, 1], "mean": list(mean), "std": list(std)}


# -- registration ------------------------------------------------------------------------------------


def register(name: str) -> None:
    """Register a net with smp, with all weights that can be loaded by name.

    Args:
        name: name of a registered net that takes images.

    Raises:
        ZooError: unknown name, or a net that takes something else.
    """
    if (takes := model_info(name).input_kind) != "images":
        raise ZooError(f"{name} takes {takes}; smp's encoders take images")
    tags = TAGS[name] if name in TAGS else read_tags(name)
    their_encoders.encoders[name] = {
        "encoder": ZooEncoder,
        "pretrained_settings": {tag: {"weights": found.weights} for tag, found in tags.items()},
        "params": {"name": name},
    }


def _of_zoo(name: str) -> bool:
    return their_encoders.encoders.get(name, {}).get("encoder") is ZooEncoder


def _replace() -> None:
    """Put functions for encoders of the zoo around smp's, in every module of smp that has their names."""
    get_encoder, get_params = their_encoders.get_encoder, their_encoders.get_preprocessing_params

    @functools.wraps(get_encoder)
    def any_encoder(
        name: str,
        in_channels: int = 3,
        depth: int = DEEPEST,
        weights: str | None = None,
        output_stride: int = 32,
        **options: Any,
    ) -> nn.Module:
        if _of_zoo(name):
            return ZooEncoder(name, in_channels, depth, weights, output_stride, **options)
        if name.startswith("rescale"):
            names = [known for known in their_encoders.encoders if _of_zoo(known)]
            raise ZooError(f"no encoder {name!r}{suggestion(name, names)}")
        return get_encoder(name, in_channels, depth, weights, output_stride, **options)

    @functools.wraps(get_params)
    def any_params(encoder_name: str, pretrained: str = "imagenet") -> dict[str, Any]:
        if _of_zoo(encoder_name):
            return preprocessing(encoder_name, pretrained)
        return get_params(encoder_name, pretrained)

    any_encoder.of_zoo = True  # type: ignore[attr-defined]
    replaced = {get_encoder: any_encoder, get_params: any_params}
    for module in [module for key, module in sys.modules.items() if key.partition(".")[0] == smp.__name__]:
        for attribute, value in list(vars(module).items()):
            if isinstance(value, type(get_encoder)) and value in replaced:
                setattr(module, attribute, replaced[value])


if not hasattr(their_encoders.get_encoder, "of_zoo"):
    _replace()
for _name in zoo.list_models(input_kind="images"):
    register(_name)

"""The naive formula of a biased layer."""

import torch.nn.functional as F


def naive(layer, x, scale=None):
    """scale * (g W pad(x + s b) + s post), written out: mean, bias on the activations, zeros, product.

    With biased_padding the zeros come before the bias.
    """
    dims = x.ndim - 2
    scale = 1.0 if scale is None else scale
    if layer.pool:
        pool = F.avg_pool2d if dims == 2 else F.avg_pool3d
        x = pool(x, layer.pool, ceil_mode=True, count_include_pad=False)
    pad = [p for side in reversed(layer.padding) for p in (side, side)]
    none = [0, 0]
    before, after = (pad, none) if layer.geometry.biased_padding else (none, pad)
    shifted = F.pad(x, before) + layer.pre_bias.view(-1, *[1] * dims) * layer.input_scale
    post = None if layer.bias is None else layer.bias * layer.input_scale
    conv = F.conv2d if dims == 2 else F.conv3d
    weight = layer.weight
    if layer.weight_scale is not None:
        weight = weight * layer.weight_scale.view(-1, *[1] * (dims + 1))
    return scale * conv(F.pad(shifted, after), weight, post, layer.stride, 0, layer.dilation, layer.groups)

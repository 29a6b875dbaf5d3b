"""Nets with BatchNorm whose statistics look trained, at their worst."""

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

NORMS = (nn.BatchNorm2d, nn.BatchNorm3d, FrozenBatchNorm2d)


def train_statistics_(net, seed=0, *, hostile=False):
    """Give every norm random statistics and affine parameters; ``hostile`` adds channels that published files have.

    These are: gamma 0, gamma negative (always), gamma denormal in float32, and filters of zeros. ``flatten_`` adds
    variances that are denormal.
    """
    random = torch.Generator().manual_seed(seed)

    def uniform(low, high, like):
        return torch.empty(like.shape, dtype=torch.float64).uniform_(low, high, generator=random).to(like)

    with torch.no_grad():
        convs = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)]
        for norm in net.modules():
            if not isinstance(norm, NORMS):
                continue
            norm.running_mean.copy_(uniform(-0.5, 0.5, norm.running_mean))
            norm.running_var.copy_(uniform(0.5, 2.0, norm.running_var))
            norm.weight.copy_(uniform(0.4, 1.2, norm.weight))
            norm.weight[1::3] *= -1
            norm.bias.copy_(uniform(-0.5, 0.5, norm.bias))
            if hostile:
                norm.weight[0] = 0.0
                norm.weight[-1] = 1e-40
        if hostile:
            for conv in convs:
                conv.weight[1 % len(conv.weight)] = 0.0
    return net.eval()


# mean, gamma and beta of flat channels; with a variance of 1e-41 the constant is beta - mean / 3.16e-21 * gamma
FLAT = ((2e-21, 0.5, 0.25), (-0.3, 1e-20, -0.1), (0.0, 0.9, 0.4))


def flatten_(net):
    """Make three channels of every norm flat, as in published files trained with eps 0; eps becomes 0 in all norms.

    Such a channel has a filter of zeros and a variance that is denormal in float32. Its output is a constant, which is
    beta in one of the three.
    """
    conv = None
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                conv = module
            elif isinstance(module, NORMS):
                assert conv is not None
                assert len(conv.weight) == len(module.weight) >= len(FLAT)
                module.eps = 0.0
                for i, (mean, gamma, beta) in enumerate(FLAT):
                    conv.weight[i] = 0.0
                    module.running_mean[i], module.running_var[i] = mean, 1e-41
                    module.weight[i], module.bias[i] = gamma, beta
                conv = None  # each norm belongs to the convolution before it
    return net


def relative_error(found, right):
    """Largest error over the largest magnitude."""
    return float((found - right).abs().max() / right.abs().max())

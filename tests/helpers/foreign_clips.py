"""Video nets of torchvision, made narrow, and nets with the keys of SlowFast and PyTorchVideo, written plainly here.

``tests/interop/test_pytorchvideo.py`` compares keys and outputs with PyTorchVideo 0.1.5. SlowFast is on no package
index. Its commit 287ec00 of 2026-03-16 was compared by hand: ``SlowFast`` has the keys and shapes of its nets
(I3D_8x8_R50, SLOW_8x8_R50 and C2D_NOPOOL_8x8_R50 of its configs, an eighth as wide) and, with their state and before
softmax, their logits to 1e-14 in float64; its own conversion of Caffe2's names turns those of ``slowfast_blobs`` into
all of its keys. The logits of our conversions of its I3D R50 and R101, SLOW_8x8_R50 and SLOW_4x16_R50 were as close.
"""

import torch
from torch import nn
from torchvision.models import video
from torchvision.models.video import resnet


class NarrowVideo(resnet.VideoResNet):
    """torchvision's video ResNet with an eighth of the channels."""

    def _make_layer(self, block, conv_builder, planes, blocks, stride=1):
        if planes == 64:
            self.inplanes = 8
        return super()._make_layer(block, conv_builder, planes // 8, blocks, stride)


class NarrowStem(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv3d(3, 8, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False), nn.BatchNorm3d(8), nn.ReLU(inplace=True)
        )


class NarrowFactorisedStem(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv3d(3, 6, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
            nn.BatchNorm3d(6),
            nn.ReLU(inplace=True),
            nn.Conv3d(6, 8, (3, 1, 1), padding=(1, 0, 0), bias=False),
            nn.BatchNorm3d(8),
            nn.ReLU(inplace=True),
        )


def torchvision_video(name, *, full=False):
    """A video ResNet of torchvision, in full or with an eighth of the channels and 7 classes."""
    if full:
        return getattr(video, name)()
    simple, plane = resnet.Conv3DSimple, resnet.Conv3DNoTemporal
    makers, stem = {
        "r3d_18": ([simple] * 4, NarrowStem),
        "mc3_18": ([simple] + [plane] * 3, NarrowStem),
        "r2plus1d_18": ([resnet.Conv2Plus1D] * 4, NarrowFactorisedStem),
    }[name]
    net = NarrowVideo(resnet.BasicBlock, makers, [2] * 4, stem)
    net.fc = nn.Linear(64, 7)
    return net


def conv(i, o, kernel, stride=1):
    return nn.Conv3d(i, o, kernel, (1, stride, stride), tuple(k // 2 for k in kernel), bias=False)


# kernels in time of the blocks of each stage
TEMPORAL = {
    "i3d": [[3, 3, 3], [3, 1, 3, 1], [3, 1, 3, 1, 3, 1], [1, 3, 1]],
    "slowonly": [[1] * 3, [1] * 4, [3] * 6, [3] * 3],
    "c2d": [[1] * 3, [1] * 4, [1] * 6, [1] * 3],
}
STEM = {"i3d": 5, "slowonly": 1, "c2d": 1}


class Branch(nn.Module):
    """A bottleneck's branch; ``names`` are those of a convolution and of its norm."""

    def __init__(self, channels, inner, out, temporal, stride, names):
        super().__init__()
        convs = [
            conv(channels, inner, (temporal, 1, 1)),
            conv(inner, inner, (1, 3, 3), stride),
            conv(inner, out, (1, 1, 1)),
        ]
        self.names = [tuple(name.format(letter) for name in names) for letter in "abc"]
        for layer, pair in zip(convs, self.names, strict=True):
            self.add_module(pair[0], layer)
            self.add_module(pair[1], nn.BatchNorm3d(layer.out_channels))

    def forward(self, x):
        for i, (layer, norm) in enumerate(self.names):
            x = getattr(self, norm)(getattr(self, layer)(x))
            x = x.relu() if i < 2 else x
        return x


class Bottleneck(nn.Module):
    """A residual block; ``names`` are those of its shortcut, of the shortcut's norm, and of the branch's layers."""

    def __init__(self, channels, inner, out, temporal, stride, names):
        super().__init__()
        self.names = names
        if channels != out or stride > 1:
            self.add_module(names[0], conv(channels, out, (1, 1, 1), stride))
            self.add_module(names[1], nn.BatchNorm3d(out))
        self.branch2 = Branch(channels, inner, out, temporal, stride, names[2:])

    def forward(self, x):
        shortcut = x
        if hasattr(self, self.names[0]):
            shortcut = getattr(self, self.names[1])(getattr(self, self.names[0])(x))
        return (shortcut + self.branch2(x)).relu()


def stages(arch, width, names):
    """The blocks of the four stages."""
    channels, found = width, []
    for i, kernels in enumerate(TEMPORAL[arch]):
        inner, stage = width * 2**i, []
        for j, temporal in enumerate(kernels):
            stage.append(Bottleneck(channels, inner, 4 * inner, temporal, 2 if i and not j else 1, names))
            channels = 4 * inner
        found.append(stage)
    return found


class SlowFast(nn.Module):
    """A net with one pathway and SlowFast's names; no softmax."""

    def __init__(self, arch, width=8, classes=5):
        super().__init__()
        self.pool = arch in ("i3d", "c2d")
        self.s1 = nn.Module()
        self.s1.pathway0_stem = nn.Module()
        self.s1.pathway0_stem.conv = conv(3, width, (STEM[arch], 7, 7), 2)
        self.s1.pathway0_stem.bn = nn.BatchNorm3d(width)
        for i, stage in enumerate(stages(arch, width, ("branch1", "branch1_bn", "{}", "{}_bn")), 2):
            module = nn.Module()
            for j, block in enumerate(stage):
                module.add_module(f"pathway0_res{j}", block)
            self.add_module(f"s{i}", module)
        self.head = nn.Module()
        self.head.projection = nn.Linear(32 * width, classes)

    def features(self, x):
        stem = self.s1.pathway0_stem
        x = nn.functional.max_pool3d(stem.bn(stem.conv(x)).relu(), (1, 3, 3), (1, 2, 2), (0, 1, 1))
        maps = []
        for i in range(2, 6):
            for block in getattr(self, f"s{i}").children():
                x = block(x)
            maps.append(x)
            if i == 2 and self.pool:
                x = nn.functional.max_pool3d(x, (2, 1, 1), (2, 1, 1))
        return maps

    def forward(self, x):
        return self.head.projection(self.features(x)[-1].mean((2, 3, 4)))


class PyTorchVideo(nn.Module):
    """A net with PyTorchVideo's names."""

    def __init__(self, arch, width=8, classes=5):
        super().__init__()
        names = ("branch1_conv", "branch1_norm", "conv_{}", "norm_{}")
        stem = nn.Module()
        stem.conv, stem.norm = conv(3, width, (STEM[arch], 7, 7), 2), nn.BatchNorm3d(width)
        self.blocks = nn.ModuleList([stem])
        for i, blocks in enumerate(stages(arch, width, names)):
            stage = nn.Module()
            stage.res_blocks = nn.ModuleList(blocks)
            self.blocks.append(stage)
            if i == 0 and arch in ("i3d", "c2d"):
                self.blocks.append(nn.MaxPool3d((2, 1, 1), (2, 1, 1)))
        head = nn.Module()
        head.proj = nn.Linear(32 * width, classes)
        self.blocks.append(head)

    def features(self, x):
        stem, *rest, _ = self.blocks
        x = nn.functional.max_pool3d(stem.norm(stem.conv(x)).relu(), (1, 3, 3), (1, 2, 2), (0, 1, 1))
        maps = []
        for stage in rest:
            if isinstance(stage, nn.MaxPool3d):
                x = stage(x)
                continue
            for block in stage.res_blocks:
                x = block(x)
            maps.append(x)
        return maps

    def forward(self, x):
        return self.blocks[-1].proj(self.features(x)[-1].mean((2, 3, 4)))


_C2_NORM = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}


def slowfast_blobs(net):
    """The state of a ``SlowFast`` net under Caffe2's names, as numpy arrays, with what else such files hold."""
    blobs = {}
    for key, value in net.state_dict().items():
        *parts, leaf = key.split(".")
        if leaf == "num_batches_tracked":
            continue
        if parts[0] == "head":
            name = f"pred_{leaf[0]}"
            value = value[..., None, None, None] if leaf == "weight" else value  # a convolution there
        elif parts[0] == "s1":
            name = "conv1_w" if parts[-1] == "conv" else f"res_conv1_bn_{_C2_NORM[leaf]}"
        else:
            layer = parts[-1].removesuffix("_bn")
            branch = "branch1" if layer == "branch1" else f"branch2{layer}"
            end = f"bn_{_C2_NORM[leaf]}" if parts[-1].endswith("_bn") else "w"
            name = f"res{parts[0][1:]}_{parts[1].removeprefix('pathway0_res')}_{branch}_{end}"
        blobs[name] = value.numpy()
        if leaf == "weight":
            blobs[f"{name}_momentum"] = blobs[name]
    return {**blobs, "lr": torch.tensor(0.1).numpy(), "model_iter": torch.tensor([7]).numpy()}

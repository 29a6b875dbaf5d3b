"""Names and shapes of the tensors in checkpoints of the authors' code."""


def resnet_layout(depths, groups, width_per_group, classes):
    """Shapes of the reference's state dict, written from the fixture's description and not from our nets."""
    shapes = {"conv1.weight": (64, 3, 7, 7), **bias("addbias1", (1, 64, 1, 1))}
    channels = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        inner = width * width_per_group // 64 * groups
        for i in range(depth):
            block = f"layer{stage + 1}.{i}"
            shapes[f"{block}._scale"] = (1,)
            shapes[f"{block}.conv1.weight"] = (inner, channels, 1, 1)
            shapes[f"{block}.conv2.weight"] = (inner, inner // groups, 3, 3)
            shapes[f"{block}.conv3.weight"] = (4 * width, inner, 1, 1)
            for n, c in ((1, channels), (2, inner), (3, inner)):
                shapes |= bias(f"{block}.addbias{n}", (1, c, 1, 1))
            if i == 0:
                shapes |= bias(f"{block}.downsample.1", (1, channels, 1, 1))
                shapes[f"{block}.downsample.2.weight"] = (4 * width, channels, 1, 1)
            channels = 4 * width
    return {**shapes, **bias("addbias2", (1, channels, 1, 1)), "fc.weight": (classes, channels), "fc.bias": (classes,)}


def bias(name, shape):
    return {f"{name}._bias": shape, f"{name}.count": (), f"{name}.init_mean": shape}


def vgg_layout(plan, classes):
    shapes, position, channels = {}, 0, 3
    for step in plan:
        if step == "pool":
            position += 1
            continue
        if position:
            shapes |= bias(f"features.{position}", (1, channels, 1, 1))
            position += 1
        shapes[f"features.{position}.weight"] = (step, channels, 3, 3)
        position, channels = position + 2, step
    shapes |= bias(f"features.{position}", (1, channels, 1, 1))
    shapes |= {"classifier.0.weight": (4096, 25088), **bias("classifier.3", (1, 4096))}
    shapes |= {"classifier.4.weight": (4096, 4096), **bias("classifier.7", (1, 4096))}
    return {**shapes, "classifier.8.weight": (classes, 4096), "classifier.8.bias": (classes,)}


VGG16 = [64, 64, "pool", 128, 128, "pool"] + [256] * 3 + ["pool"] + [512] * 3 + ["pool"] + [512] * 3 + ["pool"]
LAYOUTS = {
    "rescale50": lambda: resnet_layout((3, 4, 6, 3), 1, 64, 10),
    "rescaleX50_32x4d": lambda: resnet_layout((3, 4, 6, 3), 32, 4, 10),
    "vgg16": lambda: vgg_layout(VGG16, 10),
}

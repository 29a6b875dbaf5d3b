"""Small detectors, COCO sets, and training runs on them."""

import numpy as np
import torch
from pycocotools import mask as rle
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import zoo
from tasks.detection.coco import decode_mask, load_coco
from tasks.detection.detector import create_detector
from tasks.detection.found import Found, Packed
from tasks.detection.results import choose_results, parse_results
from tests.helpers.nets import IMAGES as NARROW
from tests.helpers.paths import shared

SMALL = {
    "fpn_channels": 32,
    "box_width": 64,
    "box_convs": (32, 32),
    "mask_convs": (32, 32),
    "mask_width": 32,
    "proposals_train": 100,
    "proposals_test": 100,
}


def small(kind="basic", scheme="rescale", detector="mask", **options):
    """A fresh small detector for 3 classes on images of 96 to 160 px."""
    name, body = NARROW[kind]
    settings = {"num_classes": 3, "min_size": 96, "max_size": 160, "body": body, **SMALL, **options}
    return create_detector(f"{detector}_rcnn_{name}_fpn", scheme=scheme, **settings)


def sample(height=96, width=128, objects=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, height // 8, width // 8, generator=generator)
    image = nn.functional.interpolate(image[None], size=(height, width), mode="bilinear")[0]
    corner = torch.rand(objects, 2, generator=generator) * torch.tensor([width / 2, height / 2])
    boxes = torch.cat([corner, corner + 8 + torch.rand(objects, 2, generator=generator) * 30], 1)
    masks = torch.zeros(objects, height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    labels = torch.randint(1, 4, (objects,), generator=generator)
    return image, {"boxes": boxes, "labels": labels, "masks": masks}


def calibrated(model, batches=2):
    data = [sample(seed=i) for i in range(2 * batches)]
    pairs = [([image for image, _ in data[i : i + 2]], [t for _, t in data[i : i + 2]]) for i in range(0, len(data), 2)]
    return zoo.calibrate(model, pairs, forward=lambda m, batch: m.calibration_pass(*batch)), pairs


def read_results(path, data):
    """The detections of a file for a set, and their kinds, as ``rescalenet score`` reads them."""
    return choose_results(path, parse_results(path), data)


def found_of(output, threshold=0.0):
    """What ``Detector.detect`` makes of an output of ``forward``."""
    keep = output["scores"] >= threshold
    masks, size = None, (0, 0)
    if "masks" in output:
        masks = [Packed.of(mask.numpy()) for mask in output["masks"][keep, 0] > 0.5]
        size = tuple(output["masks"].shape[-2:])
    return Found(output["boxes"][keep], output["labels"][keep], output["scores"][keep], size, masks)


def sharpened(model, seed=0):
    """Larger last layers and random biases, so that an untrained detector finds distinct things."""
    torch.manual_seed(seed)
    heads = model.roi_heads
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "multiplier" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
        heads.box_predictor.cls_score.weight.mul_(30)
        heads.box_predictor.bbox_pred.weight.mul_(100)
        if heads.has_mask():
            heads.mask_predictor.mask_fcn_logits.weight.mul_(1000)
    return model


NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, FrozenBatchNorm2d)


def norms(model):
    kinds = [type(m).__name__ for m in model.modules() if isinstance(m, NORMS)]
    return kinds + [type(m).__name__ for m in model.modules() if not isinstance(m, NORMS) and "Norm" in _name(m)]


def _name(module):
    """Its class's name; torchvision's RPN head is a Conv2dNormActivation, here without a norm."""
    return type(module).__name__.replace("Conv2dNormActivation", "")


KINDS = ("bbox", "segm")


def real(name, check="none"):
    """A real set: nuclei (val), coco (train), or nine pictures of coco."""
    annotations, images = {
        "nuclei": ("nuclei/instances_val.json", "nuclei/val"),
        "coco": ("coco_permissive/annotations/instances_train2017.json", "coco_permissive/train2017"),
        "sample": ("coco_permissive/sample/instances_val2017.json", "coco_permissive/sample/val2017"),
    }[name]
    root = shared("data", "coco_permissive").parent
    return load_coco(root / annotations, root / images, masks=True, check=check)


def perfect(data):
    """The ground truth as detections."""
    results = []
    for image in data.images:
        for a in data.objects(image, masks=True):
            mask = rle.encode(np.asfortranarray(decode_mask(a, image.height, image.width)))
            segmentation = {"size": mask["size"], "counts": mask["counts"].decode()}
            entry = {"image_id": image.id, "category_id": a["category_id"], "bbox": a["bbox"], "score": 1.0}
            results.append({**entry, "segmentation": segmentation})
    return results


def config(output, images, annotations, **changes):
    content = {
        "task": "detection",
        "output": str(output),
        "model": {
            "name": "mask_rcnn_rescalenet18_fpn",
            "options": {
                "body": {"width": 0.125},
                **{k: list(v) if isinstance(v, tuple) else v for k, v in SMALL.items()},
            },
        },
        "data": {
            "root": str(images.parent),
            "train_annotations": str(annotations),
            "train_images": str(images),
            "val_annotations": str(annotations),
            "val_images": str(images),
            "min_size": 96,
            "max_size": 160,
            "augment": {"resize": {"name": "short_side", "sizes": [80, 96], "max_size": 160}},
        },
        "train": {
            "epochs": 2,
            "batch_size": 2,
            "optimizer": {"name": "adamw", "lr": 0.001},
            "log_every": 1,
            "checkpoint_minutes": 0,
            "calibration_batches": 2,
        },
    }
    for key, value in changes.items():
        section, name = key.split("__")
        content[section][name] = value
    return content

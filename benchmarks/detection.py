"""Training step, memory and inference of Mask R-CNN on our bodies and torchvision's: python -m benchmarks.detection

All nets have the default pyramid and heads, see the same images, and have stem and first stage frozen. Ratios are to
torchvision's maskrcnn_resnet50_fpn, whose BatchNorm is frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.ops import FrozenBatchNorm2d

import zoo
from benchmarks import measure
from benchmarks.baselines import NETS
from benchmarks.memory import kept_bytes
from tasks.detection.detector import Detector, create_detector

VARIANTS = ("torchvision", "rescale", "frozen_bn", "bn", "gn")
CLASSES = 1


def build(net: str, variant: str, size: tuple[int, int]) -> GeneralizedRCNN:
    """Return a new Mask R-CNN with stem and first stage frozen.

    The last layers of the RPN and the box head are zero. Every net then proposes its anchors and reports the same
    number of objects, so that no net has more work in its heads because its random weights find more objects.

    Args:
        net: key of ``benchmarks.baselines.NETS``.
        variant: "torchvision", or a scheme of ours; frozen_bn is our bn net with constant statistics.
        size: height and width of the images.
    """
    torch.manual_seed(0)
    low, high = min(size), max(size)
    model: GeneralizedRCNN
    if variant == "torchvision":
        name = NETS[net][1]
        body = resnet_fpn_backbone(backbone_name=name, weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3)
        model = MaskRCNN(body, CLASSES + 1, low, high, box_score_thresh=0.0, _skip_resize=True)
    else:
        name, scheme = f"mask_rcnn_{NETS[net][0]}_fpn", "bn" if variant == "frozen_bn" else variant
        ours = create_detector(name, scheme=scheme, num_classes=CLASSES, min_size=low, max_size=high, score_thresh=0.0)
        if variant == "frozen_bn":
            freeze_norms(ours)
        ours.freeze(2)
        model = ours
    last = (model.rpn.head.cls_logits, model.rpn.head.bbox_pred)
    for layer in (*last, model.roi_heads.box_predictor.cls_score, model.roi_heads.box_predictor.bbox_pred):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def freeze_norms(model: nn.Module) -> None:
    """Replace every BatchNorm2d by a FrozenBatchNorm2d."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, FrozenBatchNorm2d(child.num_features))


def data(batch: int, size: tuple[int, int], device: str) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return random images (3, H, W) and targets with eight rectangles in each."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    images, targets = [], []
    for _ in range(batch):
        images.append(torch.rand(3, height, width, generator=generator).to(device))
        corners = torch.rand(8, 2, generator=generator) * torch.tensor([width * 0.6, height * 0.6])
        boxes = torch.cat([corners, corners + 20 + torch.rand(8, 2, generator=generator) * 0.3 * min(size)], 1).round()
        masks = torch.zeros(8, height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        target = {"boxes": boxes, "labels": torch.ones(8, dtype=torch.int64), "masks": masks}
        targets.append({key: value.to(device) for key, value in target.items()})
    return images, targets


def main() -> None:
    """Run the benchmark from the command line."""
    parser = measure.parser((__doc__ or "").split("\n")[0])
    parser.set_defaults(size=None)
    parser.add_argument("--image", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=1)
    measure.add_baselines(parser, VARIANTS)
    parser.add_argument("--mode", nargs="+", default=["train", "infer"], choices=["train", "infer"])
    parser.add_argument("--repeats", type=int, default=30, help="interleaved rounds")
    arguments = parser.parse_args()
    measure.start(arguments)
    size, form = (arguments.image[0], arguments.image[1]), measure.layout(arguments)
    images, targets = data(arguments.batch, size, arguments.device)
    results: list[dict[str, Any]] = []

    def train(model: nn.Module) -> Callable[[], None]:
        """Return a function that runs one training step."""
        model.train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.0, momentum=0.9)

        def do() -> None:
            torch.manual_seed(1)  # equal samples of anchors and proposals in every step
            torch.stack(list(model(images, targets).values())).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        return do

    def infer(model: nn.Module) -> Callable[[], None]:
        """Return a function that runs one inference."""
        model.eval()

        def do() -> None:
            with torch.inference_mode():
                model(images)

        return do

    for net in arguments.net:
        title = f"Mask R-CNN, {NETS[net][1]}, batch {arguments.batch}, {size[0]} x {size[1]} px"
        for mode in arguments.mode:
            steps: dict[str, Callable[[], object]]
            # 1. Build and calibrate the nets.
            models = {variant: build(net, variant, size) for variant in arguments.baselines}
            for model in models.values():
                model.to(arguments.device).to(memory_format=form)
                if isinstance(model, Detector):
                    run = model.calibration_pass
                    zoo.calibrate(model, [(images, targets)], forward=lambda _, batch, run=run: run(*batch))  # type: ignore[misc]
            base = "torchvision" if "torchvision" in models else arguments.baselines[0]
            # 2. Count the bytes saved for backward, or fold for inference.
            if mode == "train":
                saved = {}
                for variant, model in models.items():
                    model.train()
                    torch.manual_seed(1)
                    known = (*images, *model.parameters(), *model.buffers())
                    saved[variant] = kept_bytes(lambda model=model: model(images, targets), known)  # type: ignore[misc]
                rows = [[r, f"{n / saved[base]:.3f}", f"{n / 2**20:.1f}"] for r, n in saved.items()]
                measure.show(f"{title}: saved for backward", ["", f"/ {base}", "MiB"], rows)
                results += [{"net": net, "mode": "saved", "rival": r, "bytes": n} for r, n in saved.items()]
                steps = {variant: train(model) for variant, model in models.items()}
            else:
                if "rescale" in models:
                    models["rescale folded"] = zoo.fold(models["rescale"])
                steps = {variant: infer(model) for variant, model in models.items()}
            # 3. Measure the time.
            seconds = measure.interleave(steps, arguments.repeats, title=f"{title}, {mode}", device=arguments.device)
            ratios = measure.ratios(seconds, base)
            measure.show_ratios(f"{title}, {mode}", base, ratios)
            results += [{"net": net, "mode": mode, "rival": variant, **row} for variant, row in ratios.items()]
    measure.finish(arguments, results)


if __name__ == "__main__":
    main()

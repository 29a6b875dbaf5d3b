"""Metrics and time of exports in float32 and int8: python -m benchmarks.int8_accuracy WEIGHTS DATA TRAIN

Exports are those of ``rescalenet export`` (with ``--int8 --data TRAIN``), metrics those of ``rescalenet eval`` on DATA.
Each runtime computes on one thread. The time is that of the first batch of DATA, of a detector of its first image.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import zoo
from benchmarks import measure
from benchmarks.int8 import runner
from tasks.detection.found import Found, Packed
from tasks.exporting import export_weights
from tasks.spec import spec_of


class Exported(nn.Module):
    """An export that takes the place of its net in an evaluation.

    Args:
        folder: folder of an export to ``onnx`` or ``openvino``.
        tool: the target.
    """

    has_masks = True

    def __init__(self, folder: Path, tool: str) -> None:
        super().__init__()
        self.runner = runner(folder / {"onnx": "model.onnx", "openvino": "model.xml"}[tool])
        self.first: np.ndarray | None = None

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        """Return the outputs, and keep the first input."""
        if self.first is None:
            self.first = x.copy()
        return self.runner(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images or clips."""
        return torch.from_numpy(np.asarray(self.run(x.numpy())[0]))

    def detect(self, images: list[Tensor]) -> list[Found]:
        """Return the objects of images (3, H, W) in 0..1."""
        found = []
        for image in images:
            boxes, labels, scores, masks = (torch.from_numpy(np.asarray(value)) for value in self.run(image.numpy()))
            packed = [Packed.of((mask[0] > 0.5).numpy()) for mask in masks]
            found.append(Found(boxes, labels, scores, (image.shape[1], image.shape[2]), packed))
        return found


def evaluate(net: Any, entry: zoo.Weights, data: Path, images: Path | None) -> dict[str, float]:
    """Return the metrics of an export on a set, as ``rescalenet eval`` computes them."""
    task = spec_of(entry).name
    if task == "classification":
        from tasks.classification.data import read_set
        from tasks.classification.evaluate import evaluate_weights

        return evaluate_weights(net, entry, read_set(data, entry.config.in_chans), batch_size=50).metrics()
    if task == "video":
        from tasks.video.data import read_set as read_videos
        from tasks.video.evaluate import evaluate_weights as evaluate_videos
        from tasks.video.index import Index

        videos, root = read_videos(data, None, None)
        with tempfile.TemporaryDirectory() as folder:
            return evaluate_videos(net, entry, videos, Index(Path(folder) / "index.json", root), batch_size=8).metrics()
    from tasks.detection.coco import load_coco
    from tasks.detection.evaluate import all_metrics, coco_metrics, detect
    from tasks.devices import make_accelerator

    assert images is not None, "a detector needs --images"
    coco = load_coco(data, images, masks=True, check="none")
    found = detect(net, coco, make_accelerator())
    return all_metrics(coco_metrics(coco, found, ("bbox", "segm")))


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="name of weights, or a safetensors file")
    parser.add_argument("data", type=Path, help="set for the metrics: class folders, or a COCO file")
    parser.add_argument("train", type=Path, help="folder of inputs for the calibration")
    parser.add_argument("--images", type=Path, help="folder of the images of a COCO file")
    parser.add_argument("--tools", nargs="+", default=["onnx", "openvino"], choices=["onnx", "openvino"])
    parser.add_argument("--pairs", type=int, default=0, help="interleaved rounds of the timing; default: no timing")
    parser.add_argument("--metrics", nargs="+", help="metrics to show; default: all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    entry = zoo.get_weights(arguments.weights)
    rows: list[list[str]] = []
    header: list[str] = []
    for tool in arguments.tools:
        steps: dict[str, Callable[[], object]] = {}
        for precision in ("float32", "int8"):
            int8 = precision == "int8"
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder) / "net"
                settings: dict[str, Any] = {"half": False, "int8": int8, "overwrite": False, "options": {}}
                made = export_weights(
                    arguments.weights, tool, place, fold=True, data=arguments.train if int8 else None, **settings
                )
                net = Exported(place, tool)
                metrics = evaluate(net, entry, arguments.data, arguments.images)
            assert net.first is not None
            steps[precision] = partial(net.runner, net.first)
            header = list(arguments.metrics or metrics)
            rows.append([f"{tool}, {precision}", *(f"{metrics[name]:.4g}" for name in header)])
            print(made, *rows[-1], flush=True)
        if arguments.pairs:
            seconds = measure.interleave(steps, arguments.pairs, title=tool, device="cpu", warmup=4)
            measure.show_ratios(f"{entry.name}, {tool}", "float32", measure.ratios(seconds, "float32"))
    measure.show(entry.name, ["", *header], rows)


if __name__ == "__main__":
    main()

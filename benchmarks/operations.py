"""Operations of one training step of every task, as text files that can be compared between versions.

    python -m benchmarks.operations --out FOLDER                    # one file for each case, and summary.txt
    python -m benchmarks.operations --out FOLDER --compare EARLIER  # exit code 1 if a sequence differs

The step is the first one of the trainer: forward, loss, backward and the update of the optimizer, without the
calibration before it. The nets are tiny, the data synthetic, the seeds fixed. An operation is a call of torch's
dispatcher below autograd. A line has its name and overload, and with ``--shapes`` the shapes of its inputs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tasks.engine import Trainer
from tasks.spec import check, make_task
from tasks.translation.config import CorpusSection
from tasks.translation.corpus import prepare

BATCH = 4  # samples of each class, and of most batches
DETECTOR = {
    "body": {"width": 0.125},
    "fpn_channels": 8,
    "box_width": 16,
    "box_convs": [8, 8],
    "mask_convs": [8, 8],
    "mask_width": 8,
    "proposals_train": 50,
    "rpn_samples": 32,
    "box_samples": 16,
}
TRANSFORMER = {"dim": 16, "hidden": 32, "heads": 2, "encoder_layers": 2, "decoder_layers": 2, "drop_rate": 0.1}
SGD = {"name": "sgd", "lr": 0.01, "multiplier_lr": 0.3, "bias_lr": 0.3, "clip_norm": 1.0}
ADAMW = {"name": "adamw", "lr": 0.001, "clip_norm": 1.0}


def cases() -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Yield name, task, model section and changes to the train section of each case."""

    def case(task: str, kind: str, name: str, options: dict[str, Any], scheme: str, **train: Any) -> Any:
        """Return a case; its name consists of task, kind, scheme and the changes."""
        model = {"name": name, "scheme": scheme, "options": options}
        return "-".join([task, kind, scheme, *map(str, train.values())]), task, model, train

    for scheme in ("rescale", "bn", "gn", "none"):
        yield case("classification", "cifar", "rescalenet20_cifar", {"width": 0.25}, scheme)
        yield case("detection", "2fc", "mask_rcnn_rescalenet18_fpn", DETECTOR, scheme)
        yield case("video", "r3d", "rescale_r3d_10", {"width": 0.125}, scheme)
    yield case("classification", "cifar", "rescalenet20_cifar", {"width": 0.25}, "rescale", precision="bf16")
    yield case("classification", "bottleneck", "rescalenet50", {"width": 0.125, "branch_drop_rate": 0.2}, "rescale")
    yield case("classification", "grouped", "rescalenext50_32x4d", {"width": 0.25, "multiplier": False}, "rescale")
    regularized = {"drop_path_rate": 0.2, "branch_noise": 0.1, "multiplier": "channel"}
    yield case("classification", "regularized", "rescalenet20_cifar", {"width": 0.25, **regularized}, "rescale")
    yield case("translation", "regularized", "rescale_transformer_tiny", {**TRANSFORMER, **regularized}, "rescale")
    yield case("classification", "vgg", "rescalevgg16", {"width": 0.0625}, "rescale")
    for scheme in ("rescale", "gn"):
        options = {**DETECTOR, "heads": "4conv1fc"}
        yield case("detection", "4conv1fc", "mask_rcnn_rescalenet18_fpn", options, scheme)
    replicate = {"width": 0.125, "temporal_padding": "replicate"}
    yield case("video", "replicate", "rescale_r3d_10", replicate, "rescale")
    yield case("video", "r2plus1d", "rescale_r2plus1d_18", {"width": 0.125}, "rescale")
    for scheme in ("rescale", "post_ln", "pre_ln", "none", "t_fixup", "deepnorm", "dyt"):
        yield case("translation", "tiny", "rescale_transformer_tiny", TRANSFORMER, scheme)
    yield case("translation", "tiny", "rescale_transformer_tiny", TRANSFORMER, "rescale", precision="bf16")


def write_images(root: Path, random: np.random.RandomState) -> dict[str, Any]:
    """Write images of noise in two classes.

    Args:
        root: folder of the data, which does not exist yet.
        random: source of the data.

    Returns:
        Data section of a config.
    """
    for split in ("train", "val"):
        for name in ("a", "b"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for n in range(BATCH):
                Image.fromarray(random.randint(0, 256, (32, 32, 3)).astype(np.uint8)).save(folder / f"{n}.png")
    crop = {"name": "pad", "padding": 2}
    return {"root": str(root), "size": 32, "resize": 32, "augment": {"crop": crop}}


def write_objects(root: Path, random: np.random.RandomState) -> dict[str, Any]:
    """Write images of two rectangles each and their COCO annotations; see ``write_images``."""
    (root / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for n in range(BATCH):
        pixels = random.randint(0, 100, (64, 96, 3))
        for kind in (1, 2):
            x, y, w, h = (int(v) for v in (*random.randint(2, 24, 2), *random.randint(12, 36, 2)))  # JSON needs int
            pixels[y : y + h, x : x + w] += 120
            outline = [x, y, x + w, y, x + w, y + h, x, y + h]
            place = {"bbox": [x, y, w, h], "area": w * h, "segmentation": [outline], "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": n + 1, "category_id": kind, **place})
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"{n}.png")
        images.append({"id": n + 1, "file_name": f"{n}.png", "height": 64, "width": 96})
    content = {"images": images, "annotations": annotations, "categories": [{"id": i, "name": str(i)} for i in (1, 2)]}
    (root / "instances.json").write_text(json.dumps(content))
    files = {"train_annotations": "instances.json", "val_annotations": "instances.json"}
    folders = {"train_images": "images", "val_images": "images"}
    resize = {"name": "lsj", "size": 64, "scale": [0.8, 1.2]}
    return {"root": str(root), **files, **folders, "min_size": 64, "max_size": 96, "augment": {"resize": resize}}


def write_videos(root: Path, random: np.random.RandomState) -> dict[str, Any]:
    """Write videos of eight frames of noise in two classes; see ``write_images``."""
    for split in ("train", "val"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for n in range(BATCH):
                with av.open(str(root / split / name / f"{n}.mp4"), "w") as container:
                    stream: Any = container.add_stream("mpeg4", rate=8)
                    stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
                    for pixels in random.randint(0, 256, (8, 32, 32, 3)).astype(np.uint8):
                        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
                    container.mux(stream.encode(None))
    clip = {"frames": 4, "interval": None, "fps": None}
    return {"root": str(root), "clip": clip, "size": 32, "resize": 32, "augment": {"short_side": [32, 36]}}


def write_corpus(root: Path, random: np.random.RandomState) -> dict[str, Any]:
    """Write sentences of numbers in two languages and prepare the corpus; see ``write_images``."""
    # 1. Write the text.
    words = {"en": ["one", "two", "three", "four", "five"], "de": ["eins", "zwei", "drei", "vier", "fünf"]}
    root.mkdir()
    rows = [random.randint(0, 5, random.randint(2, 9)) for _ in range(40)]
    for language, known in words.items():
        text = "".join(" ".join(known[i] for i in row) + "\n" for row in rows)
        for name in ("train", "val"):
            (root / f"{name}.{language}").write_text(text, encoding="utf-8")
    # 2. Prepare the corpus.
    corpus = {"root": str(root), "source": "en", "target": "de", "train": ["train"], "val": "val"}
    section = {**corpus, "clean": {"duplicates": "keep"}, "vocabulary": {"size": 40}}
    prepare(CorpusSection.model_validate(section), root / "corpus")
    return {"corpus": section, "folder": str(root / "corpus")}


WRITERS = {
    "classification": write_images,
    "detection": write_objects,
    "video": write_videos,
    "translation": write_corpus,
}
TRAIN: dict[str, dict[str, Any]] = {
    "classification": {"batch_size": BATCH, "optimizer": SGD},
    "detection": {"batch_size": 2, "optimizer": ADAMW},
    "video": {"batch_size": BATCH, "optimizer": ADAMW},
    "translation": {"batch_size": 200, "optimizer": {**ADAMW, "multiplier_lr": 0.1}},
}


class Recorder(TorchDispatchMode):
    """Recorder of the operations that are dispatched while it is entered.

    Args:
        shapes: record the shapes of the inputs too.

    Attributes:
        lines: line of each operation.
    """

    def __init__(self, shapes: bool) -> None:
        super().__init__()
        self.shapes = shapes
        self.lines: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        line = str(func)
        if self.shapes:
            tensors = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)]
            line += " " + " ".join("x".join(map(str, t.shape)) or "scalar" for t in tensors)
        self.lines.append(line)
        return func(*args, **(kwargs or {}))


class StepDone(Exception):
    """Raised after the recorded step, to leave the trainer."""


@contextmanager
def after_optimizer_step(do: Any) -> Iterator[None]:
    """Call a function after each step of any optimizer.

    Args:
        do: function that accepts the arguments of a post hook.
    """
    handle = register_optimizer_step_post_hook(do)
    try:
        yield
    finally:
        handle.remove()


def record(
    task: str, model: dict[str, Any], data: dict[str, Any], output: Path, shapes: bool, **train: Any
) -> list[str]:
    """Return the operations of the first step of a run, from the call of the task's losses to the optimizer's update.

    Args:
        task: name of the task.
        model: model section of the config.
        data: data section of the config.
        output: folder of the run.
        shapes: record the shapes of the inputs too.
        train: changes to the train section of the config.
    """
    # 1. Make the task.
    base = {"epochs": 2, "log_every": 1, "calibration_batches": 1, **TRAIN[task]}
    content: dict[str, Any] = {"task": task, "output": str(output), "model": model, "data": data}
    content["train"] = {**base, **train}
    running: Any = make_task(check(content, output.name))
    # 2. Start to record with the losses, which the trainer calls after calibration, and stop after the update.
    recorder = Recorder(shapes)
    losses = running.losses

    def start(*arguments: Any) -> Any:
        recorder.__enter__()
        return losses(*arguments)

    def stop(*arguments: Any) -> None:
        recorder.__exit__(None, None, None)
        raise StepDone

    running.losses = start
    # 3. Train. The backward must run on this thread, because a recorder sees the operations of its thread only.
    with torch.autograd.set_multithreading_enabled(False), after_optimizer_step(stop):
        try:
            Trainer(running).fit()
        except StepDone:
            return recorder.lines
    raise AssertionError(f"{output.name}: the trainer ended before its first step")


def first_difference(name: str, earlier: list[str], later: list[str]) -> str | None:
    """Return a description of the first difference of two sequences, or None if they are equal.

    Args:
        name: name of the case.
        earlier: operations of the earlier version.
        later: operations of this version.
    """
    for i, (a, b) in enumerate(zip_longest(earlier, later, fillvalue="(end)")):
        if a != b:
            before = "".join(f"    {line}\n" for line in earlier[max(0, i - 3) : i])
            return f"{name}: operation {i + 1} of {len(earlier)}, now of {len(later)}\n{before}  - {a}\n  + {b}"
    return None


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the sequences and summary.txt")
    parser.add_argument("--compare", type=Path, help="folder of an earlier version, made with the same options")
    parser.add_argument("--shapes", action="store_true", help="record the shapes of inputs too")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    summary, differences = [], []
    with tempfile.TemporaryDirectory() as place:
        data: dict[str, dict[str, Any]] = {}
        for name, task, model, train in cases():
            if arguments.only not in name:
                continue
            # 1. Record a case; the cases of a task share its data.
            if task not in data:
                data[task] = WRITERS[task](Path(place, task), np.random.RandomState(0))
            lines = record(task, model, data[task], Path(place, "runs", name), arguments.shapes, **train)
            # 2. Write and compare the sequence.
            text = "".join(f"{line}\n" for line in lines)
            (arguments.out / f"{name}.txt").write_text(text)
            summary.append(f"{name:40} {len(lines):6} {hashlib.sha256(text.encode()).hexdigest()}\n")
            print(summary[-1], end="", flush=True)
            if arguments.compare is not None:
                earlier = (arguments.compare / f"{name}.txt").read_text().splitlines()
                if found := first_difference(name, earlier, lines):
                    differences.append(found)
    # 3. Write the summary and report the differences.
    (arguments.out / "summary.txt").write_text("".join(summary))
    if arguments.compare is not None:
        print("\n".join(differences) if differences else f"all {len(summary)} sequences equal {arguments.compare}'s")
        sys.exit(1 if differences else 0)


if __name__ == "__main__":
    main()

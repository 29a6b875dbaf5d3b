"""Makes the artefacts beside it, which later versions must still read: python tests/data/v0.1.0/make.py

It was run once, at version 0.1.0, with Python 3.11.7, torch 2.15.0, torchvision 0.29.2, accelerate 1.15.0, safetensors
0.8.0, sentencepiece 0.2.3 and PyAV 18.1.0, on the processor that ``expected.json`` names. It documents where the
artefacts come from. Later versions do not run it: their files would prove nothing. ``tests/test_old_artefacts.py`` uses
its functions.

``runs/TASK``: a run of 3 epochs that was interrupted in its second. ``weights``: a file of every kind. ``corpus``: a
prepared corpus. ``videos`` and ``video_index.json``: a set of videos and its index. ``expected.json``: what version
0.1.0 computes from them. All paths are relative to one folder, the working directory.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from PIL import Image

import zoo
from tasks.config import read_yaml
from tasks.engine import Trainer
from tasks.spec import check, load_model, make_task
from zoo.fingerprint import fingerprint
from zoo.text import Vocabulary

HERE = Path(__file__).resolve().parent
STEP = 5  # of 9: in the second epoch
KEPT = ("config.yaml", "log.jsonl", "checkpoints/last.pt", "checkpoints/last.safetensors")
ENGLISH = ["zero", "one", "two", "three", "four", "five", "six", "seven"]
GERMAN = ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben"]
MEAN = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}

DETECTOR = {
    "body": {"width": 0.0625, "projection_gain": 2.0},
    "fpn_channels": 4,
    "box_width": 4,
    "mask_convs": [4],
    "mask_width": 4,
    "anchor_scale": 6,
    "proposals_train": 50,
    "proposals_test": 20,
    "rpn_samples": 32,
    "box_samples": 16,
}
TRANSFORMER = {"dim": 8, "hidden": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "drop_rate": 0.1}
TRAIN = {"epochs": 3, "log_every": 1, "checkpoint_minutes": 0, "calibration_batches": 2}

# Each of 3 steps an epoch; what tasks.run.check takes, without task and output.
RUNS: dict[str, dict[str, Any]] = {
    "classification": {
        "model": {"name": "rescalenet20_cifar", "options": {"width": 0.125, "projection_gain": 2.0}},
        "data": {
            "root": "data/images",
            "size": 12,
            "resize": 12,
            "augment": {"crop": {"name": "pad", "padding": 2}},
            "eval_batch_size": 4,
        },
        "train": {
            **TRAIN,
            "batch_size": 8,
            "optimizer": {"name": "sgd", "lr": 0.05, "nesterov": True, "multiplier_lr": 0.3, "clip_norm": 1.0},
            "average": {"name": "ema", "decay": 0.5},
        },
    },
    "detection": {
        "model": {"name": "mask_rcnn_rescalenet20_cifar_fpn", "options": DETECTOR},
        "data": {
            "root": "data/objects",
            "train_annotations": "instances.json",
            "train_images": "images",
            "val_annotations": "instances.json",
            "val_images": "images",
            "min_size": 48,
            "max_size": 64,
            **MEAN,
            "augment": {"resize": {"name": "lsj", "size": 48, "scale": [0.8, 1.25]}, "vertical_flip": 0.5},
        },
        "train": {**TRAIN, "batch_size": 2, "optimizer": {"name": "sgd", "lr": 0.01, "clip_norm": 1.0}},
    },
    "video": {
        "model": {"name": "rescale_slowonly_r20_cifar", "options": {"width": 0.0625}},
        "data": {
            "root": "videos",
            "index": "video_index.json",
            "clip": {"frames": 4, "interval": None, "fps": None},
            "size": 16,
            "resize": 16,
            "augment": {"short_side": [16, 20], "colour": 0.2},
            "eval_clips": 2,
            "eval_batch_size": 4,
        },
        "train": {**TRAIN, "batch_size": 2, "optimizer": {"name": "sgd", "lr": 0.02, "bias_lr": 0.3}},
    },
    "translation": {
        "model": {"name": "rescale_transformer_tiny", "options": {**TRANSFORMER, "decoder_c": 1}},
        "data": {
            "corpus": {
                "root": "data/text",
                "source": "en",
                "target": "de",
                "train": ["train"],
                "val": "val",
                "clean": {"duplicates": "keep"},
                "vocabulary": {"size": 48, "weights": "weights/text.safetensors"},
            },
            "folder": "corpus",
            "eval_batch_size": 4,
            "search": {"beam": 2},
        },
        "train": {
            **TRAIN,
            "batch_size": 200,
            "optimizer": {"name": "adamw", "lr": 0.003, "betas": [0.9, 0.98], "multiplier_lr": 0.1},
            "schedule": {"name": "inverse_sqrt", "warmup_steps": 5},
            "average": {"name": "last_epochs", "epochs": 2},
        },
    },
}


# -- what the tests share ---------------------------------------------------------------------------


def write_data(root: Path) -> None:
    """The training data that are not kept: pictures of two classes, pictures of rectangles, sentences of numbers."""
    random = np.random.RandomState(0)
    for split, count in (("train", 12), ("val", 3)):
        for i, name in enumerate(("blue", "red")):
            folder = root / "data/images" / split / name
            folder.mkdir(parents=True)
            for n in range(count):
                pixels = random.randint(0, 256, (12, 12, 3))
                pixels[..., 2 * i] //= 2
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{n}.png")
    write_objects(root / "data/objects", random)
    for name, count in (("train", 36), ("val", 6)):
        rows = [random.randint(0, len(ENGLISH), random.randint(2, 6)) for _ in range(count)]
        for language, words in (("en", ENGLISH), ("de", GERMAN)):
            path = root / "data/text" / f"{name}.{language}"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(" ".join(words[i] for i in row) + "\n" for row in rows), encoding="utf-8")


def write_objects(folder: Path, random: np.random.RandomState) -> None:
    """Six pictures of 48 x 64 px, two bright rectangles in each, and their COCO annotations."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for n in range(6):
        pixels = random.randint(0, 100, (48, 64, 3))
        for _ in range(2):
            x, y, w, h = (int(v) for v in (*random.randint(2, 24, 2), *random.randint(10, 22, 2)))
            pixels[y : y + h, x : x + w] += 120
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append({"id": len(annotations) + 1, "image_id": n + 1, "category_id": 1, "iscrowd": 0})
            annotations[-1] |= {"bbox": [x, y, w, h], "area": w * h, "segmentation": [corners]}
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{n}.png")
        images.append({"id": n + 1, "file_name": f"{n}.png", "height": 48, "width": 64})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "rectangle"}]}
    (folder / "instances.json").write_text(json.dumps(content))


def restore_times(root: Path) -> None:
    """Give the videos the times of change that their index has, which a checkout does not keep."""
    index = json.loads((root / "video_index.json").read_text())
    for name, record in index["videos"].items():
        os.utime(root / "videos" / name, ns=(record["changed"], record["changed"]))


def resume(task: str) -> dict[str, Any]:
    """Finish ``runs/TASK`` of the working directory.

    Returns:
        The losses of the steps after the interruption, the last metrics, and the sha256 of the last weights.
    """
    folder = Path("runs", task)
    config = check(read_yaml(folder / "config.yaml"), str(folder))
    metrics = Trainer(make_task(config), resume=True).fit()
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["event"] == "step" and record["step"] > STEP]
    state = torch.load(folder / "checkpoints/last.pt", weights_only=True)["model"]
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].contiguous().numpy().tobytes())
    return {"losses": losses, "metrics": metrics, "sha256": digest.hexdigest()}


def environment() -> dict[str, str]:
    """Where results are equal to the bit."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return {
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "processor": next((line.partition(": ")[2] for line in lines if line.startswith("model name")), ""),
    }


# -- what was done once -----------------------------------------------------------------------------


def vocabulary() -> Vocabulary:
    """A vocabulary without a table of normalization, which would take 240 KB."""
    buffer = io.BytesIO()
    sentencepiece.set_random_generator_seed(0)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(ENGLISH), " ".join(GERMAN)] * 20),
        model_writer=buffer,
        vocab_size=48,
        model_type="bpe",
        character_coverage=1.0,
        normalization_rule_name="identity",
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        num_threads=1,
        minloglevel=2,
    )
    return Vocabulary(buffer.getvalue())


def fill(model: Any) -> Any:
    """Give biases, multipliers and norm parameters other values than at init."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def make_weights() -> None:
    """``weights/KIND.safetensors``: images (rescale and bn), detection, video, text; some in half precision."""
    from tasks.detection.detector import create_detector

    folder = Path("weights")
    torch.manual_seed(0)
    image = zoo.InputTransform(32, 36, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26), "bicubic", "BGR")
    options = {"width": 0.125, "projection_gain": 2.0, "shortcut": "conv", "c": 3.0}
    model = fill(zoo.create_model("rescalenet20_cifar", num_classes=3, **options))
    more: dict[str, Any] = {"transform": image, "classes": ("a", "b", "ç"), "dtype": torch.half}
    zoo.save_weights(model, folder / "image.safetensors", **more, meta={"data": "none"})
    model = fill(zoo.create_model("rescalenet20_cifar", scheme="bn", num_classes=3, width=0.125))
    zoo.save_weights(model, folder / "image_bn.safetensors", **more)
    options = {**DETECTOR, "heads": "4conv1fc", "box_convs": [4], "out_indices": [1, 2]}
    model = fill(
        create_detector("mask_rcnn_rescalenet20_cifar_fpn", num_classes=2, min_size=64, max_size=96, **options)
    )
    zoo.save_weights(model, folder / "detection.safetensors", transform=model.input, classes=("a", "b"))
    clip = zoo.VideoTransform(4, None, None, 16, 20, (0.5,) * 3, (0.25,) * 3, "squash")
    model = fill(zoo.create_model("rescale_r3d_10", num_classes=2, width=0.0625, temporal_padding="replicate"))
    zoo.save_weights(model, folder / "video.safetensors", transform=clip, classes=("a", "b"), dtype=torch.half)
    both = vocabulary()
    text = zoo.TextTransform.from_vocabularies(("en", "de"), both, both)
    sizes = {"source_vocabulary": len(both), "target_vocabulary": len(both)}
    model = fill(zoo.create_model("rescale_transformer_tiny", **TRANSFORMER, **sizes))
    zoo.save_weights(model, folder / "text.safetensors", transform=text, classes=())


def make_videos() -> None:
    """Bars that move down or right."""
    from tasks.video.encode import write_video

    for split, count in (("train", 3), ("val", 1)):
        for name, axis in (("down", 0), ("right", 1)):
            for n in range(count):
                frames = np.zeros((8, 24, 24, 3), np.uint8)
                for i, frame in enumerate(frames):
                    np.moveaxis(frame, axis, 0)[2 * i + 2 * n : 2 * i + 2 * n + 4] = (250, 200, 90)
                path = Path("videos", split, name, f"{n}.mp4")
                path.parent.mkdir(parents=True, exist_ok=True)
                write_video(path, list(frames), 8)


def interrupted(task: str) -> None:
    """A run that stops before its step ``STEP`` + 1."""
    config = check({"task": task, "output": f"runs/{task}", **RUNS[task]}, task)
    running = make_task(config)
    trainer = Trainer(running)
    losses = running.losses

    def stop(*arguments: Any) -> Any:
        if trainer.at.step == STEP:
            raise KeyboardInterrupt
        return losses(*arguments)

    running.losses = stop  # type: ignore[method-assign]
    try:
        trainer.fit()
    except KeyboardInterrupt:
        assert (trainer.at.epoch, trainer.at.batch) == (1, 2), f"{task}: an epoch has other than 3 steps"


def main() -> None:
    torch.set_num_threads(1)
    from tasks.translation.config import CorpusSection
    from tasks.translation.corpus import prepare

    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        write_data(Path())
        make_weights()
        make_videos()
        prepare(CorpusSection.model_validate(RUNS["translation"]["data"]["corpus"]), Path("corpus"))
        for task in RUNS:
            interrupted(task)
            for name in (*KEPT, "checkpoints/best.safetensors") if task == "translation" else KEPT:
                target = HERE / "runs" / task / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(Path("runs", task, name), target)
        for name in ("weights", "corpus", "videos"):
            shutil.copytree(name, HERE / name, dirs_exist_ok=True)
        shutil.copyfile("video_index.json", HERE / "video_index.json")
        files = [*sorted(HERE.glob("weights/*.safetensors")), *sorted(HERE.glob("runs/*/checkpoints/*.safetensors"))]
        entries = {file.relative_to(HERE).as_posix(): zoo.get_weights(str(file)) for file in files}
        expected = {
            "versions": {"rescalenet-zoo": zoo.__version__, "python": platform.python_version()},
            "environment": environment(),
            "logits": {name: fingerprint(load_model(entry), entry.transform) for name, entry in entries.items()},
            "runs": {task: resume(task) for task in RUNS},
        }
        os.chdir(HERE)
        (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""A training run of a third of a second: what may remain of it after a fault, and how it must go on.

The server of ``tests.helpers.forked`` imports this module, and with it what forked processes would have to import.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg
import matplotlib.figure
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import tasks.classification.model
import tasks.engine.trainer  # noqa: F401
from tests.helpers.classification import picture
from tests.helpers.forked import Ended, Forked
from zoo.nets.resnet import ResNet, ResNetConfig
from zoo.specs import ModelSpec, register_model

CLASSES, TRAIN, VAL, BATCH, EPOCHS = ("dark", "light"), 6, 2, 4, 2
STEPS = EPOCHS * len(CLASSES) * TRAIN // BATCH
NET = "rescalenet8_cifar"


IN_A_ROW = 10  # faults of one run, which is resumed after each


def points(fast: int, full: int) -> list[Any]:
    """Seeds of random points, of which ``make test`` takes the first few and ``make test-full`` all."""
    return [pytest.param(number, marks=pytest.mark.slow) if number >= fast else number for number in range(full)]


class SmallRun:
    """The data and the config of the run, and the folder of a run that was not disturbed.

    Args:
        root: empty folder for all of these.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.config, self.whole = root, root / "config.yaml", root / "whole"
        for split, count in (("train", TRAIN), ("val", VAL)):
            for first, name in enumerate(CLASSES):
                for i in range(count):
                    picture(root / "data" / split / name / f"{i}.png", (16, 16), seed=100 * first + i)
        content = {
            "task": "classification",
            "output": str(self.whole),
            "model": {"name": NET, "options": {"width": 0.25, "drop_rate": 0.2}},
            "data": {
                "root": str(root / "data"),
                "size": 16,
                "resize": 16,
                "augment": {"crop": {"name": "pad", "padding": 2}},
            },
            "train": {
                "epochs": EPOCHS,
                "batch_size": BATCH,
                "optimizer": {"name": "sgd", "lr": 0.05},
                "average": {"name": "ema", "decay": 0.9},
                "log_every": 1,
                "checkpoint_minutes": 0,
                "calibration_batches": 1,
                "sinks": [],
            },
        }
        self.config.write_text(yaml.safe_dump(content), encoding="utf-8")
        ended = self.start(self.whole).end()
        assert ended.code == 0, ended
        self.log = (self.whole / "log.jsonl").read_bytes()

    def start(
        self,
        folder: Path,
        *arguments: str,
        resume: bool = False,
        fault: Callable[..., None] | None = None,
        given: tuple[Any, ...] = (),
        output: Path | None = None,
    ) -> Forked:
        """Start the run in a folder.

        Args:
            folder: folder of the run.
            arguments: further arguments of the command line.
            resume: whether it goes on with what is there.
            fault: function of ``tests.helpers.faults`` that the process calls first, with ``given``.
            given: arguments of ``fault``.
            output: file for what the process writes; default: one beside the folder.
        """
        line = ["train", self.config, f"output={folder}", *arguments, *(["--resume"] if resume else [])]
        output = output or folder.parent / f"{folder.name}.txt"
        return Forked(*line, output=output, before=_prepare, given=(fault, given))

    def assert_sound(self, folder: Path, *, rarely: bool = False) -> None:
        """Check what a fault has left: every file is whole, and at most the steps since the last save are lost.

        Args:
            folder: folder of the run.
            rarely: whether the run does not save after each step.
        """
        steps = [0]
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            if path.suffix == ".tmp":
                assert path.name.startswith("."), path
            elif path.suffix == ".pt":
                steps.append(torch.load(path, weights_only=True)["position"]["step"])
            elif path.suffix == ".safetensors":
                load_file(path)
            elif path.suffix == ".png":
                Image.open(path).load()
            elif path.name == "config.yaml":
                assert yaml.safe_load(path.read_text(encoding="utf-8"))["task"] == "classification"
            elif path.name == "log.jsonl":
                # Of the last line only the beginning may be there.
                assert self.log.startswith(path.read_bytes())
        if (folder / "log.jsonl").exists() and not rarely:
            logged = (folder / "log.jsonl").read_bytes().split(b"\n")[:-1]
            assert max(steps) >= max((json.loads(line)["step"] for line in logged), default=0) - 1, folder

    def assert_goes_on(self, folder: Path, *arguments: str) -> Ended:
        """Resume a run, and check that it ends as the run that was not disturbed."""
        ended = self.start(folder, *arguments, resume=True, output=folder.parent / f"{folder.name}.resumed.txt").end()
        assert ended.code == 0, ended
        self.assert_whole(folder)
        return ended

    def assert_whole(self, folder: Path) -> None:
        """Check that a run has ended as the one that was not disturbed: same log, same bits, the same files."""
        assert (folder / "log.jsonl").read_bytes() == self.log
        names = [{path.relative_to(each).as_posix() for path in each.rglob("*")} for each in (folder, self.whole)]
        others = {name for name in names[0] ^ names[1] if not name.startswith("tensorboard")}
        assert not others, others
        for name in ("last", "best"):
            own, other = (load_file(each / "checkpoints" / f"{name}.safetensors") for each in (folder, self.whole))
            assert_same(own, other)
        own, other = (torch.load(each / "checkpoints/last.pt", weights_only=True) for each in (folder, self.whole))
        assert_same(own, other)


def assert_same(own: Any, other: Any) -> None:
    """Check that two nests of mappings, sequences and tensors are equal to the bit."""
    assert type(own) is type(other)
    if isinstance(own, torch.Tensor):
        assert torch.equal(own, other)
    elif isinstance(own, dict):
        assert own.keys() == other.keys()
        for key in own:
            assert_same(own[key], other[key])
    elif isinstance(own, list | tuple):
        assert len(own) == len(other)
        for pair in zip(own, other, strict=True):
            assert_same(*pair)
    else:
        assert own == other


def _prepare(fault: Callable[..., None] | None, given: tuple[Any, ...]) -> None:
    """Register a net of three blocks, and draw curves of one pixel; both take most of the time otherwise."""
    layout = ResNetConfig("basic", (1, 1, 1), base_channels=16, stem="cifar")
    register_model(
        ModelSpec(name=NET, family=ResNet, layout=layout, num_classes=10, input_size=32, min_size=8, paper="")
    )
    matplotlib.figure.Figure.savefig = _one_pixel  # type: ignore[method-assign,assignment]
    if fault is not None:
        fault(*given)


def _one_pixel(figure: Any, path: Path, **settings: Any) -> None:
    Image.new("RGB", (1, 1)).save(path, format="PNG")

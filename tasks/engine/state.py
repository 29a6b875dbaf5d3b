"""A run's folder and the training state in it, from which a run resumes.

``config.yaml`` (resolved), ``log.jsonl``, ``tensorboard/``, ``curves.png``, ``checkpoints/last.pt`` (training state),
``checkpoints/best.safetensors`` and ``last.safetensors`` (weights for ``zoo.create_model``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tasks import config as cfg
from tasks.errors import TrainingError
from zoo.files import atomic_write, write_text

# Keys that do not change what a run computes, beyond rounding and, with ``compile``, the numbers that dropout,
# stochastic depth and noise draw.
FREE_KEYS: Any = {"output": True, "train": {"compile", "graphs", "workers"}}


@dataclass
class Position:
    """The position of a run: the part of its checkpoint besides tensors.

    Attributes:
        epoch: epoch in progress, from 0.
        batch: forwards of that epoch that are done.
        step: optimizer steps done since the start of the run.
        log_bytes: length of ``log.jsonl``.
        loss_sum: sum of the losses logged in this epoch.
        loss_count: number of the losses logged in this epoch.
        best: best value of the task's metric.
        metrics: metrics of the last evaluation.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    log_bytes: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    best: float = -math.inf
    metrics: dict[str, float] = field(default_factory=dict)


class RunFolder:
    """The files of a run.

    Args:
        root: path of the folder, which is made when something is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config, self.log, self.curves = root / "config.yaml", root / "log.jsonl", root / "curves.png"
        self.checkpoints = root / "checkpoints"
        self.state = self.checkpoints / "last.pt"
        self.best, self.last = self.checkpoints / "best.safetensors", self.checkpoints / "last.safetensors"

    def check_config(self, config: cfg.RunConfig, *, resume: bool) -> None:
        """Refuse a folder with another run.

        Its folder, ``train.compile``, ``train.graphs`` and ``train.workers`` may differ, so that a run can go on on
        another machine. A stored config of an earlier version may lack fields, which then have their defaults.

        Raises:
            TrainingError: there is a run and ``resume`` is False, or its config is another one.
            ConfigError: the stored config is not valid any more.
        """
        if not self.config.exists():
            return
        if not resume:
            raise TrainingError(f"{self.root} contains a run already: add --resume, or choose another output=FOLDER")
        stored = cfg.check(cfg.read_yaml(self.config), type(config), str(self.config))
        old, new = (section.model_dump(mode="json", exclude=FREE_KEYS) for section in (stored, config))
        if changed := differences(old, new):
            raise TrainingError(f"{self.root} was started with another config: {changed}; resume with the same")

    def write_config(self, config: cfg.RunConfig) -> None:
        """Write the resolved config, and remove files that a killed run left half-written."""
        write_text(cfg.dump(config), self.config)
        for stale in self.checkpoints.glob(".*.tmp"):
            stale.unlink()

    def load_state(self) -> dict[str, Any] | None:
        """Read the training state onto the CPU; None if there is none.

        Raises:
            TrainingError: the file is not a complete checkpoint.
        """
        if not self.state.exists():
            return None
        try:
            return torch.load(self.state, map_location="cpu", weights_only=True)
        except Exception as error:
            raise TrainingError(f"{self.state}: not a complete checkpoint ({error})") from None

    def save_state(self, state: dict[str, Any]) -> None:
        """Write the training state atomically."""
        atomic_write(self.state, lambda path: _save(state, path))

    def describe_state(self) -> str:
        """Return a phrase for messages about the checkpoint to resume from."""
        return f"the last good checkpoint is {self.state}" if self.state.exists() else "no checkpoint yet"


def _save(state: dict[str, Any], path: Path) -> None:
    # Given a path, torch.save reports a full disk as an unexpected position; given a file, as an OSError that it
    # replaces by a RuntimeError when it closes the archive.
    with path.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str:
    """Return the dotted keys whose values differ, with both values, as text."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            inner = differences(a, b, f"{prefix}{key}.")
            found += [inner] if inner else []
        elif a != b:
            found.append(f"{prefix}{key} was {a!r}, is {b!r}")
    return ", ".join(found)

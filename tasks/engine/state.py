"""A run's folder and the training state in it, from which a run resumes.

``config.yaml`` (resolved), ``log.jsonl``, ``tensorboard/``, ``curves.png``, ``checkpoints/last.pt`` (training state),
``previous.pt`` (the state before it), ``checkpoints/best.safetensors`` and ``last.safetensors`` (weights for
``zoo.create_model``), ``.lock`` (locked by the process that trains).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pydantic
import torch

from tasks import config as cfg
from tasks.engine.fingerprint import Fingerprint
from tasks.errors import TrainingError, UserError
from tasks.locks import take_folder
from tasks.progress import print_line
from zoo.errors import one_line
from zoo.files import atomic_write, write_text
from zoo.jsontext import first_error
from zoo.torchfiles import load_torch

_PARTS = {"model", "optimizer", "average", "scaler", "position", "ranks"}  # of every training state
_ADDED = {"net", "data"}  # of those that are not of the first version
_OPTIONAL = {"average", "scaler"}  # None in runs without them
_MAPPINGS = {"model", "optimizer", "position", "net", *_OPTIONAL}


_Count = Annotated[int, pydantic.Field(ge=0, le=2**53)]


@dataclass
class Position:
    """The position of a run: the part of its checkpoint besides tensors.

    Attributes:
        epoch: epoch in progress, from 0.
        batch: forwards of that epoch that are done, on as many ranks as the run began with.
        step: optimizer steps done since the start of the run.
        log_bytes: length of ``log.jsonl``.
        loss_sum: sum of the losses logged in this epoch.
        loss_count: number of the losses logged in this epoch.
        best: best value of the task's metric.
        metrics: metrics of the last evaluation.
        stale: evaluations in a row without a better metric, for ``train.early_stopping``.
        counted: value of the metric that last counted as better there.
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    epoch: _Count = 0
    batch: _Count = 0
    step: _Count = 0
    log_bytes: _Count = 0
    loss_sum: float = 0.0
    loss_count: _Count = 0
    best: float = -math.inf
    metrics: dict[str, float] = field(default_factory=dict)
    stale: _Count = 0
    counted: float = -math.inf


class RunFolder:
    """The files of a run.

    Args:
        root: path of the folder, which is made when something is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock: Any = None
        self._damaged = False  # whether ``last.pt`` could not be read
        self.config, self.log, self.curves = root / "config.yaml", root / "log.jsonl", root / "curves.png"
        self.checkpoints = root / "checkpoints"
        self.state, self.previous = self.checkpoints / "last.pt", self.checkpoints / "previous.pt"
        self.best, self.last = self.checkpoints / "best.safetensors", self.checkpoints / "last.safetensors"

    def take(self) -> None:
        """Take the folder for this process, until ``release`` or the end of the process.

        Raises:
            TrainingError: another process trains in it.
        """
        try:
            self._lock = take_folder(self.root, "run")
        except UserError as error:
            raise TrainingError(str(error)) from None

    def release(self) -> None:
        """Give the folder free for other processes."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def read_config(self, schema: type[cfg.RunConfig]) -> cfg.RunConfig | None:
        """Return the stored config; None if the folder has no run.

        A config of an earlier version may lack fields, which then have their defaults.

        Raises:
            ConfigError: the stored config is not valid any more.
        """
        if not self.config.exists():
            return None
        return cfg.check(cfg.read_yaml(self.config), schema, str(self.config))

    def check_config(self, config: cfg.RunConfig, *, resume: bool) -> None:
        """Refuse a folder with another run.

        Fields that do not bind a run (``tasks.config.FREE``) may differ, so that a run can go on on another machine.

        Raises:
            TrainingError: there is a run and ``resume`` is False, or its config is another one, or is missing.
            ConfigError: the stored config is not valid any more.
        """
        stored = self.read_config(type(config))
        if stored is None:
            if left := self._files_of_a_run():  # the config is written before them
                raise TrainingError(
                    f"{self.root} has {left[0].relative_to(self.root)} but no {self.config.name}: restore that, or "
                    "choose another output=FOLDER"
                )
            return
        if not resume:
            raise TrainingError(f"{self.root} contains a run already: add --resume, or choose another output=FOLDER")
        if changed := differences(cfg.binding(stored), cfg.binding(config)):
            raise TrainingError(f"{self.root} was started with another config: {changed}; resume with the same")

    def _files_of_a_run(self) -> list[Path]:
        """Return the files that a new run would replace. A run that ended before its first step has an empty log."""
        files = (self.state, self.previous, self.best, self.last, self.log)
        return [path for path in files if path.exists() and path.stat().st_size]

    def write_config(self, config: cfg.RunConfig) -> None:
        """Write the resolved config, and remove files that a killed run left half-written."""
        write_text(cfg.dump(config), self.config)
        for folder in (self.root, self.checkpoints):
            for stale in folder.glob(".*.tmp"):
                stale.unlink(missing_ok=True)

    def load_state(self) -> dict[str, Any] | None:
        """Read the training state onto the CPU, or the one before it if that is damaged; None if there is none.

        Raises:
            TrainingError: no file is a complete checkpoint, or there are only weights, which a new run would replace.
        """
        failures = []
        for path in (self.state, self.previous):
            if not path.exists():
                continue
            try:
                state = _read_state(path)
            except Exception as error:
                # torch's own text advises to read such files without its checks
                reason = one_line(error)[:200] if isinstance(error, ValueError) else type(error).__name__
                failures.append(f"{path}: not a complete checkpoint ({reason})")
                self._damaged |= path == self.state
                continue
            if path == self.previous:
                reason = failures[0] if failures else f"{self.state} is missing"
                print_line(f"{reason}; resuming from {path}, step {state['position'].step}")
            return state
        if failures:
            raise TrainingError(f"{'; '.join(failures)}; start a new run, from {self.last} if it is there")
        for weights in (self.last, self.best):
            if weights.exists():  # the state is written before them
                raise TrainingError(
                    f"{self.state} is missing, though {weights} is there: restore it, or start a new run in another "
                    f"output=FOLDER, from {weights} by model.weights"
                )
        return None

    def save_state(self, state: dict[str, Any]) -> None:
        """Write the training state atomically; the one before it becomes ``previous.pt``, if it could be read."""
        if self.state.exists() and not self._damaged:  # otherwise ``previous.pt`` is the only good one
            self._keep_previous()
        atomic_write(self.state, lambda path: _save(state, path))
        self._damaged = False

    def _keep_previous(self) -> None:
        """Give the present state the second name ``previous.pt``; on file systems without links, only that name."""
        link = self.previous.with_name(f".{self.previous.name}.{os.getpid()}.tmp")
        link.unlink(missing_ok=True)
        try:
            os.link(self.state, link)
        except OSError:
            os.replace(self.state, self.previous)
        else:
            os.replace(link, self.previous)

    def describe_state(self) -> str:
        """Return a phrase for messages about the checkpoint to resume from."""
        for path in (self.state, self.previous):
            if path.exists():
                return f"the last good checkpoint is {path}"
        return "no checkpoint yet"


def _read_state(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, with a ``Position`` and, unless an early version wrote it, a ``Fingerprint``.

    Raises:
        Exception: a file that torch cannot read, or content of another form.
    """
    state = load_torch(path)
    if not isinstance(state, dict) or not _PARTS <= state.keys() <= _PARTS | _ADDED:
        raise ValueError("its parts are not those of a training state")
    for name in state.keys() & _MAPPINGS:
        if not isinstance(state[name], dict) and (state[name] is not None or name not in _OPTIONAL):
            raise ValueError(f"{name} is no mapping")
    if type(state["ranks"]) is not int or state["ranks"] < 1:
        raise ValueError("ranks is no number of processes")
    if not all(isinstance(value, torch.Tensor) for value in state["model"].values()):
        raise ValueError("model has values that are no tensors")
    try:
        state["position"] = pydantic.TypeAdapter(Position).validate_python(state["position"])
        if "data" in state:
            state["data"] = Fingerprint.from_dict(state["data"])
    except pydantic.ValidationError as error:
        raise ValueError(first_error(error, "a training state")) from None
    return state


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

"""The one training loop, on Accelerate: the loop, its data order, its state on disk and its log.

The names below are imported when they are first used (PEP 562): ``tasks.plots`` and the data sets read small modules
of this package, and should not load the trainer.
"""
# ruff: noqa: F401  (``__all__`` is computed, so ruff cannot see that the imports are exports)

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.engine.fingerprint import Fingerprint, SetPrint
    from tasks.engine.fit import training_loss
    from tasks.engine.optimizer import make_optimizer, rate
    from tasks.engine.records import (
        BlocksRecord,
        DivergedRecord,
        EpochRecord,
        FailedRecord,
        Record,
        StepRecord,
        read_log,
        read_records,
    )
    from tasks.engine.runlog import JsonlSink, RunLog, Sink, TensorBoardSink, register_sink
    from tasks.engine.sampler import EpochBatches, EpochSampler, Key, mix, seed_from
    from tasks.engine.state import Position, RunFolder
    from tasks.engine.task import BaseTask, Task
    from tasks.engine.trainer import Pace, Trainer

_MODULES = {
    "fingerprint": ("Fingerprint", "SetPrint"),
    "fit": ("training_loss",),
    "optimizer": ("make_optimizer", "rate"),
    "records": (
        "BlocksRecord",
        "DivergedRecord",
        "EpochRecord",
        "FailedRecord",
        "Record",
        "StepRecord",
        "read_log",
        "read_records",
    ),
    "runlog": ("JsonlSink", "RunLog", "Sink", "TensorBoardSink", "register_sink"),
    "sampler": ("EpochBatches", "EpochSampler", "Key", "mix", "seed_from"),
    "state": ("Position", "RunFolder"),
    "task": ("BaseTask", "Task"),
    "trainer": ("Pace", "Trainer"),
}
_HOMES = {name: f"tasks.engine.{module}" for module, names in _MODULES.items() for name in names}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tasks.engine' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

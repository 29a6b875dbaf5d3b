"""The loss of a finished run on its training data: ``rescalenet fit-loss``."""

from __future__ import annotations

from pathlib import Path

import zoo
from tasks.config import read_yaml
from tasks.devices import dtype_of, make_accelerator
from tasks.engine.fit import training_loss
from tasks.engine.state import RunFolder
from tasks.errors import DataError
from tasks.spec import check, load_model, make_task
from tasks.study.results import FIT_FILE
from zoo.files import write_json


def measure_fit_loss(folder: Path, batches: int) -> float:
    """Return the loss of training samples in evaluation mode without augmentation, and write it into the run's folder.

    Args:
        folder: folder of a run.
        batches: number of batches of the size of training.

    Raises:
        DataError: the folder has no weights of a finished epoch.
        ConfigError: the run's config is not valid any more.
    """
    files = RunFolder(folder)
    if not files.last.exists():
        raise DataError(f"{folder}: no weights in it ({files.last.name}); give the folder of a run")
    config = check(read_yaml(files.config), str(files.config)).without_augmentation()
    # the net as it is evaluated, with averaged weights if the run has them
    entry = zoo.get_weights(str(files.last))
    task = make_task(config)
    precision = config.train.precision
    accelerator = make_accelerator(precision=precision)
    model = load_model(entry).to(accelerator.device, dtype_of(precision))
    loss = training_loss(task, model, accelerator, batches)
    write_json({"loss": loss, "batches": batches}, folder / FIT_FILE)
    return loss

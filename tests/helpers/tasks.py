"""A small net and little synthetic data for each task."""

import numpy as np

from benchmarks.operations import BATCH, DETECTOR, TRANSFORMER, WRITERS
from tasks.engine import Trainer
from tasks.spec import check, make_task

MODELS = {
    "classification": {"name": "rescalenet20_cifar", "options": {"width": 0.25}},
    "detection": {"name": "mask_rcnn_rescalenet18_fpn", "options": DETECTOR},
    "video": {"name": "rescale_r3d_10", "options": {"width": 0.125}},
    "translation": {"name": "rescale_transformer_tiny", "options": TRANSFORMER},
}
BATCHES = {"classification": BATCH, "detection": 2, "video": BATCH, "translation": 200}


def write_data(root):
    """Write the data of each task, and return its data section."""
    random = np.random.RandomState(0)
    return {task: write(root / task, random) for task, write in WRITERS.items()}


def trainer_of(task, data, folder, model=None, **train):
    """A trainer of the small net of a task in training mode, at the first batch."""
    settings = {"epochs": 1, "batch_size": BATCHES[task], "calibration_batches": 1, **train}
    settings["optimizer"] = {"name": "sgd", "lr": 1e-3}
    content = {"task": task, "output": str(folder), "model": model or MODELS[task], "data": data[task]}
    trainer = Trainer(make_task(check({**content, "train": settings}, "test")))
    trainer.batches.seek(0, 0)
    trainer.model.train()
    return trainer


def predict_all(predict, model, weights, files, **options):
    """All that a function such as ``classify_images`` yields, and the reason for each file that could not be read."""
    failed: dict[str, str] = {}
    return list(predict(model, weights, files, failed, **options)), failed

"""A small net and little synthetic data for each task."""

import numpy as np

from benchmarks.operations import BATCH, DETECTOR, TRANSFORMER, WRITERS

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

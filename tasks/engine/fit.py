"""The loss of training samples in evaluation mode: how well a net fits, apart from how well it generalizes."""

from __future__ import annotations

from itertools import islice

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from torch import nn
from torch.utils.data import DataLoader

from tasks.devices import dtype_of
from tasks.engine.sampler import seed_from
from tasks.engine.task import Task
from zoo.calibration import sum_dtype


def training_loss(task: Task, model: nn.Module, accelerator: Accelerator, batches: int) -> float:
    """Return the mean loss of training samples, without dropout, augmentation and label smoothing.

    Every net of a task and seed is measured on the same samples in the same batches.

    Args:
        task: task of a config ``without_augmentation()``.
        model: net, on the device.
        accelerator: the one process, device and precision.
        batches: number of batches of the size of training; the mean counts each batch by ``Task.weight``.
    """
    train = task.config.train
    dtype = dtype_of(train.precision)
    # The batches of epoch 0, as a training run of this seed has them.
    sampler = task.batches(train.batch_size, train.seed)
    sampler.seek(0, 0)
    loader: DataLoader[object] = DataLoader(
        task.train_set(), batch_sampler=sampler, num_workers=train.workers, collate_fn=task.collate
    )
    # Sums stay on the device until the end.
    device = accelerator.device
    total, weights = torch.zeros((), dtype=sum_dtype(device), device=device), 0
    with task.loss_mode(model), torch.no_grad(), accelerator.autocast():
        for number, batch in enumerate(islice(loader, batches)):
            set_seed(seed_from(train.seed, number) % 2**32)  # a detector samples anchors and proposals at random
            batch = send_to_device(batch, accelerator.device, non_blocking=True)
            loss = torch.stack(list(task.losses(model, batch, dtype).values())).sum()
            weight = task.weight(batch) or 1
            total += loss.to(total.dtype) * weight
            weights += weight
    return float(total) / weights

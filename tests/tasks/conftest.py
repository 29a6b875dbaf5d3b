"""Fixtures of several tasks."""

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Three classes of 12 px pictures, told apart by their colour."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.RandomState(0)
    for split, count in (("train", 16), ("val", 5)):
        for i, name in enumerate(("blue", "green", "red")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for n in range(count):
                pixels = random.randint(0, 256, (12, 12, 3))
                pixels[..., 2 - i] //= 2
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{n}.png")
    return root


@pytest.fixture
def half_on_cpu():
    """Let the CPU have fp16 and a scale of the loss, which Accelerate does not give it."""

    def enable(accelerator):
        if accelerator.mixed_precision == "fp16" and not accelerator.native_amp:
            accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler(accelerator.device.type)

    with pytest.MonkeyPatch.context() as patch:  # of its own, which no test undoes
        patch.setattr("tasks.devices._require_precision", enable)
        yield

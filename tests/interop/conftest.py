"""The tests import detectron2 without its compiled module. pytest loads this file first."""

import numpy as np
import pytest
from PIL import Image

import tests.interop.standins  # noqa: F401


@pytest.fixture
def image():
    """uint8 (64, 96, 3), RGB, smooth."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((96, 64)))

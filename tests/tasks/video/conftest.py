"""Videos of three motions, and weights for them."""

import numpy as np
import pytest
import torch

import zoo
from tests.helpers.video import layout, write_bar


@pytest.fixture(scope="session")
def moving(tmp_path_factory):
    """Three classes of 20 px videos, told apart by the way a bright bar moves."""
    root = tmp_path_factory.mktemp("moving")
    random = np.random.RandomState(0)
    for split, count in (("train", 8), ("val", 3)):
        for name in ("down", "right", "still"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for n in range(count):
                write_bar(folder / f"{n}.mp4", name, random)
    return root


@pytest.fixture(scope="session")
def weights(moving, tmp_path_factory):
    """A narrow net, calibrated, as a weights file."""
    torch.manual_seed(0)
    model = zoo.create_model("rescale_r3d_10", width=0.25, num_classes=3)
    zoo.calibrate(model, [torch.randn(4, 3, 4, 16, 16)])
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    zoo.save_weights(
        model, path, transform=layout(4, 2.0, 10.0, 16, 18), classes=["down", "right", "still"], meta={"licence": "MIT"}
    )
    return path

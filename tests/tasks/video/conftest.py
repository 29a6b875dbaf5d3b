"""Videos of three motions, and weights for them."""

import numpy as np
import pytest

from tests.helpers.video import write_bar, write_weights


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
    return write_weights(tmp_path_factory.mktemp("weights") / "w.safetensors")

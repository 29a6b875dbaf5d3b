"""A folder of images and weights for it."""

import pytest

import zoo
from tests.helpers.classification import picture


@pytest.fixture
def tree(tmp_path):
    for split, count in (("train", 4), ("val", 2)):
        for c, name in enumerate(("ant", "bee")):
            for n in range(count):
                picture(tmp_path / split / name / f"{n}.png", seed=10 * c + n)
    return tmp_path


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "w.safetensors"
    model = zoo.create_model("rescalenet20_cifar", num_classes=3, width=0.25)
    transform = zoo.InputTransform(16, 16, (0.5,) * 3, (0.3,) * 3)
    zoo.save_weights(model, path, transform=transform, classes=["ant", "bee", "cow"])
    return zoo.get_weights(str(path))

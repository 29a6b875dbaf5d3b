"""A study of two schemes on tiny pictures."""

from __future__ import annotations

import pytest
import yaml

from tasks.study.config import read_study

CONTENT = {
    "schemes": {
        "rescale": {"trials": {"gain": {"model.options.projection_gain": 2.0}}},
        "bn": {"overrides": {"train.log_every": 1}, "trials": {"smooth": {"label_smoothing": 0.1}}},
    },
    "trials": {"base": {}},
    "screening": {"overrides": {"data.split": "holdout"}},
    "finals": {"seeds": [0, 1], "overrides": {"data.split": "official", "train.epochs": 3}},
    "fit_batches": 3,
}


@pytest.fixture
def make_study(tmp_path, images):
    """Return a function from changes of CONTENT to a study; a change to None removes the key."""
    holdout = tmp_path / "holdout.txt"
    holdout.write_text("".join(f"{name}/{n}.png\n" for name in ("blue", "green", "red") for n in range(4)))
    recipe = {
        "task": "classification",
        "output": str(tmp_path / "run"),
        "model": {"name": "rescalenet20_cifar", "options": {"width": 0.25}},
        "data": {
            "root": str(images),
            "holdout": str(holdout),
            "size": 12,
            "resize": 12,
            "augment": {"crop": {"name": "pad", "padding": 2}},
        },
        "train": {"epochs": 2, "batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.05}, "log_every": 2, "sinks": []},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def make(*overrides, **changes):
        content = {"recipe": str(tmp_path / "recipe.yaml"), "output": str(tmp_path / "study"), **CONTENT, **changes}
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}, sort_keys=False))
        return read_study(str(path), overrides)

    make.path = tmp_path / "study.yaml"
    return make

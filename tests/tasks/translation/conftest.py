"""A prepared corpus, and weights of a net that was trained on it."""

import pytest

from tasks.translation.corpus import prepare
from tests.helpers.translation import fit, section, toy


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translation")
    prepare(section(toy(folder / "text"), clean={"duplicates": "keep"}), folder / "corpus")
    return folder


@pytest.fixture(scope="session")
def weights(prepared):
    fit(prepared, prepared / "run", epochs=12, schedule={"name": "onecycle", "up": 0.2}, eval_every=12)
    return prepared / "run/checkpoints/last.safetensors"

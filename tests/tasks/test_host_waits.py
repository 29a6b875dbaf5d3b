"""A training step of no task waits for the device more often than is known.

On a GPU, an operation whose result the host reads stops the host until the device has caught up. A CPU runs the same
operations, so this needs no GPU.
"""

import pytest

from tests.helpers.operations import recorded, waiting
from tests.helpers.tasks import trainer_of, write_data

KNOWN = {
    "classification": {},
    "video": {},
    "translation": {},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("task", KNOWN)
def test_waits_of_a_step(data, tmp_path, task):
    trainer = trainer_of(task, data, tmp_path)
    batches = iter(trainer.loader)
    trainer._step([next(batches)])  # makes the state of the optimizer
    batch = next(batches)
    names = recorded(lambda: trainer._step([batch]))
    trainer.close()
    assert any("convolution" in name or "mm" in name for name in names)
    assert waiting(names) == KNOWN[task]


@pytest.mark.parametrize("read", ["float(x.sum())", "x[x > 0]", "bool(x.any())", "x.nonzero()", "x.unique()"])
def test_a_wait_is_noticed(read):
    import torch

    x = torch.ones(3)
    assert waiting(recorded(lambda: eval(read, {"x": x})))

"""Files that torch.save wrote are read without code, and without remarks on their form."""

import pickle
import warnings
from argparse import Namespace

import pytest
import torch

from zoo.torchfiles import load_torch


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("mmap", [False, True])
def test_tensors_and_values(tmp_path, protocol, mmap):
    content = {"a": torch.arange(3.0), "b": [1, "text", None], "c": torch.eye(3).to_sparse()}
    torch.save(content, tmp_path / "x.pt", pickle_protocol=protocol)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_torch(tmp_path / "x.pt", mmap=mmap)
    assert torch.equal(found["a"], content["a"])
    assert found["b"] == content["b"]
    assert torch.equal(found["c"].to_dense(), torch.eye(3))


def test_objects_of_other_classes(tmp_path):
    torch.save({"args": Namespace(layers=3)}, tmp_path / "x.pt")
    with pytest.raises(pickle.UnpicklingError, match="GLOBAL argparse.Namespace"):
        load_torch(tmp_path / "x.pt")
    assert load_torch(tmp_path / "x.pt", stand_in=Namespace)["args"].layers == 3


def test_no_code_runs_with_a_stand_in(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("made").touch, ())

    torch.save({"args": Evil()}, tmp_path / "x.pt")
    with pytest.raises(Exception, match=r".+"):
        load_torch(tmp_path / "x.pt", stand_in=Namespace)
    assert not (tmp_path / "made").exists()

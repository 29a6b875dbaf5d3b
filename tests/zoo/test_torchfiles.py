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


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_of_other_classes(tmp_path, zipped):
    content = {"args": Namespace(layers=3), "net": torch.eye(2)}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError, match="GLOBAL argparse.Namespace"):
        load_torch(tmp_path / "x.pt")
    found = load_torch(tmp_path / "x.pt", stand_in=Namespace)
    assert found["args"].layers == 3
    assert torch.equal(found["net"], torch.eye(2))


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_runs_with_a_stand_in(tmp_path, zipped):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("made").touch, ())

    torch.save({"args": Evil()}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(Exception, match=r".+"):
        load_torch(tmp_path / "x.pt", stand_in=Namespace)
    assert not (tmp_path / "made").exists()

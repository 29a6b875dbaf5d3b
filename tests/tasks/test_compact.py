"""Records in arrays: the same as those given, and not copied by the processes that read them."""

import os
import pickle
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.classification.data import Images
from tasks.compact import Strings

NAMES = st.text(st.characters(exclude_categories=["Cs"])) | st.binary(max_size=9).map(os.fsdecode)


@given(st.lists(NAMES), st.data())
def test_strings_are_those_given(texts, data):
    packed = pickle.loads(pickle.dumps(Strings(texts)))
    assert len(packed) == len(texts)
    assert list(packed) == texts
    assert packed == texts
    assert packed != [*texts, ""]
    part = data.draw(st.slices(len(texts)))
    assert list(packed[part]) == texts[part]
    for i in range(-len(texts), len(texts)):
        assert packed[i] == texts[i]
    for i in (-len(texts) - 1, len(texts)):
        with pytest.raises(IndexError):
            packed[i]
    chosen = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=9)) if texts else []
    assert list(packed.select(chosen)) == [texts[i] for i in chosen]


def private_memory():
    """Return the memory of this process that it shares with no other, in MiB."""
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_Dirty")) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_reads_a_large_set_copies_nothing_of_it():
    count = 300_000
    paths = [f"/datasets/train/n{i % 1000:08}/n{i % 1000:08}_{i:08}.JPEG" for i in range(count)]
    labels = [*range(1000)] * (count // 1000)
    images = Images(["0"] * 1000, labels, paths, paths.__getitem__, paths=paths)
    images = images.subset(range(count))
    del paths
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        before = private_memory()
        for i in range(count):
            _ = images.labels[i], images.names[i], images.paths[i]
        os.write(writer, f"{private_memory() - before}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert float(os.read(reader, 99)) < 3  # MiB; 54 MiB with lists

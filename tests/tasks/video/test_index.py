"""The index of videos."""

import json
import shutil

import numpy as np
import pytest

from tasks.errors import DataError
from tasks.video import index as index_module
from tasks.video.data import index_videos
from tasks.video.decode import probe
from tasks.video.index import Index
from tasks.video.sources import folder_videos
from tests.helpers.video import video


@pytest.fixture
def some(moving, tmp_path):
    """A copy of the training videos, one of them broken."""
    root = tmp_path / "some"
    shutil.copytree(moving / "train", root)
    (root / "down/3.mp4").write_bytes(b"not a video")
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_the_index_is_made_once_and_tells_the_truth(some, workers, monkeypatch):
    videos = folder_videos(some)
    file = some.parent / "index.json"
    first = index_videos(videos, Index(file, some), workers=workers)
    assert len(first) == 23
    assert list(first.failures) == ["down/3.mp4"]
    record = json.loads(file.read_text())["videos"]["right/1.mp4"]
    assert record["frames"] == 12
    assert record["fps"] == 10
    assert record["duration"] == 1.2
    assert record["decodable"]
    monkeypatch.setattr(index_module, "probe", lambda path: pytest.fail("looked again"))
    again = index_videos(videos, Index(file, some))
    assert again.failures == first.failures
    assert first.infos == again.infos


def test_a_changed_file_is_looked_into_again(some):
    videos, file = folder_videos(some), some.parent / "index.json"
    index_videos(videos, Index(file, some))
    shutil.copy(some / "down/2.mp4", some / "down/3.mp4")
    assert not index_videos(videos, Index(file, some)).failures
    (some / "down/2.mp4").unlink()
    assert "no such file" in index_videos(videos, Index(file, some)).failures["down/2.mp4"]


def test_varying_times_survive_the_index(tmp_path):
    times = np.cumsum(np.random.RandomState(1).choice([20, 40, 90], 40)).tolist()
    (tmp_path / "a").mkdir()
    video(tmp_path / "a/x.mp4", pts=times)
    videos, file = folder_videos(tmp_path), tmp_path / "index.json"
    (fresh,) = index_videos(videos, Index(file, tmp_path)).infos
    (stored,) = index_videos(videos, Index(file, tmp_path)).infos
    assert fresh == stored == probe(tmp_path / "a/x.mp4")
    np.testing.assert_allclose(stored.times * 1000, np.array(times) - times[0], atol=1)


def test_a_damaged_entry_is_named(some):
    videos, file = folder_videos(some), some.parent / "index.json"
    index_videos(videos, Index(file, some))
    content = json.loads(file.read_text())
    content["videos"]["down/1.mp4"]["steps"] = [[1, 2]]
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="down/1.mp4: its entry in the index of videos is damaged; remove the index"):
        index_videos(videos, Index(file, some))


def test_an_index_that_is_something_else(some):
    file = some.parent / "index.json"
    file.write_text("{}")
    with pytest.raises(DataError, match="index.json: not an index of videos; remove it"):
        Index(file, some)
    assert file.read_text() == "{}"
    (some.parent / "x").write_text("a file where a folder is needed")
    nowhere = Index(some.parent / "x/index.json", some)
    with pytest.raises(DataError, match=r"x/index.json: cannot be written .*set data.index=FILE"):
        index_videos(folder_videos(some), nowhere)

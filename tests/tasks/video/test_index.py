"""The index of videos."""

import json
import shutil
from fractions import Fraction

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


WHOLE = {
    "bytes": 10,
    "changed": 20,
    "decodable": True,
    "frames": 5,
    "fps": 10.0,
    "duration": 0.5,
    "width": 8,
    "height": 6,
    "seekable": True,
    "time_base": [1, 10],
    "first": 0,
    "steps": [[1, 4]],
    "keys": [0, 3],
}


@pytest.fixture
def one(tmp_path, monkeypatch):
    """A function from a record to the entry of one video whose index has it."""
    monkeypatch.setattr(index_module, "_stat", lambda path: (10, 20))

    def entry_of(record):
        content = {"rescalenet_video_index": 3, "videos": {"a.mp4": record}}
        (tmp_path / "index.json").write_text(json.dumps(content))
        (entry,) = Index(tmp_path / "index.json", tmp_path).entries([tmp_path / "a.mp4"])
        return entry

    return entry_of


def test_whole_entries(one):
    info = one(WHOLE).info
    assert (info.frames, info.fps, info.keys, info.time_base) == (5, 10.0, (0, 3), Fraction(1, 10))
    assert one({"bytes": 10, "changed": 20, "decodable": False, "failure": "cut"}).failure == "cut"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("time_base", [1, 0], r"time_base.1=0: .*greater than or equal to 1"),
        ("time_base", [-1, 10], r"time_base.0=-1"),
        ("time_base", [1], r"time_base.1: is missing"),
        ("time_base", "1/10", r"time_base='1/10'"),
        ("steps", [[1, 2]], r"steps: they are not of frames=5"),
        ("steps", [[0, 4]], r"steps.0.0=0: .*greater"),
        ("steps", [[1, 5], [1, -1]], r"steps.1.1=-1: .*greater"),
        ("steps", [[1.0, 4]], r"steps.0.0=1.0: .*valid integer"),
        ("steps", [[2**61, 4]], r"steps: the times are beyond 64 bits"),
        ("steps", None, r"steps=None"),
        (
            "steps",
            [[100, 3, 4, 4]],
            r"steps: must be of a step and a count, or of p, q, r and a count with r <= q <= p",
        ),
        ("steps", [[3, 100, 4, 4]], r"steps: must be"),
        ("steps", [[100, 3, 4]], r"steps: must be"),
        ("steps", [[100, 3, 2, 2**40]], r"steps: they are not of frames=5"),
        ("pixel_ratio", 0, r"pixel_ratio=0: .*greater"),
        ("delay", 1e9, r"delay=1000000000.0: .*less"),
        ("codec", 3, r"codec=3: .*valid string"),
        ("notes", ["odd"], r"notes.0='odd'"),
        ("keys", [0, 5], r"keys: must rise and be below frames=5"),
        ("keys", [3, 0], r"keys: must rise"),
        ("keys", [-1], r"keys.0=-1"),
        ("frames", 10**12, r"frames=1000000000000: .*less than or equal to 10000000"),
        ("frames", True, r"frames=True: .*valid integer"),
        ("width", 0, r"width=0: .*greater"),
        ("height", 10**9, r"height=1000000000: .*less than or equal to 65536"),
        ("first", 2**62 + 1, r"first=46\d+: .*less than"),
        ("fps", "10", r"fps='10': .*valid number"),
        ("seekable", 1, r"seekable=1: .*valid boolean"),
        ("decodable", "yes", r"decodable='yes'"),
        ("bytes", [10], r"bytes=\[10\]: .*valid integer"),
        ("more", 1, r"more: is no key of an entry"),
    ],
)
def test_a_damaged_entry_is_named(one, key, value, reason):
    with pytest.raises(DataError, match=rf"index.json: its entry of 'a.mp4' is damaged \({reason}.*; remove the index"):
        one({**WHOLE, key: value})


@pytest.mark.parametrize(
    ("version", "changed", "new"),
    [
        (1, {}, False),
        (1, {"decodable": False}, True),
        (1, {"seekable": False}, True),
        (1, {"keys": [2]}, True),
        (2, {"seekable": False}, False),
        (2, {"keys": [2]}, True),
        (3, {"keys": [2]}, False),
    ],
)
def test_entries_of_earlier_versions(tmp_path, monkeypatch, version, changed, new):
    """Those of videos that it could not decode or time are made anew, the others stay."""
    monkeypatch.setattr(index_module, "_stat", lambda path: (10, 20))
    content = {"rescalenet_video_index": version, "videos": {"a.mp4": {**WHOLE, **changed}}}
    (tmp_path / "index.json").write_text(json.dumps(content))
    (entry,) = Index(tmp_path / "index.json", tmp_path).entries([tmp_path / "a.mp4"])
    if new:
        assert "no such file" in entry.failure
    else:
        assert entry.info.frames == 5


def test_entries_without_the_shape_of_pixels_are_named(one, capsys):
    one(WHOLE)
    assert "index.json: 1 of 1 entries are of version 0.1.0, which took all pixels for" in capsys.readouterr().err
    one({**WHOLE, "pixel_ratio": 1.0})
    assert not capsys.readouterr().err


def test_runs_of_rounded_times(one):
    """30 frames per second in milliseconds, as Matroska has them."""
    record = {**WHOLE, "steps": [[100, 3, 2, 4]], "time_base": [1, 1000], "pixel_ratio": 1.5, "notes": ["hdr"]}
    info = one(record).info
    assert info.pts.tolist() == [0, 33, 67, 100, 133]
    assert (info.pixel_ratio, info.notes, info.delay) == (1.5, ("hdr",), 0)


def test_what_was_found_survives_an_interruption(some, monkeypatch):
    videos, file = folder_videos(some), some.parent / "index.json"

    def stopped(path):
        if path.name == "2.mp4" and path.parent.name == "right":
            raise KeyboardInterrupt
        return probe(path)

    monkeypatch.setattr(index_module, "probe", stopped)
    with pytest.raises(KeyboardInterrupt):
        index_videos(videos, Index(file, some))
    assert len(json.loads(file.read_text())["videos"]) == 10
    monkeypatch.setattr(
        index_module, "probe", lambda path: pytest.fail("again") if "down" in str(path) else probe(path)
    )
    assert len(index_videos(videos, Index(file, some))) == 23


@pytest.mark.parametrize("record", [None, [], 3, "a", {}, {"decodable": False}])
def test_an_entry_that_is_no_record(one, record):
    with pytest.raises(DataError, match=r"index.json: its entry of 'a.mp4' is damaged"):
        one(record)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{}", "rescalenet_video_index: is missing"),
        (b"[1]", "must be an object"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 10**5, "nested deeper than 32 levels"),
        (b'{"rescalenet_video_index": 1, "videos": []}', r"videos=\[\]: .*valid dictionary"),
        (b'{"rescalenet_video_index": 1, "rescalenet_video_index": 1}', "occurs twice"),
        (b'{"rescalenet_video_index": 1, "videos": {"a": {"fps": NaN}}}', "NaN: numbers must be finite"),
    ],
)
def test_an_index_that_is_something_else(tmp_path, content, reason):
    file = tmp_path / "index.json"
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"index.json: not an index of videos \(.*{reason}.*\); remove it"):
        Index(file, tmp_path)
    assert file.read_bytes() == content


def test_an_index_that_cannot_be_written(some):
    (some.parent / "x").write_text("a file where a folder is needed")
    nowhere = Index(some.parent / "x/index.json", some)
    with pytest.raises(DataError, match=r"x/index.json: cannot be written .*set data.index=FILE"):
        index_videos(folder_videos(some), nowhere)

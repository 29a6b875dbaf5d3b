"""``rescalenet check`` and ``prepare`` for videos."""

import json
import shutil

import pytest

from tasks import config as engine_cfg
from tasks.video.commands import recognises
from tests.helpers.commands import call
from tests.helpers.video import config, video


@pytest.fixture
def recipe(moving, tmp_path):
    """A config of a copy of the videos, with an anamorphic folder of faults."""
    root = tmp_path / "data"
    shutil.copytree(moving, root)
    path = tmp_path / "config.yaml"
    path.write_text(engine_cfg.dump(config(root, tmp_path / "run", data={"max_failed": 0.05})))
    return path


def test_a_good_set(recipe, tmp_path, capsys, monkeypatch):
    code, out, _ = call(capsys, monkeypatch, "check", recipe, "--out", tmp_path / "c")
    assert code == 0
    assert "train: 24 videos in 3 classes; val: 9 videos" in out
    assert "train: 24 of 24 videos; seconds 1.2 to 1.2 (median 1.2), fps 10 to 10 (median 10), width 32 to 32" in out
    assert "train: codecs h264 24" in out
    assert "nothing found that would stop training" in out
    content = json.loads((tmp_path / "c/check.json").read_text())
    assert content["sets"]["val"]["classes"] == {"down": 3, "right": 3, "still": 3}
    assert content["sets"]["train"]["seconds"] == {"min": 1.2, "median": 1.2, "max": 1.2}
    assert (tmp_path / "c/samples.png").stat().st_size > 10_000


def test_faults_are_grouped_by_reason(recipe, tmp_path, capsys, monkeypatch):
    root = tmp_path / "data"
    for n in range(2):
        (root / f"train/down/{n}.mp4").write_bytes(b"")
    video(root / "train/down/odd.avi", count=20, g=9, bf=2)  # H.264 in AVI: by the times of decoding
    code, out, _ = call(capsys, monkeypatch, "check", recipe, "--limit", 5)
    assert code == 1
    assert "warning: train: videos that cannot be read: 2 of 25" in out
    assert "warning: train: 2 is empty; get it again: down/0.mp4, down/1.mp4" in out
    assert "stops training: train: 8.0% of the videos cannot be read, data.max_failed is 5.0%" in out


def test_the_index_is_prepared_once(recipe, tmp_path, capsys, monkeypatch):
    code, out, err = call(capsys, monkeypatch, "prepare", recipe)
    assert code == 0
    index = tmp_path / "index.json"
    assert f"{index}: ready for rescalenet train {recipe}" in out
    assert "probing 24 of 24 videos" in err
    assert len(json.loads(index.read_text())["videos"]) == 33
    before = index.stat().st_mtime_ns
    code, _, err = call(capsys, monkeypatch, "prepare", recipe)
    assert code == 0
    assert "probing" not in err
    assert index.stat().st_mtime_ns == before


def test_a_folder_of_videos_names_the_command(moving, tmp_path, capsys, monkeypatch):
    code, _, err = call(capsys, monkeypatch, "check", moving)
    assert code != 0
    assert f"a folder of videos is checked with a config: rescalenet check CONFIG data.root={moving}" in err


@pytest.mark.parametrize(
    ("names", "videos"),
    [
        (["a/1.mp4", "a/2.MOV", "b/3.png"], True),
        (["a/1.gif", "b/2.gif"], False),
        (["a/1.png", "b/2.mp4"], False),
        ([".hidden.mp4"], False),
        ([], False),
    ],
)
def test_folders_of_videos_are_recognised_by_most_files(tmp_path, names, videos):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert recognises(tmp_path) == videos

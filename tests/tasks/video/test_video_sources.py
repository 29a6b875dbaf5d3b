"""Lists of videos: folders, path-label lists, the CSV files of Kinetics."""

import shutil

import pytest

from tasks.errors import DataError
from tasks.video.data import index_videos
from tasks.video.index import Index
from tasks.video.sources import folder_videos, kinetics_videos, list_videos


def test_folders(moving, tmp_path):
    videos = folder_videos(moving / "train")
    assert videos.classes == ("down", "right", "still")
    assert len(videos) == 24
    assert videos.names()[:2] == ["down/0.mp4", "down/1.mp4"]
    (tmp_path / "one").mkdir()
    with pytest.raises(DataError, match="one: contains no videos; known endings: .mp4"):
        folder_videos(tmp_path)
    with pytest.raises(DataError, match="gone: no such folder"):
        folder_videos(tmp_path / "gone")


@pytest.mark.parametrize(
    ("text", "classes", "labels"),
    [
        ("a/1.mp4 2\nb 2.mp4 0\n", ("0", "2"), [1, 0]),
        ("a/1.mp4,walk\nb,2.mp4,run\n", ("run", "walk"), [1, 0]),
        ("a/1.mp4\t10\nb.mp4\t9\n", ("9", "10"), [1, 0]),
        ("fname,label,place\na.mp4,up,x\nb.mp4,down,y\n", ("down", "up"), [1, 0]),
        ("label,path\nup,a.mp4\ndown,b.mp4\n\n", ("down", "up"), [1, 0]),
    ],
)
def test_path_label_lists(tmp_path, text, classes, labels):
    file = tmp_path / "list.txt"
    file.write_text(text)
    videos = list_videos(file, tmp_path)
    assert videos.classes == classes
    assert [v.label for v in videos.items] == labels
    assert videos.items[0].path.parent in (tmp_path, tmp_path / "a")


def test_kinetics_csv(moving, tmp_path):
    """Trimmed files by their time, whole ones with a segment, and what is not there stays, without a path."""
    (tmp_path / "videos/some_class").mkdir(parents=True)
    clip = moving / "train/down/0.mp4"
    shutil.copy(clip, tmp_path / "videos/some_class/-abc_def_000012_000022.mp4")
    shutil.copy(clip, tmp_path / "videos/xyz.mkv")
    file = tmp_path / "val.csv"
    file.write_text(
        "label,youtube_id,time_start,time_end,split\n"
        '"a, b",-abc_def,12,22,val\njump,xyz,0.2,0.9,val\njump,gone,1,11,val\n"a, b",xyz,5,15,val\n'
    )
    videos = kinetics_videos(file, tmp_path / "videos")
    assert videos.classes == ("a, b", "jump")
    assert [(v.name, v.label, v.segment) for v in videos.items] == [
        ("-abc_def_000012_000022", 0, None),
        ("xyz_000000_000000", 1, (0.2, 0.9)),
        ("gone_000001_000011", 1, None),
        ("xyz_000005_000015", 0, (5.0, 15.0)),
    ]
    indexed = index_videos(videos, Index(tmp_path / "index.json", tmp_path / "videos"))
    assert len(indexed) == 2
    assert "gone_000001_000011: no such file below" in indexed.failures["gone_000001_000011"]
    assert "5 s is past its end at 1.2 s" in indexed.failures["xyz_000005_000015"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "list.csv: is empty"),
        ("justonefield\n", "line 1: must be 'path label', not 'justonefield'"),
        ("path,label\na.mp4\n", "line 2: has 1 fields, must have 2"),
        ("label,youtube_id\nx,y\n", "has no column time_start, time_end; must have label, "),
        ("label,youtube_id,time_start,time_end\nx,y,a,3\n", "line 2: time_start and time_end must be numbers"),
        ("label,youtube_id,time_start,time_end\nx,y,4,3\n", "line 2: time_start=4 must be >= 0 and < time_end=3"),
    ],
)
def test_lists_that_are_not_right(tmp_path, text, message):
    file = tmp_path / "list.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        (kinetics_videos if "youtube" in text else list_videos)(file, tmp_path)


def test_unknown_classes_are_named(tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4 jump\n")
    with pytest.raises(DataError, match=r"list.txt, line 1: class 'jump' is not one of run, walk"):
        list_videos(tmp_path / "list.txt", tmp_path, ["run", "walk"])

"""Lists of videos: folders, path-label lists, the CSV files of Kinetics."""

import shutil

import pytest

from tasks.errors import DataError
from tasks.video.data import index_videos, load_videos, print_notes, read_set
from tasks.video.index import Index
from tasks.video.sources import (
    folder_videos,
    hmdb51_videos,
    kinetics_videos,
    list_videos,
    something_videos,
    ucf101_videos,
)
from tests.helpers.video import config


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
    assert not indexed.odd


def test_each_row_of_a_video_that_is_missing_counts(moving, tmp_path):
    shutil.copy(moving / "train/down/0.mp4", tmp_path / "xyz.mp4")
    row = "a,gone,0,1\n"
    (tmp_path / "l.csv").write_text(f"label,youtube_id,time_start,time_end\n{row}{row}{row}b,xyz,0,1\n")
    indexed = index_videos(kinetics_videos(tmp_path / "l.csv", tmp_path), Index(tmp_path / "index.json", tmp_path))
    name = "gone_000000_000001"
    assert [*indexed.failures] == [name, f"{name} (2)", f"{name} (3)"]
    assert indexed.total == 4


def test_parts_that_reach_past_the_end_are_counted(moving, tmp_path, capsys):
    shutil.copy(moving / "train/down/0.mp4", tmp_path / "xyz.mp4")  # 1.2 seconds
    (tmp_path / "l.csv").write_text("label,youtube_id,time_start,time_end\na,xyz,0,1\nb,xyz,1,11\nb,xyz,0,1.5\n")
    indexed = index_videos(kinetics_videos(tmp_path / "l.csv", tmp_path), Index(tmp_path / "index.json", tmp_path))
    assert len(indexed) == 3
    assert indexed.odd == {"past_end": ["xyz_000001_000011"]}
    print_notes(indexed.odd, indexed.total, "training set")
    line = "1 of 3 videos end before their part in the list does; clips come from what is there: xyz"
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "list.csv: is empty"),
        ("justonefield\n", "line 1: must be 'path label', not 'justonefield'"),
        ("path,label\na.mp4\n", "line 2: has 1 fields, must have 2"),
        ("label,youtube_id\nx,y\n", "has no column time_start, time_end; must have label, "),
        ("label,youtube_id,time_start,time_end\nx,y,a,3\n", "line 2: time_start and time_end must be numbers"),
        ("label,youtube_id,time_start,time_end\nx,y,4,3\n", "line 2: time_start=4 must be >= 0 and < time_end=3"),
        ("label,youtube_id,time_start,time_end\nx,y,0,inf\n", "line 2: time_start=0 and time_end=inf must be finite"),
        ("label,youtube_id,time_start,time_end\nx,y,nan,1\n", "line 2: time_start=nan and time_end=1 must be finite"),
        ('label,youtube_id,time_start,time_end\n"x,y,1,2\n', "line 2: not CSV"),
        ("label,youtube_id,time_start,time_end\nx,y,1\n", "line 2: has 3 fields, must have 4"),
        ("label,youtube_id,time_start,time_end\n\n", "has a header and no rows"),
        ("label,label,youtube_id\n", "line 1: two columns have one name"),
        ("path,label,start,end\na.mp4,x,1,\n", r"line 2: start and end must be numbers \(seconds\)"),
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


@pytest.mark.parametrize(
    "text",
    [
        "label,youtube_id,time_start,time_end,split\na b,xyz,0,1,val\n",
        "label, youtube_id, time_start, time_end\na b, xyz, 0, 1\n",
        "\ufefflabel;youtube_id;time_start;time_end\r\na b;xyz;0;1\r\n",
        'Label\tYouTube_ID\ttime_start\ttime_end\n"a b"\txyz\t0\t1\n',
        '"label", "youtube_id", "time_start", "time_end"\n"a b", "xyz", 0, 1\n\n',
        "label,youtube_id,time_start,time_end\ra b,xyz,0,1\r",
        "\ufefflabel,youtube_id,time_start,time_end\r\na b,xyz,0,1,,\r\n,,,,\r\n",
    ],
)
def test_forms_of_a_kinetics_csv(tmp_path, text):
    (tmp_path / "list.csv").write_bytes(text.encode())
    videos = kinetics_videos(tmp_path / "list.csv", tmp_path)
    assert videos.classes == ("a b",)
    assert videos.names() == ["xyz_000000_000001"]


@pytest.mark.parametrize("name", ["xyz", "xyz_000000_000001"])
def test_several_files_of_a_video_are_named(tmp_path, capsys, name):
    (tmp_path / "list.csv").write_text("label,youtube_id,time_start,time_end\na,xyz,0,1\nb,other,0,1\n")
    for path in (f"b/{name}.webm", f"a/{name}.mp4", "a/unlisted.mp4", "b/unlisted.mp4"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    videos = kinetics_videos(tmp_path / "list.csv", tmp_path)
    assert videos.items[0].path == tmp_path / f"a/{name}.mp4"
    line = f"1 videos have several files, of which the first is read, e.g. a/{name}.mp4, b/{name}.webm"
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    "header", ["video_name,tag", "clip_name,clip_path,label", "file,label_name", "id,video,class_name"]
)
def test_headers_of_other_names(tmp_path, header):
    columns = header.split(",")
    row = ",".join("v.mp4" if "path" in c or c in ("video_name", "file", "video") else "x" for c in columns)
    (tmp_path / "list.csv").write_text(f"{header}\n{row}\n")
    videos = list_videos(tmp_path / "list.csv", tmp_path)
    assert (videos.names(), videos.classes) == (["v.mp4"], ("x",))


def test_a_header_that_is_not_known_is_no_sample(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"x")
    (tmp_path / "list.csv").write_text("movie,kind\nv.mp4,x\n")
    with pytest.raises(DataError, match=r"list.csv, line 1: .*movie: no such file; if this line is a header, call its"):
        list_videos(tmp_path / "list.csv", tmp_path)


def test_a_line_break_in_a_quoted_label(tmp_path):
    file = tmp_path / "list.csv"
    file.write_text('label,youtube_id,time_start,time_end\n"circu\nlar",abc,0,1\nb,abc,9,1\n')
    with pytest.raises(DataError, match="line 4: time_start=9 must be"):
        kinetics_videos(file, tmp_path)
    file.write_text('label,youtube_id,time_start,time_end\n"circu\nlar",abc,0,1\n')
    assert kinetics_videos(file, tmp_path).classes == ("circu\nlar",)


def test_a_list_of_parts(moving, tmp_path):
    file = tmp_path / "list.csv"
    file.write_text("path,label,start,end\ndown/0.mp4,a,0,0.5\ndown/0.mp4,b,0.5,1.1\n")
    videos = list_videos(file, moving / "train")
    assert [(v.name, v.label, v.segment) for v in videos.items] == [
        ("down/0.mp4#t=0,0.5", 0, (0.0, 0.5)),
        ("down/0.mp4#t=0.5,1.1", 1, (0.5, 1.1)),
    ]
    assert len(index_videos(videos, Index(tmp_path / "index.json", tmp_path))) == 2


@pytest.fixture
def ucf101(tmp_path):
    """The layout of the published archives, with three classes."""
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    names = ("ApplyEyeMakeup", "Basketball", "YoYo")
    (lists / "classInd.txt").write_bytes("".join(f"{i} {n}\r\n" for i, n in enumerate(names, 1)).encode())
    train = [f"{n}/v_{n}_g08_c0{c}.avi {i}" for i, n in enumerate(names, 1) for c in (1, 2)]
    (lists / "trainlist01.txt").write_text("\n".join(train) + "\n")
    (lists / "testlist01.txt").write_text("\n".join(f"{n}/v_{n}_g01_c01.avi" for n in names) + "\n")
    return tmp_path


@pytest.mark.parametrize("flat", [False, True])
def test_the_official_lists_of_ucf101(ucf101, moving, flat, capsys):
    lists, folder = ucf101 / "ucfTrainTestlist", ucf101 / "UCF-101"
    for name in ("trainlist01", "testlist01"):
        for line in (lists / f"{name}.txt").read_text().splitlines():
            path = folder / (line.split()[0].split("/")[-1] if flat else line.split()[0])
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(moving / "train/down/0.mp4", path)
    shutil.copy(moving / "train/down/0.mp4", folder / "more.avi")
    data = {"source": "ucf101", "train": "ucfTrainTestlist/trainlist01.txt", "val": "ucfTrainTestlist/testlist01.txt"}
    train, val = load_videos(config(ucf101, ucf101 / "run", data={**data, "videos": "UCF-101"}).data)
    assert train.classes == ("ApplyEyeMakeup", "Basketball", "YoYo")
    assert [v.label for v in train.items] == [0, 0, 1, 1, 2, 2]
    assert val.names()[1] == "Basketball/v_Basketball_g01_c01.avi"
    assert all(v.path.is_file() for v in (*train.items, *val.items))
    assert "1 videos below" in (said := capsys.readouterr().err)
    assert "are in no list: more.avi" in said
    found, _ = read_set(lists / "testlist01.txt", folder)
    assert found.items == val.items


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Basketball/a.avi 1", "line 1: class 'Basketball' has number 1, classInd.txt has another"),
        ("Football/a.avi 1", "line 1: class 'Football' is not one of ApplyEyeMakeup, Basketball, YoYo"),
        ("a.avi 1", "line 1: must be 'CLASS/FILE.avi NUMBER', not 'a.avi 1'"),
    ],
)
def test_lists_of_ucf101_that_do_not_fit(ucf101, line, message):
    file = ucf101 / "ucfTrainTestlist/x.txt"
    file.write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        ucf101_videos(file, ucf101)
    (ucf101 / "ucfTrainTestlist/classInd.txt").write_text("1 A\n3 B\n")
    with pytest.raises(DataError, match=r"classInd.txt, line 2: must be '2 CLASS'"):
        ucf101_videos(file.with_name("trainlist01.txt"), ucf101)


def test_the_official_splits_of_hmdb51(tmp_path):
    for name in ("brush_hair", "cartwheel"):
        content = f"{name}_a.avi 1 \n{name} b.avi 2 \n{name}_c.avi 0 \n{name}_d.avi 1 \n"
        (tmp_path / f"{name}_test_split1.txt").write_text(content)
    train = hmdb51_videos(tmp_path / "1", tmp_path)
    assert train.classes == ("brush_hair", "cartwheel")
    assert train.names() == [f"{n}/{n}_{x}.avi" for n in train.classes for x in "ad"]
    assert hmdb51_videos(tmp_path / "1", tmp_path, test=True).names()[0] == "brush_hair/brush_hair b.avi"
    assert len(read_set(tmp_path / "1")[0]) == 2
    with pytest.raises(
        DataError, match=r"no files CLASS_test_split2.txt in .*; must be the folder of them and 1, 2 or 3"
    ):
        hmdb51_videos(tmp_path / "2", tmp_path)
    (tmp_path / "cartwheel_test_split1.txt").write_text("x.avi 5\n")
    with pytest.raises(DataError, match="split1.txt, line 1: must be 'FILE.avi 0', 1 or 2"):
        hmdb51_videos(tmp_path / "1", tmp_path)


def test_the_labels_of_something_something(tmp_path, moving):
    shutil.copy(moving / "train/down/0.mp4", tmp_path / "78687.webm")
    file = tmp_path / "train.json"
    file.write_text(
        '[{"id": "78687", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]},'
        ' {"id": "2", "label": "x", "template": "Dropping [something]", "placeholders": []}]'
    )
    videos = something_videos(file, tmp_path)
    assert videos.classes == ("Dropping something", "Holding something")
    assert [(v.label, v.path is not None) for v in videos.items] == [(1, True), (0, False)]
    for content, message in (
        ('[{"id": "1"}]', "0.template: is missing"),
        ('[{"id": 1, "template": "x"}]', "0.id=1: .*valid string"),
        ("[]", "has no videos"),
        ("{", "not JSON"),
    ):
        file.write_text(content)
        with pytest.raises(DataError, match=f"train.json.*{message}"):
            something_videos(file, tmp_path)


def test_what_is_odd_about_lists_is_reported(moving, tmp_path, capsys):
    (tmp_path / "train.csv").write_text("path,label\ntrain/down/0.mp4,a\ntrain/down/0.mp4,b\ntrain/down/1.mp4,b\n")
    (tmp_path / "val.csv").write_text("path,label\ntrain/down/1.mp4,b\nval/down/0.mp4,a\n")
    data = {"source": "list", "train": str(tmp_path / "train.csv"), "val": str(tmp_path / "val.csv")}
    load_videos(config(moving, tmp_path / "run", data=data).data)
    said = capsys.readouterr().err
    assert "training list: 1 videos stand in it more than once: train/down/0.mp4" in said
    assert "training list: 1 videos have several classes: train/down/0.mp4" in said
    assert "evaluation list" not in said
    assert "1 videos are in both lists, so that the evaluation is of training videos: train/down/1.mp4" in said
    assert "30 videos below " in said

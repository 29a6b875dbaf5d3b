"""What the search for files finds, and what it counts as left out."""

import os
import random

import pytest

from tasks.classification import predict as classification
from tasks.detection import predict as detection
from tasks.errors import DataError
from tasks.files import LeftOut, class_files, find_below, find_files, text_lines
from tasks.images import EXTENSIONS, find_images
from tasks.outputs import CONTACT_SHEET, DRAWN_ENDINGS, PREDICTIONS
from tasks.video import predict as video
from tasks.video.sources import find_videos, folder_videos

PNG = (".png",)


def files(root, *names, content="x"):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def names(root, found):
    return [path.relative_to(root).as_posix() for path in found]


def test_hidden_files_and_folders_are_left_out_everywhere(tmp_path):
    files(tmp_path, "a/1.png", "a/._1.png", "a/.cache/2.png", ".ipynb_checkpoints/3.png", "__MACOSX/a/4.png")
    files(tmp_path, "a/Thumbs.db", "a/desktop.ini", "@eaDir/5.png")
    found = find_below(tmp_path, PNG)
    assert names(tmp_path, found.files) == ["a/1.png"]
    assert found.left_out == LeftOut(hidden=7)
    assert find_files([str(tmp_path)], PNG, "images") == found
    # given by name, or below a hidden folder that is given by name
    assert find_files([str(tmp_path / "a/._1.png")], PNG, "images").files == [tmp_path / "a/._1.png"]
    assert names(tmp_path, find_below(tmp_path / "a/.cache", PNG).files) == ["a/.cache/2.png"]


def test_results_of_earlier_predictions_are_no_inputs(tmp_path):
    files(tmp_path, "1.png", "out/1.objects.png", "out/contact_sheet.png", "out/2.png", "b/3.objects.png")
    assert len(find_files([str(tmp_path)], PNG, "images").files) == 5
    files(tmp_path, "out/predictions.json")
    found = find_files([str(tmp_path)], PNG, "images")
    assert names(tmp_path, found.files) == ["1.png", "b/3.objects.png", "out/2.png"]
    assert str(found.left_out) == "1 with another ending (.json), 2 of earlier results"
    # a copy that is given by its own name is an input
    assert len(find_files([str(tmp_path / "out/1.objects.png")], PNG, "images").files) == 1
    # what the tasks write is known
    assert detection.FILES == (PREDICTIONS,)
    assert video.FILES == classification.FILES == (PREDICTIONS, CONTACT_SHEET)
    assert {detection.DRAWN, video.DRAWN_TIMELINE, video.ANNOTATED} == {*DRAWN_ENDINGS}


def test_endings_in_any_case_and_the_others_are_counted(tmp_path):
    files(tmp_path, "1.PNG", "2.Png", "3.txt", "4.TXT", "5.heic", "README", "x.png/6.png", "x.png/7.PNG")
    found = find_below(tmp_path, PNG)
    assert names(tmp_path, found.files) == ["1.PNG", "2.Png", "x.png/6.png", "x.png/7.PNG"]
    assert found.left_out == LeftOut(endings={".txt": 2, ".heic": 1, "no ending": 1})
    assert str(found.left_out) == "4 with other endings (.txt, .heic, no ending)"
    assert str(LeftOut(endings={f".{i}": 9 - i for i in range(9)})) == "45 with other endings (.0, .1, .2, .3, .4, ...)"


def test_the_counts_in_words():
    left_out = LeftOut(hidden=2, endings={".txt": 1}, empty=3) + LeftOut(hidden=1, endings={".heic": 1}, links=1)
    assert str(left_out) == (
        "3 hidden, 2 with other endings (.heic, .txt), 3 empty, 1 links that lead nowhere or in a circle"
    )
    assert str(LeftOut(endings={".txt": 1})) == "1 with another ending (.txt)"
    assert left_out
    assert not LeftOut()


def test_links_are_followed_and_circles_end(tmp_path):
    files(tmp_path, "data/a/1.png", "elsewhere/b/2.png", "elsewhere/3.png")
    root = tmp_path / "data"
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "4.png").symlink_to(tmp_path / "elsewhere/3.png")
    (root / "a/up").symlink_to(root)  # to a folder that it is in
    (root / "above").symlink_to(tmp_path)  # to the folder of the given folder
    (root / "nowhere.png").symlink_to(tmp_path / "gone.png")
    (root / "self").symlink_to(root / "self")
    (tmp_path / "elsewhere/b/back").symlink_to(tmp_path / "elsewhere")
    found = find_below(root, PNG)
    assert names(root, found.files) == ["4.png", "a/1.png", "linked/3.png", "linked/b/2.png"]
    assert found.left_out == LeftOut(links=5)


def test_empty_and_special_files_and_closed_folders(tmp_path):
    files(tmp_path, "1.png")
    (tmp_path / "2.png").touch()
    os.mkfifo(tmp_path / "3.png")  # reading it would wait for ever
    found = find_below(tmp_path, PNG)
    assert names(tmp_path, found.files) == ["1.png"]
    assert found.left_out == LeftOut(empty=1, special=1)
    # predict names each file that cannot be read
    assert names(tmp_path, find_files([str(tmp_path)], PNG, "images").files) == ["1.png", "2.png"]


def test_a_pipe_that_is_given_is_called_one(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a.png: is a pipe or a device, in which no place can be sought; save it"):
        find_files([str(tmp_path / "a.png")], PNG, "images")


def test_the_order_is_that_of_the_names(tmp_path, monkeypatch):
    made = [f"{folder}{n}.png" for folder in ("", "b/", "a/", "a/z/", "a-b/") for n in (10, 9, "ä", "Z")]
    random.Random(0).shuffle(made)
    files(tmp_path, *made)
    first = names(tmp_path, find_below(tmp_path, PNG).files)
    assert first[:4] == ["10.png", "9.png", "Z.png", "ä.png"]
    assert [name.rpartition("/")[0] for name in first[::4]] == ["", "a", "a-b", "a/z", "b"]
    scan = os.scandir

    class Reversed:
        def __init__(self, path):
            with scan(path) as entries:
                self.entries = sorted(entries, key=lambda e: e.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert names(tmp_path, find_below(tmp_path, PNG).files) == first


def test_class_folders(tmp_path):
    files(tmp_path, "bee/1.png", "ant/x/2.png", "ant/notes.txt", ".git/3.png", "loose.png", "labels.csv")
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "cow").symlink_to(tmp_path / "bee")
    classes, found, left_out = class_files(tmp_path, PNG, "images")
    assert classes == ("ant", "bee", "cow")
    assert [names(tmp_path, each) for each in found] == [["ant/x/2.png"], ["bee/1.png"], ["cow/1.png"]]
    assert left_out == LeftOut(hidden=1, endings={".txt": 1}, links=1, outside=2)
    (tmp_path / "dog").mkdir()
    files(tmp_path, "dog/.hidden.png", "dog/a.heic")
    with pytest.raises(DataError, match=r"dog: contains no images \(left out: 1 hidden, 1 with another ending \(.heic"):
        class_files(tmp_path, PNG, "images")
    with pytest.raises(DataError, match=r"x: contains no folder; .* \(1 images are in it without one\)"):
        class_files(tmp_path / "ant/x", PNG, "images")
    with pytest.raises(DataError, match="none: no such folder"):
        class_files(tmp_path / "none", PNG, "images")


def test_pictures_and_videos_use_the_same_search(tmp_path, capsys):
    files(tmp_path, "a/1.JPG", "a/.2.jpg", "a/3.heic", "v/x.mp4/1.MP4", "v/x.mp4/._1.mp4")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert names(tmp_path, find_images([str(tmp_path / "a"), str(tmp_path / "b")])) == ["a/1.JPG", "b/1.JPG"]
    assert capsys.readouterr().err == "left out: 2 hidden, 2 with other endings (.heic)\n"
    assert names(tmp_path, find_videos([str(tmp_path / "v")])) == ["v/x.mp4/1.MP4"]
    assert capsys.readouterr().err == "left out: 1 hidden\n"
    videos = folder_videos(tmp_path / "v")
    assert (videos.classes, videos.names()) == (("x.mp4",), ["x.mp4/1.MP4"])
    assert videos.left_out == LeftOut(hidden=1)
    with pytest.raises(
        DataError, match=r"no images in .*v \(left out: 1 hidden, 1 with another ending \(.mp4\)\); known"
    ):
        find_images([str(tmp_path / "v")])
    assert ".gif" in EXTENSIONS


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_lines_of_text_files(tmp_path, end, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes(end.join(["eins", "", "  ", "zw\u2028ei ", "dr\x0cei"]).encode(encoding))
    assert text_lines(path) == [(1, "eins"), (4, "zw\u2028ei "), (5, "dr\x0cei")]


def test_text_files_that_are_none(tmp_path):
    for content, reason in ((b"", "is empty"), (b"\xef\xbb\xbf\r\n", "is empty"), ("ä".encode("latin-1"), "UTF-8")):
        (tmp_path / "a.txt").write_bytes(content)
        with pytest.raises(DataError, match=rf"a.txt: .*{reason}"):
            text_lines(tmp_path / "a.txt")
    with pytest.raises(DataError, match="not a text file"):
        text_lines(tmp_path)

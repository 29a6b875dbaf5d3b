"""The folder of results: proven before any work, names that meet neither an input nor earlier results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import UserError
from tasks.outputs import (
    LONGEST,
    Entries,
    OutputFolder,
    check_target,
    file_stem,
    next_folder,
    try_to_draw,
    unique_stems,
)
from zoo.files import write_json


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a b", "a b"),
        ("日本", "日本"),
        (".hidden", "_hidden"),
        ("-", "_"),
        ("--out", "__out"),
        ("~x", "_x"),
        ("con", "_con"),
        ("COM1.photo", "_COM1.photo"),
        ("a\nb\x1b[31m", "a_b_[31m"),
        ("caf\udce9", "caf_"),
        ('a:b"c\\d', "a_b_c_d"),
        ("ends. ", "ends"),
        ("...", "_"),
        ("", "_"),
    ],
)
def test_every_file_system_takes_a_stem(name, stem):
    assert file_stem(name) == stem


def test_a_long_name_leaves_room_for_endings_and_a_temporary_file(tmp_path):
    stem = file_stem("é" * 300)
    assert stem == "é" * (LONGEST // 2)
    folder = OutputFolder(tmp_path, [])
    folder.write_json([], f"{stem}.timeline.json")
    assert len(list(tmp_path.iterdir())) == 1


def test_stems_are_unique_also_where_case_does_not_count():
    names = ["a/x.png", "b/x.png", "x_2.png", "X.jpg", "e\u0301.png", "\u00e9.png", ".x.png", "_x.png"]
    stems = unique_stems([Path(name) for name in names])
    assert stems == ["x", "x_3", "x_2", "X_4", "e\u0301", "\u00e9_2", "_x", "_x_2"]


def test_results_never_replace_an_input(tmp_path):
    for name in ("x.png", "x.objects.png", "predictions.json", "link.png"):
        (tmp_path / name).write_text("input")
    os.link(tmp_path / "link.png", tmp_path / "y.objects.png")
    files = [tmp_path / "x.png", tmp_path / "x.objects.png", tmp_path / "link.png", tmp_path / "y.png"]
    folder = OutputFolder(tmp_path, ["results.json"], files, overwrite=True)
    assert folder.stems(files, [".objects.png"]) == ["x_2", "x.objects", "link", "y_2"]
    with pytest.raises(UserError, match="predictions.json: is an input and would be replaced"):
        OutputFolder(tmp_path, ["predictions.json"], [tmp_path / "predictions.json"], overwrite=True)


def test_earlier_results_stay_unless_they_may_be_replaced(tmp_path):
    (tmp_path / "x.objects.png").write_text("earlier")
    assert OutputFolder(tmp_path, ["a.json"]).stems([Path("x.png")], [".objects.png"]) == ["x_2"]
    assert OutputFolder(tmp_path, ["a.json"], overwrite=True).stems([Path("x.png")], [".objects.png"]) == ["x"]
    OutputFolder(tmp_path, ["a.json"]).write_json({"file": "caf\udce9"}, "a.json")
    assert (tmp_path / "a.json").read_text() == '{\n "file": "caf\\\\xe9"\n}\n'
    with pytest.raises(UserError, match=r"has earlier results \(a.json\); choose another folder with --out, or give"):
        OutputFolder(tmp_path, ["a.json"])


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: cannot be written \(is a file\)"):
        OutputFolder(tmp_path / "file", [])
    with pytest.raises(UserError, match=r"file/below: cannot be written \(Not a directory\)"):
        OutputFolder(tmp_path / "file/below", [])


def test_the_next_folder(tmp_path):
    assert next_folder(tmp_path / "p") == tmp_path / "p"
    (tmp_path / "p").mkdir()
    assert next_folder(tmp_path / "p") == tmp_path / "p"
    for name in ("p", "p_2"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "x").write_text("")
    assert next_folder(tmp_path / "p") == tmp_path / "p_3"


def test_targets_of_an_export(tmp_path):
    (tmp_path / "a.onnx").write_text("")
    (tmp_path / "folder").mkdir()
    check_target(tmp_path / "new/b.onnx", overwrite=False)
    check_target(tmp_path / "folder", overwrite=False)
    check_target(tmp_path / "a.onnx", overwrite=True)
    with pytest.raises(UserError, match=r"a.onnx: exists; choose another name, or give --overwrite"):
        check_target(tmp_path / "a.onnx", overwrite=False)
    with pytest.raises(UserError, match=r"a.onnx: is the input and would be replaced"):
        check_target(tmp_path / "folder/../a.onnx", overwrite=True, source=tmp_path / "a.onnx")


def test_a_picture_that_fails_costs_a_line(capsys):
    def draw():
        raise ValueError("no\nfont")

    try_to_draw(draw, "sheet.png")
    assert capsys.readouterr().err == "sheet.png: cannot be drawn (no font); the results are complete without it\n"


def test_two_commands_at_once_get_two_folders(tmp_path, monkeypatch):
    """Each folder is empty until its results are complete."""
    code = "import sys; from pathlib import Path; from tasks.outputs import next_folder\n"
    code += "print(next_folder(Path(sys.argv[1])), flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "p")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline().strip() == str(tmp_path / "p")
    monkeypatch.chdir(tmp_path)
    assert next_folder(Path("p")) == Path("p_2")
    other.stdin.close()
    other.wait(timeout=60)
    assert next_folder(Path("p")) == Path("p")
    assert not list(tmp_path.iterdir())


@given(st.lists(st.dictionaries(st.text(), st.floats(allow_nan=False) | st.text() | st.none(), max_size=3), max_size=5))
def test_entries_are_those_of_a_list_that_is_written_at_once(tmp_path_factory, content):
    """Alone or in an object, also none; nothing else is left in the folder."""
    folder = tmp_path_factory.mktemp("entries")
    for name, others in (("list", None), ("object", {"count": len(content), "failed": {}})):
        entries = Entries(folder)
        for entry in content:
            entries.add(entry)
        assert entries.count == len(content)
        assert name not in {path.name for path in folder.iterdir()}
        entries.write(folder / name, others, "images")
        write_json(content if others is None else {**others, "images": content}, folder / "expected")
        found, expected = (json.loads((folder / file).read_bytes()) for file in (name, "expected"))
        assert found == expected
    assert {path.name for path in folder.iterdir()} == {"list", "object", "expected"}


def test_entries_with_a_name_that_is_no_text(tmp_path):
    entries = Entries(tmp_path)
    entries.add({"file": os.fsdecode(b"\xe9.png")})
    entries.write(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == [{"file": "\\xe9.png"}]

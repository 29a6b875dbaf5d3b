"""Inputs that are read one by one, by any number of processes."""

from pathlib import Path

import pytest

from tasks.errors import DataError
from tasks.reading import Unreadable, read_each, read_in_order, report_new, report_unread


def read(path: Path) -> str:
    if path.name == "c.txt":
        raise DataError(f"{path}: no")
    return path.name


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_cannot_be_read_are_collected(tmp_path, capsys, workers):
    files = [tmp_path / name for name in ("a/x.txt", "b/y.txt", "c.txt", "x_2.txt")]
    failed: dict[str, str] = {}
    found = list(read_each(files, read, failed, workers=workers))
    assert found == [(0, files[0], "x.txt"), (1, files[1], "y.txt"), (3, files[3], "x_2.txt")]
    assert failed == {str(files[2]): f"{files[2]}: no"}
    report_unread(failed, len(files))
    assert capsys.readouterr().err.splitlines() == [
        f"skipped: {files[2]}: no",
        "1 of 4 files could not be read",
    ]


def test_nothing_to_read():
    assert list(read_in_order([], read, workers=2)) == []


def test_the_reason_is_the_content_of_what_cannot_be_read():
    assert list(read_in_order([Path("c.txt")], read)) == [Unreadable(0, "c.txt: no")]


def test_what_fails_again_is_not_reported_again(capsys):
    known: dict[str, str] = {}
    failed = {f"{n}.png": f"{n}.png: no" for n in range(12)}
    for found in (failed, failed, {**failed, "x.png": "x.png: no"}):
        report_new(found, known, 20, "images")
    lines = capsys.readouterr().err.splitlines()
    assert lines[9:11] == ["skipped: 9.png: no", "12 of 20 images could not be read; 2 more are not shown"]
    assert lines[11:] == ["skipped: x.png: no", "1 of 20 images could not be read"]

"""Files that are written completely or not at all."""

import errno
import os
import threading

import pytest

from zoo import files
from zoo.files import atomic_write, write_text


def test_threads_that_write_one_file_leave_the_text_of_one_of_them(tmp_path):
    path, meet = tmp_path / "a.txt", threading.Barrier(2, timeout=30)
    failed = []

    def write(letter):
        def fill(temporary):
            with temporary.open("w") as file:
                file.write(letter)
                meet.wait()  # both have a temporary file open
                file.write(letter)
            meet.wait()  # and neither renames before both are written

        try:
            atomic_write(path, fill)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert path.read_text() in ("aa", "bb")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.skipif(os.name != "posix", reason="only POSIX systems open a folder")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_folder_that_cannot_be_flushed(tmp_path, monkeypatch, number):
    """A file system without that call is no error; a broken disk is one."""
    flush = files._flush

    def refuse(path):
        if path.is_dir():
            raise OSError(number, os.strerror(number))
        flush(path)

    monkeypatch.setattr(files, "_flush", refuse)
    if number == errno.EINVAL:
        write_text("whole", tmp_path / "a.txt")
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            write_text("whole", tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text("old", path)

    def fill(temporary):
        temporary.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, fill)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]

"""Files that are written completely or not at all."""

import errno
import os
import threading

import pytest

from zoo import files
from zoo.errors import ZooError
from zoo.files import atomic_folder, atomic_write, expand_path, write_text


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


# -- folders -----------------------------------------------------------------------------------------


def test_new_folders_are_on_the_disk(tmp_path, monkeypatch):
    """The name of a new folder is in the folder above it, which must be flushed."""
    flushed, flush = [], files._flush
    monkeypatch.setattr(files, "_flush", lambda path: (flushed.append(path), flush(path)))
    write_text("whole", tmp_path / "a/b/c.txt")
    assert flushed[:2] == [tmp_path, tmp_path / "a"]
    assert flushed[2].parent == tmp_path / "a/b"  # the temporary file
    assert flushed[3:] == [tmp_path / "a/b"]
    flushed.clear()
    write_text("again", tmp_path / "a/b/c.txt")
    assert flushed[1:] == [tmp_path / "a/b"]


def test_a_folder_is_written_completely_and_flushed(tmp_path, monkeypatch):
    flushed, flush = [], files._flush
    monkeypatch.setattr(files, "_flush", lambda path: (flushed.append(path.name), flush(path)))

    def fill(folder):
        (folder / "inner").mkdir()
        (folder / "inner/a.txt").write_text("a")
        (folder / "b.txt").write_text("b")

    (tmp_path / "out").mkdir()  # an empty folder is replaced
    atomic_folder(tmp_path / "out", fill)
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")} == {
        *("out", "out/inner", "out/inner/a.txt", "out/b.txt")
    }
    assert flushed[:3] == ["b.txt", "inner", "a.txt"]
    assert flushed[-1] == tmp_path.name
    with pytest.raises(OSError, match="not empty"):
        atomic_folder(tmp_path / "out", fill)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_interrupted_folder_leaves_nothing(tmp_path):
    def fill(folder):
        (folder / "a.txt").write_text("a")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_folder(tmp_path / "out", fill)
    assert not list(tmp_path.iterdir())


# -- temporaries of killed processes -----------------------------------------------------------------

GONE = 2**22 + 1  # no process has this number: Linux allows at most 2**22


@pytest.mark.skipif(os.name != "posix", reason="only POSIX systems answer whether a process runs")
def test_temporaries_of_processes_that_are_gone_are_removed(tmp_path):
    here, other = files._MACHINE, "0" * 8
    stale = [f".a.txt.{here}-{GONE}-1.tmp", f".b.{here}-{os.getpid()}-1.tmp", f".c.{other}-7-1.tmp"]
    kept = [f".d.{here}-{os.getppid()}-1.tmp", f".e.{other}-7-1.tmp", ".f.tmp", "g.tmp", f"h.{here}-{GONE}-1.tmp"]
    for name in (stale[0], *stale[2:], *kept):
        (tmp_path / name).write_text("half")
    (tmp_path / stale[1]).mkdir()
    (tmp_path / stale[1] / "inner").write_text("half")
    os.utime(tmp_path / stale[2], (0, 0))  # of another machine, and long ago
    assert [path.name for path in files.remove_stale(tmp_path)] == sorted(stale)
    assert {path.name for path in tmp_path.iterdir()} == {*kept}
    assert files.remove_stale(tmp_path / "none") == []


def test_the_first_write_into_a_folder_removes_them(tmp_path):
    stale = tmp_path / f".a.txt.{files._MACHINE}-{GONE}-1.tmp"
    stale.write_text("half")
    write_text("whole", tmp_path / "a.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_temporary_in_use_stays(tmp_path):
    def fill(temporary):
        temporary.write_text("half")
        assert files.remove_stale(tmp_path) == []
        temporary.write_text("whole")

    atomic_write(tmp_path / "a.txt", fill)
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_long_names(tmp_path):
    name = "ü" * 125 + ".txt"  # 254 bytes, of which a file system takes 255
    write_text("whole", tmp_path / name)
    assert (tmp_path / name).read_text() == "whole"


# -- paths of users ----------------------------------------------------------------------------------


def test_paths_are_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/$A~")
    monkeypatch.setenv("A", "/x y")
    monkeypatch.setenv("A_1", "z")
    monkeypatch.delenv("B", raising=False)
    for text, expected in [
        *(("~", "/home/$A~"), ("~/a", "/home/$A~/a"), ("a/~/b", "a/~/b"), ("./~", "./~"), ("$A/~", "/x y/~")),
        *(
            ("$A_1/b", "z/b"),
            ("${A}_1", "/x y_1"),
            ("a$", "a$"),
            ("a$5", "a$5"),
            ("$", "$"),
            ("a #2", "a #2"),
            (" a", " a"),
        ),
    ]:
        assert expand_path(text) == expected
    for text in ("$B", "${B}/a", "${}", "$A/$B", "", " ", "a\0", "a\nb", "~no-such-user-here/a"):
        with pytest.raises(ZooError) as caught:
            expand_path(text)
        assert len(str(caught.value).splitlines()) == 1
    (tmp_path / "$B").mkdir()
    assert expand_path(f"{tmp_path}/$B") == f"{tmp_path}/$B"

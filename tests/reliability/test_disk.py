"""Disks that are full, fail or cannot be written: one line, no half file, and the run goes on when there is space."""

from __future__ import annotations

import errno
import os
import random

import pytest

from tasks.plots import read_log
from tests.helpers import faults
from tests.helpers.curves import curves_in
from tests.helpers.small_run import EPOCHS, IN_A_ROW, STEPS, points

FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def assert_one_line(ended, folder):
    """Check that the run ended with the line of a user's error that names the folder and what to do."""
    line = ended.error()
    assert str(folder) in line, line


@pytest.mark.parametrize("seed", points(1, 20))
def test_a_disk_that_fails_at_operations(run, operations, tmp_path, seed):
    """All operations from one on fail, ten times in a row.

    The disk has no space, the user no quota, the disk became read-only after an error, or reports one.
    """
    folder, numbers = tmp_path / "run", random.Random(seed)
    for failure in range(IN_A_ROW):
        error = numbers.choice(FAILURES)
        given = (folder, numbers.randint(1, operations // 4), error)
        ended = run.start(folder, resume=failure > 0, fault=faults.refuse_from, given=given).end()
        run.assert_sound(folder)
        if ended.code == 0:
            break
        assert_one_line(ended, folder)
        assert os.strerror(error) in ended.error()
    run.assert_goes_on(folder)


@pytest.mark.parametrize("point", points(1, 50))
def test_a_limit_on_the_length_of_files(run, tmp_path, point):
    """Writes fail in the middle, those of torch, safetensors and PIL too."""
    lengths = [path.stat().st_size for path in run.whole.rglob("*") if path.is_file()]
    folder, length = tmp_path / "run", random.Random(point).randint(0, max(lengths) - 1)
    ended = run.start(folder, fault=faults.limit_length, given=(length,)).end()
    assert_one_line(ended, folder)
    run.assert_sound(folder)
    run.assert_goes_on(folder)


@pytest.mark.parametrize("point", points(1, 50))
def test_a_small_disk(run, tmp_path, point):
    """A file system in memory, full in the middle of a write."""
    # what the files of the whole run take; one page less does not suffice
    pages = sum(-(-path.stat().st_size // 4096) for path in run.whole.rglob("*") if path.is_file())
    folder, remains = tmp_path / "run", tmp_path / "remains"
    size = 4096 * random.Random(point).randint(2, pages - 1)
    ended = run.start(folder, fault=faults.small_disk, given=(folder, size, remains)).end()
    if "[Errno 1] mount" in ended.written:
        pytest.skip("this user may not mount a file system")
    assert_one_line(ended, folder)
    folder.rmdir()
    remains.rename(folder)
    run.assert_sound(folder)
    run.assert_goes_on(folder)


def test_a_disk_that_takes_no_more_curves(run, tmp_path):
    """Those of TensorBoard: the run goes on without them, and reports it in one line; what was written is whole."""
    folder, remains = tmp_path / "run", tmp_path / "remains"
    arguments = "train.sinks=[tensorboard]", "train.epochs=12"
    ended = run.start(folder, *arguments, fault=faults.small_board, given=(folder, 4096, remains)).end()
    if "[Errno 1] mount" in ended.written:
        pytest.skip("this user may not mount a file system")
    assert ended.code == 0, ended
    assert "Traceback" not in ended.written, ended.written
    failure = (
        "TensorBoardSink failed and gets no more records of this run (OSError: [Errno 28] No space left on device)"
    )
    assert ended.written.count("TensorBoardSink") == ended.written.splitlines().count(failure) == 1
    assert len(read_log(folder / "log.jsonl")) == 12 * (STEPS // EPOCHS + 2)
    steps = [event.step for event in curves_in(remains)["step/loss"]]
    assert 0 < len(steps) < 12 * STEPS // EPOCHS
    assert steps == list(range(1, len(steps) + 1))


def test_a_folder_that_takes_no_curves(run, tmp_path):
    folder = tmp_path / "run"
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "tensorboard").chmod(0o555)
    ended = run.start(folder, "train.sinks=[tensorboard]", fault=faults.drop_privileges).end()
    assert "train.sinks: tensorboard cannot be opened (PermissionError: " in ended.error()
    assert str(folder / "tensorboard") in ended.error()


def test_a_folder_without_permission(run, tmp_path):
    """A folder that may not be written, by its mode."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    ended = run.start(closed / "run", fault=faults.drop_privileges, output=tmp_path / "out.txt").end()
    assert_one_line(ended, closed / "run")
    assert list(closed.iterdir()) == []


def test_a_run_whose_folder_may_not_be_written_any_more(run, operations, tmp_path):
    """``--resume`` changes nothing."""
    folder = tmp_path / "run"
    run.start(folder, fault=faults.signal_at, given=(folder, operations // 2, 9)).end()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    closed = [folder, *(path for path in folder.rglob("*"))]
    for path in closed:
        path.chmod(0o555 if path.is_dir() else 0o444)
    ended = run.start(folder, resume=True, fault=faults.drop_privileges).end()
    assert_one_line(ended, folder)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for path in closed:
        path.chmod(0o755)
    run.assert_goes_on(folder)


def test_a_read_only_file_system(run, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    ended = run.start(folder / "run", fault=faults.read_only, given=(folder,), output=tmp_path / "out.txt").end()
    if "[Errno 1] mount" in ended.written:
        pytest.skip("this user may not mount a file system")
    assert_one_line(ended, folder / "run")
    assert list(folder.iterdir()) == []


def test_a_folder_below_a_file(run, tmp_path):
    (tmp_path / "file").write_text("a file")
    folder = tmp_path / "file" / "run"
    ended = run.start(folder, output=tmp_path / "out.txt").end()
    assert_one_line(ended, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "a file"

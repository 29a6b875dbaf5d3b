"""The lock of a folder, also on file systems without locks."""

import errno
import fcntl
import os

import pytest

from tasks.errors import UserError
from tasks.locks import take_folder


def test_a_folder_is_taken_by_one(tmp_path):
    lock = take_folder(tmp_path / "run", "run")
    with pytest.raises(UserError, match=r"run: another process has a run in it; wait for it, stop it, or choose"):
        take_folder(tmp_path / "run", "run")
    lock.release()
    take_folder(tmp_path / "run", "run").release()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch, capsys, recwarn, number):
    """And nothing that a killed process leaves keeps others from the folder."""

    def refuse(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        assert take_folder(tmp_path / "run", "run") is None
        shown = " ".join(capsys.readouterr().err.split())
        assert shown.endswith("run: its file system has no locks; do not start two runs in it")
    assert not recwarn.list


def test_another_error_of_the_lock_is_raised(tmp_path, monkeypatch):
    def fail(descriptor, operation):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output error"):
        take_folder(tmp_path / "run", "run")

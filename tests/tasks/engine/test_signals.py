"""The thread that ends a process at a second signal."""

import signal
import socket

import pytest

from tasks.engine import signals


class Ended(Exception):
    """Takes the place of the end of the process."""


@pytest.fixture
def listen(monkeypatch):
    """Listen to signals as if each came long after the one before, until the context ends."""

    def end(code):
        raise Ended(code)

    def run(*numbers, patience=None):
        sending, receiving = socket.socketpair()
        with sending:
            sending.sendall(bytes(numbers))
            if patience is None:
                sending.shutdown(socket.SHUT_WR)
            signals._listen(receiving, patience)

    monkeypatch.setattr(signals.os, "_exit", end)
    monkeypatch.setattr(signals, "_SAME", -1.0)
    return run


def test_a_second_signal_ends_the_process(listen):
    listen()
    listen(signal.SIGTERM)
    with pytest.raises(Ended, match=str(128 + signal.SIGTERM)):
        listen(signal.SIGTERM, signal.SIGINT)
    with pytest.raises(Ended, match=str(128 + signal.SIGINT)):
        listen(signal.SIGINT, patience=0.01)


def test_the_ends_of_data_loading_processes_do_not_count(listen):
    """Torch has a handler of SIGCHLD, so Python sends this number too."""
    listen(*[signal.SIGCHLD] * 3)
    listen(signal.SIGCHLD, signal.SIGTERM, signal.SIGCHLD)
    with pytest.raises(Ended, match=str(128 + signal.SIGTERM)):
        listen(signal.SIGCHLD, signal.SIGTERM, signal.SIGCHLD, signal.SIGINT)
    with pytest.raises(Ended, match=str(128 + signal.SIGINT)):
        listen(signal.SIGCHLD, signal.SIGINT, signal.SIGCHLD, patience=0.01)

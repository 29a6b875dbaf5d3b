"""A bar on a terminal, lines elsewhere; both with rate and ETA."""

import io
import re

import pytest
from rich.console import Console

from tasks import progress


@pytest.mark.parametrize("terminal", [True, False])
def test_rate_and_eta(monkeypatch, terminal):
    out = io.StringIO()
    monkeypatch.setattr(progress, "_console", Console(file=out, force_terminal=terminal, width=160))
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    now = iter(range(100, 200))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
    with progress.Progress(total=70, done=10, items=32) as bar:  # a second passes between looks at the clock
        for done in (11, 12):
            bar.step(done, loss=0.5)
        bar.message("epoch 1 is done")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    if not terminal:
        assert "loss 0.5  step 11/70  32 images/s  ETA 0:59" in text
    assert "loss 0.5  step 12/70  32 images/s  ETA 0:58" in text
    assert "epoch 1 is done" in text


def test_other_ranks_say_nothing(capsys):
    with progress.Progress(3, 0, 1, enabled=False) as bar:
        bar.step(1)
        bar.message("nothing")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("seconds", "text"), [(0.9, "0:00"), (65, "1:05"), (3723, "1:02:03")])
def test_clock(seconds, text):
    assert progress.clock(seconds) == text

"""Lines as they come."""

import queue

import pytest

from tasks.errors import DataError
from tasks.translation.stream import windows


def failing(count):
    yield from map(str, range(count))
    raise DataError("no further")


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("count", [0, 1, 4, 7])
def test_all_lines_come_in_order(live, count):
    found = list(windows(map(str, range(count)), 4, live=live))
    assert [line for window in found for line in window] == [str(i) for i in range(count)]
    assert all(1 <= len(window) <= 4 for window in found)


@pytest.mark.parametrize("live", [True, False])
def test_an_error_comes_after_the_lines_before_it(live):
    found = []
    with pytest.raises(DataError, match="no further"):
        found.extend(line for window in windows(failing(6), 4, live=live) for line in window)
    assert found == [str(i) for i in range(6)]


def test_a_line_does_not_wait_for_the_next_one():
    lines: queue.Queue[str] = queue.Queue()
    found = windows(iter(lines.get, "end"), 100, live=True)
    for text in ("one", "two"):  # the second one is written when the first one has been answered
        lines.put(text)
        assert next(found) == [text]
    lines.put("end")
    assert list(found) == []

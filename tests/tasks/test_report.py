"""Lines for people."""

import pytest

from tasks.report import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.000042, "0.042 ms"),
        (0.0042, "4.2 ms"),
        (0.0383, "38 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (1.84, "1.8 s"),
        (9.96, "10 s"),
        (62.4, "62 s"),
        (119.4, "119 s"),
        (119.6, "2 min 0 s"),
        (247.3, "4 min 7 s"),
    ],
)
def test_times_have_digits_enough(seconds, text):
    assert duration(seconds) == text

"""Messages of errors: one line that a terminal can show, of a bounded length."""

import pytest

from zoo.errors import LONGEST, one_line, suggestion


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (ValueError("two\n  lines\tand a tab"), "two lines and a tab"),
        ("\x1b[31mred\x00", "\N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}"),
        (KeyError(), "KeyError"),
        ("x" * LONGEST, "x" * LONGEST),
        (RuntimeError("header " + "x" * 30_000), "header " + "x" * (LONGEST - 7) + "..."),
    ],
)
def test_messages_of_other_libraries_become_one_line(given, expected):
    assert one_line(given) == expected


def test_suggestions():
    assert suggestion("reslace", ["rescale", "bn"]) == " (did you mean rescale?)"
    assert suggestion("x", ["b", "a"]) == " (known: b, a)"
    assert suggestion("x", map(str, range(31))) == ""

"""What reaches a terminal, and results in three formats."""

import csv
import io
import json

import pytest

from tasks.errors import UserError
from tasks.printing import Results, checked_format, json_line, listed, print_out, printable
from tasks.progress import print_line


def test_names_for_a_line():
    assert [listed(["ant", "bee", "cat"], limit) for limit in (2, 3)] == ["ant, bee and 1 more", "ant, bee, cat"]
    assert listed([], 2) == ""


def test_what_a_terminal_would_act_on_is_escaped(capsys):
    text = "a\nb\x1b[31m\x9b\u202e caf\udce9 日本 \u200d"
    assert printable(text) == "a\\nb\\x1b[31m\\x9b\\u202e caf\\xe9 日本 \u200d"
    assert printable("a\tb\n", lines=True) == "a\tb\n"
    print_out("x\x1b]0;title\x07")
    print_line("y\x1b[2J\udcff")
    captured = capsys.readouterr()
    assert captured.out == "x\\x1b]0;title\\x07\n"
    assert captured.err == "y\\x1b[2J\\xff\n"


def test_json_is_valid_and_exact_but_for_bytes_that_are_no_text():
    content = {"file": "a\nb\x9b日\u2028", "bytes": "caf\udce9", "no": float("nan"), "all": (1.5, float("inf"))}
    line = json_line(content)
    line.encode("utf-8")
    assert "\n" not in line
    assert "\x9b" not in line
    assert json.loads(line) == {"file": "a\nb\x9b日\u2028", "bytes": "caf\\xe9", "no": None, "all": [1.5, None]}


def test_three_formats(capsys):
    def shown(format):
        results = Results(format, ("file", "score"))
        results.add("a,b: 0.5", {"file": 'a,"b"\n', "score": 0.5}, [('a,"b"\n', 0.5), ("c", None)])
        return capsys.readouterr().out

    assert shown("text") == "a,b: 0.5\n"
    assert json.loads(shown("json")) == {"file": 'a,"b"\n', "score": 0.5}
    rows = list(csv.reader(io.StringIO(shown("csv"))))
    assert rows == [["file", "score"], ['a,"b"\\n', "0.5"], ["c", ""]]
    with pytest.raises(UserError, match="^--format xml: must be one of text, json, csv$"):
        checked_format("xml")

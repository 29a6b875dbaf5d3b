"""JSON of unknown origin: bounds, and files."""

import json
import math
import time

import pytest

from zoo.errors import ZooError
from zoo.jsontext import DEEPEST, check_json, count_values, parse_json, read_json


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("NaN", "NaN: numbers must be finite"),
        ("[1e999]", "numbers must be finite"),
        ("9" * 5000, "integers must be at most"),
        (str(2**63 + 1), "integers must be at most"),
        ('{"a": 1, "a": 2}', "key 'a' occurs twice"),
        ("[" * 10**5, f"nested deeper than {DEEPEST}"),
        ("[" * 40 + "]" * 40, f"nested deeper than {DEEPEST}"),
        ("{", "not JSON"),
        ("", "not JSON"),
        ("1 2", "not JSON"),
    ],
)
def test_texts_that_are_refused(text, reason):
    with pytest.raises(ZooError, match=reason) as caught:
        parse_json(text)
    assert len(str(caught.value)) < 300


def test_a_key_twice_among_many_is_found_at_once():
    keys = ", ".join(f'"k{number}": 0' for number in range(200_000))
    before = time.process_time()
    with pytest.raises(ZooError, match="key 'k199999' occurs twice"):
        parse_json(f'{{{keys}, "k199999": 0}}')
    assert time.process_time() - before < 5  # a look through all keys for each of them took ten minutes


def test_the_number_of_values_is_bounded():
    assert parse_json("[1, [2, {}]]", most=5) == [1, [2, {}]]
    with pytest.raises(ZooError, match="5 commas and brackets: must be at most 4"):
        parse_json("[1, [2, {}]]", most=4)
    assert count_values([1, [2, {"a": None}]]) == 6


def test_numbers_that_are_not_finite_where_they_are_allowed():
    nan, infinite, number = parse_json("[NaN, -Infinity, 1.5]", finite=False)
    assert math.isnan(nan)
    assert (infinite, number) == (-math.inf, 1.5)


def test_files(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": [1, "ü"]}).encode())
    assert read_json(path, longest=100) == {"a": [1, "ü"]}
    with pytest.raises(ZooError, match="more than 10 bytes"):
        read_json(path, longest=10)
    path.write_bytes("ü".encode("latin1"))
    with pytest.raises(ZooError, match="not UTF-8: .* at byte 0"):
        read_json(path, longest=100)
    with pytest.raises(ZooError, match="No such file"):
        read_json(tmp_path / "none", longest=100)


def test_what_json_does_not_take():
    check_json({"a": [1, None, True, "x", 1.5]}, "")
    for value, reason in (
        ({"a": {1}}, "a has type set"),
        ({1: 2}, "key 1 has type int"),
        ([math.nan], "must be finite"),
    ):
        with pytest.raises(ZooError, match=reason):
            check_json(value, "")

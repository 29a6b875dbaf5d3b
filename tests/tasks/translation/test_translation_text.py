"""Lines of text files."""

import gzip

import pytest

from tasks.errors import DataError
from tasks.translation.text import read_lines, read_pairs
from tests.helpers.translation import lines


def test_lines_end_at_line_feeds_only(tmp_path):
    texts = ["one\u2028two", "three\x0cfour\x85", "", "five"]
    assert list(read_lines(lines(tmp_path / "a.txt", *texts))) == texts
    assert list(read_lines(lines(tmp_path / "b.txt", *texts, ending="\r\n"))) == texts
    (tmp_path / "c.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + "ä\nb".encode()))
    assert list(read_lines(tmp_path / "c.gz")) == ["ä", "b"]


def test_text_that_cannot_be_read(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\nb\xe4d\n")
    with pytest.raises(DataError, match=r"a\.txt, line 2: not UTF-8 \(.* at byte 2\); convert it: iconv -f latin1"):
        list(read_lines(path))
    with pytest.raises(DataError, match=r"none\.txt: No such file"):
        list(read_lines(tmp_path / "none.txt"))
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"one\ntwo\n" * 9999)[:60])
    with pytest.raises(DataError, match=r"b\.gz, after line \d+: damaged"):
        list(read_lines(tmp_path / "b.gz"))
    (tmp_path / "d.gz").write_bytes(b"plain")
    with pytest.raises(DataError, match=r"d\.gz, after line 0: damaged"):
        list(read_lines(tmp_path / "d.gz"))


def test_unequal_numbers_of_lines(tmp_path):
    left, right = lines(tmp_path / "a.en", "1", "2", "3", "4"), lines(tmp_path / "a.de", "1", "2")
    message = r"a\.de has 2 lines, .*a\.en 4: line 3 has no counterpart"
    for pair in ((left, right), (right, left)):
        with pytest.raises(DataError, match=message):
            list(read_pairs(*pair, ("en", "de")))

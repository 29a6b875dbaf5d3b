"""Lines of text files."""

import bz2
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
    with pytest.raises(DataError, match=r"a\.txt, line 2: not UTF-8 \(.* at byte 2\); if it is Latin-1, convert it: "):
        list(read_lines(path))
    with pytest.raises(DataError, match=r"none\.txt: No such file"):
        list(read_lines(tmp_path / "none.txt"))
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"one\ntwo\n" * 9999)[:60])
    with pytest.raises(DataError, match=r"b\.gz, after line \d+: damaged"):
        list(read_lines(tmp_path / "b.gz"))
    (tmp_path / "d.gz").write_bytes(b"plain")
    with pytest.raises(DataError, match=r"d\.gz, after line 0: damaged"):
        list(read_lines(tmp_path / "d.gz"))


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        ("A dog.\nTwo men.\n".encode("utf-16"), "it is UTF-16; convert it: iconv -f utf-16 -t utf-8"),
        ("A dog.\nTwo men.\n".encode("utf-16-le"), "it is UTF-16; convert it: iconv -f utf-16le -t utf-8"),
        ("A dog.\nTwo men.\n".encode("utf-16-be"), "it is UTF-16; convert it: iconv -f utf-16be -t utf-8"),
        (bz2.compress(b"A dog.\n"), "it is compressed; decompress it: bzip2 -dc"),
        (gzip.compress(b"A dog.\n", mtime=0), "it is compressed; decompress it: gzip -dc"),
    ],
)
def test_the_advice_fits_the_file(tmp_path, content, advice):
    """UTF-16 without a mark is valid UTF-8 of letters and zeros, which were translated."""
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=f"a.txt.*: not UTF-8.*; {advice}$"):
        list(read_lines(tmp_path / "a.txt"))


def test_unequal_numbers_of_lines(tmp_path):
    left, right = lines(tmp_path / "a.en", "1", "2", "3", "4"), lines(tmp_path / "a.de", "1", "2")
    message = r"a\.de has 2 lines, .*a\.en 4: line 3 has no counterpart"
    for pair in ((left, right), (right, left)):
        with pytest.raises(DataError, match=message):
            list(read_pairs(*pair, ("en", "de")))

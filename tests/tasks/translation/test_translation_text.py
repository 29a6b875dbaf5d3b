"""Lines of text files."""

import bz2
import gzip
import lzma
import sys
import zlib

import pytest

from tasks.errors import DataError
from tasks.translation.lines import LONGEST_LINE, read_lines
from tasks.translation.text import read_pairs
from tests.helpers.memory import more_memory
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
    with pytest.raises(DataError, match=r"a\.txt, line 2: not UTF-8 \(.* at byte 2\); convert it from its encoding"):
        list(read_lines(path))
    path.write_bytes("ชายคน 1\nสอง\n".encode("utf-16-le"))  # a line feed is a byte of the first letter
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8; it is UTF-16; convert it: iconv -f utf-16le"):
        list(read_lines(path))
    with pytest.raises(DataError, match=r"none\.txt: No such file"):
        list(read_lines(tmp_path / "none.txt"))
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"one\ntwo\n" * 9999)[:60])
    with pytest.raises(DataError, match=r"b\.gz, after line \d+: damaged"):
        list(read_lines(tmp_path / "b.gz"))
    (tmp_path / "d.gz").write_bytes(b"plain")
    with pytest.raises(DataError, match=r"d\.gz, after line 0: damaged"):
        list(read_lines(tmp_path / "d.gz"))


@pytest.mark.parametrize(("ending", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_compressed_text(tmp_path, ending, compress):
    path = tmp_path / f"a.en.{ending}"
    text = "".join(f"line {i}\n" for i in range(999))
    path.write_bytes(compress(text[:2000].encode()) + compress(text[2000:].encode()))  # as of tools that compress parts
    assert list(read_lines(path)) == text.split("\n")[:-1]
    whole = compress(text.encode())
    for damaged in (whole[:-30], whole[:60] + b"\xff" * 20 + whole[80:], b"plain text", text.encode()):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"a\.en\.{ending}, after line \d+: damaged"):
            list(read_lines(path))


def test_zstandard(tmp_path):
    module = pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    text = "".join(f"line {i}\n" for i in range(999)).encode()
    whole = module.compress(text[:2000]) + module.compress(text[2000:])  # as of tools that compress parts
    (tmp_path / "a.zst").write_bytes(whole)
    assert list(read_lines(tmp_path / "a.zst")) == text.decode().split("\n")[:-1]
    for damaged in (whole[:-30], text):
        (tmp_path / "a.zst").write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.zst, after line \d+: damaged"):
            list(read_lines(tmp_path / "a.zst"))


def test_zstandard_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    (tmp_path / "a.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    if sys.version_info < (3, 14):
        with pytest.raises(DataError, match=r"a.zst: requires backports.zstd \(.*zstd\]'\); or decompress it: zstd -d"):
            list(read_lines(tmp_path / "a.zst"))


def test_a_line_without_an_end(tmp_path):
    (tmp_path / "a.xz").write_bytes(lzma.compress(b"one\n" + b"x" * (LONGEST_LINE + 1)))
    with pytest.raises(DataError, match=rf"a\.xz, line 2: has more than {LONGEST_LINE} bytes"):
        list(read_lines(tmp_path / "a.xz"))


def test_a_dictionary_of_four_gigabytes(tmp_path):
    """A file of LZMA states how much memory it needs."""
    content = bytearray(lzma.compress(b"one\n"))
    header = content[12 : 12 + 4 * (content[12] + 1)]  # of the first block, behind that of the file
    assert header[2:4] == b"\x21\x01"  # LZMA2, whose one byte is the size of the dictionary
    header[4] = 40
    header[-4:] = zlib.crc32(header[:-4]).to_bytes(4, "little")
    content[12 : 12 + len(header)] = header
    (tmp_path / "a.xz").write_bytes(content)
    with more_memory(1 << 30), pytest.raises(DataError, match=r"a\.xz, after line 0: needs more memory than there is"):
        list(read_lines(tmp_path / "a.xz"))


def test_lines_of_old_macs(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\rtwo\rthree\r")
    with pytest.raises(DataError, match="a.txt: its lines end with carriage returns; convert it: tr"):
        list(read_lines(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_bytes(b"one\rtwo\rthree\r\n")  # within a line
    assert list(read_lines(tmp_path / "a.txt")) == ["one\rtwo\rthree"]


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

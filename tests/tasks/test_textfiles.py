"""Text files of users: encodings, and lists of names."""

import bz2
import gzip
import lzma

import pytest

from tasks.errors import ConfigError, DataError
from tasks.files import text_lines
from tasks.splits import read_holdout
from tasks.textfiles import read_names, read_text, wide_encoding
from tests.helpers.commands import call

NAMES = ["Käse", "Brot", "日本"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_utf8_with_and_without_a_mark(tmp_path, mark, end):
    path = tmp_path / "names.txt"
    path.write_bytes(mark + (end.join(NAMES) + end + end).encode())
    assert read_names(path) == NAMES
    assert [line for _, line in text_lines(path)] == NAMES
    assert read_holdout(str(path), NAMES) == set(NAMES)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("Käse\n".encode("utf-16"), "it is UTF-16; convert it: iconv -f utf-16 -t utf-8"),
        ("Käse\n".encode("utf-16-be"), "it is UTF-16; convert it: iconv -f utf-16be -t utf-8"),
        ("Brot\n".encode("utf-16-le"), "it is UTF-16; convert it: iconv -f utf-16le -t utf-8"),
        ("Käse\n".encode("utf-32"), "it is UTF-32; convert it: iconv -f utf-32 -t utf-8"),
        (gzip.compress(b"Brot\n", mtime=0), "it is compressed; decompress it: gzip -dc"),
        (bz2.compress(b"Brot\n"), "it is compressed; decompress it: bzip2 -dc"),
        (lzma.compress(b"Brot\n"), "it is compressed; decompress it: xz -dc"),
        ("Brot\nKäse\n".encode("latin1"), "line 2; convert it from its encoding, as in iconv -f ENCODING -t utf-8"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(range(128, 256)) * 9, "line 1 has bytes that are no text"),
    ],
)
@pytest.mark.parametrize("error", [DataError, ConfigError])
def test_other_encodings_are_recognised(tmp_path, content, reason, error):
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    with pytest.raises(error, match=rf"names.txt: not a text file in UTF-8 \({reason}.*\)"):
        read_text(path, error)


@pytest.mark.parametrize(
    "text",
    ["A dog runs.\n", "Собака бежит 1.\n", "一只狗在跑 。\n", "ผู้ชาย หนึ่ง 1\n", "강아지가 달린다.\n", "कुत्ता दौड़ता है।\n"],
)
def test_wide_encodings_without_a_mark_in_any_script(text):
    for name in ("utf-16le", "utf-16be", "utf-32le", "utf-32be"):
        assert wide_encoding(text.encode(name)) == name
        assert wide_encoding((text * 999).encode(name)) == name
    assert wide_encoding(text.encode()) is None
    assert wide_encoding(text.encode() + b"a zero\0 in it\n") is None


@pytest.mark.parametrize("before", [b"", b"A dog runs.\n", b"\xe4\xb8\x80 1\n"])
def test_zeros_among_control_characters_are_no_wide_encoding(before):
    for control in (b"\0", b"\0\x01\x1b[2J\n"):
        assert wide_encoding(before + control) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a\nb\na\n", "line 3: 'a' stands in line 1 already; remove one"),
        ("a\n\n\na\n", "line 4: 'a' stands in line 1"),
        ("a\nb\x1b[31m\n", r"line 2: 'b\\x1b\[31m' has a control character; one name on each line"),
        ("a\tb\n", "line 1: .* has a control character"),
        ("some name\x00\n", "line 1 has bytes that are no text"),
        ("a\u2028b\n", "has a control character"),
        ("a\rb\rc", "has a control character"),
        ("a\x85b\n", "has a control character"),
        ("", "is empty"),
        ("\n \n", "is empty"),
    ],
)
def test_names_that_are_refused(tmp_path, text, reason):
    path = tmp_path / "names.txt"
    path.write_bytes(text.encode())
    with pytest.raises(DataError, match=rf"names.txt.*{reason}") as caught:
        read_names(path)
    assert len(str(caught.value).splitlines()) == 1


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="none: no such file"):
        read_text(tmp_path / "none")
    with pytest.raises(DataError, match="not a text file \\(Is a directory\\)"):
        read_text(tmp_path)


def test_some_names_may_occur_twice(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("a\nN/A\nb\nN/A\n")
    assert read_names(path, repeated=("N/A",)) == ["a", "N/A", "b", "N/A"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a\na\n", "'a' stands in line 1 already"),
        ("ä\nb\n".encode("latin1"), "Latin-1"),
        (b"a\x07\n", "control character"),
    ],
)
def test_class_names_of_convert(tmp_path, capsys, monkeypatch, content, reason):
    (tmp_path / "names.txt").write_bytes(content)
    arguments = ("convert", tmp_path / "none.pth", tmp_path / "w.safetensors", "--classes", tmp_path / "names.txt")
    code, _, err = call(capsys, monkeypatch, *arguments)
    assert code == 1
    assert reason in err
    assert len(err.splitlines()) == 1

"""Lists of samples with their labels."""

import pytest

from tasks.errors import DataError
from tasks.lists import class_number, number_classes, read_labels
from tasks.textfiles import read_names


def rows(path, content, encoding="utf-8"):
    path.write_bytes(content.encode(encoding))
    return [tuple(row) for row in read_labels(path)]


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ("path,label\na.png,ant\n\nb c.png,bee\n", "utf-8"),
        ("path,label\r\na.png,ant\r\n\r\nb c.png,bee\r\n", "utf-8-sig"),
        ('id,"Label","Path",x\n1,ant,a.png,9\n\n2,bee,"b c.png",\n', "utf-8"),
        ("image;class\na.png;ant\n\nb c.png;bee", "utf-8"),
        ("file_name\tcategory\na.png\tant\n\nb c.png\tbee\n", "utf-8"),
    ],
)
def test_forms_of_a_list_with_a_header(tmp_path, content, encoding):
    assert rows(tmp_path / "l.csv", content, encoding) == [(2, "a.png", "ant"), (4, "b c.png", "bee")]


def test_commas_and_quotes_in_paths(tmp_path):
    assert rows(tmp_path / "l.csv", 'path,label\n"a, b.png",x\n"a ""b"".png",y\n') == [
        (2, "a, b.png", "x"),
        (3, 'a "b".png', "y"),
    ]


def test_without_a_header_the_label_is_last(tmp_path):
    assert rows(tmp_path / "l.txt", "a b.png 3\nc.png 4\n") == [(1, "a b.png", "3"), (2, "c.png", "4")]


def test_quotes_without_a_header(tmp_path):
    """As csv.writer and pandas write paths and labels with commas."""
    content = '"a, b.png",walk\nc.png,"run, fast"\n5" d.png,x\n'
    found = [(1, "a, b.png", "walk"), (2, "c.png", "run, fast"), (3, '5" d.png', "x")]
    assert rows(tmp_path / "l.csv", content) == found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\na.png,ant\nb.png\n", "line 3: has 1 fields, must have 2"),
        ("path,label\na.png,\n", "line 2: the label is empty"),
        ("path,label\n,ant\n", "line 2: the path is empty"),
        ('path,label\n"a.png,ant\n', "line 2: not CSV"),
        ("path,label\n\n", "has a header and no rows"),
        ("", "is empty"),
        ("a.png\n", "line 1: must be 'path label'"),
        ('"a.png,x\n', "line 1: not CSV"),
        ('"a.png, b"\n', "line 1: must be 'path label'"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path, content, message):
    with pytest.raises(DataError, match=rf"l\.csv.*{message}"):
        rows(tmp_path / "l.csv", content)


def test_classes_are_numbered_by_number_or_name():
    assert number_classes(["10", "9", "10"], None)[0] == ("9", "10")
    assert number_classes(["b", "a", "10"], None) == (("10", "a", "b"), {"10": 0, "a": 1, "b": 2})
    assert number_classes(["2", "01", "1", "001"], None)[0] == ("001", "01", "1", "2")
    assert number_classes(["9" * 5000, "8"], None)[0] == ("8", "9" * 5000)
    numbers = number_classes([], ["x", "y"])[1]
    assert class_number(numbers, "y", "l.csv, line 3") == 1
    with pytest.raises(DataError, match="l.csv, line 3: class 'z' is not one of x, y$"):
        class_number(numbers, "z", "l.csv, line 3")


def test_a_message_shows_the_beginning_of_a_long_line(tmp_path):
    for content in ("x" * 20_000 + "\x01\n", ("x" * 20_000 + "\n") * 2):
        (tmp_path / "l.txt").write_text(content)
        with pytest.raises(DataError, match=r"l\.txt, line [12]: 'x{200}'\.\.\. ") as caught:
            read_names(tmp_path / "l.txt")
        assert len(str(caught.value)) < 500

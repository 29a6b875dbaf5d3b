"""Pairs in the columns of one file: headers, chosen columns, quoted fields, and files that are refused."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import DataError
from tasks.translation.columns import checked_columns, read_columns

DOG, CAT = ("A dog runs.", "Ein Hund rennt."), ("A cat sleeps.", "Eine Katze schläft.")
LANGUAGES = ("en", "de")


@pytest.fixture
def read(tmp_path):
    """Return a function from text to the pairs of a file with it."""

    def pairs(text, columns=None, languages=LANGUAGES):
        (tmp_path / "a.tsv").write_bytes(text.encode())
        return list(read_columns(tmp_path / "a.tsv", languages, columns))

    return pairs


def table(*rows):
    return "".join("\t".join(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("header", "order"),
    [
        (("en", "de"), "st"),
        (("de", "en"), "ts"),
        (("DE", "EN"), "ts"),
        (("source", "target"), "st"),
        (("tgt", "src"), "ts"),
        (("target_text", "source text"), "ts"),
        (("deu", "eng"), "ts"),
        (("German", "English"), "ts"),
        (("deu_Latn", "eng_Latn"), "ts"),
        (("de-DE", "en-US"), "ts"),
        (("sentence_de", "sentence_en"), "ts"),
        (("id", "score", "de", "en"), "xxts"),
        (("score", "src_lang", "src", "tgt_lang", "tgt"), "xxsxt"),
        ((" de ", "en "), "ts"),
        (('"de"', '"en"'), "ts"),
    ],
)
def test_headers(read, capsys, header, order):
    def row(pair):
        return [{"s": pair[0], "t": pair[1], "x": "0.5"}[each] for each in order]

    assert read(table(header, row(DOG), row(CAT))) == [DOG, CAT]
    s, t = order.index("s") + 1, order.index("t") + 1
    message = f"a.tsv: source (en) is column {s}, target (de) is column {t}; its first line is a header"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("first", [("en", "Ein"), ("en", "fr"), ("en casa", "de nuevo"), ("English", "Englisch"), DOG])
def test_a_first_line_that_names_not_both_languages_is_a_pair(read, capsys, first):
    assert read(table(first, CAT)) == [first, CAT]
    assert not capsys.readouterr().err


def test_codes_themselves_come_before_their_relatives(read):
    assert read(table(("nn", "nb"), ("ein", "en")), languages=("nb", "nn")) == [("en", "ein")]
    assert read(table(("zh-TW", "zh-CN"), ("a", "b")), languages=("zh-CN", "zh-TW")) == [("b", "a")]


def test_chosen_columns(read):
    rows = [("0.9", *DOG[::-1]), ("0.8", *CAT[::-1])]
    assert read(table(*rows), ("3", "2")) == [DOG, CAT]
    assert read(table(("score", "deutsch", "englisch"), *rows), ("Englisch", "deutsch")) == [DOG, CAT]
    assert read(table(("score", "de", "en"), *rows), ("3", "2")) == [DOG, CAT]  # a header is no pair
    assert read(table(DOG[::-1], CAT[::-1]), ("2", "1")) == [DOG, CAT]
    for columns, message in [
        (("4", "2"), "column 4: must be 1 to 3, the number of its columns"),
        (("0", "2"), "column 0: must be 1 to 3"),
        (("en", "2"), r"column 'en': no such name in its first line \('0.9 \| Ein Hund rennt. \| A dog runs.'\)"),
    ]:
        with pytest.raises(DataError, match=message):
            read(table(*rows), columns)
    with pytest.raises(DataError, match="columns 2 and 02 are the same"):
        read(table(*rows), ("2", "02"))
    with pytest.raises(DataError, match="column 'x': several columns of this name"):
        read(table(("x", "X", "y")), ("x", "y"))


def test_columns_that_are_not_known_are_refused(read):
    with pytest.raises(DataError) as caught:
        read(table(("0.9", *DOG), ("0.8", *CAT)))
    message = str(caught.value)
    assert (
        "has 3 columns, and its first line ('0.9 | A dog runs. | Ein Hund rennt.') does not name en and de" in message
    )
    assert "data.corpus.columns (eval: --columns)" in message
    with pytest.raises(DataError, match="does not name en and de"):
        read(table(("en", "de", "German"), (*DOG, "x")).replace("en", "fr"))
    with pytest.raises(DataError, match=r"a\.tsv, line 1: has no tab"):
        read("A dog runs.\n")
    with pytest.raises(DataError, match=r"a\.tsv, line 2: has no tab, the first line 2 columns"):
        read(table(DOG) + "A cat\n")
    with pytest.raises(DataError, match=r"a\.tsv, line 2: has 3 columns, the first line 2 columns"):
        read(table(DOG, (*CAT, "0.3")))
    assert read("") == []


def test_quotation_marks_of_text_stay(read):
    rows = [('"A dog."', '"Ein Hund."'), ('"No," he said.', '"Nein", sagte er.'), ('""', 'x ""y"" z')]
    for chosen in (rows, rows[:1], rows[1:], rows[:2]):
        assert read(table(*chosen)) == chosen


text = st.text(st.characters(exclude_characters="\n\r\t\0", codec="utf-8"), min_size=1)


@given(st.lists(st.tuples(text, text), min_size=1, max_size=5), st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)))
def test_quoted_files_are_read_as_the_csv_module_reads_them(tmp_path_factory, rows, quoting):
    path = tmp_path_factory.mktemp("csv") / "a.tsv"
    rows = [*rows, ('He says "no".', "x")]
    file = io.StringIO()
    csv.writer(file, "excel-tab", quoting=quoting, lineterminator="\n").writerows([("en", "de"), *rows])
    path.write_bytes(file.getvalue().encode())
    assert list(read_columns(path, LANGUAGES)) == rows


def test_a_line_break_within_quotes_is_refused(read):
    with pytest.raises(DataError, match="line 2: has no tab"):
        read('en\tde\n"A\ndog ""x""."\t"Ein Hund."\n')


@pytest.mark.parametrize("names", [("1",), ("1", "1"), ("1", ""), ("1", "2", "3"), ()])
def test_two_columns_are_chosen(names):
    with pytest.raises(ValueError, match="two different columns"):
        checked_columns(names)
    assert checked_columns([" de ", "en"]) == ("de", "en")

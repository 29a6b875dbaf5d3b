"""The table of exports in README.md and docs/export.md is that of the tests that ran."""

import pytest

from tests.helpers.exports import FAMILIES
from tests.helpers.paths import ROOT
from tools.export_support import COLUMNS, PAGES, contents, page_with, read_record
from zoo.export import TARGETS


def test_every_cell_is_recorded():
    record = read_record()
    assert set(record) == set(TARGETS)
    for name, cells in record.items():
        assert set(cells) == set(FAMILIES), name
    assert sorted(family for families in COLUMNS.values() for family in families) == sorted(FAMILIES)


@pytest.mark.parametrize("name", PAGES)
def test_the_table_is_the_record(name):
    page = (ROOT / name).read_text(encoding="utf-8")
    content = contents(read_record(), list(TARGETS))[name]
    assert page_with(page, content) == page, "python -m tools.export_support rewrites it"

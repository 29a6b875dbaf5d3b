"""docs/diagnose.md: its example prints what the page shows, and its limits are those of the code."""

import contextlib
import importlib
import io
import re

from tasks.diagnose.run import file_names
from tests.helpers.paths import ROOT

PAGE = (ROOT / "docs" / "diagnose.md").read_text(encoding="utf-8")


def test_the_example_prints_what_the_page_shows():
    code, shown = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", PAGE, re.DOTALL).groups()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue() == shown


def test_the_limits_are_those_of_the_code():
    limits = importlib.import_module("tasks.diagnose.verdicts")
    rows = dict(re.findall(r"^\| ([a-z ]+) \|.*\| (.*?) \|$", PAGE, re.MULTILINE))
    assert rows["exploding"] == f"{limits.EXPLODING:g} times along the trunk; weights {limits.LOUD_WEIGHT:g} times"
    assert limits.OVERALL_EXPLODING == limits.EXPLODING
    assert (1 / limits.VANISHING, 1 / limits.OVERALL_VANISHING) == (1000, 1e6)
    assert rows["vanishing"] == "1000 times between projections, 1e6 in all"
    dead = f"{limits.DEAD_LAYER:.0%} of the channels of a layer are never positive; {limits.DEAD_CHANNELS:.0%} have"
    assert rows["dead layers"].startswith(dead.replace("%", " %"))
    assert rows["wrong input scale"] == f"{limits.INPUT_RATIO:g} times in power"
    assert rows["multiplier at zero"] == f"{limits.MULTIPLIER_AT_ZERO:g}"


def test_the_files_are_those_of_the_page():
    named = set(re.findall(r"`([a-z]+\.(?:csv|json|html))`", PAGE))
    assert named == {name for name in file_names() if not name.endswith((".png", ".svg"))}
    figures = set(re.findall(r"^\| `([a-z]+)` \|", PAGE, re.MULTILINE))
    assert {f"{figure}.{ending}" for figure in figures for ending in ("png", "svg")} == {
        name for name in file_names() if name.endswith((".png", ".svg"))
    }

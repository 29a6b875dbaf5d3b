"""Write the table of export targets into README.md and docs/export.md: python -m tools.export_support

The table is made of ``tests/expected/exports.json``, which ``tests/export/test_every_target.py`` writes and checks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "tests/expected/exports.json"
PAGES = ("README.md", "docs/export.md")
MARKS = "<!-- table of exports: python -m tools.export_support -->", "<!-- end of the table -->"

# columns of the table and the families of the tests in each
COLUMNS: dict[str, tuple[str, ...]] = {
    "ResNet, ResNeXt": ("ResNet, basic blocks", "ResNet, bottlenecks", "ResNeXt", "ResNet for CIFAR"),
    "ResNet, converted from BatchNorm": ("ResNet, converted from BatchNorm",),
    "VGG": ("VGG",),
    "feature maps": ("ResNet, feature maps", "R3D, feature maps"),
    "detectors, body and pyramid": ("Faster and Mask R-CNN, body and pyramid",),
    "detectors, whole": ("Faster and Mask R-CNN, whole",),
    "video nets": ("R3D and MC3", "R(2+1)D", "I3D and SlowOnly"),
    "translation": ("Transformer",),
}

Cells = Mapping[str, Mapping[str, Any]]


def read_record() -> dict[str, Cells]:
    """Return the recorded cells: of each target by name, of each family its cell."""
    record: dict[str, Cells] = json.loads(RECORD.read_text(encoding="utf-8"))
    return record


def table(record: Mapping[str, Cells], order: Sequence[str]) -> str:
    """Return the table in Markdown.

    Args:
        record: recorded cells.
        order: names of the targets, in the order of the rows.
    """
    lines = [f"| target | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in order:
        cells = [_shown([record[name][family] for family in families]) for families in COLUMNS.values()]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of a cell: which axes are free in all families that work, and how many work."""
    works = [set(cell["free"]) for cell in cells if "free" in cell]
    if not works:
        return "no"
    free = set.intersection(*works)
    axes = [
        name
        for name, needed in (("batch", {"batch"}), ("size", {"height", "width"}), ("length", {"source", "target"}))
        if needed <= free
    ]
    text = f"any {' and '.join(axes)}" if axes else "fixed shape"
    return text if len(works) == len(cells) else f"{text}, {len(works)} of {len(cells)}"


def refusals(record: Mapping[str, Cells], order: Sequence[str]) -> str:
    """Return the reasons of what a target does not take though it takes nets of this kind of input, as a list.

    Targets of converted weights take what another project's classes compute; their sections state that.
    """
    from zoo.export import TARGETS

    lines = []
    for name in (name for name in order if TARGETS[name].form == "graphs"):
        reasons: dict[str, list[str]] = {}
        for family in (family for families in COLUMNS.values() for family in families):
            reason = record[name][family].get("reason", "")
            if reason and not re.match(r"export to \S+: takes ", reason):
                reasons.setdefault(reason, []).append(family)
        lines += [f"- `{name}`: {', '.join(families)}: {reason}." for reason, families in reasons.items()]
    return "\n".join(lines)


def page_with(page: str, content: str) -> str:
    """Return a page with the part between the marks replaced."""
    begin, end = (page.index(mark) for mark in MARKS)
    return f"{page[: begin + len(MARKS[0])]}\n{content}\n{page[end:]}"


def contents(record: Mapping[str, Cells], order: Sequence[str]) -> dict[str, str]:
    """Return what is between the marks of each page: the table, on the page about exports with the reasons."""
    shown = table(record, order)
    reasons = refusals(record, order)
    refused = f"Refused, though the target takes inputs of this kind:\n\n{reasons}"
    return {"README.md": shown, "docs/export.md": f"{shown}\n\n{refused}"}


def main() -> None:
    """Rewrite the pages."""
    from zoo.export import TARGETS

    for name, content in contents(read_record(), list(TARGETS)).items():
        path = ROOT / name
        path.write_text(page_with(path.read_text(encoding="utf-8"), content), encoding="utf-8")


if __name__ == "__main__":
    main()

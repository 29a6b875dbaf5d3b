"""The report of a diagnosis as one HTML file that needs no network: verdicts, figures and tables."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from typing import Any

from tasks.diagnose.dynamics import Dynamics, describe_cancellation
from tasks.diagnose.signals import Signals
from tasks.diagnose.tables import summary
from tasks.diagnose.verdicts import verdicts
from tasks.printing import listed, printable

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1200px; padding: 1rem 1.5rem 4rem; }
body { color: #1a1a1a; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; margin-bottom: .3rem; }
.verdict { border-left: 4px solid #b00020; background: #fdf1f2; padding: .5rem .8rem; margin: .5rem 0; }
.healthy { border-left: 4px solid #1b7f3b; background: #eff8f1; padding: .5rem .8rem; margin: .5rem 0; }
.note { color: #555; } .wide { overflow-x: auto; }
svg { width: 100%; height: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { background: #f5f5f5; position: sticky; top: 0; }
summary { cursor: pointer; margin: .6rem 0; }
"""

# columns of the tables in the page; all numbers are in the CSV files
_COLUMNS = {
    "sums": (
        "name",
        "identity",
        "power",
        "expected",
        "growth",
        "ratio",
        "cosine",
        "correlation",
        "multiplier",
    ),
    "layers": (
        "name",
        "kind",
        "channels",
        "power",
        "mean_power",
        "variance",
        "bias_norm",
        "bias_offset",
        "weight_norm",
        "weight_gain",
        "gradient_norm",
        "update_ratio",
    ),
    "activations": (
        "name",
        "function",
        "channels",
        "positive",
        "negative",
        "dead",
        "units",
        "positive_units",
        "negative_units",
        "dead_units",
    ),
}
_TITLES = {
    "sums": "Residual connections",
    "layers": "Layers",
    "activations": "Activations: channels and units with one sign",
}


def page(
    title: str, signals: Sequence[Signals], dynamics: Sequence[Dynamics], figures: Sequence[tuple[str, str]]
) -> str:
    """Return the page.

    Args:
        title: heading.
        signals: nets.
        dynamics: trainings.
        figures: heading and SVG text of each figure.
    """
    parts = [f"<h1>{_text(title)}</h1>"]
    for each in signals:
        parts += _verdicts(each)
    for run in dynamics:
        sentence = describe_cancellation(run)
        parts.append(f"<h3>{_text(run.label)}: training</h3><p>{_text(sentence[:1].upper() + sentence[1:])}.</p>")
    if signals:
        rows = [summary(each) for each in signals]
        parts += ["<h2>Summary</h2>", _table(list(rows[0]), [list(row.values()) for row in rows])]
    for number, (heading, svg) in enumerate(figures, 1):
        parts += [f"<h2>{_text(heading)}</h2>", _inline(svg, number)]
    for each in signals:
        parts.append(f"<h2>{_text(each.label)}: numbers</h2>")
        content = each.as_dict()
        for kind, columns in _COLUMNS.items():
            if content[kind]:
                table = _table(list(columns), [[_cell(row[key]) for key in columns] for row in content[kind]])
                parts.append(f"<details><summary>{_TITLES[kind]} ({len(content[kind])})</summary>{table}</details>")
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{_text(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _verdicts(signals: Signals) -> list[str]:
    parts = [f"<h3>{_text(signals.label)}</h3>", f'<p class="note">{_text(signals.source)}</p>']
    found = verdicts(signals)
    for verdict in found:
        where = f" in {listed(verdict.where, 5)}" if verdict.where else ""
        numbers = verdict.numbers[:1].upper() + verdict.numbers[1:]
        parts.append(
            f'<div class="verdict"><b>{_text(verdict.fault.capitalize())}{_text(where)}.</b> {_text(numbers)} '
            f"<br><b>Remedy:</b> {_text(verdict.remedy)}</div>"
        )
    if not found:
        parts.append('<div class="healthy">No fault found.</div>')
    notes = list(signals.notes)
    if signals.unreached:
        notes.append(f"not called: {', '.join(signals.unreached)}")
    parts += [f'<p class="note">{_text(note)}</p>' for note in notes]
    return parts


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{_text(name.replace('_', ' '))}</th>" for name in head)
    lines = ["".join(f"<td>{_text(cell)}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    return str(value)


def _text(text: str) -> str:
    return html.escape(printable(text))


def _inline(svg: str, number: int) -> str:
    """Return an SVG file as an element of the page: without its XML declaration, its ids different from other figures'.

    Args:
        svg: content of the file.
        number: number of the figure.
    """
    element = re.sub(r"^.*?(?=<svg)", "", svg, flags=re.DOTALL)
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>figure{number}-", element)

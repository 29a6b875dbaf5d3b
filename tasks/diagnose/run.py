"""``rescalenet diagnose``: from the names of nets and runs to the files of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.diagnose.dynamics import Dynamics, describe_cancellation, read_dynamics
from tasks.diagnose.figures import course_figure, dynamics_figure, signals_figure, signs_figure
from tasks.diagnose.page import page
from tasks.diagnose.signals import Signals
from tasks.diagnose.subjects import Settings, find_subject, parse_compared, short_labels
from tasks.diagnose.tables import channels_csv, dynamics_csv, signals_csv, summary_lines
from tasks.diagnose.verdicts import verdicts
from tasks.errors import DataError, UserError
from tasks.outputs import OutputFolder, try_to_draw
from tasks.plots import save_figure
from tasks.progress import StatusLine
from zoo.files import write_text

REPORT, NUMBERS = "report.html", "diagnosis.json"
_DPI = 160


@dataclass(frozen=True)
class Diagnosis:
    """What a diagnosis found.

    Attributes:
        signals: nets.
        dynamics: trainings.
    """

    signals: tuple[Signals, ...]
    dynamics: tuple[Dynamics, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON takes it."""
        return {
            "nets": [{**each.as_dict(), "verdicts": [vars(v) for v in verdicts(each)]} for each in self.signals],
            "runs": [{**run.as_dict(), "summary": describe_cancellation(run)} for run in self.dynamics],
        }

    def lines(self) -> list[str]:
        """Return what the command prints for people."""
        return summary_lines(self.signals, self.dynamics)


def run_diagnosis(name: str, overrides: Sequence[str], compare: Sequence[str], settings: Settings) -> Diagnosis:
    """Diagnose a net or run, and others beside it.

    Args:
        name: run, log, config, weights or net.
        overrides: overrides of its config or options.
        compare: names of others, each with its overrides behind it.
        settings: batches.

    Raises:
        UserError: see ``tasks.diagnose.subjects.find_subject``; two that have the same label.
    """
    given = [(name, list(overrides)), *map(parse_compared, compare)]
    labels = short_labels(given)
    subjects = [find_subject(text, own, settings, label) for (text, own), label in zip(given, labels, strict=True)]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise UserError(f"{twice}: is given twice; leave one out")
    signals: list[Signals] = []
    dynamics: list[Dynamics] = []
    with StatusLine() as status:
        for number, subject in enumerate(subjects, 1):
            status.show(f"{number}/{len(subjects)} {subject.label}")
            run = None if subject.log is None else read_dynamics(subject.label, subject.log, subject.fresh)
            if run is not None and not run.empty:
                dynamics.append(run)
            elif subject.measure is None:
                raise DataError(
                    f"{subject.log}: no record of residual blocks, which a run of a net with them writes at the end of "
                    "each epoch, and none of train.diagnose"
                )
            if subject.measure is not None:
                signals.append(subject.measure())
    return Diagnosis(tuple(signals), tuple(dynamics))


_KINDS = ("layers", "sums", "activations")
_HEADINGS = {
    "signals": "Signals by depth",
    "signs": "Signs of the activations' inputs",
    "dynamics": "Multipliers and weight norms over the training",
    "course": "Signals over the training",
}


def file_names() -> list[str]:
    """Return the names of all files that a diagnosis may write."""
    pictures = [f"{stem}.{ending}" for stem in _HEADINGS for ending in ("png", "svg")]
    return [REPORT, NUMBERS, *(f"{kind}.csv" for kind in (*_KINDS, "channels", "dynamics")), *pictures]


def write_diagnosis(found: Diagnosis, folder: OutputFolder, title: str) -> None:
    """Write the report: numbers first, then pictures, then the page with both; no file of an earlier one stays."""
    for name in file_names():
        (folder.path / name).unlink(missing_ok=True)
    folder.write_json(found.as_dict(), NUMBERS)
    for kind in _KINDS:
        if any(getattr(each, kind) for each in found.signals):
            write_text(signals_csv(found.signals, kind), folder.path / f"{kind}.csv")
    if found.signals:
        write_text(channels_csv(found.signals), folder.path / "channels.csv")
    if any(run.blocks for run in found.dynamics):
        write_text(dynamics_csv(found.dynamics), folder.path / "dynamics.csv")
    figures: list[tuple[str, str]] = []
    for stem, draw in _figures(found):
        try_to_draw(lambda stem=stem, draw=draw: _save(draw(), folder.path, stem), f"{stem}.png")  # type: ignore[misc]
        if (path := folder.path / f"{stem}.svg").is_file():
            figures.append((_HEADINGS[stem], path.read_text(encoding="utf-8")))
    write_text(page(title, found.signals, found.dynamics, figures), folder.path / REPORT)


def _figures(found: Diagnosis) -> Iterator[tuple[str, Callable[[], Any | None]]]:
    """Yield the names of the figures, and functions that make them."""
    if found.signals:
        yield "signals", lambda: signals_figure(found.signals)
        if any(each.activations for each in found.signals):
            yield "signs", lambda: signs_figure(found.signals)
    if found.dynamics:
        yield "dynamics", lambda: dynamics_figure(found.dynamics)
        yield "course", lambda: course_figure(found.dynamics)


def _save(figure: Any | None, folder: Path, stem: str) -> None:
    for ending in ("png", "svg") if figure is not None else ():
        save_figure(figure, folder / f"{stem}.{ending}", dpi=_DPI)

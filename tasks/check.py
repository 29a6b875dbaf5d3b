"""The report of ``rescalenet check``: what is in the data, what is odd, and what would stop training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import UserError
from tasks.printing import print_out
from zoo.errors import ZooError
from zoo.files import write_json

if TYPE_CHECKING:
    from tasks.engine import Task

SHOWN = 10  # names, and classes beyond ten times as many, that the terminal shows; the file has all


@dataclass
class Report:
    """What a check of data found.

    Attributes:
        content: all numbers and names, for ``check.json``.
        lines: description of the data.
        warnings: findings that training survives.
        stops: findings that stop training, or keep it from starting.
    """

    content: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)

    def show(self) -> bool:
        """Print the report, and return whether training would run."""
        for line in self.lines:
            print_out(line)
        for line in self.warnings:
            print_out(f"warning: {line}")
        for line in self.stops:
            print_out(f"stops training: {line}")
        if not self.stops:
            print_out("nothing found that would stop training")
        return not self.stops

    def write(self, folder: Path) -> None:
        """Write ``check.json`` into a folder."""
        write_json({**self.content, "warnings": self.warnings, "stops": self.stops}, folder / "check.json")


def stops_at_start(task: Task) -> list[str]:
    """Return what keeps the training of a task from starting: batches and a net that cannot be made."""
    stops = []
    train = task.config.train
    for attempt in (lambda: task.batches(train.batch_size, train.seed), task.build_model):
        try:
            attempt()
        except (UserError, ZooError) as error:
            stops.append(str(error))
    return stops

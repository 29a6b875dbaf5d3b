"""The format of ``log.jsonl``: one JSON object a line, of the kinds below, its keys in the order of the fields.

    {"event": "step", "step": 50, "epoch": 0, "loss": 2.1, "loss_mask": 1.2, "loss_box_reg": 0.9, "lr": 0.01}
    {"event": "epoch", "step": 200, "epoch": 0, "train_loss": 1.7, "top1": 61.5}
    {"event": "diverged", "step": 210, "epoch": 1, "reason": "the loss is nan"}
    {"event": "failed", "step": 200, "epoch": 0, "reason": "the evaluation of epoch 1 failed: ..."}
    {"event": "signals", "step": 200, "epoch": 0, "layers": [{"name": "stem.conv1", "power": 0.9, ...}], "sums": ...}
    {"event": "blocks", "step": 200, "epoch": 0, "blocks": [{"block": "layer1.0", "m": 1.0, "weight_norms": [7.9]}]}

A new kind of record is a subclass of ``Record``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_type_hints

import pydantic
from pydantic import Field, TypeAdapter

from tasks.errors import DataError
from zoo.errors import ZooError, one_line
from zoo.jsontext import first_error, parse_json

LONGEST = 2**26  # bytes of a line

Count = Annotated[int, Field(ge=0)]
_SPLICED = {"spliced": True}  # marks a field whose items are keys of the record itself


@dataclass(frozen=True, kw_only=True)
class Record:
    """Base of the records.

    Attributes:
        step: optimizer steps done since the start of the run.
        epoch: epoch from 0.
        run: name of the run, in a file with the records of several; absent in a run's own log.
    """

    event: ClassVar[str]
    kinds: ClassVar[dict[str, type[Record]]] = {}  # every subclass by its event

    run: str | None = None
    step: Count
    epoch: Count

    def __init_subclass__(cls) -> None:
        Record.kinds[cls.event] = cls

    def as_dict(self) -> dict[str, Any]:
        """Return the keys and values of the record's line, in its order."""
        content: dict[str, Any] = {} if self.run is None else {"run": self.run}
        content["event"] = self.event
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if each.metadata.get("spliced"):
                content |= value
            elif each.name != "run":
                content[each.name] = value
        return content

    @staticmethod
    def from_dict(content: dict[str, Any]) -> Record:
        """Make the record of a line.

        Raises:
            ValueError: an event that is unknown, keys that are missing or have no place in the record, or a value of
                another type or out of range.
        """
        rest = dict(content)
        event = rest.pop("event", None)
        kind = Record.kinds.get(event) if isinstance(event, str) else None
        if kind is None:
            raise ValueError(f"event={event!r}: must be one of {', '.join(sorted(Record.kinds))}")
        known = dataclasses.fields(kind)
        spliced = [each.name for each in known if each.metadata.get("spliced")]
        values = {each.name: rest.pop(each.name) for each in known if each.name in rest and each.name not in spliced}
        if spliced:
            values[spliced[0]] = rest
        elif rest:
            raise ValueError(f"unknown keys {', '.join(rest)}")
        # each value by the annotation of its field, so that a new kind of record is checked too
        annotated: Any = kind
        checks = _checks(annotated)
        for name, value in values.items():
            try:
                checks[name].validate_python(value, strict=True)
            except pydantic.ValidationError as error:
                raise ValueError(f"{name}: {first_error(error, name)}") from None
        try:
            return kind(**values)
        except TypeError as error:  # a key that is missing
            raise ValueError(str(error)) from None

    def scalars(self) -> Iterator[tuple[str, float]]:
        """Yield tag and value of every curve that the record has a point of."""
        for key, value in self.as_dict().items():
            if isinstance(value, int | float) and key not in ("step", "epoch"):
                yield f"{self.event}/{key}", value


@dataclass(frozen=True, kw_only=True)
class StepRecord(Record):
    """The loss of one optimizer step.

    Attributes:
        loss: loss of the step, a mean over all ranks.
        terms: terms of the loss by name, if there are several.
        lr: the schedule's learning rate, of which each parameter's is a multiple.
    """

    event = "step"
    loss: float
    terms: dict[str, float] = field(default_factory=dict, metadata=_SPLICED)
    lr: float


@dataclass(frozen=True, kw_only=True)
class EpochRecord(Record):
    """The end of an epoch.

    Attributes:
        train_loss: mean of the losses of the epoch's step records.
        metrics: numbers that the task counted in training, and if the epoch was evaluated the task's metrics.
    """

    event = "epoch"
    train_loss: float
    metrics: dict[str, float] = field(default_factory=dict, metadata=_SPLICED)


class _BlockNumbers(pydantic.BaseModel):
    """The keys that each row of ``zoo.branch_statistics`` has; a join may add others."""

    block: str
    m: float | None
    weight_norms: list[float]


_ROWS = TypeAdapter(list[_BlockNumbers])


def _check_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a ``BlocksRecord``, after a check of the keys that all have."""
    _ROWS.validate_python(rows, strict=True)
    return rows


@dataclass(frozen=True, kw_only=True)
class BlocksRecord(Record):
    """Multipliers and weight norms at the end of an epoch.

    Attributes:
        blocks: a row for each residual block, see ``zoo.branch_statistics``.
    """

    event = "blocks"
    blocks: Annotated[list[dict[str, Any]], pydantic.AfterValidator(_check_rows)]

    def scalars(self) -> Iterator[tuple[str, float]]:
        for row in self.blocks:
            if row["m"] is not None:
                yield f"multiplier/{row['block']}", row["m"]
            for i, norm in enumerate(row["weight_norms"], 1):
                yield f"weight_norm/{row['block']}.{i}", norm


_Number = float | int | bool | str | None
_SIGNALS = TypeAdapter(list[dict[str, _Number]])


def _check_signals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a ``SignalsRecord``, after a check that each has a name, and numbers."""
    _SIGNALS.validate_python(rows, strict=True)
    if without := [row for row in rows if not isinstance(row.get("name"), str)]:
        raise ValueError(f"a row without name: {without[0]}")
    return rows


_Rows = Annotated[list[dict[str, Any]], pydantic.AfterValidator(_check_signals)]


@dataclass(frozen=True, kw_only=True)
class SignalsRecord(Record):
    """The signals in the net at a step, before its update (``train.diagnose``); None for what is not finite or known.

    Attributes:
        layers: rows of ``tasks.diagnose.signals.Layer``.
        sums: rows of ``tasks.diagnose.signals.Sum``.
        activations: rows of ``tasks.diagnose.signals.Activation``.
    """

    event = "signals"
    layers: _Rows
    sums: _Rows
    activations: _Rows

    def scalars(self) -> Iterator[tuple[str, float]]:
        shown = (
            (self.layers, ("gradient_norm", "update_ratio", "bias_offset")),
            (self.sums, ("power", "ratio", "correlation")),
            (self.activations, ("dead",)),
        )
        for rows, keys in shown:
            for row in rows:
                for key in keys:
                    if isinstance(value := row.get(key), float):
                        yield f"{key}/{row['name']}", value


@dataclass(frozen=True, kw_only=True)
class DivergedRecord(Record):
    """The end of a run whose loss or weights are not finite.

    Attributes:
        reason: description of what is not finite.
    """

    event = "diverged"
    reason: str


@dataclass(frozen=True, kw_only=True)
class FailedRecord(Record):
    """An evaluation that failed; the run went on.

    Attributes:
        reason: description of the failure.
    """

    event = "failed"
    reason: str


@functools.cache
def _checks(kind: type[Record]) -> dict[str, TypeAdapter[Any]]:
    """Return the check of each field of a kind of record."""
    hints = get_type_hints(kind, include_extras=True)
    return {each.name: TypeAdapter(hints[each.name]) for each in dataclasses.fields(kind)}


def read_records(path: Path) -> list[Record]:
    """Read the records of a log.

    Raises:
        DataError: a line that is not a record; the message has its number.
    """
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            records.append(_parsed(line))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not a record of a run's log ({one_line(error)})") from None
    return records


def read_complete_records(path: Path) -> list[Record]:
    """Read the records of a log up to the first line that is not a record, as where a run was killed while it wrote.

    A log that does not exist has none.
    """
    records: list[Record] = []
    if not path.exists():
        return records
    with path.open("rb") as file:
        while line := file.readline(LONGEST + 1):
            try:
                records.append(_parsed(line))
            except ValueError:
                break
    return records


def _parsed(line: bytes) -> Record:
    """Return the record of a line.

    Raises:
        ValueError: the line is not a record.
    """
    if len(line) > LONGEST:
        raise ValueError(f"more than {LONGEST} bytes")
    try:
        content = parse_json(line.decode("utf-8"), finite=False)  # a metric may be NaN
        if not isinstance(content, dict):
            raise ValueError("not an object of JSON")
        return Record.from_dict(content)
    except (ZooError, ValueError) as error:
        raise ValueError(one_line(error)) from None


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the records of a log as the mappings in its lines; errors as ``read_records``'s."""
    return [record.as_dict() for record in read_records(path)]

"""What the runs of a study gave, read from their folders."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pydantic

from tasks.engine.records import DivergedRecord, EpochRecord, read_complete_records
from tasks.engine.state import RunFolder
from tasks.errors import DataError, UserError
from tasks.study.plan import StudyRun, Trial
from tasks.study.statistics import Estimate, estimate
from zoo.errors import ZooError
from zoo.jsontext import first_error, read_json
from zoo.weights import get_weights

Status = Literal["finished", "diverged", "unfinished"]
FIT_FILE = "fit_loss.json"  # in a run's folder, written by `rescalenet fit-loss`


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        run: run of the study.
        status: ``finished``, ``diverged`` (the loss or a weight was not finite) or ``unfinished``.
        epochs: epochs that are done.
        metrics: metrics of the last evaluation.
        train_loss: mean loss of the last epoch, as trained: with augmentation, dropout and label smoothing.
        fit_loss: loss of training samples in evaluation mode, without them; None where it was not measured, NaN or
            infinite where it is not finite.
        reason: description of what was not finite, for a run that diverged.
    """

    run: StudyRun
    status: Status
    epochs: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    train_loss: float = math.nan
    fit_loss: float | None = None
    reason: str = ""


def read_result(run: StudyRun) -> Result:
    """Read the result of a run from its folder.

    A run that ended in the middle of a line, or whose log is damaged, has what its log has before that place.

    Raises:
        DataError: a measured loss, or weights, that cannot be read.
    """
    files = RunFolder(run.folder)
    records = read_complete_records(files.log)
    ends = [record for record in records if isinstance(record, EpochRecord)]
    last = ends[-1] if ends else None
    evaluated = next((record.metrics for record in reversed(ends) if record.metrics), {})
    epochs, loss = (last.epoch + 1, last.train_loss) if last else (0, math.nan)
    if records and isinstance(records[-1], DivergedRecord):
        return Result(run, "diverged", epochs, {}, loss, reason=records[-1].reason)
    metric = evaluated.get(run.config.metric, math.nan)
    # The weights of an epoch are written before it is evaluated and logged, so a killed run may lack the last lines of
    # the log; after a power failure it may lack those that were not on the disk yet.
    if min(epochs, _epochs_of_weights(files.last)) < run.config.train.epochs:
        return Result(run, "unfinished", epochs, evaluated, loss)
    if not math.isfinite(metric):
        return Result(run, "diverged", epochs, {}, loss, reason=f"{run.config.metric} is {metric}")
    return Result(run, "finished", epochs, evaluated, loss, _fit_loss(run.folder / FIT_FILE, run.fit_batches))


def is_complete(result: Result) -> bool:
    """Return whether a run has nothing left to do: it diverged, or it is trained and its fit loss is measured."""
    return result.status == "diverged" or (result.status == "finished" and result.fit_loss is not None)


def _epochs_of_weights(path: Path) -> int:
    """Return the number of epochs that weights of a run were trained for; 0 if there are none.

    Raises:
        DataError: weights that do not state it.
    """
    if not path.exists():
        return 0
    epochs = get_weights(str(path)).meta.get("epochs")
    if type(epochs) is not int or epochs < 0:
        raise DataError(
            f"{path}: its meta has epochs={epochs!r}, the weights of a run a number; remove the run's folder"
        )
    return epochs


class _FitLoss(pydantic.BaseModel):
    """JSON form of a file of ``rescalenet fit-loss``; the loss may be NaN or infinite."""

    model_config = pydantic.ConfigDict(strict=True, extra="forbid")

    loss: float
    batches: int


def _fit_loss(path: Path, batches: int) -> float | None:
    """Return the loss in a file of ``rescalenet fit-loss``; None if it was measured on another number of batches.

    Raises:
        DataError: a damaged file.
    """
    if not path.exists():
        return None
    try:
        content = _FitLoss.model_validate(read_json(path, longest=10_000, finite=False))
    except pydantic.ValidationError as error:
        reason = first_error(error, "the file")
    except ZooError as error:
        reason = str(error)
    else:
        return content.loss if content.batches == batches else None
    raise DataError(f"{path}: not a measured loss ({reason}); remove it, it is measured again")


@dataclass(frozen=True)
class Setting:
    """A setting of a scheme with the results of all its seeds.

    Attributes:
        trial: setting.
        results: result by seed.
        metric: name of the metric that compares settings; higher is better.
    """

    trial: Trial
    results: Mapping[int, Result]
    metric: str

    @property
    def diverged(self) -> int:
        """Number of seeds that diverged."""
        return sum(result.status == "diverged" for result in self.results.values())

    @property
    def complete(self) -> bool:
        """Whether no seed is unfinished."""
        return all(result.status != "unfinished" for result in self.results.values())

    def values(self, name: str | None = None) -> dict[int, float]:
        """Return a metric, ``train_loss`` or ``fit_loss`` of each finished seed, where it is finite.

        By default it is the study's metric.
        """
        name = name or self.metric
        found = {}
        for seed, result in self.results.items():
            value = getattr(result, name) if name in ("train_loss", "fit_loss") else result.metrics.get(name)
            if result.status == "finished" and value is not None and math.isfinite(value):
                found[seed] = float(value)
        return found

    def estimate(self, name: str | None = None) -> Estimate:
        """Return the mean of ``values`` over the seeds."""
        return estimate(list(self.values(name).values()))

    @property
    def rank(self) -> tuple[int, float]:
        """Key that sorts settings: fewer diverged seeds first, then the higher mean."""
        mean = self.estimate().mean
        return self.diverged, -mean if math.isfinite(mean) else math.inf


def settings_of(results: Iterable[Result], metric: str) -> dict[str, list[Setting]]:
    """Group results by scheme and setting; the settings of a scheme are in the order of their rank."""
    found: dict[str, dict[Trial, dict[int, Result]]] = {}
    for result in results:
        trial = result.run.trial
        found.setdefault(trial.scheme, {}).setdefault(trial, {})[result.run.seed] = result
    return {
        scheme: sorted((Setting(trial, seeds, metric) for trial, seeds in trials.items()), key=lambda s: s.rank)
        for scheme, trials in found.items()
    }


def chosen_trials(settings: Mapping[str, list[Setting]]) -> dict[str, Trial]:
    """Return the best setting of each scheme: the first in rank.

    Raises:
        UserError: every run of a scheme diverged.
    """
    for scheme, ranked in settings.items():
        if not ranked[0].values():
            raise UserError(f"schemes.{scheme}: every trial diverged; add trials with a lower train.optimizer.lr")
    return {scheme: ranked[0].trial for scheme, ranked in settings.items()}

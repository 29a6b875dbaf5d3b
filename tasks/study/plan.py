"""The runs of a study: from its file to the command of each run."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.config import RunConfig, binding, read_yaml
from tasks.engine.state import RunFolder
from tasks.errors import ConfigError
from tasks.spec import check, resolve
from tasks.study.config import Overrides, StudyConfig, Variants
from tasks.yamltext import dump_yaml

SCREENING, FINALS = "trials", "finals"  # stages of a study, and their folders


@dataclass(frozen=True)
class Trial:
    """A setting of a scheme.

    Attributes:
        scheme: name of the scheme.
        name: name of the setting.
        overrides: ``key=value`` for the command line, of the scheme and then of the setting.
    """

    scheme: str
    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Attributes:
        stage: ``trials`` or ``finals``.
        trial: setting of the run.
        seed: value of ``train.seed``.
        recipe: config file or recipe of the study.
        overrides: all overrides of the run.
        config: config that results.
        fit_batches: batches whose loss measures the fit.
    """

    stage: str
    trial: Trial
    seed: int
    recipe: str
    overrides: tuple[str, ...]
    config: RunConfig
    fit_batches: int

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.output)

    @property
    def label(self) -> str:
        """The run's name in messages."""
        return f"{self.stage}/{self.trial.scheme}/{self.trial.name}/seed{self.seed}"

    def arguments(self) -> list[str]:
        """Return the arguments of ``rescalenet`` that make or continue the run."""
        return ["train", self.recipe, *self.overrides, "--resume"]

    def fit_arguments(self) -> list[str]:
        """Return the arguments of ``rescalenet`` that measure the fit of the trained run."""
        return ["fit-loss", str(self.folder), "--batches", str(self.fit_batches)]


def trials_of(study: StudyConfig, scheme: str) -> list[Trial]:
    """Return the settings that are tried for a scheme; one without overrides if the study lists none.

    Raises:
        ConfigError: two settings have the same name. Names that differ in case only are the same, as for a folder on
            macOS and Windows.
    """
    section = study.schemes[scheme]
    common = {"model.scheme": scheme, **section.overrides}
    variants = [*_variants(study), *_variants(section)] or [("recipe", {})]
    names = [name.casefold() for name, _ in variants]
    if twice := [name for name, _ in variants if names.count(name.casefold()) > 1]:
        raise ConfigError(f"schemes.{scheme}: two trials are named {twice[0]!r}; rename one")
    return [Trial(scheme, name, _as_text([common, overrides])) for name, overrides in variants]


def screening_runs(study: StudyConfig) -> list[StudyRun]:
    """Return the runs that choose the settings; none if each scheme has one setting.

    Raises:
        ConfigError: an override is not valid, two runs are the same, schemes that are compared have different numbers
            of trials, or the runs would evaluate the test set.
    """
    trials = {scheme: trials_of(study, scheme) for scheme in study.schemes}
    _check_equal_numbers(study, trials)
    if all(len(found) == 1 for found in trials.values()):
        return []
    runs = []
    for trial in _interleaved(trials.values()):
        for seed in study.screening.seeds:
            runs.append(_run(study, SCREENING, trial, seed, study.screening.overrides))
            if not runs[-1].config.evaluates_held_out:
                raise ConfigError(
                    f"screening.overrides: {runs[-1].label} would choose a setting on the test set; set "
                    f"{runs[-1].config.held_out_setting}"
                )
    _check_different(runs)
    _check_same_budget(study, runs)
    return runs


def final_runs(study: StudyConfig, chosen: Mapping[str, Trial]) -> list[StudyRun]:
    """Return the runs of the chosen setting of each scheme that is compared, seed by seed.

    Their only evaluation is at the end.

    Args:
        study: study.
        chosen: setting of each scheme.

    Raises:
        ConfigError: an override is not valid, or the runs would not evaluate the test set.
    """
    runs = []
    for seed in study.finals.seeds:
        for scheme in study.compared:
            run = _run(study, FINALS, chosen[scheme], seed, study.finals.overrides)
            if run.config.evaluates_held_out:
                raise ConfigError(
                    f"finals.overrides: {run.label} would evaluate training samples that are held out; set "
                    f"{run.config.test_set_setting}"
                )
            runs.append(_evaluated_once(run))
    _check_same_budget(study, runs)
    return runs


def check_folders(runs: Iterable[StudyRun]) -> None:
    """Refuse to continue runs whose folders have another config.

    A stored config has the values that the run's weights chose, such as ``data.size``, where the study's has none.

    Raises:
        TrainingError: a folder contains a run with another config.
        ConfigError: a stored config is not valid any more.
    """
    for run in runs:
        files = RunFolder(run.folder)
        if not files.config.exists():
            continue
        chosen = read_yaml(files.config).get("data", {})
        data: Any = getattr(run.config, "data", None)
        open_keys = {key: chosen[key] for key, value in (data or ()) if value is None and key in chosen}
        content = run.config.model_dump(mode="json")
        config = check({**content, "data": {**content["data"], **open_keys}} if open_keys else content, run.label)
        files.check_config(config, resume=True)


def _run(study: StudyConfig, stage: str, trial: Trial, seed: int, of_stage: Overrides) -> StudyRun:
    """Return a run. The overrides are those of the study, the stage, the scheme, the setting and the command line.

    Later ones win.
    """
    folder = Path(study.output) / stage / trial.scheme / trial.name / f"seed{seed}"
    own = _as_text([study.last_overrides, {"train.seed": seed, "output": str(folder)}])
    overrides = (*_as_text([study.overrides, of_stage]), *trial.overrides, *own)
    try:
        config = resolve(study.recipe, overrides)
    except ConfigError as error:
        raise ConfigError(f"{stage}/{trial.scheme}/{trial.name}: {error}") from None
    if config.train.early_stopping is not None:
        raise ConfigError(
            f"{stage}/{trial.scheme}/{trial.name}: train.early_stopping: runs of a study must be equally long"
        )
    return StudyRun(stage, trial, seed, study.recipe, overrides, config, study.fit_batches)


def _evaluated_once(run: StudyRun) -> StudyRun:
    """Return a run that evaluates at its end only."""
    epochs = run.config.train.epochs
    train = run.config.train.model_copy(update={"eval_every": epochs})
    overrides = (*run.overrides, f"train.eval_every={epochs}")
    return replace(run, overrides=overrides, config=run.config.model_copy(update={"train": train}))


def _variants(section: Variants) -> list[tuple[str, Overrides]]:
    """Return name and overrides of every trial of a section: its list, then its grid."""
    found = list(section.trials.items())
    for values in itertools.product(*section.grid.values()) if section.grid else ():
        overrides = dict(zip(section.grid, values, strict=True))
        name = ",".join(f"{key.rpartition('.')[2]}={_value(value)}" for key, value in overrides.items())
        found.append((re.sub(r"[^\w.=,+-]+", "_", name), overrides))
    return found


def _as_text(parts: Iterable[Overrides]) -> tuple[str, ...]:
    """Return overrides as the command line takes them."""
    return tuple(f"{key}={_value(value)}" for part in parts for key, value in part.items())


def _value(value: Any) -> str:
    """Return a value as YAML in one line."""
    text = dump_yaml(value, default_flow_style=True, width=10**6)
    return text.removesuffix("...\n").strip()


def _check_equal_numbers(study: StudyConfig, trials: Mapping[str, list[Trial]]) -> None:
    """Refuse schemes that are compared after different numbers of trials."""
    counts = {scheme: len(trials[scheme]) for scheme in study.compared}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{scheme} {count}" for scheme, count in counts.items())
        raise ConfigError(
            f"schemes that are compared must have equal numbers of trials, not {listed}; add trials, or leave a scheme "
            "out of finals.schemes"
        )


def _check_same_budget(study: StudyConfig, runs: list[StudyRun]) -> None:
    """Refuse schemes that are compared after different numbers of epochs."""
    epochs = {run.config.train.epochs: run.label for run in runs if run.trial.scheme in study.compared}
    if len(epochs) > 1:
        listed = ", ".join(f"{label} {count}" for count, label in epochs.items())
        raise ConfigError(f"train.epochs: must be the same for all schemes that are compared, not {listed}")


def _check_different(runs: list[StudyRun]) -> None:
    """Refuse two runs with the same config, which would count as two trials."""
    seen: dict[str, StudyRun] = {}
    for run in runs:
        # settings of the engine that do not bind a run make no other one; paths of data may
        sections = {**run.config.model_dump(mode="json", exclude={"output"}), "train": binding(run.config.train)}
        content = json.dumps(sections)
        if content in seen:
            raise ConfigError(f"{run.label} and {seen[content].label} are the same run; remove one")
        seen[content] = run


def _interleaved(lists: Iterable[list[Trial]]) -> list[Trial]:
    """Return the first trial of each scheme, then the second of each, and so on."""
    rounds = itertools.zip_longest(*lists)
    return [trial for row in rounds for trial in row if trial is not None]

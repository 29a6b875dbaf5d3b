"""A study from its file to its report: ``rescalenet study``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tasks import config as cfg
from tasks.config import RunConfig
from tasks.errors import ConfigError, UserError
from tasks.locks import take_folder
from tasks.progress import StatusLine, clock, print_line
from tasks.study.config import StudyConfig
from tasks.study.plan import FINALS, StudyRun, Trial, check_folders, final_runs, screening_runs, trials_of
from tasks.study.report import write_reports
from tasks.study.results import Result, chosen_trials, is_complete, read_result, settings_of
from tasks.study.runner import Ended, Runner, Slots, measure_paces
from zoo.files import write_text


class Study:
    """A study at its present state.

    Args:
        config: study.
        slots: processes that run at the same time.

    Attributes:
        screening: runs that choose the settings; none if each scheme has one.
        finals: runs of the chosen settings; none until they are chosen.
        expected: final runs of the first trial of each scheme, for the plan as long as none are chosen.

    Raises:
        ConfigError: an override is not valid, the schemes are not compared evenly, or the folder has another study.
        TrainingError: the study's folder contains runs with other settings.
    """

    def __init__(self, config: StudyConfig, slots: Slots) -> None:
        self.config, self.slots, self.folder = config, slots, Path(config.output)
        self.screening = screening_runs(config)
        # Final runs of any setting show errors of their overrides before hours of screening.
        self.expected = final_runs(config, {scheme: trials_of(config, scheme)[0] for scheme in config.schemes})
        example = self.expected[0].config
        self.metric = example.metric
        if type(example).without_augmentation is RunConfig.without_augmentation:
            example.without_augmentation()  # raises the error that explains what the task lacks
        self.runner = Runner(slots)
        self.paces: dict[str, float] = {}  # seconds of an epoch by scheme, measured before the study
        self.paces_of_trials: dict[Trial, float] = {}  # the same of trials that were trained
        self._done: dict[str, Result] = {}  # complete results by label, which are not read again
        # what the folder has already
        self._check_recipe()
        check_folders(self.screening)
        self.finals: list[StudyRun] = [] if self.screening else self.expected
        self._choose()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from running this study.

        Raises:
            UserError: another process runs it.
        """
        lock = take_folder(self.folder, "study")
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    def plan(self) -> list[str]:
        """Time some steps of each scheme that is not complete, and return the lines that state what the study costs."""
        finals = self.finals or self.expected
        unfinished = [run for run in (*self.screening, *finals) if self._result(run).status == "unfinished"]
        first = {run.trial.scheme: run for run in reversed(unfinished)}
        for scheme, pace in zip(first, measure_paces(list(first.values()), self.slots), strict=True):
            self.paces[scheme] = pace["seconds"] / pace["epochs"]
        # one row for each stage and scheme
        headings = ("runs", "done", "epochs", "min/epoch", "core-minutes left")
        lines = [f"{'stage':<8}{'scheme':<16}" + "".join(f"{heading:>{len(heading) + 3}}" for heading in headings)]
        for stage, runs in (("trials", self.screening), ("finals", finals)):
            for scheme in dict.fromkeys(run.trial.scheme for run in runs):
                own = [run for run in runs if run.trial.scheme == scheme]
                done = sum(self._result(run).status != "unfinished" for run in own)
                minutes = sum(self._seconds_left(run) for run in own) / 60 * self.slots.threads
                each = f"{self.paces.get(scheme, 0.0) / 60:.2f}"
                cells = (len(own), done, own[0].config.train.epochs, each, f"{minutes:.0f}")
                row = "".join(f"{cell:>{len(head) + 3}}" for cell, head in zip(cells, headings, strict=True))
                lines.append(f"{stage:<8}{scheme:<16}{row}")
        left = sum(self._seconds_left(run) for run in (*self.screening, *finals))
        lines.append(
            f"{left / 60 * self.slots.threads:.0f} core-minutes are left: about {clock(left / self.slots.jobs)} with "
            f"{self.slots.jobs} at a time on {self.slots.threads} threads each; evaluations come in addition"
        )
        return lines

    def run(self, *, trials_only: bool = False) -> list[str]:
        """Complete the study, and return the lines of its report.

        Args:
            trials_only: whether to stop before the final runs.

        Raises:
            UserError: runs failed, the trials choose another setting than that which was evaluated on the test set, or
                the report cannot be written.
        """
        write_text(cfg.dump(self.config), self.folder / "study.yaml")
        self._execute(self.screening)
        self._choose()
        if not trials_only and not self.runner.failed:
            self._execute(self.finals)
        try:
            lines = self._write()
        except OSError as error:
            raise UserError(
                f"{self.folder}: the report cannot be written ({error.strerror}); the same command tries it again"
            ) from None
        if self.runner.failed:
            label, reason = next(iter(self.runner.failed.items()))
            raise UserError(
                f"{len(self.runner.failed)} runs failed, the first {label}: {reason}; the same command tries them again"
            )
        return lines

    def _check_recipe(self) -> None:
        """Refuse a folder with a study of another recipe, whose report would be overwritten."""
        stored = self.folder / "study.yaml"
        recipe = cfg.read_yaml(stored).get("recipe") if stored.exists() else self.config.recipe
        if recipe != self.config.recipe:
            raise ConfigError(
                f"{self.folder} has a study of {recipe}, not of {self.config.recipe}; choose another output"
            )

    def _choose(self) -> None:
        """Set the final runs as soon as every trial is complete, and compare them with what the folder has."""
        results = [self._result(run) for run in self.screening]
        if any(result.status == "unfinished" for result in results):
            if self._evaluated():
                print_line("final runs exist already: if the trials choose another setting, they need another folder")
            return
        if results:
            compared = {k: v for k, v in settings_of(results, self.metric).items() if k in self.config.compared}
            self.finals = final_runs(self.config, chosen_trials(compared))
        expected = {run.folder.parent for run in self.finals}
        for folder in self._evaluated():
            if folder not in expected:
                raise UserError(
                    f"{folder}: the test set was evaluated for this setting, which is not the chosen one any more; "
                    "take another output folder for the changed study, and report both"
                )
        check_folders(self.finals)

    def _evaluated(self) -> list[Path]:
        """Return the folders of the settings of compared schemes that were evaluated on the test set."""
        found = []
        for scheme in self.config.compared:
            for folder in sorted((self.folder / FINALS / scheme).glob("*")):
                if any((seed / "checkpoints" / "best.safetensors").exists() for seed in folder.glob("seed*")):
                    found.append(folder)
        return found

    def _execute(self, runs: Sequence[StudyRun]) -> None:
        """Complete runs, with a line for each that ends."""
        total, status = len(runs), StatusLine(every=300.0)

        def on_end(ended: Ended) -> None:
            run = ended.result.run
            if ended.epochs > 0:
                self.paces_of_trials[run.trial] = ended.seconds / ended.epochs
            count = sum(is_complete(self._result(run)) for run in runs)
            what = f"{run.label}: failed, {ended.failure}" if ended.failure else describe(ended.result, self.metric)
            print_line(f"[{count}/{total}] {what}  ({clock(ended.seconds)})")
            try:
                self._write()
            except OSError as error:  # a full disk must not end the runs, which may have space to go on
                print_line(f"{self.folder}: the report cannot be written ({error.strerror})")

        def on_poll(active: Sequence[StudyRun]) -> None:
            if status.due():
                status.show(self._progress(runs, active))

        with status:
            self.runner.execute(runs, on_end=on_end, on_poll=on_poll)

    def _result(self, run: StudyRun) -> Result:
        """Return the result of a run as its folder has it now."""
        if run.label not in self._done:
            result = read_result(run)
            if not is_complete(result):
                return result
            self._done[run.label] = result
        return self._done[run.label]

    def _seconds_left(self, run: StudyRun) -> float:
        """Return the expected time of the rest of a run."""
        result = self._result(run)
        pace = self.paces_of_trials.get(run.trial, self.paces.get(run.trial.scheme, 0.0))
        return (run.config.train.epochs - result.epochs) * pace if result.status == "unfinished" else 0.0

    def _progress(self, runs: Sequence[StudyRun], active: Sequence[StudyRun]) -> str:
        """Describe the runs in progress and the time that is left."""
        seconds = sum(self._seconds_left(run) for run in runs if run.label not in self.runner.failed)
        ended = sum(is_complete(self._result(run)) for run in runs)
        at = []
        for run in active:
            done, total = self._result(run).epochs, run.config.train.epochs
            at.append(f"{run.label} " + (f"epoch {done + 1}/{total}" if done < total else "fit loss"))
        return f"{ended}/{len(runs)} runs; {', '.join(at)}; ETA {clock(seconds / self.slots.jobs)}"

    def _write(self) -> list[str]:
        """Write the report of the present results, and return its lines."""
        results = [[self._result(run) for run in runs] for runs in (self.screening, self.finals)]
        return write_reports(self.config, self.metric, results[0], results[1], self.runner.failed)


def describe(result: Result, metric: str) -> str:
    """Describe the result of a complete run in one line."""
    if result.status == "diverged":
        return f"{result.run.label}: diverged, {result.reason}"
    losses = f"train loss {result.train_loss:.4g}, fit loss {result.fit_loss:.4g}"
    return f"{result.run.label}: {metric} {result.metrics[metric]:.4g}, {losses}"

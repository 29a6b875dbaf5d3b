"""A study from its file to its report: ``rescalenet study``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import filelock

from tasks.errors import UserError
from tasks.progress import StatusLine, clock, print_line
from tasks.study.config import StudyConfig
from tasks.study.plan import StudyRun, check_folders, final_runs, screening_runs, trials_of
from tasks.study.report import write_reports
from tasks.study.results import Result, chosen_trials, is_complete, read_result, settings_of
from tasks.study.runner import Runner, Slots, measure_paces


class Study:
    """A study at its present state.

    Args:
        config: study.
        slots: processes that run at the same time.

    Raises:
        ConfigError: an override is not valid, or the schemes are not compared evenly.
        TrainingError: the study's folder contains runs with other settings.
    """

    def __init__(self, config: StudyConfig, slots: Slots) -> None:
        self.config, self.slots = config, slots
        self.screening = screening_runs(config)
        # the final runs of any setting show errors of their overrides before hours of screening
        first = {scheme: trials_of(config, scheme)[0] for scheme in config.schemes}
        example = final_runs(config, first)
        self.metric = example[0].config.metric
        self.finals: list[StudyRun] = [] if self.screening else example
        self.final_epochs = sum(run.config.train.epochs for run in example)
        self.runner = Runner(slots, config.fit_batches)
        self.seconds_per_epoch: dict[str, float] = {}  # by scheme
        check_folders(self.screening)
        self._choose()

    def plan(self) -> list[str]:
        """Time some steps of each scheme, and return the lines that state what the study costs."""
        unfinished = [run for run in (*self.screening, *self.finals) if read_result(run).status == "unfinished"]
        first = {run.trial.scheme: run for run in reversed(unfinished)}
        for scheme, pace in zip(first, measure_paces(list(first.values()), self.slots), strict=True):
            self.seconds_per_epoch[scheme] = pace["seconds"] / pace["epochs"]
        lines = [
            f"{'stage':<8}{'scheme':<16}{'runs':>5}{'done':>6}{'epochs':>8}{'min/epoch':>11}{'core-minutes left':>19}"
        ]
        left = 0.0
        for stage, runs in (("trials", self.screening), ("finals", self.finals or self._expected_finals())):
            for scheme in dict.fromkeys(run.trial.scheme for run in runs):
                own = [run for run in runs if run.trial.scheme == scheme]
                results = [read_result(run) for run in own]
                epochs = sum(_epochs_left(result) for result in results)
                minutes = epochs * self.seconds_per_epoch.get(scheme, 0.0) / 60
                done = sum(result.status != "unfinished" for result in results)
                each, cost = self.seconds_per_epoch.get(scheme, 0.0) / 60, minutes * self.slots.threads
                total = own[0].config.train.epochs
                lines.append(f"{stage:<8}{scheme:<16}{len(own):>7}{done:>7}{total:>9}{each:>12.2f}{cost:>20.0f}")
                left += minutes * 60
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
            UserError: runs failed, or another process has the study's folder.
        """
        folder = Path(self.config.output)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with filelock.FileLock(folder / ".lock", timeout=0):
                return self._run(trials_only)
        except filelock.Timeout:
            raise UserError(f"{folder}: another process runs this study; wait for it or stop it") from None

    def _run(self, trials_only: bool) -> list[str]:
        self._execute(self.screening)
        self._choose()
        if not trials_only and not self.runner.failed:
            self._execute(self.finals)
        lines = self._write()
        if self.runner.failed:
            label, reason = next(iter(self.runner.failed.items()))
            raise UserError(
                f"{len(self.runner.failed)} runs failed, the first {label}: {reason}; the same command tries them again"
            )
        return lines

    def _choose(self) -> None:
        """Set the final runs as soon as every trial is complete."""
        results = [read_result(run) for run in self.screening]
        if not results or any(result.status == "unfinished" for result in results):
            return
        compared = {k: v for k, v in settings_of(results, self.metric).items() if k in self.config.compared}
        self.finals = final_runs(self.config, chosen_trials(compared))
        self._check_one_choice()
        check_folders(self.finals)

    def _check_one_choice(self) -> None:
        """Refuse a second look at the test set: final runs of a setting that is not the chosen one any more."""
        expected = {run.folder.parent for run in self.finals}
        for scheme in self.config.compared:
            for found in sorted((Path(self.config.output) / "finals" / scheme).glob("*")):
                if found.is_dir() and found not in expected:
                    raise UserError(
                        f"{found}: the test set was evaluated for this setting, but trials choose another one now; "
                        "take an output folder of its own for the changed study, and state that beside its numbers"
                    )

    def _expected_finals(self) -> list[StudyRun]:
        """Return final runs of any setting, for the plan: the chosen ones are not known yet."""
        return final_runs(self.config, {scheme: trials_of(self.config, scheme)[0] for scheme in self.config.schemes})

    def _execute(self, runs: Sequence[StudyRun]) -> None:
        """Complete runs, with a line for each that ends."""
        total = len(runs)
        ended = sum(is_complete(read_result(run)) for run in runs)
        status = StatusLine(every=300.0)

        def on_end(result: Result, seconds: float) -> None:
            nonlocal ended
            ended += 1
            done = result.run.config.train.epochs
            if result.status == "finished" and seconds > 60:  # a run that was measured only takes seconds
                self.seconds_per_epoch[result.run.trial.scheme] = seconds / done
            print_line(f"[{ended}/{total}] {describe(result, self.metric)}  ({clock(seconds)})")
            self._write()

        def on_poll(active: Sequence[StudyRun]) -> None:
            if status.due():
                status.show(self._progress(runs, active, ended))

        with status:
            incomplete = [run for run in runs if not is_complete(read_result(run))]
            self.runner.execute(incomplete, on_end=on_end, on_poll=on_poll)

    def _progress(self, runs: Sequence[StudyRun], active: Sequence[StudyRun], ended: int) -> str:
        """Describe the runs in progress and the time that is left."""
        seconds = 0.0
        for run in runs:
            if run.label not in self.runner.failed:
                seconds += _epochs_left(read_result(run)) * self.seconds_per_epoch.get(run.trial.scheme, 0.0)
        at = []
        for run in active:
            done, total = read_result(run).epochs, run.config.train.epochs
            at.append(f"{run.label} " + (f"epoch {done + 1}/{total}" if done < total else "fit loss"))
        return f"{ended}/{len(runs)} runs; {', '.join(at)}; ETA {clock(seconds / self.slots.jobs)}"

    def _write(self) -> list[str]:
        results = [[read_result(run) for run in runs] for runs in (self.screening, self.finals)]
        return write_reports(self.config, self.metric, results[0], results[1], self.runner.failed)


def describe(result: Result, metric: str) -> str:
    """Describe the result of a run in one line."""
    label = result.run.label
    if result.status == "finished":
        fit = "" if result.fit_loss is None else f", fit loss {result.fit_loss:.4g}"
        return f"{label}: {metric} {result.metrics[metric]:.4g}, train loss {result.train_loss:.4g}{fit}"
    return f"{label}: {f'diverged, {result.reason}' if result.status == 'diverged' else 'failed'}"


def _epochs_left(result: Result) -> int:
    return result.run.config.train.epochs - result.epochs if result.status == "unfinished" else 0

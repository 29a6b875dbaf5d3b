"""The tables and pictures of a study: results.csv, report.md, study.png."""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tasks.plots import new_figure, save_figure
from tasks.study.config import StudyConfig
from tasks.study.plan import FINALS, SCREENING, Trial
from tasks.study.results import Result, Setting, settings_of
from tasks.study.statistics import Estimate, paired_difference
from zoo.files import write_text


def write_reports(
    study: StudyConfig, metric: str, screening: Sequence[Result], finals: Sequence[Result], failed: Mapping[str, str]
) -> list[str]:
    """Write the tables of all results so far into the study's folder.

    Args:
        study: study.
        metric: metric of the task.
        screening: results of the trials.
        finals: results of the final runs; empty before the trials are complete.
        failed: reason by the label of each run that failed.

    Returns:
        The lines of report.md.
    """
    folder = Path(study.output)
    lines = report_lines(study, metric, screening, finals, failed)
    write_text("\n".join(lines) + "\n", folder / "report.md")
    write_text(results_csv([*screening, *finals], metric), folder / "results.csv")
    if any(result.status == "finished" for result in (*screening, *finals)):
        draw(screening, finals, metric, folder / "study.png")
    return lines


def results_csv(results: Iterable[Result], metric: str) -> str:
    """Return a table with a row for each run."""
    results = list(results)
    others = sorted({name for result in results for name in result.metrics} - {metric})
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(
        ["stage", "scheme", "trial", "seed", "status", "epochs", metric, *others, "train_loss", "fit_loss", "overrides"]
    )
    for result in results:
        run = result.run
        numbers = [result.metrics.get(name, "") for name in (metric, *others)]
        losses = ["" if math.isnan(result.train_loss) else result.train_loss, result.fit_loss]
        where = [run.stage, run.trial.scheme, run.trial.name, run.seed, result.status, result.epochs]
        rows.writerow([*where, *numbers, *losses, shlex.join(run.overrides)])
    return text.getvalue()


def report_lines(
    study: StudyConfig, metric: str, screening: Sequence[Result], finals: Sequence[Result], failed: Mapping[str, str]
) -> list[str]:
    """Return the report in Markdown: final runs first, then the trials that chose their settings."""
    lines = [f"# Study of {study.recipe}", ""]
    done = sum(result.status != "unfinished" for result in (*screening, *finals))
    diverged = sum(result.status == "diverged" for result in (*screening, *finals))
    lines += [f"{done} of {len(screening) + len(finals)} runs are complete, of which {diverged} diverged.", ""]
    if finals:
        lines += _final_lines(study, metric, settings_of(finals, metric))
    if screening:
        lines += _trial_lines(study, metric, settings_of(screening, metric))
    if failed:
        lines += ["## Runs that failed", "", *(f"- {label}: {reason}" for label, reason in failed.items()), ""]
    lines += ["`train loss` is the mean of the last epoch, as trained, with augmentation and label smoothing. "]
    lines[-1] += f"`fit loss` is that of {study.fit_batches} training batches in evaluation mode, without either. "
    lines[-1] += "± is the standard deviation over seeds. Runs that diverged count as such and are in no mean."
    return lines


def _final_lines(study: StudyConfig, metric: str, settings: Mapping[str, list[Setting]]) -> list[str]:
    """Return the comparison of the chosen settings."""
    finals = {scheme: found[0] for scheme, found in settings.items()}
    seeds = ", ".join(str(seed) for seed in study.finals.seeds)
    lines = [f"## Final runs (seeds {seeds})", ""]
    rows = [["scheme", "setting", "seeds", metric, "fit loss", "train loss", "diverged"]]
    for scheme, setting in finals.items():
        values = [_mean(setting.estimate(name)) for name in (None, "fit_loss", "train_loss")]
        rows.append([scheme, setting.trial.name, str(len(setting.values())), *values, str(setting.diverged)])
    lines += [*_table(rows), ""]
    # differences to the baseline
    others = [scheme for scheme in finals if scheme != study.baseline]
    if study.baseline not in finals or not others:
        return lines
    for scheme in others:
        _, mean = paired_difference(finals[scheme].values(), finals[study.baseline].values())
        diverged = {name: finals[name].diverged for name in (scheme, study.baseline)}
        lines.append(f"- {conclusion(scheme, study.baseline, metric, mean, diverged)}")
    lines += ["", f"Difference to {study.baseline} of the same seed, with the 95 % interval of its mean:", ""]
    rows = [["scheme", "quantity", "mean", "95 % interval", "each seed"]]
    for scheme in others:
        for name in (metric, "fit_loss", "train_loss"):
            found, mean = paired_difference(finals[scheme].values(name), finals[study.baseline].values(name))
            low, high = mean.interval
            interval = "needs two seeds" if mean.count < 2 else f"{low:+.4g} to {high:+.4g}"
            each = ", ".join(f"{value:+.4g}" for value in found)
            rows.append([scheme, name.replace("_", " "), f"{mean.mean:+.4g}" if found else "", interval, each])
    return [*lines, *_table(rows), ""]


def conclusion(
    scheme: str, baseline: str, metric: str, difference: Estimate, diverged: Mapping[str, int] | None = None
) -> str:
    """State what the paired differences of a metric show, in one sentence.

    Args:
        scheme: scheme that is compared.
        baseline: scheme whose values are subtracted.
        metric: name of the metric; higher is better.
        difference: estimate of the mean difference.
        diverged: number of diverged runs of both schemes.
    """
    lost = {name: count for name, count in (diverged or {}).items() if count}
    if lost:
        counts = ", ".join(f"{count} of {name}" for name, count in lost.items())
        return f"{scheme} and {baseline}: runs diverged ({counts}), and the others alone do not compare the schemes."
    if difference.count < 2:
        return f"{scheme} and {baseline}: {difference.count} pairs of seeds are too few for an interval of {metric}."
    low, high = difference.interval
    found = f"{metric} of {scheme} is {abs(difference.mean):.3g} {'above' if difference.mean >= 0 else 'below'}"
    found += f" that of {baseline} in the mean of {difference.count} seeds (95 % interval {low:+.3g} to {high:+.3g})"
    if low <= 0 <= high:
        return f"{found}: the difference is within the noise of the seeds."
    return f"{found}: the difference is larger than the noise of the seeds."


def _trial_lines(study: StudyConfig, metric: str, settings: Mapping[str, list[Setting]]) -> list[str]:
    """Return the tables of the trials, best first; the first of a scheme is the one that is chosen."""
    seeds = ", ".join(str(seed) for seed in study.screening.seeds)
    lines = [f"## Trials on held-out training samples (seeds {seeds})", ""]
    for scheme, ranked in settings.items():
        complete = all(setting.complete for setting in ranked)
        lines += [f"### {scheme}: {len(ranked)} trials{'' if complete else ', not all complete'}", ""]
        rows = [["trial", metric, "fit loss", "train loss", "diverged", "overrides"]]
        shared = _shared_overrides([setting.trial for setting in ranked])
        for number, setting in enumerate(ranked):
            name = f"**{setting.trial.name}**" if complete and number == 0 else setting.trial.name
            values = [_mean(setting.estimate(key)) for key in (None, "fit_loss", "train_loss")]
            own = " ".join(f"`{text}`" for text in setting.trial.overrides[shared:])
            rows.append([name, *values, str(setting.diverged), own])
        lines += [*_table(rows), ""]
    return lines


def _shared_overrides(trials: Sequence[Trial]) -> int:
    """Return how many overrides all trials of a scheme begin with."""
    shared = 0
    for column in zip(*(trial.overrides for trial in trials), strict=False):
        if len(set(column)) > 1:
            break
        shared += 1
    return 0 if len(trials) == 1 else shared


def _mean(found: Estimate) -> str:
    if not found.count:
        return ""
    return f"{found.mean:.4g}" if found.count == 1 else f"{found.mean:.4g} ± {found.std:.2g}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as a Markdown table; the first has the headings."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def draw(screening: Sequence[Result], finals: Sequence[Result], metric: str, path: Path) -> None:
    """Draw the metric of every run by scheme, and over the fit loss.

    Args:
        screening: results of the trials, drawn as circles.
        finals: results of the final runs, drawn as diamonds.
        metric: metric of the task.
        path: PNG file to write.
    """
    schemes = list(dict.fromkeys(result.run.trial.scheme for result in (*screening, *finals)))
    figure = new_figure(9, 3.8)
    left, right = figure.subplots(1, 2)
    for stage, marker, results in ((SCREENING, "o", screening), (FINALS, "D", finals)):
        for number, scheme in enumerate(schemes):
            found = [r for r in results if r.status == "finished" and r.run.trial.scheme == scheme]
            values = [result.metrics[metric] for result in found]
            style = {"color": f"C{number}", "marker": marker, "s": 24, "alpha": 0.75, "linewidths": 0}
            # spread sideways in the order of the runs, so that equal values stay visible
            places = [number + (i / max(len(found) - 1, 1) - 0.5) * 0.4 for i in range(len(found))]
            left.scatter(places, values, **style)
            fits = [(r.fit_loss, r.metrics[metric]) for r in found if r.fit_loss is not None]
            if fits:
                right.scatter(*zip(*fits, strict=True), label=f"{scheme}, {stage}", **style)
    left.set_xticks(range(len(schemes)), schemes, rotation=20 if len(schemes) > 4 else 0)
    left.set(ylabel=metric)
    right.set(xlabel="fit loss (evaluation mode, no augmentation)", ylabel=metric)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    if right.get_legend_handles_labels()[0]:
        right.legend(fontsize=7)
    save_figure(figure, path)

"""Results, the choice of settings and the report, from logs that are written here."""

import csv
import io
import json
import math
import re
import statistics

import pytest
from PIL import Image

from tasks.errors import DataError, UserError
from tasks.study import results as results_module
from tasks.study.plan import final_runs, screening_runs
from tasks.study.report import conclusion, write_reports
from tasks.study.results import chosen_trials, read_result, settings_of
from tasks.study.statistics import estimate
from zoo.files import write_json, write_text


@pytest.fixture
def finish(monkeypatch):
    """Return a function that writes what a finished run leaves behind, without its weights."""
    weights = {}
    monkeypatch.setattr(results_module, "_epochs_of_weights", lambda path: weights.get(path, 0))

    def write(run, top1=None, *, loss=1.0, fit=0.5, diverged=False, epochs=None):
        epochs = run.config.train.epochs if epochs is None else epochs
        records = [
            {"event": "epoch", "step": i, "epoch": i, "train_loss": loss, **({} if top1 is None else {"top1": top1})}
            for i in range(epochs)
        ]
        if diverged:
            records.append({"event": "diverged", "step": 9, "epoch": epochs, "reason": "the loss is nan"})
        else:
            weights[run.folder / "checkpoints" / "last.safetensors"] = epochs
            write_json({"loss": fit, "batches": 3}, run.folder / "fit_loss.json")
        write_text("".join(json.dumps(record) + "\n" for record in records), run.folder / "log.jsonl")

    return write


def test_status_of_runs(make_study, finish):
    runs = screening_runs(make_study())
    finish(runs[0], 50.0, loss=0.7, fit=0.6)
    finish(runs[1], diverged=True, epochs=1)
    finish(runs[2], 40.0, epochs=1)
    found = [read_result(run) for run in runs]
    assert [(r.status, r.epochs) for r in found] == [
        ("finished", 2),
        ("diverged", 1),
        ("unfinished", 1),
        ("unfinished", 0),
    ]
    assert (found[0].metrics, found[0].train_loss, found[0].fit_loss) == ({"top1": 50.0}, 0.7, 0.6)
    assert found[1].reason == "the loss is nan"


def test_a_log_that_ends_before_the_weights_is_not_finished(make_study, finish):
    """As after a power failure; what the middle of a run scored must not choose a setting."""
    run = screening_runs(make_study())[0]
    finish(run, 50.0)
    log = run.folder / "log.jsonl"
    log.write_bytes(log.read_bytes().splitlines(keepends=True)[0] + b"\0" * 200)
    assert read_result(run).status == "unfinished"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_is_not_finite_counts_as_diverged(make_study, finish, value):
    run = screening_runs(make_study())[0]
    finish(run, value)
    assert (read_result(run).status, read_result(run).reason) == ("diverged", f"top1 is {value}")


def test_a_fit_loss_that_is_not_finite_is_in_no_mean(make_study, finish):
    study = make_study(screening={"seeds": [0, 1, 2], "overrides": {"data.split": "holdout"}})
    runs = [run for run in screening_runs(study) if run.trial.name == "base" and run.trial.scheme == "bn"]
    for run, fit in zip(runs, (1.0, math.nan, 2.0), strict=True):
        finish(run, 50.0, fit=fit)
    (setting,) = settings_of([read_result(run) for run in runs], "top1")["bn"]
    assert setting.values("fit_loss") == {0: 1.0, 2: 2.0}
    assert setting.estimate().count == 3


def test_a_fit_of_another_number_of_batches_is_measured_again(make_study, finish):
    run = screening_runs(make_study())[0]
    finish(run, 50.0)
    assert read_result(run).fit_loss == 0.5
    assert read_result(screening_runs(make_study(fit_batches=9))[0]).fit_loss is None


@pytest.mark.parametrize("end", ['{"event": "epo', "\x00\x00", '{"event": "epoch", "step": 1}\n'])
def test_a_log_that_ends_in_the_middle_of_a_line(make_study, finish, end):
    run = screening_runs(make_study())[0]
    finish(run, 50.0)
    with (run.folder / "log.jsonl").open("a") as file:
        file.write(end)
    assert read_result(run).status == "finished"


def test_weights_that_a_killed_run_did_not_write_do_not_count(make_study, finish, monkeypatch):
    run = screening_runs(make_study())[0]
    finish(run, 50.0)
    monkeypatch.setattr(results_module, "_epochs_of_weights", lambda path: 1)  # the log has two epochs
    assert read_result(run).status == "unfinished"


def test_the_best_mean_over_the_seeds_is_chosen_and_diverged_runs_count(make_study, finish):
    runs = screening_runs(make_study(screening={"seeds": [0, 1], "overrides": {"data.split": "holdout"}}))
    values = {("rescale", "base"): (60, 62), ("rescale", "gain"): (70, None), ("bn", "base"): (1, 2)}
    for run in runs:
        value = values.get((run.trial.scheme, run.trial.name), (3, 4))[run.seed]
        finish(run, value, diverged=value is None)
    settings = settings_of([read_result(run) for run in runs], "top1")
    assert [s.trial.name for s in settings["rescale"]] == ["base", "gain"]  # a setting that diverges comes last
    assert {k: v.name for k, v in chosen_trials(settings).items()} == {"rescale": "base", "bn": "smooth"}


def test_a_scheme_that_always_diverges_has_no_setting(make_study, finish):
    runs = screening_runs(make_study())
    for run in runs:
        finish(run, 1.0, diverged=run.trial.scheme == "bn")
    with pytest.raises(UserError, match="schemes.bn: every trial diverged"):
        chosen_trials(settings_of([read_result(run) for run in runs], "top1"))


def test_report(make_study, finish):
    study = make_study(finals={"seeds": [0, 1, 2], "baseline": "bn", "overrides": {"data.split": "official"}})
    screening = screening_runs(study)
    for number, run in enumerate(screening):
        finish(run, 50.0 + number)
    chosen = chosen_trials(settings_of([read_result(run) for run in screening], "top1"))
    finals = final_runs(study, chosen)
    tops = {"rescale": (90.0, 91.0, 92.0), "bn": (89.0, 90.5, 90.0)}
    for run in finals:
        finish(run, tops[run.trial.scheme][run.seed], fit=0.25 if run.trial.scheme == "bn" else 0.125)
    parts = [[read_result(run) for run in runs] for runs in (screening, finals)]
    lines = write_reports(study, "top1", *parts, {"trials/x": "no such file"})
    text = "\n".join(lines)
    # final runs: means, standard deviations, and differences of pairs with t = 4.303 of two degrees
    assert "| rescale | gain | 3 | 91 ± 1 | 0.125 ± 0 | 1 ± 0 | 0 |" in text
    half = 4.302653 * statistics.stdev([1, 0.5, 2]) / math.sqrt(3)
    assert f"| rescale | top1 | +1.167 | {7 / 6 - half:+.4g} to {7 / 6 + half:+.4g} | +1, +0.5, +2 |" in text
    assert "| rescale | fit loss | -0.125 | -0.125 to -0.125 | -0.125, -0.125, -0.125 |" in text
    assert "within the noise of the seeds" in text
    # trials, best first, with what is their own
    assert text.index("**gain**") < text.index("| base | 50")
    assert "`model.options.projection_gain=2.0`" in text
    assert "- trials/x: no such file" in text
    folder = results_module.Path(study.output)
    assert (folder / "report.md").read_text().splitlines() == lines
    rows = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text())))
    assert [float(row["top1"]) for row in rows] == [50, 51, 52, 53, *(tops[r.trial.scheme][r.seed] for r in finals)]
    assert rows[0]["overrides"].split()[-1] == f"output={screening[0].folder}"
    assert Image.open(folder / "study.png").size[0] > 600


def test_diverged_seeds_withhold_the_conclusion():
    text = conclusion("rescale", "bn", "top1", estimate([1.0, 1.1, 1.2]), {"rescale": 1, "bn": 0})
    assert text.startswith("rescale and bn: runs diverged (1 of rescale)")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0], "1 pairs of seeds are too few"),
        ([1.0, -1.2], "0.1 below that of bn in the mean of 2 seeds .* within the noise"),
        ([1.0, 1.1, 1.2], "1.1 above that of bn in the mean of 3 seeds .* larger than the noise"),
    ],
)
def test_conclusion(values, expected):

    assert re.search(expected, conclusion("rescale", "bn", "top1", estimate(values)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object"),
        ('{"loss": 1.0}', "batches: is missing"),
        ('{"loss": "1.0", "batches": 3}', "loss='1.0': .*valid number"),
        ('{"loss": 1.0, "batches": 3.5}', "batches=3.5: .*valid integer"),
        ('{"loss": 1.0, "batches": 3, "more": 1}', "more: is no key"),
        ('{"loss": 1.0, "loss": 2.0, "batches": 3}', "key 'loss' occurs twice"),
    ],
)
def test_a_damaged_fit_loss_is_named(make_study, finish, content, reason):
    run = screening_runs(make_study())[0]
    finish(run, 50.0)
    (run.folder / "fit_loss.json").write_text(content)
    with pytest.raises(DataError, match=rf"fit_loss.json: not a measured loss \({reason}.*\); remove it"):
        read_result(run)

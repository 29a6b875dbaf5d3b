"""Training of translation nets."""

import itertools
import math
import subprocess
import sys

import pytest
import torch

import zoo
from tasks import config as cfg
from tasks.engine import Trainer
from tasks.errors import ConfigError, DataError
from tasks.plots import read_log
from tasks.spec import make_task
from tasks.study.fit import measure_fit_loss
from tasks.translation.corpus import Corpus, prepare, with_defaults
from tasks.translation.scores import score
from tests.helpers.commands import environment, on_two_processes, train_and_kill
from tests.helpers.training import Crash, crash_after_step
from tests.helpers.translation import TINY, config, fit, section, toy
from zoo.text import PAD


def weights_of(folder, name="last"):
    return zoo.get_weights(str(folder / "checkpoints" / f"{name}.safetensors")).load()


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_it_learns(prepared, tmp_path, precision):
    schedule = {"name": "onecycle", "up": 0.2}
    metrics = fit(
        prepared,
        tmp_path / "run",
        epochs=30,
        precision=precision,
        schedule=schedule,
        checkpoint_minutes=10,
        eval_every=30,
    )
    assert metrics["perplexity"] < 2.5  # 8 words: a net that knows the length and no word is above 4
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["val_loss"]))
    assert metrics["bleu"] > 10
    run = tmp_path / "run"
    texts = (run / "evaluation/hypotheses.txt").read_text().splitlines()
    references = [pair.target for pair in Corpus(prepared / "corpus").text("val")]
    assert score(texts, references)[0].value == metrics["bleu"]
    assert (run / "curves.png").stat().st_size > 1000


class Cut(BaseException):
    """What ends a run in its evaluation, whose errors cost only a line."""


@pytest.mark.parametrize("crash_at", [3, 14, "average"])
def test_resume_repeats_the_uninterrupted_run_to_the_bit(prepared, tmp_path, monkeypatch, crash_at):
    settings = {"average": {"name": "last_epochs", "epochs": 2}, "epochs": 3, "accumulate": 2, "batch_size": 300}
    random = {"drop_path_rate": 0.3, "branch_noise": 0.1, "multiplier": "channel"}
    settings["model"] = {"options": {**TINY, **random}}
    fit(prepared, tmp_path / "whole", **settings)
    trainer = Trainer(make_task(config(prepared, tmp_path / "broken", **settings)))
    if crash_at == "average":
        evaluate, calls = trainer.task.evaluate, []

        def crash(*args):
            calls.append(1)
            if len(calls) == 3:
                raise Cut
            return evaluate(*args)

        monkeypatch.setattr(trainer.task, "evaluate", crash)
    else:
        crash_after_step(trainer, crash_at, monkeypatch)
    with pytest.raises((Crash, Cut)):
        trainer.fit()
    monkeypatch.undo()
    fit(prepared, tmp_path / "broken", resume=True, **settings)
    assert (tmp_path / "whole/log.jsonl").read_text() == (tmp_path / "broken/log.jsonl").read_text()
    whole, broken = (weights_of(tmp_path / run) for run in ("whole", "broken"))
    assert all(torch.equal(whole[key], broken[key]) for key in whole)


@pytest.mark.slow
def test_kill_9_and_resume(prepared, tmp_path):
    settings = {"epochs": 4, "batch_size": 300, "workers": 1}
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump(config(prepared, tmp_path / "whole", **settings)))
    fit(prepared, tmp_path / "whole", **settings)
    run = tmp_path / "killed"
    arguments = [sys.executable, "-m", "tasks.cli", "train", str(path), f"output={run}"]
    at = train_and_kill(arguments, run / "checkpoints" / "last.pt", after=20)
    assert at["epoch"] < 4, "it ended before it was killed"
    subprocess.run([*arguments, "--resume"], env=environment(), check=True, stderr=subprocess.DEVNULL)
    assert (tmp_path / "whole/log.jsonl").read_text() == (run / "log.jsonl").read_text()
    whole, killed = weights_of(tmp_path / "whole"), weights_of(run)
    assert all(torch.equal(whole[key], killed[key]) for key in whole)


def test_the_last_epochs_are_averaged(prepared, tmp_path):
    settings = {"average": {"name": "last_epochs", "epochs": 2}, "epochs": 3}
    trainer = Trainer(make_task(config(prepared, tmp_path / "run", **settings)))
    ends, end = [], trainer._end_of_epoch

    def record(progress):
        ends.append({k: v.clone() for k, v in trainer.bare.state_dict().items()})
        end(progress)

    trainer._end_of_epoch = record
    trainer.fit()
    kept = weights_of(tmp_path / "run")
    for key, value in kept.items():
        torch.testing.assert_close(value, (ends[1][key] + ends[2][key]) / 2, rtol=1e-6, atol=1e-7)
    assert not torch.equal(kept["decoder_end.bias"], ends[2]["decoder_end.bias"])


def test_two_processes_equal_one_and_steps_are_weighted_by_tokens(prepared, tmp_path):
    """Batches of 300 tokens: two accumulated by one process, one on each of two. float64, to 1e-10."""
    settings = {"precision": "fp64", "model": {"options": {**TINY, "drop_rate": 0.0, "multiplier": "channel"}}}
    one = {"batch_size": 300, "accumulate": 2, "calibration_batches": 4}
    fit(prepared, tmp_path / "one", **settings, **one)
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump(config(prepared, tmp_path / "two", **settings, batch_size=600, calibration_batches=2)))
    on_two_processes("train", path)
    first, second = (read_log(tmp_path / run / "log.jsonl") for run in ("one", "two"))
    assert len(first) == len(second)
    compared = 0
    for a, b in zip(first, second, strict=True):
        for key in a.keys() & {"loss", "train_loss", "bleu", "chrf", "val_loss", "perplexity"}:
            assert a[key] == pytest.approx(b[key], rel=1e-10), (a["step"], key)
            compared += 1
    assert compared > 20
    one_, two_ = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    for key in one_:
        torch.testing.assert_close(one_[key], two_[key], rtol=1e-6, atol=1e-9)  # stored in single precision


def test_a_run_of_two_processes_goes_on_on_one_within_an_epoch(prepared, tmp_path, monkeypatch, capsys):
    """Two batches of 300 tokens a step, accumulated by one process: to the bit."""
    settings = {"model": {"options": {**TINY, "drop_rate": 0.0}}, "calibration_batches": 4}
    one = config(prepared, tmp_path / "one", **settings, batch_size=300, accumulate=2)
    Trainer(make_task(one)).fit()
    two = config(prepared, tmp_path / "two", **settings, batch_size=600)
    # What two processes would have left: the run of one until step 3, with their config.
    broken = Trainer(make_task(config(prepared, tmp_path / "two", **settings, batch_size=300, accumulate=2)))
    crash_after_step(broken, 4, monkeypatch)
    with pytest.raises(Crash):
        broken.fit()
    path = tmp_path / "two/checkpoints/last.pt"
    state = torch.load(path, weights_only=True)
    assert (state["position"]["step"], state["position"]["batch"]) == (3, 6)
    torch.save({**state, "ranks": 2, "position": {**state["position"], "batch": 3}}, path)
    (tmp_path / "two/config.yaml").write_text(cfg.dump(two))
    resumed = Trainer(make_task(two), resume=True)
    assert "resuming a run of 2 processes on 1" in capsys.readouterr().err
    resumed.fit()
    assert (tmp_path / "one/log.jsonl").read_text() == (tmp_path / "two/log.jsonl").read_text()
    first, second = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    assert all(torch.equal(first[key], second[key]) for key in first)
    # a state that is written on one process says again for how many its batches are
    assert torch.load(path, weights_only=True)["ranks"] == 2


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_on_two_within_an_epoch(prepared, tmp_path, monkeypatch):
    """Each takes one half of each batch. float64, to 1e-10."""
    settings = {"precision": "fp64", "model": {"options": {**TINY, "drop_rate": 0.0}}}
    Trainer(make_task(config(prepared, tmp_path / "one", **settings))).fit()
    two = config(prepared, tmp_path / "two", **settings)
    broken = Trainer(make_task(two))
    crash_after_step(broken, 4, monkeypatch)
    with pytest.raises(Crash):
        broken.fit()
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump(two))
    on_two_processes("train", path, "--resume")
    first, second = (read_log(tmp_path / run / "log.jsonl") for run in ("one", "two"))
    losses = [[record["loss"] for record in log if "loss" in record] for log in (first, second)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    one_, two_ = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    for key in one_:
        torch.testing.assert_close(one_[key], two_[key], rtol=1e-6, atol=1e-9)  # stored in single precision


def test_a_step_is_the_mean_over_all_its_tokens(prepared, tmp_path):
    trainer = Trainer(make_task(config(prepared, tmp_path / "run", precision="fp64", accumulate=3, batch_size=200)))
    batches = list(itertools.islice(iter(trainer.loader), 3))
    weights = [trainer.task.weight(b) for b in batches]
    assert len(set(weights)) > 1
    shares = trainer._loss_weights(batches)
    assert shares == pytest.approx([3 * w / sum(weights) for w in weights])
    trainer.bare.eval()
    terms = [trainer.task.losses(trainer.bare, b, torch.float64)["loss"] for b in batches]
    mean = sum(t * s for t, s in zip(terms, shares, strict=True)) / 3
    assert weights == [int((b.labels != PAD).sum()) for b in batches]
    whole = sum(trainer.bare(*b[:3], 0.1)[0] for b in batches) / sum(weights)
    torch.testing.assert_close(mean, whole)


def test_training_that_does_not_fit_the_corpus(prepared, tmp_path):
    run = tmp_path / "run"
    corpus = section(prepared / "text", clean={"duplicates": "keep"}, holdout=7).model_dump()
    with pytest.raises(DataError, match=r"prepared with another data\.corpus \(holdout\)"):
        fit(prepared, run, data={"corpus": corpus})
    with pytest.raises(ConfigError, match=r"model.name=rescalenet18: takes images, not text"):
        fit(prepared, run, model={"name": "rescalenet18", "options": {}})
    with pytest.raises(DataError, match=r"every training pair has more than 2 tokens; raise data.max_length"):
        fit(prepared, run, data={"max_length": 2})
    with pytest.raises(ConfigError, match=r"data.max_length=256: must be <= 64"):
        fit(prepared, run, model={"options": {"max_length": 64}})
    with pytest.raises(DataError, match=r"tokens, a batch of one process 10;"):
        fit(prepared, run, batch_size=10)


def test_fine_tuning_wants_the_vocabulary_of_the_weights(prepared, tmp_path):
    fit(prepared, tmp_path / "first", epochs=1)
    path = str(tmp_path / "first/checkpoints/last.safetensors")
    toy(tmp_path / "text", 100, seed=3, reverse=True)
    again = section(tmp_path / "text", vocabulary={"weights": path})
    corpus = prepare(again, tmp_path / "corpus")
    assert corpus.transform.same_text(zoo.get_weights(path).transform)
    options = {"name": "rescale_transformer_tiny", "weights": path, "options": {}}
    data = {"corpus": again.model_dump(), "folder": str(tmp_path / "corpus")}
    fit(prepared, tmp_path / "second", model=options, data=data, epochs=1, batch_size=200)
    other = section(tmp_path / "text", vocabulary={"size": 50})
    prepare(other, tmp_path / "other")
    data = {"corpus": other.model_dump(), "folder": str(tmp_path / "other")}
    with pytest.raises(ConfigError, match=r"vocabularies are not those of the corpus in .*other; prepare one"):
        fit(prepared, tmp_path / "third", model=options, data=data, batch_size=200)
    with pytest.raises(DataError, match="vocabulary.share=separate: the weights .* have joint vocabularies"):
        prepare(section(tmp_path / "text", vocabulary={"weights": path, "share": "separate"}), tmp_path / "fourth")


def test_languages_and_vocabulary_of_the_weights_are_the_defaults(prepared, weights, tmp_path):
    """Fine-tuning needs the text and the weights, nothing else."""
    toy(tmp_path / "text", 60, seed=3)
    corpus = {"root": str(tmp_path / "text"), "train": ["train"], "val": "val"}
    data = {"corpus": corpus, "folder": str(tmp_path / "corpus")}
    model = {"weights": str(weights), "options": {}}
    section = with_defaults(config(prepared, tmp_path / "run", model=model, data=data))
    assert section.languages == ("en", "de")
    assert prepare(section, tmp_path / "corpus").transform.same_text(zoo.get_weights(str(weights)).transform)
    fit(prepared, tmp_path / "run", model=model, data=data, epochs=1)
    assert weights_of(tmp_path / "run")
    fit(prepared, tmp_path / "run", model=model, data=data, epochs=1, resume=True)
    with pytest.raises(ConfigError, match=r"data\.corpus\.source: is missing; only model\.weights"):
        with_defaults(config(prepared, tmp_path / "run", data=data))


def test_the_training_loss_in_evaluation_mode(prepared, tmp_path):
    """The loss of a token without dropout and label smoothing, by hand over the same pairs."""
    fit(prepared, tmp_path / "run", epochs=1)
    found = measure_fit_loss(tmp_path / "run", batches=10**6)
    task = make_task(config(prepared, tmp_path / "other"))
    model = zoo.create_model("rescale_transformer_tiny", str(tmp_path / "run/checkpoints/last.safetensors")).eval()
    total, count = 0.0, 0
    for key in range(len(task.train_set())):
        batch = task.collate([task.train_set()[0, key]])
        with torch.no_grad():
            total += float(model(batch.source, batch.target, batch.labels, 0.0)[0])
        count += batch.tokens
    # batches of several ranks may leave out the last pairs of an epoch
    assert found == pytest.approx(total / count, rel=0.02)


def test_what_a_run_trains_on_is_told(prepared, tmp_path):
    task = make_task(config(prepared, tmp_path / "run"))
    val = len(task.corpus.text("val"))
    assert task.describe_data(task.fingerprint()) == [f"train: {len(task.chosen)} pairs; val: {val} pairs"]

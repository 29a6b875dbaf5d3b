"""What an earlier version started goes on: fields added since have their defaults. And batches for calibration."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tasks.config import SGD, TrainSection
from tasks.engine import EpochBatches, Trainer
from tasks.engine.run import count_calibration_batches
from tasks.errors import ConfigError, DataError, TrainingError
from tasks.spec import check, make_task
from tasks.translation.config import CorpusSection
from tasks.translation.corpus import Corpus
from tasks.translation.data import TokenBatches, collate, merge
from zoo.text import PAD


@pytest.fixture
def settings(tmp_path):
    """The content of a config of a small run."""
    random = np.random.RandomState(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for n in range(4):
                Image.fromarray(random.randint(0, 256, (8, 8, 3)).astype(np.uint8)).save(folder / f"{n}.png")
    return {
        "task": "classification",
        "output": str(tmp_path / "run"),
        "model": {"name": "rescalenet20_cifar", "options": {"width": 0.125}},
        "data": {"root": str(tmp_path / "data"), "size": 8, "resize": 8},
        "train": {"epochs": 1, "batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.01}, "calibration_batches": 1},
    }


def train(settings, **changes):
    content = {**settings, "train": {**settings["train"], **changes}}
    return Trainer(make_task(check(content, "test")), resume=True)


def rewrite(folder, change):
    content = yaml.safe_load((folder / "config.yaml").read_text())
    change(content)
    (folder / "config.yaml").write_text(yaml.safe_dump(content))


def test_a_config_without_newer_fields_resumes(settings, tmp_path):
    train(settings).fit()

    def age(content):
        for field in ("calibration_samples", "sinks", "average", "log_every"):
            del content["train"][field]
        del content["data"]["cache"]

    rewrite(tmp_path / "run", age)
    trainer = train(settings)
    assert trainer.at.epoch == 1
    stored = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert stored["train"]["calibration_samples"] == 1024
    trainer.close()
    rewrite(tmp_path / "run", age)
    with pytest.raises(TrainingError, match="another config: train.calibration_samples was 1024, is 7; resume with"):
        train(settings, calibration_samples=7)


def test_a_folder_that_was_moved_resumes(settings, tmp_path):
    train(settings).fit()
    (tmp_path / "run").rename(tmp_path / "moved")
    assert train({**settings, "output": str(tmp_path / "moved")}).at.epoch == 1


def test_a_state_of_another_net_is_refused(settings, tmp_path, monkeypatch):
    """Options that no state dict shows, as when a conversion gives other ones than before."""
    train(settings).fit()
    build = Trainer._build_model

    def other(self):
        model = build(self)
        model.config.options["biased_padding"] = True
        return model

    monkeypatch.setattr(Trainer, "_build_model", other)
    with pytest.raises(TrainingError, match=r"last\.pt: the net has changed: options.biased_padding was None, is True"):
        train(settings)


def test_a_config_of_a_newer_version_is_refused(settings, tmp_path):
    train(settings).fit()
    rewrite(tmp_path / "run", lambda content: content["train"].update(unheard_of=1))
    with pytest.raises(ConfigError, match=r"run/config.yaml: unknown key 'train.unheard_of'"):
        train(settings)


def corpus(folder, **settings):
    """A corpus that has its settings only."""
    found = object.__new__(Corpus)
    found.folder, found.info = folder, json.loads(json.dumps({"settings": settings}))
    return found


def test_settings_of_a_corpus_without_newer_fields(tmp_path):
    given = {"root": "text", "source": "en", "target": "de", "train": ["train"], "val": "val"}
    section = CorpusSection.model_validate({**given, "root": "elsewhere"})
    corpus(tmp_path, **given).expect(section)  # no holdout, no test, no clean, no vocabulary
    corpus(tmp_path, **given, clean={"max_words": 250}).expect(section)
    with pytest.raises(DataError, match=r"prepared with another data.corpus \(val, clean\)"):
        corpus(tmp_path, **{**given, "val": "other"}, clean={"max_words": 9}).expect(section)
    with pytest.raises(DataError, match=r"corpus.json: unknown key 'unheard_of'.*; delete .* and prepare again"):
        corpus(tmp_path, **given, unheard_of=1).expect(section)


# -- calibration ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batches", "samples", "expected"), [(8, 1024, 6), (4, 1024, 4), (8, 39, 3), (8, 40, 4), (8, 3, 1), (8, 10, 1)]
)
def test_batches_for_calibration(batches, samples, expected):
    """Whole batches, at least one, at most so many batches and samples: here batches of 10 from 65 samples."""
    section = TrainSection(
        epochs=1,
        batch_size=10,
        optimizer=SGD(lr=1),
        calibration_batches=batches,
        calibration_samples=samples,
    )
    assert count_calibration_batches(EpochBatches(65, 10, 0), section, 1) == expected


def test_samples_for_calibration_are_those_of_all_ranks():
    lengths = np.full(24, 5)
    sampler = TokenBatches(lengths, lengths, budget=20, seed=0)  # 4 pairs (on the grid of 6: 3) a batch
    (size,) = {len(batch) for batch in sampler}
    settings = SimpleNamespace(calibration_batches=8, calibration_samples=4 * size)
    assert count_calibration_batches(sampler, settings, 2) == 2
    assert len(list(sampler)) == len(sampler) == 8


def test_merged_batches_of_pairs():
    first, second = collate([([5, 6], [7]), ([8], [9, 10, 11])]), collate([([5, 6, 7, 8], [9])])
    merged = merge([first, second])
    assert merged.tokens == first.tokens + second.tokens == 8
    assert (merged.labels != PAD).sum() == 8
    expected = collate([([5, 6], [7]), ([8], [9, 10, 11]), ([5, 6, 7, 8], [9])])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(merged[:3], expected[:3], strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_calibration_runs_in_the_runs_precision(settings, precision, monkeypatch):
    content = {**settings, "train": {**settings["train"], "precision": precision}}
    task = make_task(check(content, "test"))
    seen, forward = [], task.calibration_forward

    def spy(*arguments):
        seen.append(torch.is_autocast_enabled("cpu"))
        forward(*arguments)

    monkeypatch.setattr(task, "calibration_forward", spy)
    trainer = Trainer(task)
    assert seen
    assert set(seen) == {precision == "bf16"}
    assert all(p.dtype == torch.float32 for p in trainer.bare.parameters())

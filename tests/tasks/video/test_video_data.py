"""Data of the video task: what happens with videos and processes that fail."""

import os
import shutil
import signal

import pytest
import torch

from tasks.engine import Trainer
from tasks.errors import DataError, TrainingError
from tasks.plots import read_log
from tasks.spec import make_task
from tasks.video.data import TrainSet, collate
from tasks.video.evaluate import read_predictions
from tests.helpers.video import config, fit


@pytest.fixture
def fragile(moving, tmp_path):
    root = tmp_path / "fragile"
    shutil.copytree(moving, root)
    return root


def test_broken_videos_are_counted_and_named(fragile, tmp_path, capsys):
    (fragile / "train/down/1.mp4").write_bytes(b"")
    (fragile / "val/still/0.mp4").write_text("a text that calls itself a video")
    metrics = fit(fragile, tmp_path / "run", epochs=1, batch_size=4)
    assert metrics["failed"] == 1
    assert metrics["videos"] == 8
    epoch = next(r for r in read_log(tmp_path / "run/log.jsonl") if r["event"] == "epoch")
    assert epoch["train_failed"] == 1
    assert epoch["train_failed_share"] == pytest.approx(1 / 24)
    said = capsys.readouterr().err
    assert "1.mp4: is empty" in said
    assert "training set: 1 of 24 videos failed (4.2%)" in said
    assert "evaluation set: 1 of 9 videos failed" in said
    result = read_predictions(tmp_path / "run/evaluation/predictions.npz")
    assert list(result.failures) == ["still/0.mp4"]
    assert "still/0.mp4" not in result.names


def test_too_many_broken_videos_stop_the_run(fragile, tmp_path):
    for n in range(2):
        (fragile / f"train/down/{n}.mp4").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"2 of 24 videos of the training set cannot be read \(8.3%, data.max_failed is 5.0%"
    ):
        make_task(config(fragile, tmp_path / "run"))
    make_task(config(fragile, tmp_path / "run", data={"max_failed": 0.1}))


def test_failures_of_an_epoch_count_for_the_videos_that_it_does_not_read(moving, tmp_path):
    """With two copies an epoch reads 12 of 24 videos: 2 that fail are a sixth, as 4 of all would be."""
    task = make_task(config(moving, tmp_path / "run", data={"augment": {"copies": 2}, "max_failed": 0.15}))
    assert task._failed_share({"a": "gone"}) == pytest.approx(2 / 24)
    task.failures = {"a": "gone"}
    model, data = task.build_model(), task.train_set()
    bad = data[(0, 0)]._replace(label=-1, failure="b: no such file")
    with pytest.raises(TrainingError, match=r"2 of 24 videos of this epoch .*\(16.7% with data.augment.copies=2"):
        task.losses(model, collate([bad]), torch.float32)


class Vanishing(TrainSet):
    """The set's first class but one video is deleted when the third video of epoch 2 is about to be read."""

    reads = 0

    def __getitem__(self, key):
        self.reads += key[0] == 1
        if self.reads == 3:  # by the process that reads: workers read ahead, so the training loop cannot time it
            for video in sorted(self.videos.items[number].path for number in range(len(self.videos)))[:5]:
                video.unlink(missing_ok=True)
        return super().__getitem__(key)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_video_that_disappears_in_mid_epoch(fragile, tmp_path, capsys, workers):
    """One is counted, named and left out of its batch; when too many are gone training stops, its checkpoint intact."""
    settings = {"epochs": 3, "batch_size": 4, "workers": workers, "data": {"max_failed": 0.1}}
    task = make_task(config(fragile, tmp_path / "run", **settings))
    task.train_set = lambda: Vanishing(task.train_videos, task.config.data, task.transform, 0)
    trainer = Trainer(task)
    (fragile / "train/right/5.mp4").unlink()
    losses, seen = task.losses, []

    def watch(model, batch, dtype):
        terms = losses(model, batch, dtype)
        seen.append((trainer.at.epoch, (batch.labels < 0).sum().item(), torch.isfinite(terms["loss"])))
        return terms

    task.losses = watch
    with pytest.raises(
        TrainingError,
        match=r"[3-6] of 24 videos of this epoch cannot be read .*(down/\d|right/5).mp4: no such file",
    ):
        trainer.fit()
    assert all(finite for _, _, finite in seen)
    assert sum(count for epoch, count, _ in seen if epoch == 0) == 1
    epochs = [r for r in read_log(tmp_path / "run/log.jsonl") if r["event"] == "epoch"]
    assert [r["train_failed"] for r in epochs] == [1]
    assert "right/5.mp4: no such file" in capsys.readouterr().err
    state = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)
    assert state["position"]["epoch"] == 1


def test_a_batch_without_a_readable_video_changes_nothing_but_still_has_gradients(moving, tmp_path):
    task = make_task(config(moving, tmp_path / "run", data={"max_failed": 1.0}))
    model = task.build_model()
    data = task.train_set()
    good = data[(0, 0)]
    bad = good._replace(label=-1, failure="x.mp4: no such file", clip=torch.zeros_like(good.clip))
    loss = task.losses(model, collate([bad, bad]), torch.float32)["loss"]
    loss.backward()
    assert loss.item() == 0
    assert all((p.grad == 0).all() for p in model.parameters())
    mixed = task.losses(model, collate([bad, good]), torch.float32)["loss"]
    torch.testing.assert_close(mixed, task.losses(model, collate([good]), torch.float32)["loss"])


class Dying(TrainSet):
    """A process that loads the data is killed, as when memory runs out."""

    def __getitem__(self, key):
        if key[0] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(key)


def test_a_worker_that_dies(moving, tmp_path):
    task = make_task(config(moving, tmp_path / "run", workers=1))
    task.train_set = lambda: Dying(task.train_videos, task.config.data, task.transform, 0)
    with pytest.raises(TrainingError, match=r"epoch 2, step 3: a data loading process died .*fewer workers") as caught:
        Trainer(task).fit()
    assert "last good checkpoint is" in str(caught.value)
    assert torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["position"]["epoch"] == 1
    Trainer(make_task(config(moving, tmp_path / "run", workers=1)), resume=True).fit()

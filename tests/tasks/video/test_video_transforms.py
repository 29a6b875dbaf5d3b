"""Augmentation, mixing and crops of clips."""

import pytest
import torch

import zoo
from tasks.engine import Trainer
from tasks.errors import UserError
from tasks.spec import make_task
from tasks.video.data import collate
from tasks.video.evaluate import standardised
from tasks.video.transforms import crops, train_transform
from tests.helpers.training import EVERYTHING, Crash, crash_after_step
from tests.helpers.video import config, fit, layout, section


def test_all_frames_of_a_clip_are_treated_alike():
    """A clip of equal frames stays one, whatever is drawn; and something is drawn."""
    still = torch.randint(0, 256, (1, 3, 20, 30), dtype=torch.uint8).expand(6, -1, -1, -1)
    transform, seen = train_transform(section().augment, layout()), set()
    for seed in range(8):
        torch.manual_seed(seed)
        clip = transform(still)
        assert clip.shape == (6, 3, 16, 16)
        assert torch.equal(clip, clip[:1].expand_as(clip))
        seen.add(clip[0].sum().item())
    assert len(seen) == 8


def test_squashed_frames_lose_nothing():
    """The columns at both ends are there; in training too."""
    clip = torch.zeros(2, 3, 20, 60, dtype=torch.uint8)
    clip[..., :6] = clip[..., -6:] = 255
    transform = zoo.VideoTransform(8, None, None, 16, 16, (0.5,) * 3, (0.5,) * 3, "squash")
    (view,) = crops(clip, transform, 1)
    assert (view[..., 0] > 200).all()
    assert (view[..., -1] > 200).all()
    assert (view[..., 8] < 50).all()
    assert (crops(clip, layout(), 1) < 50).all()
    plain = train_transform(section(augment={"short_side": [16, 16], "flip": 0}).augment, transform)
    assert torch.equal(plain(clip), view)


@pytest.mark.parametrize("wide", [True, False])
def test_three_crops_lie_along_the_long_side(wide):
    clip = torch.arange(40, dtype=torch.uint8).expand(2, 3, 20, 40)
    clip = clip if wide else clip.transpose(-1, -2)
    views = crops(clip, layout(size=16, resize=20), 3)
    assert views.shape == (3, 2, 3, 16, 16)
    views = views if wide else views.transpose(-1, -2)
    assert [int(view[0, 0, 0, 0]) for view in views] == [0, 12, 24]
    (centre,) = crops(clip, layout(size=16, resize=20), 1)
    assert torch.equal(views[1], centre if wide else centre.transpose(-1, -2))


def test_two_crops_are_refused():
    with pytest.raises(UserError, match="crops=2: must be 1 .* or 3"):
        crops(torch.zeros(1, 3, 20, 20, dtype=torch.uint8), layout(size=16, resize=16), 2)


def test_the_weights_transform_is_the_evaluations():
    clip = torch.randint(0, 256, (4, 3, 30, 50), dtype=torch.uint8)
    transform = layout(4, None, None, 16, 20)
    ours = standardised(crops(clip, transform, 1), transform, torch.float32)[0]
    torch.testing.assert_close(transform.build()(clip), ours)


def test_clips_are_mixed_with_their_labels(moving, tmp_path):
    """Those that could not be read are left out before. With mixup and CutMix, copies and all distortions."""
    augment = {"short_side": [16, 20], "flip": 0, **EVERYTHING}
    task = make_task(config(moving, tmp_path / "run", data={"augment": augment, "max_failed": 1.0}))
    batches, data, model = task.batches(4, 0), task.train_set(), task.build_model()
    keys = next(iter(batches))
    assert [key[1] for key in keys[:2]] == [key[1] for key in keys[2:]]
    samples = [data[key] for key in keys]
    assert not torch.equal(samples[0].clip, samples[2].clip)
    broken = samples[0]._replace(label=-1, failure="x.mp4: no such file")
    for seed in range(4):
        torch.manual_seed(seed)
        loss = task.losses(model, collate([*samples, broken]), torch.float32)["loss"]
        torch.manual_seed(seed)
        good = collate(samples)
        x, targets = task.mixing(task.inputs(good.clips, torch.float32), good.labels)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        torch.testing.assert_close(loss, -(targets * model(x).log_softmax(1)).sum(1).mean())


def test_augmented_runs_resume_to_the_bit(moving, tmp_path, monkeypatch):
    settings = {"data": {"augment": {"short_side": [16, 20], **EVERYTHING}}, "epochs": 1}
    fit(moving, tmp_path / "whole", **settings)
    trainer = Trainer(make_task(config(moving, tmp_path / "broken", **settings)))
    crash_after_step(trainer, 2, monkeypatch)
    with pytest.raises(Crash):
        trainer.fit()
    Trainer(make_task(config(moving, tmp_path / "broken", **settings)), resume=True).fit()
    assert (tmp_path / "whole/log.jsonl").read_text() == (tmp_path / "broken/log.jsonl").read_text()

"""Video classification: clips, lists, the index, training, evaluation, prediction, and what fails."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import environment, on_two_processes
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import call
from test_engine import config as image_config
from test_engine import images  # noqa: F401  (a fixture)
from test_video_decode import video
from torch import nn

import zoo
from tasks.detection.detector import create_detector
from tasks.engine import Trainer
from tasks.engine import cfg as engine_cfg
from tasks.errors import ConfigError, DataError, TrainingError, UserError
from tasks.plots import read_log
from tasks.run import check, load_model, make_task, task_of
from tasks.video import index as index_module
from tasks.video.config import DataSection
from tasks.video.data import EvalSet, TrainSet, collate, index_videos
from tasks.video.decode import VideoInfo, probe, read_frames
from tasks.video.encode import write_video
from tasks.video.evaluate import evaluate, evaluate_weights, read_predictions, save_predictions, standardised
from tasks.video.index import Index
from tasks.video.predict import predict
from tasks.video.sampling import ClipSampler, frames_at
from tasks.video.sources import folder_videos, kinetics_videos, list_videos
from tasks.video.transforms import crops, train_transform
from zoo.errors import ZooError


def layout(frames=8, interval=8.0, fps=30.0, size=16, resize=16):
    return zoo.VideoTransform(frames, interval, fps, size, resize, (0.5,) * 3, (0.25,) * 3)


def info_of(times):
    """A video with frames at these milliseconds."""
    return VideoInfo.of([int(t) for t in times], Fraction(1, 1000), (0,), True, 32, 32)


def steady(frames, fps):
    return VideoInfo.of(range(frames), Fraction(1, fps), (0,), True, 32, 32)


# -- which frames -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("fps", "step"), [(30, 8), (60, 16), (15, 4)])
def test_a_clip_spans_the_same_time_at_any_rate(fps, step):
    """8 x 8 at 30 frames per second: 64 frames of it, as SlowFast's samplers take."""
    sampler = ClipSampler(layout())
    info = steady(10 * fps, fps)
    middle = sampler.uniform(info, 1)[0]
    assert np.diff(middle).tolist() == [step] * 7
    assert abs((middle[0] + middle[-1]) / 2 - (info.frames - 1) / 2) <= 1
    many = sampler.uniform(info, 10)
    assert many[0][0] == 0
    assert many[-1][-1] == info.frames - 1
    assert len(set(np.diff(many[:, 0]).tolist())) <= 2  # evenly, up to rounding
    starts = {int(sampler.random(info, np.random.default_rng(seed))[0]) for seed in range(300)}
    assert min(starts) <= step
    assert max(starts) >= info.frames - 8 * step


def test_the_videos_own_rate():
    assert np.diff(ClipSampler(layout(4, 2.0, None)).uniform(steady(100, 17), 1)[0]).tolist() == [2, 2, 2]


def test_short_videos_repeat_their_last_frame():
    assert ClipSampler(layout()).uniform(steady(20, 30), 1).tolist() == [[0, 8, 16, 19, 19, 19, 19, 19]]
    assert ClipSampler(layout()).random(steady(1, 30), np.random.default_rng(0)).tolist() == [0] * 8


def test_segments_cover_the_video():
    sampler = ClipSampler(layout(4, None, None))
    info = steady(40, 10)
    assert sampler.uniform(info, 1).tolist() == [[5, 15, 25, 35]]
    assert sampler.uniform(info, 2).tolist() == [[2, 12, 22, 32], [7, 17, 27, 37]]
    drawn = np.array([sampler.random(info, np.random.default_rng(seed)) for seed in range(400)])
    for i in range(4):
        assert set(drawn[:, i].tolist()) == set(range(10 * i, 10 * i + 10))


def test_only_the_segment_counts():
    info = steady(300, 30)
    for sampler in (ClipSampler(layout(8, 2.0)), ClipSampler(layout(8, None, None))):
        for seed in range(50):
            clip = sampler.random(info, np.random.default_rng(seed), (2.0, 4.0))
            assert clip.min() >= 60
            assert clip.max() <= 120
    assert ClipSampler(layout(8, 2.0)).uniform(info, 2, (2.0, 4.0))[0][0] == 60


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=60),
    st.integers(1, 9),
    st.one_of(st.none(), st.floats(0.5, 20)),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_frames_are_those_on_the_screen(steps, frames, interval, seed):
    """For any rate: increasing numbers in range, each the last frame that began by its time."""
    times = np.concatenate([[0], np.cumsum(steps)])
    info = info_of(times)
    sampler = ClipSampler(layout(frames, interval))
    for clip in (sampler.random(info, np.random.default_rng(seed)), *sampler.uniform(info, 3)):
        assert len(clip) == frames
        assert (np.diff(clip) >= 0).all()
        assert 0 <= clip.min() <= clip.max() < info.frames
    at = np.random.default_rng(seed).random(20) * times[-1] / 1000
    for t, i in zip(at, frames_at(info, at), strict=True):
        assert times[i] / 1000 <= t + 1e-4
        assert i + 1 == len(times) or times[i + 1] / 1000 > t - 1e-4


# -- transforms -------------------------------------------------------------------------------------


def section(**data):
    return DataSection.model_validate(
        {"root": "x", "size": 16, "resize": 16, "augment": {"short_side": [16, 24], "colour": 0.4}, **data}
    )


def test_all_frames_of_a_clip_are_treated_alike():
    """A clip of equal frames stays one, whatever is drawn; and something is drawn."""
    still = torch.randint(0, 256, (1, 3, 20, 30), dtype=torch.uint8).expand(6, -1, -1, -1)
    transform, seen = train_transform(section(), layout()), set()
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
    plain = train_transform(section(augment={"short_side": [16, 16], "flip": 0}), transform)
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
    with pytest.raises(UserError, match="crops=2: 1 .* or 3"):
        crops(torch.zeros(1, 3, 20, 20, dtype=torch.uint8), layout(size=16, resize=16), 2)


def test_the_weights_transform_is_the_evaluations():
    clip = torch.randint(0, 256, (4, 3, 30, 50), dtype=torch.uint8)
    transform = layout(4, None, None, 16, 20)
    ours = standardised(crops(clip, transform, 1), transform, torch.float32)[0]
    torch.testing.assert_close(transform.build()(clip), ours)


# -- lists of videos --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def moving(tmp_path_factory):
    """Three classes of 20 px videos, told apart by the way a bright bar moves."""
    root = tmp_path_factory.mktemp("moving")
    random = np.random.RandomState(0)
    for split, count in (("train", 8), ("val", 3)):
        for name in ("down", "right", "still"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for n in range(count):
                write_bar(folder / f"{n}.mp4", name, random)
    return root


def write_bar(path, name, random, count=12):
    x, y = random.randint(0, 8), random.randint(0, 6)

    def picture(i):
        image = random.randint(0, 60, (20, 32, 3)).astype(np.uint8)
        a, b = x + 2 * i * (name == "right"), y + i * (name == "down")
        image[b : b + 4, a : a + 5] = 230
        return image

    write_video(path, map(picture, range(count)), 10, options={"g": "6"})


def test_folders(moving, tmp_path):
    videos = folder_videos(moving / "train")
    assert videos.classes == ("down", "right", "still")
    assert len(videos) == 24
    assert videos.names()[:2] == ["down/0.mp4", "down/1.mp4"]
    (tmp_path / "one").mkdir()
    with pytest.raises(DataError, match="one: no videos in it; known endings: .mp4"):
        folder_videos(tmp_path)
    with pytest.raises(DataError, match="gone: no such folder"):
        folder_videos(tmp_path / "gone")


@pytest.mark.parametrize(
    ("text", "classes", "labels"),
    [
        ("a/1.mp4 2\nb 2.mp4 0\n", ("0", "2"), [1, 0]),
        ("a/1.mp4,walk\nb,2.mp4,run\n", ("run", "walk"), [1, 0]),
        ("a/1.mp4\t10\nb.mp4\t9\n", ("9", "10"), [1, 0]),
        ("fname,label,place\na.mp4,up,x\nb.mp4,down,y\n", ("down", "up"), [1, 0]),
        ("label,path\nup,a.mp4\ndown,b.mp4\n\n", ("down", "up"), [1, 0]),
    ],
)
def test_path_label_lists(tmp_path, text, classes, labels):
    file = tmp_path / "list.txt"
    file.write_text(text)
    videos = list_videos(file, tmp_path)
    assert videos.classes == classes
    assert [v.label for v in videos.items] == labels
    assert videos.items[0].path.parent in (tmp_path, tmp_path / "a")


def test_kinetics_csv(moving, tmp_path):
    """Trimmed files by their time, whole ones with a segment, and what is not there stays, without a path."""
    (tmp_path / "videos/some_class").mkdir(parents=True)
    clip = moving / "train/down/0.mp4"
    shutil.copy(clip, tmp_path / "videos/some_class/-abc_def_000012_000022.mp4")
    shutil.copy(clip, tmp_path / "videos/xyz.mkv")
    file = tmp_path / "val.csv"
    file.write_text(
        "label,youtube_id,time_start,time_end,split\n"
        '"a, b",-abc_def,12,22,val\njump,xyz,0.2,0.9,val\njump,gone,1,11,val\n"a, b",xyz,5,15,val\n'
    )
    videos = kinetics_videos(file, tmp_path / "videos")
    assert videos.classes == ("a, b", "jump")
    assert [(v.name, v.label, v.segment) for v in videos.items] == [
        ("-abc_def_000012_000022", 0, None),
        ("xyz_000000_000000", 1, (0.2, 0.9)),
        ("gone_000001_000011", 1, None),
        ("xyz_000005_000015", 0, (5.0, 15.0)),
    ]
    indexed = index_videos(videos, Index(tmp_path / "index.json", tmp_path / "videos"))
    assert len(indexed) == 2
    assert "gone_000001_000011: no such file below" in indexed.failures["gone_000001_000011"]
    assert "5 s is past its end at 1.2 s" in indexed.failures["xyz_000005_000015"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "list.csv: is empty"),
        ("justonefield\n", "line 1: 'path label' is expected, not 'justonefield'"),
        ("path,label\na.mp4\n", "line 2: 2 fields are expected"),
        ("label,youtube_id\nx,y\n", "time_start, time_end missing"),
        ("label,youtube_id,time_start,time_end\nx,y,a,3\n", "line 2: time_start and time_end are seconds"),
        ("label,youtube_id,time_start,time_end\nx,y,4,3\n", "line 2: time_start=4 is not before time_end=3"),
    ],
)
def test_lists_that_are_not_right(tmp_path, text, message):
    file = tmp_path / "list.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        (kinetics_videos if "youtube" in text else list_videos)(file, tmp_path)


def test_unknown_classes_are_named(tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4 jump\n")
    with pytest.raises(DataError, match=r"list.txt, line 1: class 'jump' is not one of run, walk"):
        list_videos(tmp_path / "list.txt", tmp_path, ["run", "walk"])


# -- the index --------------------------------------------------------------------------------------


@pytest.fixture
def some(moving, tmp_path):
    """A copy of the training videos, one of them broken."""
    root = tmp_path / "some"
    shutil.copytree(moving / "train", root)
    (root / "down/3.mp4").write_bytes(b"not a video")
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_the_index_is_made_once_and_tells_the_truth(some, workers, monkeypatch):
    videos = folder_videos(some)
    file = some.parent / "index.json"
    first = index_videos(videos, Index(file, some), workers=workers)
    assert len(first) == 23
    assert list(first.failures) == ["down/3.mp4"]
    record = json.loads(file.read_text())["videos"]["right/1.mp4"]
    assert record["frames"] == 12
    assert record["fps"] == 10
    assert record["duration"] == 1.2
    assert record["decodable"]
    monkeypatch.setattr(index_module, "probe", lambda path: pytest.fail("looked again"))
    again = index_videos(videos, Index(file, some))
    assert again.failures == first.failures
    assert first.infos == again.infos


def test_a_changed_file_is_looked_into_again(some):
    videos, file = folder_videos(some), some.parent / "index.json"
    index_videos(videos, Index(file, some))
    shutil.copy(some / "down/2.mp4", some / "down/3.mp4")
    assert not index_videos(videos, Index(file, some)).failures
    (some / "down/2.mp4").unlink()
    assert "no such file" in index_videos(videos, Index(file, some)).failures["down/2.mp4"]


def test_varying_times_survive_the_index(tmp_path):
    times = np.cumsum(np.random.RandomState(1).choice([20, 40, 90], 40)).tolist()
    (tmp_path / "a").mkdir()
    video(tmp_path / "a/x.mp4", pts=times)
    videos, file = folder_videos(tmp_path), tmp_path / "index.json"
    (fresh,) = index_videos(videos, Index(file, tmp_path)).infos
    (stored,) = index_videos(videos, Index(file, tmp_path)).infos
    assert fresh == stored == probe(tmp_path / "a/x.mp4")
    np.testing.assert_allclose(stored.times * 1000, np.array(times) - times[0], atol=1)


def test_a_damaged_entry_is_named(some):
    videos, file = folder_videos(some), some.parent / "index.json"
    index_videos(videos, Index(file, some))
    content = json.loads(file.read_text())
    content["videos"]["down/1.mp4"]["steps"] = [[1, 2]]
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="down/1.mp4: its entry in the index of videos is damaged; remove the index"):
        index_videos(videos, Index(file, some))


def test_an_index_that_is_something_else(some):
    file = some.parent / "index.json"
    file.write_text("{}")
    with pytest.raises(DataError, match="index.json: not an index of videos; remove it"):
        Index(file, some)
    assert file.read_text() == "{}"
    (some.parent / "x").write_text("a file where a folder is needed")
    nowhere = Index(some.parent / "x/index.json", some)
    with pytest.raises(DataError, match=r"x/index.json: cannot be written .*set data.index=FILE"):
        index_videos(folder_videos(some), nowhere)


# -- training ---------------------------------------------------------------------------------------


def config(root, output, model=None, data=None, **train):
    content = {
        "task": "video",
        "output": str(output),
        "model": {"name": "rescale_r3d_10", "options": {"width": 0.25}, **(model or {})},
        "data": {
            "root": str(root),
            "index": str(Path(output).parent / "index.json"),
            "clip": {"frames": 4, "interval": None, "fps": None},
            "size": 16,
            "resize": 16,
            "augment": {"short_side": [16, 20], "flip": 0},
            "eval_batch_size": 4,
            **(data or {}),
        },
        "train": {
            "epochs": 2,
            "batch_size": 8,
            "optimizer": {"name": "adamw", "lr": 0.003, "clip_norm": 1.0},
            "log_every": 1,
            "checkpoint_minutes": 0,
            "calibration_batches": 2,
            **train,
        },
    }
    return check(content, "the test's config")


def fit(root, output, **settings):
    return Trainer(make_task(config(root, output, **settings))).fit()


def test_it_learns_motion(moving, tmp_path):
    """It fits its training videos, each of which shows the same bar; a third by chance."""
    model = {"options": {"width": 0.5, "projection_gain": 2.0}}
    data = {"clip": {"frames": 8, "interval": None, "fps": None}, "val": "train"}
    optimizer = {"name": "adamw", "lr": 0.005, "clip_norm": 1.0}
    metrics = fit(
        moving,
        tmp_path / "run",
        model=model,
        data=data,
        optimizer=optimizer,
        epochs=25,
        batch_size=4,
        eval_every=25,
        checkpoint_minutes=10,
    )
    assert metrics["top1"] >= 60
    assert (tmp_path / "run/curves.png").exists()
    assert (tmp_path / "run/evaluation/confusion.png").exists()
    assert read_predictions(tmp_path / "run/evaluation/predictions.npz").metrics() == pytest.approx(metrics)
    entry = zoo.get_weights(str(tmp_path / "run/checkpoints/last.safetensors"))
    assert task_of(entry) == "video"
    assert entry.transform.interval is None
    assert entry.transform.frames == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_resumes_to_the_bit(moving, tmp_path, workers):
    fit(moving, tmp_path / "whole", workers=workers)
    task = make_task(config(moving, tmp_path / "cut", workers=workers))
    trainer = Trainer(task)
    losses = task.losses

    def stop(*arguments):
        if trainer.at.step == 4:
            raise KeyboardInterrupt
        return losses(*arguments)

    task.losses = stop
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    Trainer(make_task(config(moving, tmp_path / "cut", workers=workers)), resume=True).fit()
    whole, cut = (read_log(tmp_path / run / "log.jsonl") for run in ("whole", "cut"))
    assert whole == cut
    for name in ("last", "best"):
        a, b = ((tmp_path / run / f"checkpoints/{name}.safetensors") for run in ("whole", "cut"))
        a, b = (zoo.get_weights(str(path)).load() for path in (a, b))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_two_processes_give_what_one_gives(moving, tmp_path):
    """Same global batch in float64, three crops of two clips: losses, metrics, predictions and weights."""
    root = tmp_path / "data"
    shutil.copytree(moving, root)
    (root / "val/down/1.mp4").write_bytes(b"broken")
    settings = {"precision": "fp64", "data": {"eval_clips": 2, "eval_crops": 3}}
    fit(root, tmp_path / "one", **settings)
    path = tmp_path / "config.yaml"
    path.write_text(engine_cfg.dump(config(root, tmp_path / "two", **settings)))
    on_two_processes("train", path)
    one, two = (read_log(tmp_path / run / "log.jsonl") for run in ("one", "two"))
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"event", "blocks"}:
            assert a[key] == pytest.approx(b[key], rel=1e-9), key
    assert one[-2]["failed"] == 1
    assert one[-2]["videos"] == 8
    first, second = (read_predictions(tmp_path / run / "evaluation/predictions.npz") for run in ("one", "two"))
    assert first.names == second.names
    assert first.failures == second.failures
    torch.testing.assert_close(first.multi, second.multi, rtol=1e-8, atol=1e-10)


def test_image_weights_are_inflated(moving, tmp_path):
    source = zoo.create_model("rescalenet50", width=0.125, num_classes=4)
    zoo.calibrate(source, [torch.randn(2, 3, 64, 64)])
    path = tmp_path / "images.safetensors"
    transform = zoo.InputTransform(64, 64, (0.5,) * 3, (0.25,) * 3)
    zoo.save_weights(source, path, transform=transform, classes=list("abcd"))
    model = {"name": "rescale_i3d_r50", "weights": str(path), "options": {"drop_rate": 0.1}}
    task = make_task(config(moving, tmp_path / "run", model=model, data={"size": 16}))
    net = task.build_model()
    assert net.fc.out_features == net.config.num_classes == 3
    assert torch.equal(net.stem.conv1.weight[:, :, 2], source.stem.conv1.weight)
    assert Trainer(task).fit()["videos"] == 9


# -- what fails -------------------------------------------------------------------------------------


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


def test_a_disk_that_fills(moving, tmp_path):
    """No file may grow beyond what a first checkpoint took: the second cannot be written, the first stays whole."""
    fit(moving, tmp_path / "run", epochs=1)
    before = (tmp_path / "run/checkpoints/last.pt").read_bytes()
    path = tmp_path / "config.yaml"
    path.write_text(engine_cfg.dump(config(moving, tmp_path / "run", epochs=1)))
    stored = engine_cfg.read_yaml(tmp_path / "run/config.yaml")
    stored["train"]["epochs"] = 2  # go on for longer
    (tmp_path / "run/config.yaml").write_text(engine_cfg.yaml.safe_dump(stored))
    limit = len(before) // 2

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "tasks.cli", "train", str(path), "train.epochs=2", "--resume"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, preexec_fn=little_room)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "cannot be written (File too large); make room and go on with --resume" in last
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run/checkpoints/last.pt").read_bytes() == before
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "bf16"}, "train.precision=bf16: 3D convolutions give wrong gradients on the CPU"),
        ({"model": {"name": "rescalenet18"}}, "model.name=rescalenet18: takes images, not clips"),
        (
            {"data": {"size": 8, "resize": 8, "augment": {"short_side": [8, 8]}}},
            "data.size=8: rescale_r3d_10 needs at least 16",
        ),
    ],
)
def test_configs_that_cannot_work(moving, tmp_path, settings, message, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    task = make_task(config(moving, tmp_path / "run", **settings))
    with pytest.raises(ConfigError, match=message):
        task.build_model()


def test_image_tasks_refuse_video_nets(images, tmp_path):  # noqa: F811
    task = make_task(image_config(images, tmp_path / "run", model={"name": "rescale_r3d_10"}))
    with pytest.raises(
        ConfigError, match="model.name=rescale_r3d_10: takes clips, not images; others: rescalenet list"
    ):
        task.build_model()
    with pytest.raises(ZooError, match="mask_rcnn_rescale_i3d_r50_fpn: rescale_i3d_r50 takes clips, not images"):
        create_detector("mask_rcnn_rescale_i3d_r50_fpn")


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"size=32 must be at most resize=16"):
        section(size=32)


# -- evaluation -------------------------------------------------------------------------------------


class Recorder(nn.Module):
    """Logits that depend on the clip alone, and a record of what came in."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return torch.stack([x.mean((2, 3, 4)), x[:, :, -1].std((2, 3))]).sum(0) @ self.weight


def test_views_are_averaged_over_clips_and_crops(moving, tmp_path):
    """Ten clips of three crops, against the average of their softmax taken by hand."""
    videos = index_videos(folder_videos(moving / "val"), Index(tmp_path / "i.json", moving / "val"))
    transform = layout(4, 1.0, 10.0, 16, 18)
    data = EvalSet(videos, transform, 10, 3)
    model = Recorder().double().eval()
    from tasks.devices import make_accelerator

    result = evaluate(
        model,
        data,
        make_accelerator(),
        classes=videos.classes,
        inputs=lambda clips: standardised(clips, transform, torch.float64),
        batch_size=4,
    )
    assert len(result.names) == 9
    for number, (item, info) in enumerate(zip(videos.items, videos.infos, strict=True)):
        views = []
        for indices in ClipSampler(transform).uniform(info, 10):
            clip = torch.from_numpy(read_frames(item.path, info, indices.tolist())).permute(0, 3, 1, 2)
            views.append(crops(clip, transform, 3))
        with torch.no_grad():
            scores = model(standardised(torch.cat(views), transform, torch.float64)).softmax(1)
        assert len(scores) == 30
        torch.testing.assert_close(result.multi[number], scores.mean(0))
    metrics = result.metrics()
    assert {"top1", "top5", "macro_f1", "top1_10x3", "top5_10x3", "macro_f1_10x3", "videos", "failed"} <= metrics.keys()


def test_figures_are_sklearns():
    from sklearn.metrics import balanced_accuracy_score, f1_score, top_k_accuracy_score

    from tasks.video.evaluate import Result

    torch.manual_seed(0)
    labels, scores = torch.randint(0, 7, (90,)), torch.rand(90, 7).softmax(1)
    result = Result(tuple("abcdefg"), [str(i) for i in range(90)], labels, scores, None, 1, 1, {"x": "gone"})
    metrics, best = result.metrics(), scores.argmax(1)
    assert metrics["top1"] == pytest.approx(100 * (labels == best).float().mean().item())
    assert metrics["top5"] == pytest.approx(100 * top_k_accuracy_score(labels, scores, k=5))
    assert metrics["mean_class"] == pytest.approx(100 * balanced_accuracy_score(labels, best))
    assert metrics["macro_f1"] == pytest.approx(100 * f1_score(labels, best, average="macro"))
    assert (metrics["videos"], metrics["failed"]) == (90, 1)


@pytest.fixture(scope="module")
def weights(moving, tmp_path_factory):
    """A narrow net, calibrated, as a weights file."""
    torch.manual_seed(0)
    model = zoo.create_model("rescale_r3d_10", width=0.25, num_classes=3)
    zoo.calibrate(model, [torch.randn(4, 3, 4, 16, 16)])
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    zoo.save_weights(
        model, path, transform=layout(4, 2.0, 10.0, 16, 18), classes=["down", "right", "still"], meta={"licence": "MIT"}
    )
    return path


def test_predictions_are_saved_and_scored_again(moving, weights, tmp_path):
    entry = zoo.get_weights(str(weights))
    result = evaluate_weights(
        load_model(entry),
        entry,
        folder_videos(moving / "val"),
        Index(tmp_path / "i.json", moving / "val"),
        clips=2,
        out=tmp_path / "out",
    )
    again = read_predictions(tmp_path / "out/predictions.npz")
    assert again.metrics() == result.metrics()
    assert again.table() == result.table()
    assert json.loads((tmp_path / "out/metrics.json").read_text())["metrics"] == result.metrics()
    (tmp_path / "other.npz").write_bytes(b"something else")
    with pytest.raises(DataError, match="other.npz: not predictions that an evaluation wrote"):
        read_predictions(tmp_path / "other.npz")
    save_predictions(again, tmp_path / "copy.npz")
    assert torch.equal(read_predictions(tmp_path / "copy.npz").multi, result.multi)


def test_the_command_line(moving, weights, tmp_path, capsys, monkeypatch):
    index = tmp_path / "i.json"
    code, out, _ = call(
        capsys,
        monkeypatch,
        "eval",
        weights,
        moving / "val",
        "--index",
        index,
        "--clips",
        10,
        "--crops",
        3,
        "--out",
        tmp_path / "e",
    )
    assert code == 0
    assert "top1_10x3 " in out
    assert "videos 9  failed 0" in out
    listed = tmp_path / "list.csv"
    listed.write_text("path,label\ndown/0.mp4,down\nstill/1.mp4,still\ngone.mp4,right\n")
    code, out, err = call(capsys, monkeypatch, "eval", weights, listed, "--videos", moving / "val", "--index", index)
    assert code == 0
    assert "videos 2  failed 1" in out
    assert "gone.mp4: no such file" in err
    subset = tmp_path / "subset.txt"
    subset.write_text("down/0.mp4\nright/2.mp4\n")
    _, out, _ = call(capsys, monkeypatch, "eval", weights, moving / "val", "--subset", subset, "--index", index)
    assert "videos 2  failed 0" in out
    code, _, err = call(capsys, monkeypatch, "eval", weights, moving / "val", "--images", moving)
    assert code == 1
    assert "error: --images is not for video" in err
    code, out, _ = call(capsys, monkeypatch, "info", weights)
    assert json.loads(out)["transform"]["frames"] == 4
    code, out, _ = call(capsys, monkeypatch, "export", weights, "--out", tmp_path / "n.onnx")
    assert "agrees in onnxruntime" in out


# -- prediction -------------------------------------------------------------------------------------


def test_prediction_of_files_and_folders(moving, weights, tmp_path, capsys, monkeypatch):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    long = tmp_path / "long.mp4"
    write_bar(long, "right", np.random.RandomState(5), count=45)
    code, out, err = call(
        capsys,
        monkeypatch,
        "predict",
        weights,
        moving / "val/down",
        long,
        tmp_path / "bad.mp4",
        "--annotate",
        "--window",
        1,
        "--step",
        0.4,
        "--out",
        tmp_path / "p",
    )
    assert code == 0
    assert out.count(".mp4: ") == 4
    assert "skipped: " in err
    assert "1 of 5 files could not be read" in err
    content = json.loads((tmp_path / "p/predictions.json").read_text())
    assert len(content["predictions"]) == 4
    assert list(content["failed"]) == [str(tmp_path / "bad.mp4")]
    for row in content["predictions"]:
        assert sum(row["scores"]) == pytest.approx(1, abs=1e-5)  # all three classes
        assert row["scores"] == sorted(row["scores"], reverse=True)
    windows = json.loads((tmp_path / "p/long.timeline.json").read_text())["windows"]
    assert [w["begin"] for w in windows] == pytest.approx([0, 0.4, 0.8, 1.2, 1.6, 2.0, 2.4, 2.8, 3.2, 3.5])
    assert windows[-1]["end"] == pytest.approx(4.5)
    assert (tmp_path / "p/long.timeline.png").stat().st_size > 1000
    assert (tmp_path / "p/contact_sheet.png").exists()
    copy, original = probe(tmp_path / "p/long.annotated.mp4"), probe(long)
    assert copy.frames == original.frames == 45
    np.testing.assert_allclose(copy.times, original.times, atol=1e-3)
    assert not list((tmp_path / "p").glob(".*"))


def test_windows_are_the_clips_they_say(moving, weights, tmp_path):
    """A window's scores are those of the clip in its middle."""
    path = tmp_path / "a.mp4"
    write_bar(path, "down", np.random.RandomState(2), count=40)
    entry = zoo.get_weights(str(weights))
    model = load_model(entry).eval()
    (found,), failed = predict(model, entry, [path], window=2.0, step=1.0)
    assert not failed
    info = probe(path)
    clip = ClipSampler(entry.transform).uniform(info, 1, (1.0, 3.0))[0]
    frames = torch.from_numpy(read_frames(path, info, clip.tolist())).permute(0, 3, 1, 2)
    with torch.no_grad():
        scores = model(entry.transforms()(frames)[None]).softmax(1)[0]
    window = found.timeline[1]
    assert (window.begin, window.end) == (1.0, 3.0)
    assert window.classes[0] == entry.classes[int(scores.argmax())]
    assert window.scores[0] == pytest.approx(scores.max().item(), rel=1e-4)


def test_prediction_refuses_what_makes_no_sense(weights, moving):
    entry = zoo.get_weights(str(weights))
    model, file = load_model(entry), moving / "val/down/0.mp4"
    with pytest.raises(UserError, match="window=0: seconds, greater than 0"):
        predict(model, entry, [file], window=0)
    with pytest.raises(UserError, match="annotated copies need a folder"):
        predict(model, entry, [file], annotate=True)

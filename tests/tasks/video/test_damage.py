"""Videos of which a part cannot be read: that part is named, the rest is used."""

import json

import av
import numpy as np
import pytest

import zoo
from tasks.errors import DataError
from tasks.spec import load_model, make_task
from tasks.video.data import EvalSet, index_videos
from tasks.video.decode import find_frames, probe, read_frames
from tasks.video.evaluate import evaluate_weights, read_predictions
from tasks.video.index import Index
from tasks.video.predict import classify_videos
from tasks.video.sources import folder_videos
from tests.helpers.tasks import predict_all
from tests.helpers.video import config, layout, video


def remux(source, target, **options):
    """Copy a video into another container."""
    with av.open(str(source)) as whole, av.open(str(target), "w", options=options) as out:
        stream = out.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    return target


def cut(path, share=2 / 3):
    """Keep the beginning of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def damage(path, number):
    """Overwrite a packet with noise."""
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][number]
        position, size = packet.pos, packet.size
    content = bytearray(path.read_bytes())
    content[position : position + size] = np.random.RandomState(0).bytes(size)
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """8 seconds, a key frame every 10 frames, the header in front."""
    folder = tmp_path_factory.mktemp("long")
    source = video(folder / "a.mp4", count=200, g=10, bf=0, x264_params="scenecut=0")
    return remux(source, folder / "front.mp4", movflags="+faststart")


@pytest.mark.parametrize("name", ["b.mp4", "b.mkv"])
def test_a_cut_file_keeps_its_beginning_and_its_length(long, tmp_path, name):
    whole = remux(long, tmp_path / name, **({"movflags": "+faststart"} if name == "b.mp4" else {}))
    frames = read_frames(whole, probe(whole), range(200))
    info = probe(cut(whole))
    assert info.frames == 200
    assert info.duration == pytest.approx(8.0)
    assert info.notes == ("cut",)
    found = find_frames(whole, info, range(200))
    kept = len(found.frames)
    assert 100 < kept < 150
    assert found.missing == list(range(kept, 200))
    assert all(np.array_equal(frames[i], frame) for i, frame in found.frames.items())
    with pytest.raises(DataError, match=rf"{name}: 1 frame cannot be decoded, at 7.60 s; get it again"):
        read_frames(whole, info, [3, 190])


@pytest.mark.parametrize("name", ["b.ts", "b.flv", "b.mpg"])
def test_a_cut_stream_is_shorter(long, tmp_path, name):
    """These containers do not tell how long they are."""
    if name == "b.mpg":
        video(tmp_path / name, count=200, codec="mpeg2video", g=10)
    else:
        remux(long, tmp_path / name)
    info = probe(cut(tmp_path / name))
    assert 100 < info.frames < 150
    found = find_frames(tmp_path / name, info, range(info.frames))
    assert len(found.missing) <= 10  # of the last group


@pytest.mark.parametrize("skipped", [[], [9, 84]])
def test_nothing_is_trusted_between_damage_and_the_next_key_frame(long, tmp_path, skipped):
    path = tmp_path / "bad.mp4"
    path.write_bytes(long.read_bytes())
    whole = read_frames(path, probe(path), range(200))
    info = probe(damage(path, 83))
    wanted = [i for i in range(200) if i not in skipped]
    found = find_frames(path, info, wanted)
    assert {83, 85, 89} <= set(found.missing) <= set(range(80, 90))
    assert all(np.array_equal(whole[i], frame) for i, frame in found.frames.items())


def test_windows_that_can_be_read_are_kept(long, weights, tmp_path, capsys):
    path = tmp_path / "bad.mp4"
    path.write_bytes(long.read_bytes())
    damage(path, 83)
    entry = zoo.get_weights(str(weights))
    (found,), failed = predict_all(classify_videos, load_model(entry), entry, [path], window=0.5, step=0.5, workers=0)
    assert not failed
    assert [(w.begin, w.end) for w in found.unread_windows] == [(3.0, 3.5), (3.5, 4.0)]
    assert "cannot be decoded, the first at 3.4" in found.unread_windows[0].reason
    assert len(found.timeline) == 14
    assert found.unread_clips == 1
    said = capsys.readouterr().err
    assert "left out: 1 of 10 clips and 2 of 16 windows (3-3.5 s, 3.5-4 s): " in said


def test_a_cut_video_on_the_command_line(long, weights, tmp_path, capsys):
    path = tmp_path / "cut.mp4"
    path.write_bytes(long.read_bytes())
    cut(path)
    entry = zoo.get_weights(str(weights))
    (found,), failed = predict_all(classify_videos, load_model(entry), entry, [path], window=1, step=1)
    assert not failed
    assert [w.begin for w in found.timeline] == [0, 1, 2, 3, 4]
    assert [w.begin for w in found.unread_windows] == [5, 6, 7]
    assert "are cut; clips from the missing part fail: " in capsys.readouterr().err


def test_a_video_without_any_clip_fails_with_its_reason(weights, tmp_path):
    path = remux(
        video(tmp_path / "a.mp4", count=60, g=100, bf=0, x264_params="scenecut=0"),
        tmp_path / "b.mp4",
        movflags="+faststart",
    )
    damage(path, 1)
    entry = zoo.get_weights(str(weights))
    found, failed = predict_all(classify_videos, load_model(entry), entry, [path], clips=2)
    assert not found
    assert "cannot be decoded, the first at" in failed[str(path)]


@pytest.fixture
def damaged_set(long, tmp_path):
    """Two videos, of which one cannot be read between 3.2 and 3.6 s."""
    root = tmp_path / "set"
    for name in ("down", "right", "still"):
        (root / name).mkdir(parents=True)
        (root / name / "0.mp4").write_bytes(long.read_bytes())
    damage(root / "right/0.mp4", 80)
    return root


def test_an_evaluation_uses_the_clips_that_can_be_read(damaged_set, weights, tmp_path):
    entry = zoo.get_weights(str(weights))
    model = load_model(entry)
    index = Index(tmp_path / "i.json", damaged_set)
    result = evaluate_weights(model, entry, folder_videos(damaged_set), index, clips=10, out=tmp_path / "e")
    assert not result.failures
    assert list(result.damaged) == ["right/0.mp4"]
    assert result.damaged["right/0.mp4"].startswith("1 of 10 clips left out: ")
    assert result.metrics()["damaged"] == 1
    assert read_predictions(tmp_path / "e/predictions.npz").damaged == result.damaged
    assert json.loads((tmp_path / "e/metrics.json").read_text())["damaged"] == result.damaged
    # the score is the mean over the nine others
    data = EvalSet(index_videos(folder_videos(damaged_set), index), entry.transform, 10, 1)
    views, whole = data[1], data[0]
    assert views.good.count(False) == 1
    kept = [i for i, good in enumerate(views.good) if good]
    assert (views.clips[kept] == whole.clips[kept]).all()


def test_a_training_clip_from_the_damaged_part_fails(damaged_set, tmp_path):
    """It is counted, and no other clip takes its place."""
    (damaged_set / "train").mkdir()
    for name in ("down", "right", "still"):
        (damaged_set / name).rename(damaged_set / "train" / name)
    data = {"val": "train", "max_failed": 1.0, "clip": {"frames": 2, "interval": 1, "fps": 25}}
    task = make_task(config(damaged_set, tmp_path / "run", data=data))
    train = task.train_set()
    samples = [train[draw, 1] for draw in range(60)]
    failed = [sample for sample in samples if sample.failure]
    assert 1 <= len(failed) <= 12
    assert all(
        sample.label == -1 and not sample.clip.any() and "cannot be decoded" in sample.failure for sample in failed
    )
    assert all(sample.label == 1 for sample in samples if not sample.failure)


def test_clips_of_resized_frames_equal_those_of_whole_ones(long, tmp_path):
    """Resizing each frame when it is decoded gives what a resize of the whole clip gave, to the bit."""
    import torch
    from torchvision.transforms import v2

    from tasks.video.transforms import FrameResize, crops

    info = probe(long)
    whole = torch.from_numpy(read_frames(long, info, [0, 50, 190])).permute(0, 3, 1, 2)
    for mode in ("center", "squash"):
        transform = zoo.VideoTransform(3, None, None, 16, 20, (0.5,) * 3, (0.5,) * 3, mode)
        small = read_frames(long, info, [0, 50, 190], FrameResize(20, transform))
        small = torch.from_numpy(small).permute(0, 3, 1, 2)
        assert torch.equal(small, v2.functional.resize(whole, transform.resized(20), antialias=True))
        assert torch.equal(crops(small, transform, 1), crops(whole, transform, 1))
    wide = FrameResize(24, layout(size=24, resize=24), 1.5)(np.zeros((48, 64, 3), np.uint8))
    assert wide.shape == (24, 48, 3)  # 96 by 48 on the screen
    tall = FrameResize(24, layout(size=24, resize=24), 0.5)(np.zeros((48, 64, 3), np.uint8))
    assert tall.shape == (36, 24, 3)

"""Prediction over windows of a video."""

import numpy as np
import pytest
import torch

import zoo
from tasks.errors import UserError
from tasks.spec import load_model
from tasks.video.decode import probe, read_frames
from tasks.video.predict import classify_videos
from tasks.video.sampling import ClipSampler
from tests.helpers.tasks import predict_all
from tests.helpers.video import video, write_bar


def test_windows_are_the_clips_they_say(moving, weights, tmp_path):
    """A window's scores are those of the clip in its middle."""
    path = tmp_path / "a.mp4"
    write_bar(path, "down", np.random.RandomState(2), count=40)
    entry = zoo.get_weights(str(weights))
    model = load_model(entry).eval()
    (found,), failed = predict_all(classify_videos, model, entry, [path], window=2.0, step=1.0)
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


def test_a_timeline_of_too_many_windows_costs_its_file_alone(moving, weights, tmp_path):
    """As where a clock that was set leaves years between two frames, or where seconds are taken for milliseconds."""
    entry = zoo.get_weights(str(weights))
    times = [100 * number + (number >= 20) * 10**11 for number in range(40)]  # milliseconds
    whole, jump = moving / "val/down/0.mp4", video(tmp_path / "jump.mkv", pts=times, bf=0)
    found, failed = predict_all(classify_videos, load_model(entry).eval(), entry, [jump, whole], window=1.0)
    assert [each.file for each in found] == [str(whole)]
    assert "windows of 1 s, one each 0.5 s; there may be 100000: raise --window or --step" in failed[str(jump)]


def test_prediction_refuses_what_makes_no_sense(weights, moving):
    entry = zoo.get_weights(str(weights))
    model, file = load_model(entry), moving / "val/down/0.mp4"
    with pytest.raises(UserError, match="window=0: must be > 0"):
        predict_all(classify_videos, model, entry, [file], window=0)
    with pytest.raises(UserError, match="step=inf: must be > 0 and finite"):
        predict_all(classify_videos, model, entry, [file], window=1, step=float("inf"))
    with pytest.raises(UserError, match="annotate=True requires out"):
        predict_all(classify_videos, model, entry, [file], annotate=True)

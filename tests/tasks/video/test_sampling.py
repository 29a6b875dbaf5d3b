"""Which frames of a video make a clip."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.video.decode import VideoInfo
from tasks.video.sampling import ClipSampler, frames_at
from tests.helpers.video import layout

REST = {"keys": (0,), "seekable": True, "width": 32, "height": 32}


def info_of(times):
    """A video with frames at these milliseconds."""
    return VideoInfo.from_times([int(t) for t in times], time_base=Fraction(1, 1000), **REST)


def steady(frames, fps):
    return VideoInfo.from_times(range(frames), time_base=Fraction(1, fps), **REST)


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


@given(
    steps=st.lists(st.integers(10, 400), min_size=1, max_size=60),
    frames=st.integers(1, 9),
    interval=st.one_of(st.none(), st.floats(0.5, 60)),
    begin=st.floats(0, 30),
    length=st.floats(0.001, 30),
    delay=st.floats(0, 2),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=200, deadline=None)
def test_clips_stay_in_their_segment(steps, frames, interval, begin, length, delay, seed):
    """As after a cut: every frame begins in the segment; if none does, it is the one on the screen."""
    times = np.concatenate([[0], np.cumsum(steps)])
    info = VideoInfo.from_times(times.tolist(), time_base=Fraction(1, 1000), delay=delay, **REST)
    clock = times / 1000 + delay
    segment = (begin, begin + length)
    inside = np.flatnonzero((clock >= begin - 2e-4) & (clock < begin + length))
    sampler = ClipSampler(layout(frames, interval))
    for clip in (sampler.random(info, np.random.default_rng(seed), segment), *sampler.uniform(info, 3, segment)):
        assert len(clip) == frames
        if len(inside):
            assert set(clip.tolist()) <= set(inside.tolist())
        else:
            assert len(set(clip.tolist())) == 1
            assert clock[clip[0]] <= max(begin, clock[0]) + 2e-4


def test_a_segment_shorter_than_a_clip_repeats_its_last_frame():
    """8 frames 8/30 s apart take 2 s; the segment has 1 s, and the video goes on behind it."""
    info = steady(300, 30)
    assert ClipSampler(layout()).uniform(info, 1, (2.0, 3.0)).tolist() == [[60, 68, 76, 84, 89, 89, 89, 89]]

"""Memory of large frames and of large sets."""

import subprocess
import sys
from fractions import Fraction

import numpy as np

from tasks.compact import Packed
from tasks.video.decode import VideoInfo
from tasks.video.sources import Video
from tests.helpers.commands import environment
from tests.helpers.paths import ROOT
from tests.helpers.video import video

# Reads 64 frames of a video, resized to 64 px, within a limit of address space beyond what the program has loaded.
PROGRAM = """
import sys
import zoo
from tasks.video.decode import probe, read_frames
from tasks.video.transforms import FrameResize
from tests.helpers.memory import more_memory
import torch
torch.set_num_threads(1)
path = sys.argv[1]
transform = zoo.VideoTransform(64, None, None, 64, 64, (0.5,) * 3, (0.5,) * 3)
info = probe(path)
read_frames(path, info, [0], FrameResize(64, transform))
with more_memory(int(sys.argv[2])):
    frames = read_frames(path, info, list(range(64)), FrameResize(64, transform) if sys.argv[3] == "small" else None)
print(frames.shape)
"""


def test_frames_are_resized_as_they_are_decoded(tmp_path):
    """64 frames of 1920 x 1080 take 400 MB; 150 MB more than for one frame are enough at the size of the net."""
    path = video(tmp_path / "large.mp4", count=64, size=(1920, 1080), preset="ultrafast")
    results = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(path), str(150 * 2**20), kind],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
        )
        for kind in ("small", "whole")
    ]
    assert results[0].returncode == 0, results[0].stderr[-1000:]
    assert results[0].stdout.strip() == "(64, 64, 113, 3)"
    assert results[1].returncode != 0  # the limit is one


# Evaluates a set of 10,000 videos without decoding any, within a limit as above.
SCORES = """
import sys
from types import SimpleNamespace
import torch
from tasks.devices import make_accelerator
from tasks.video.data import Views
from tasks.video.evaluate import evaluate
from tests.helpers.memory import more_memory
torch.set_num_threads(1)

class Set:
    clips, crop_count, count = 2, 1, 3
    def __init__(self, videos):
        items = [SimpleNamespace(name="x", label=0)] * videos
        self.videos = SimpleNamespace(items=items, failures={})
    def __len__(self):
        return len(self.videos.items)
    def __getitem__(self, number):
        return Views(torch.full((3, 1, 3, 1, 1), number % 256, dtype=torch.uint8), number, "", (True,) * 3)

model = torch.nn.Linear(3, 400)
def scored(videos):
    return evaluate(model, Set(videos), make_accelerator(), classes=range(400), batch_size=500,
                    inputs=lambda clips: clips.flatten(1).float())
scored(1000)
with more_memory(int(sys.argv[1])):
    print(tuple(scored(10_000).multi.shape))
"""


def test_scores_of_large_sets_are_arrays():
    """10,000 x 400 scores of 8 bytes, twice, take 64 MB; as lists of numbers they took 300 MB more."""
    arguments = [sys.executable, "-c", SCORES, str(250 * 2**20)]
    found = subprocess.run(arguments, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert found.stdout.strip() == "(10000, 400)", found.stderr[-1000:]


def test_a_packed_sequence_is_the_sequence():
    items = [Video(f"a/{n}.mp4", None, n % 7, (n, n + 0.5) if n % 3 else None) for n in range(100)]
    packed = Packed(items)
    assert list(packed) == items
    assert packed == items
    assert packed[-1] == items[-1]
    assert packed[3:9:2] == items[3:9:2]
    assert len(packed) == 100
    assert packed != items[1:]
    assert len(Packed([])) == 0


def test_a_large_set_takes_little_memory():
    """Less than 1 KiB for each video of ten seconds in Matroska, of which the old runs alone had 36 KiB."""
    times = [int(n * 1000 / 30 + 0.5) for n in range(300)]
    rest = {"keys": tuple(range(0, 300, 60)), "seekable": True, "width": 320, "height": 240, "codec": "h264"}
    info = VideoInfo.from_times(times, time_base=Fraction(1, 1000), **rest)
    packed = Packed([info] * 100)
    assert packed.nbytes / 100 < 1024
    assert packed[7] == info
    np.testing.assert_array_equal(packed[99].pts, times)

"""Prediction over many files of all kinds: memory stays flat, and every file is accounted for."""

import json
import os
import subprocess
import sys

import pytest

from tests.fuzz.videos import make_videos
from tests.helpers.commands import environment

FILES = int(os.environ.get("RESCALENET_SOAK_FILES", 2000))
PIECES = 8  # measurements of the memory

# Classifies the files of a folder in one call, and prints the peak memory in MiB after each piece of them.
PROGRAM = """
import resource, sys
from pathlib import Path
import zoo
from tasks.spec import load_model
from tasks.outputs import OutputFolder
from tasks.video.predict import FILES, classify_videos

weights, folder, out, pieces = sys.argv[1:]
files = sorted(Path(folder).iterdir())
entry = zoo.get_weights(weights)
done = 0
def report(found):
    global done
    done += 1
    if done % every == 0:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, flush=True)
every = max(1, len(files) // 2 // int(pieces))
classify_videos(load_model(entry), entry, files, clips=2, window=0.2, step=0.2, report=report,
                out=OutputFolder(Path(out), FILES, files))
"""


@pytest.mark.slow
def test_memory_is_flat_and_every_file_is_accounted_for(weights, tmp_path):
    """Half of the files are whole, a quarter is cut, a quarter has bytes changed."""
    folder = tmp_path / "files"
    folder.mkdir()
    kinds = sorted(make_videos().items())
    for number in range(FILES):
        name, content = kinds[number % len(kinds)]
        turn, place = number // len(kinds) % 4, number * 7919 % len(content)
        if turn == 1:
            content = content[:place]
        elif turn == 2:
            content = content[:place] + bytes([content[place] ^ (1 << number % 8)]) + content[place + 1 :]
        (folder / f"{number:06}.{name}").write_bytes(content)
    command = [sys.executable, "-c", PROGRAM, str(weights), str(folder), str(tmp_path / "out"), str(PIECES)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "out/predictions.json").read_text())
    named = [row["file"] for row in found["predictions"]] + list(found["failed"])
    assert sorted(named) == sorted(map(str, folder.iterdir()))
    assert len(found["predictions"]) > FILES // 2
    peaks = [int(line) for line in done.stdout.split()]
    assert len(peaks) >= PIECES
    assert peaks[-1] - peaks[1] < 60, peaks  # MiB, after the first eighth

"""Readers of the API that no command line reaches cheaply, with its treatment of errors."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import torch

import zoo
from tasks.detection.coco import decode_mask, load_coco
from tasks.detection.config import DataSection
from tasks.detection.data import TrainSet
from tasks.detection.evaluate import coco_metrics, kinds_of
from tasks.diagnose.dynamics import describe_cancellation, read_dynamics
from tasks.diagnose.tables import dynamics_csv
from tasks.errors import UserError
from tasks.printing import json_line
from tasks.progress import print_line
from tasks.splits import read_holdout
from tasks.study.config import read_study
from tasks.study.runner import Slots
from tasks.study.study import Study
from tasks.translation.config import CorpusSection
from tasks.translation.corpus import Corpus, prepare
from tasks.video.data import read_set
from tasks.video.decode import find_frames, probe
from tasks.video.index import Index
from tasks.video.sampling import ClipSampler
from zoo.convert.fairseq import read_dictionary
from zoo.errors import ZooError
from zoo.text import Vocabulary

MOST_FRAMES = 100_000  # of a damaged video that are read


def call(name: str, arguments: list[str]) -> None:
    """Call a reader; an error of the user becomes one line and exit status 1, as on the command line."""
    try:
        READERS[name](*arguments)
    except (UserError, ZooError, OSError) as error:
        print_line(f"error: {error}")
        raise SystemExit(1) from None


def dynamics(path: str) -> None:
    """Read multipliers, norms and signals from the log of a run, and describe them as the command does."""
    found = read_dynamics("run", Path(path))
    describe_cancellation(found)
    dynamics_csv([found])
    json_line(found.as_dict())


def index(path: str, root: str) -> None:
    """Read the entries of all videos of a folder from an index file, and their frame times."""
    videos = sorted(Path(root).rglob("*.mp4"))
    for entry in Index(Path(path), Path(root)).entries(videos, write=False):
        if entry.info is not None:
            entry.info.frames, entry.info.fps, entry.info.duration  # noqa: B018


def video(path: str) -> None:
    """Read clips of a video, whose frames must equal those of a decode from the beginning or be reported as missing."""
    info = probe(path)
    if info.frames > MOST_FRAMES:
        return
    info.pts, info.times, info.duration, info.fps  # noqa: B018
    every = range(min(info.frames, 40))
    # the same frames by counting, without any seek
    whole = find_frames(path, dataclasses.replace(info, keys=(0,)), every)
    for chosen in (every[-1:], every[::5], every[3:6]):
        if chosen:
            found = find_frames(path, info, chosen)
            for number, frame in found.frames.items():
                expected = whole.frames.get(number)
                if expected is not None and not np.array_equal(frame, expected):
                    raise RuntimeError(f"frame {number} differs from that of a decode from the beginning")


def videos(file: str, root: str) -> None:
    """Read a list of videos and make clips of its parts."""
    found, _ = read_set(Path(file), Path(root))
    items = [item for item in found.items if item.path is not None]
    entries = Index(Path("out/index.json"), Path(root)).entries([item.path for item in items if item.path], write=False)
    layout = zoo.VideoTransform(4, 2.0, 25.0, 16, 16, (0.5,) * 3, (0.25,) * 3)
    for item, entry in zip(items, entries, strict=True):
        if entry.info is not None:
            ClipSampler(layout).uniform(entry.info, 3, item.segment)


def corpus(folder: str) -> None:
    """Read everything in a prepared corpus."""
    found = Corpus(Path(folder))
    found.transform  # noqa: B018
    for name in ("train", "val"):
        for side, vocabulary in zip(found.sentences(name), found.vocabularies, strict=True):
            for number in range(len(side)):
                vocabulary.decode(side[number])
    found.text("val")


def prepare_corpus(root: str, vocabulary: str, folder: str, name: str = "train") -> None:
    """Prepare a corpus from parallel text."""
    section = {"root": root, "source": "en", "target": "de", "train": [name], "val": "val"}
    section["vocabulary"] = {"size": 48, "weights": vocabulary}
    prepare(CorpusSection.model_validate(section), Path(folder))


def coco(annotations: str, images: str, masks: str) -> None:
    """Load a COCO file, decode the masks of its objects, make the evaluator's ground truth and training samples."""
    found = load_coco(Path(annotations), Path(images), masks=masks == "masks", check="header")
    found.report()
    for image in found.images:
        for annotation in found.objects(image, masks=masks == "masks"):
            if masks == "masks":
                decode_mask(annotation, image.height, image.width)
    coco_metrics(found, [], kinds_of(masks=masks == "masks"))
    resize = {"name": "lsj", "size": 48} if len(found) % 2 else {"name": "short_side", "sizes": (40,), "max_size": 100}
    section = DataSection.model_validate({"root": ".", "augment": {"resize": resize}})
    samples = TrainSet(found, section, 0, masks=masks == "masks")
    for number in range(min(len(found), 3)):
        samples[0, number]


def study(path: str) -> None:
    """Read the file of a study and check all of its runs; its plan would time them."""
    Study(read_study(path), Slots.of_machine(1, 1))


def vocabulary(path: str) -> None:
    """Open a sentencepiece model, and convert text there and back."""
    found = Vocabulary(Path(path).read_bytes(), path)
    for text in ("one two", "ein ßatz 日本", ""):
        found.decode(found.encode([text])[0])
    found.pieces(range(len(found)))


def holdout(path: str) -> None:
    """Read a list of held-out samples."""
    read_holdout(path, {"a/0.png", "b/1.png"})


def dictionary(path: str) -> None:
    """Read a dictionary of fairseq."""
    read_dictionary(Path(path))


def misbehave(kind: str, box: str) -> None:
    """Do what no reader may do, so that the harness shows that it notices."""
    if kind == "signal":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif kind == "exit":
        os._exit(3)
    elif kind == "traceback":
        raise RuntimeError("no error of the user")
    elif kind == "lines":
        raise UserError("one\ntwo")
    elif kind == "escape":
        print("\x1b[2J")
    elif kind == "silent":
        raise SystemExit(1)
    elif kind == "status":
        raise SystemExit(3)
    elif kind == "warning":
        warnings.warn("odd", stacklevel=1)
    elif kind == "write":
        Path(box, "neighbour", "x").write_text("x")
    elif kind == "elsewhere":  # where no snapshot is taken
        with contextlib.suppress(OSError):
            Path("/nowhere/x").write_text("x")
    elif kind == "remove":
        shutil.rmtree(Path(box, "neighbour"))
    elif kind == "change":
        _write_in_another_language(Path(box, "work", "a.txt"))
    elif kind == "read":
        Path(box, "neighbour", "secret.txt").read_text()
    elif kind == "program":
        os.system("true")
    elif kind == "memory":
        torch.ones(2**28)
    elif kind == "address space":
        torch.empty(2**40)
    elif kind == "time":
        while True:
            pass


def _write_in_another_language(path: Path) -> None:
    """Write as a library in another language would, which Python's audit does not see."""
    with contextlib.suppress(Exception):
        torch._C.PyTorchFileWriter(str(path)).write_end_of_file()


FUNCTIONS = (
    dynamics,
    index,
    video,
    videos,
    corpus,
    prepare_corpus,
    coco,
    study,
    vocabulary,
    holdout,
    dictionary,
    misbehave,
)
READERS = {function.__name__: function for function in FUNCTIONS}

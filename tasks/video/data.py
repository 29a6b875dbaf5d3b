"""Clips for training and evaluation. Videos that cannot be read are counted and named, never replaced."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from tasks.compact import Packed
from tasks.engine import Key, seed_from
from tasks.errors import DataError
from tasks.locks import in_turn
from tasks.printing import listed
from tasks.progress import print_line
from tasks.splits import read_holdout, require_same_classes, split_sets
from tasks.video.config import DataSection
from tasks.video.decode import NOTES, Found, Note, VideoInfo, find_frames, stacked
from tasks.video.index import Index
from tasks.video.sampling import ClipSampler
from tasks.video.sources import (
    UCF101_CLASSES,
    Video,
    Videos,
    describe_lists,
    folder_videos,
    hmdb51_videos,
    kinetics_videos,
    list_videos,
    something_videos,
    ucf101_videos,
)
from tasks.video.transforms import FrameResize, crops, train_transform
from zoo import VideoTransform
from zoo.errors import one_line

_ROUNDED = 0.5  # seconds by which a part in a list may reach past the end of its video
SHOWN = 5  # failures that ``report_failures`` prints one by one


@dataclass(frozen=True)
class Indexed:
    """A set of videos with their frame times.

    Attributes:
        classes: names of the classes, in the order of the labels.
        items: videos that can be read.
        infos: frame times, key frames and size of each of them.
        failures: mapping from the name of each video that cannot be read to the reason.
        odd: names of the videos with each of ``tasks.video.decode.NOTES``.
    """

    classes: tuple[str, ...]
    items: Sequence[Video]
    infos: Sequence[VideoInfo]
    failures: dict[str, str]
    odd: Mapping[Note, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def total(self) -> int:
        """Number of videos, with those that cannot be read."""
        return len(self.items) + len(self.failures)

    def read(self, number: int, indices: np.ndarray, side: int, transform: VideoTransform) -> Tensor:
        """Return frames of a video, resized: uint8 (len(indices), 3, H, W).

        Args:
            number: number of the video in ``items``.
            indices: frame numbers.
            side: length of the resized side, see ``FrameResize``.
            transform: input transform of the net.

        Raises:
            DataError: frames that cannot be read.
        """
        found = self.find(number, indices, side, transform)
        path, info = self.items[number].path, self.infos[number]
        assert path is not None
        if found.missing:
            raise DataError(found.reason(path, info))
        return as_clip(stacked(path, found.frames, indices.tolist()))

    def find(self, number: int, indices: np.ndarray, side: int, transform: VideoTransform) -> Found:
        """Return the frames of a video that can be decoded, resized; see ``read``.

        Raises:
            DataError: a file that cannot be opened.
        """
        path, info = self.items[number].path, self.infos[number]
        assert path is not None
        return find_frames(path, info, indices.tolist(), FrameResize(side, transform, info.pixel_ratio))


def as_clip(frames: np.ndarray) -> Tensor:
    """Return frames as torch has them: (T, H, W, 3) -> (T, 3, H, W)."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def load_videos(section: DataSection) -> tuple[Videos, Videos]:
    """Return the training and evaluation videos that the config names.

    Raises:
        DataError: files, folders, classes or held-out names that are missing or do not agree.
    """
    root = Path(section.root)
    folder = root / section.videos

    def load(name: str, classes: Sequence[str] | None) -> Videos:
        if section.source == "folders":
            return folder_videos(root / name)
        return LISTS[section.source](root / name, folder, classes)

    def load_val(classes: Sequence[str]) -> Videos:
        if section.source == "hmdb51":
            return hmdb51_videos(root / section.val, folder, classes, test=True)
        return load(section.val, classes)

    everything = load(section.train, None)
    train, val = split_sets(
        section,
        everything,
        everything.names(),
        load_val=lambda: load_val(everything.classes),
        select=lambda chosen: everything.subset(filter(chosen, everything.names())),
    )
    require_same_classes(train.classes, val.classes, f"{root}: {section.train} and {section.val}")
    if section.source != "folders":
        for line in describe_lists(train, val, folder):
            print_line(line)
    return train, val


LISTS: Mapping[str, Callable[[Path, Path, Sequence[str] | None], Videos]] = {
    "list": list_videos,
    "kinetics": kinetics_videos,
    "ucf101": ucf101_videos,
    "hmdb51": hmdb51_videos,
    "something": something_videos,
}


def index_path(section: DataSection) -> Path:
    """Return the path of the index file that the config names."""
    return Path(section.index) if section.index else Path(section.root) / "video_index.json"


def read_set(data: Path, videos: Path | None = None, subset: str | None = None) -> tuple[Videos, Path]:
    """Return a set of labelled videos and the folder that they are in.

    Args:
        data: folder with one folder of videos for each class, file of 'path label' lines, or official list of Kinetics,
            UCF101, HMDB51 (folder of its splits and a number) or Something-Something.
        videos: folder of the videos that a file lists; default: the folder of that file.
        subset: file with the names of the videos to return, like ``data.holdout``; default: all videos.

    Raises:
        DataError: files, folders or names that are missing.
    """
    if data.is_dir():
        root, found = data, folder_videos(data)
    else:
        root = videos or data.parent
        found = _read_list(data, root)
    if subset is not None:
        found = found.subset(read_holdout(subset, found.names()))
    return found, root


def _read_list(file: Path, root: Path) -> Videos:
    """Return the videos of a list of any kind, which is recognised by its name, first line or neighbours."""
    if file.name.isdecimal() and not file.exists() and file.parent.is_dir():
        return hmdb51_videos(file, root, test=True)
    if file.suffix.lower() == ".json":
        return something_videos(file, root)
    try:
        heading = file.open(encoding="utf-8-sig").readline()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: must be a folder of videos or a list of videos ({one_line(error)})") from None
    if "youtube_id" in heading.lower():
        return kinetics_videos(file, root)
    return (ucf101_videos if file.with_name(UCF101_CLASSES).is_file() else list_videos)(file, root)


def index_videos(videos: Videos, index: Index, *, workers: int = 0) -> Indexed:
    """Return the frame times of all videos; probe those that the index does not have.

    The processes of a run look in turn: the first probes and writes the index, the others read it. That may take hours,
    so that they do not wait in a barrier.

    Args:
        videos: set of videos.
        index: index of the videos.
        workers: number of processes that probe videos.

    Raises:
        DataError: no video that can be read, or an index that cannot be written.
    """
    # 1. Look up or probe the videos that have a file.
    paths = [video.path for video in videos.items if video.path is not None]
    with in_turn(index.path):
        found = Index(index.path, index.root).entries(paths, workers=workers)
    entries = dict(zip(paths, found, strict=True))
    # 2. Separate the videos that can be read from the others.
    items, infos = [], []
    failures: dict[str, str] = {}
    odd: dict[Note, list[str]] = defaultdict(list)
    for video in videos.items:
        if video.path is None:
            failures[_new(video.name, failures)] = f"{video.name}: no such file below {index.root}"
        elif (info := entries[video.path].info) is None:
            failures[_new(video.name, failures)] = entries[video.path].failure
        elif video.segment is not None and video.segment[0] >= info.delay + info.duration:
            failures[_new(video.name, failures)] = (
                f"{video.path}: {video.segment[0]:g} s is past its end at "
                f"{info.delay + info.duration:.1f} s; get it again"
            )
        else:
            items.append(video)
            infos.append(info)
            for note in info.notes:
                odd[note].append(video.name)
            if video.segment is not None and video.segment[1] > info.delay + info.duration + _ROUNDED:
                odd["past_end"].append(video.name)
    if not items:
        first = next(iter(failures.values()), "the list is empty")
        raise DataError(f"none of {len(videos)} videos can be read: {first}")
    return Indexed(videos.classes, Packed(items), Packed(infos), failures, dict(odd))


def _new(name: str, names: Collection[str]) -> str:
    """Return a name, with a number if it is among the names already: each row of a list counts."""
    return next(each for number in count(1) if (each := name if number == 1 else f"{name} ({number})") not in names)


def report_damage(damaged: dict[str, str], total: int, what: str) -> None:
    """Print the number of videos of which clips could not be read, and the reasons of the first."""
    for reason in list(damaged.values())[:SHOWN]:
        print_line(f"damaged: {reason}")
    if damaged:
        print_line(f"{what}: {len(damaged)} of {total} videos count without the clips that could not be read")


def print_notes(odd: Mapping[Note, Sequence[str]], total: int, what: str = "") -> None:
    """Print what is odd about files, with the names of the first.

    Args:
        odd: names of the files with each note.
        total: number of the files.
        what: name of the set.
    """
    for note, names in odd.items():
        print_line(f"{what and what + ': '}{len(names)} of {total} videos {NOTES[note]}: {listed(names, SHOWN)}")


def report_failures(failures: dict[str, str], total: int, what: str) -> None:
    """Print how many of ``total`` videos failed, and the reasons of the first.

    Args:
        failures: mapping from name to reason.
        total: number of videos.
        what: name of the set in the message.
    """
    if not failures:
        return
    for reason in list(failures.values())[:SHOWN]:
        print_line(f"failed: {reason}")
    more = f", {len(failures) - SHOWN} more not shown" if len(failures) > SHOWN else ""
    print_line(f"{what}: {len(failures)} of {total} videos failed ({len(failures) / total:.1%}){more}")


class Batch(NamedTuple):
    """A batch of training clips.

    Attributes:
        clips: uint8 (N, T, 3, H, W).
        labels: classes (N,); -1 for clips that could not be read.
        failures: mapping from the name of each video that could not be read to the reason.
    """

    clips: Tensor
    labels: Tensor
    failures: dict[str, str]


class Sample(NamedTuple):
    """A training clip, or the reason why it could not be read.

    Attributes:
        clip: uint8 (T, 3, H, W); black if it could not be read.
        label: class; -1 if the clip could not be read.
        name: name of the video.
        failure: reason; empty if the clip was read.
    """

    clip: Tensor
    label: int
    name: str
    failure: str


class TrainSet(Dataset[Sample]):
    """Augmented clips by (draw, number of the video).

    Args:
        videos: set of videos.
        section: data section of the config, with the augmentation.
        transform: input transform of the net.
        seed: seed of the run; clips and augmentations depend on it and the key alone.
    """

    def __init__(self, videos: Indexed, section: DataSection, transform: VideoTransform, seed: int) -> None:
        self.videos, self.seed = videos, seed
        self.sampler, self.input = ClipSampler(transform), transform
        # frames are resized when they are decoded, all else is done to the clip
        self.side, *steps = train_transform(section.augment, transform).transforms
        self.transform = v2.Compose(steps)
        self.shape = (transform.frames, 3, transform.size, transform.size)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: Key) -> Sample:
        draw, number = key
        video = self.videos.items[number]
        seed = seed_from(self.seed, draw, number)
        indices = self.sampler.random(self.videos.infos[number], np.random.default_rng(seed), video.segment)
        # The transforms draw from torch's generator of this process, whose state others may rely on.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            try:
                frames = self.videos.read(number, indices, self.side.draw(), self.input)
            except DataError as error:
                return Sample(torch.zeros(self.shape, dtype=torch.uint8), -1, video.name, str(error))
            return Sample(self.transform(frames).contiguous(), video.label, video.name, "")


class Views(NamedTuple):
    """The views of a video in evaluation.

    Attributes:
        clips: uint8 (views, T, 3, H, W); black where a clip could not be read.
        number: number of the video in its set.
        failure: reason; empty if the middle clip, which is the first view, and one of the others were read.
        good: whether each view was read.
        damage: number of the clips that could not be read, and the reason; empty if all were.
    """

    clips: Tensor
    number: int
    failure: str
    good: tuple[bool, ...] = ()
    damage: str = ""


class EvalSet(Dataset[Views]):
    """Views of videos by number.

    The first view is the centre of the middle clip. If there are several clips or crops, all crops of all clips follow.

    Args:
        videos: set of videos.
        transform: input transform of the net.
        clips: number of clips of each video.
        crop_count: number of crops of each clip, 1 or 3.
    """

    def __init__(self, videos: Indexed, transform: VideoTransform, clips: int, crop_count: int) -> None:
        self.videos, self.transform, self.clips, self.crop_count = videos, transform, clips, crop_count
        self.sampler = ClipSampler(transform)
        self.count = 1 if clips * crop_count == 1 else 1 + clips * crop_count

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, number: int) -> Views:
        info, segment, t = self.videos.infos[number], self.videos.items[number].segment, self.transform
        indices = self.sampler.uniform(info, 1, segment)  # (1, T)
        if self.count > 1:
            indices = np.concatenate([indices, self.sampler.uniform(info, self.clips, segment)])  # (1 + clips, T)
        shape = (self.count, t.frames, 3, t.size, t.size)
        try:
            found = self.videos.find(number, indices.reshape(-1), t.resize, t)
            path = self.videos.items[number].path
            assert path is not None
            # A clip with a frame that cannot be decoded fails, the others are kept.
            readable = [not set(row) & set(found.missing) for row in indices.tolist()]
            if not readable[0] or not any(readable[1:] or readable):
                return Views(torch.zeros(shape, dtype=torch.uint8), number, found.reason(path, info))
            views: list[Tensor] = []
            for place, (row, whole) in enumerate(zip(indices.tolist(), readable, strict=True)):
                count = self.crop_count if place else 1
                if whole:
                    views.append(crops(as_clip(stacked(path, found.frames, row)), t, count))
                else:
                    views.append(torch.zeros((count, *shape[1:]), dtype=torch.uint8))
        except DataError as error:
            return Views(torch.zeros(shape, dtype=torch.uint8), number, str(error))
        good = tuple(whole for view, whole in zip(views, readable, strict=True) for _ in view)
        failed = readable[1:].count(False)
        damage = f"{failed} of {self.clips} clips left out: {found.reason(path, info)}" if failed else ""
        return Views(torch.cat(views), number, "", good, damage)


def collate(samples: Sequence[Sample]) -> Batch:
    """Return the batch of some samples."""
    failures = {sample.name: sample.failure for sample in samples if sample.failure}
    labels = torch.tensor([sample.label for sample in samples])
    return Batch(torch.stack([sample.clip for sample in samples]), labels, failures)

"""Clips for training and evaluation. Videos that cannot be read are counted and named, never replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tasks.engine import Key, seed_from
from tasks.errors import DataError
from tasks.locks import in_turn
from tasks.progress import print_line
from tasks.splits import read_holdout, require_same_classes, split_sets
from tasks.video.config import DataSection
from tasks.video.decode import VideoInfo, read_frames
from tasks.video.index import Index
from tasks.video.sampling import ClipSampler
from tasks.video.sources import Video, Videos, folder_videos, kinetics_videos, list_videos
from tasks.video.transforms import crops, train_transform
from zoo import VideoTransform
from zoo.errors import one_line

SHOWN = 5  # failures that ``report_failures`` prints one by one


@dataclass(frozen=True)
class Indexed:
    """A set of videos with their frame times.

    Attributes:
        classes: names of the classes, in the order of the labels.
        items: videos that can be read.
        infos: frame times, key frames and size of each of them.
        failures: mapping from the name of each video that cannot be read to the reason.
    """

    classes: tuple[str, ...]
    items: tuple[Video, ...]
    infos: tuple[VideoInfo, ...]
    failures: dict[str, str]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def total(self) -> int:
        """Number of videos, with those that cannot be read."""
        return len(self.items) + len(self.failures)

    def read(self, number: int, indices: np.ndarray) -> Tensor:
        """Return frames of a video: uint8 (len(indices), 3, H, W).

        Args:
            number: number of the video in ``items``.
            indices: frame numbers.

        Raises:
            DataError: frames that cannot be read.
        """
        path = self.items[number].path
        assert path is not None
        frames = read_frames(path, self.infos[number], indices.tolist())  # (len(indices), H, W, 3)
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
        return (list_videos if section.source == "list" else kinetics_videos)(root / name, folder, classes)

    everything = load(section.train, None)
    train, val = split_sets(
        section,
        everything,
        everything.names(),
        load_val=lambda: load(section.val, everything.classes),
        select=lambda chosen: everything.subset(filter(chosen, everything.names())),
    )
    require_same_classes(train.classes, val.classes, f"{root}: {section.train} and {section.val}")
    return train, val


def read_set(data: Path, videos: Path | None = None, subset: str | None = None) -> tuple[Videos, Path]:
    """Return a set of labelled videos and the folder that they are in.

    Args:
        data: folder with one folder of videos for each class, file of 'path label' lines, or CSV file of Kinetics.
        videos: folder of the videos that a file lists; default: the folder of that file.
        subset: file with the names of the videos to return, like ``data.holdout``; default: all videos.

    Raises:
        DataError: files, folders or names that are missing.
    """
    if data.is_dir():
        root, found = data, folder_videos(data)
    else:
        root = videos or data.parent
        try:
            heading = data.open(encoding="utf-8-sig").readline()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{data}: must be a folder of videos or a list of videos ({one_line(error)})") from None
        found = (kinetics_videos if "youtube_id" in heading else list_videos)(data, root)
    if subset is not None:
        found = found.subset(read_holdout(subset, found.names()))
    return found, root


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
    items, infos, failures = [], [], {}
    for video in videos.items:
        if video.path is None:
            failures[video.name] = f"{video.name}: no such file below {index.root}"
        elif (info := entries[video.path].info) is None:
            failures[video.name] = entries[video.path].failure
        elif video.segment is not None and video.segment[0] >= info.duration:
            failures[video.name] = (
                f"{video.path}: {video.segment[0]:g} s is past its end at {info.duration:.1f} s; get it again"
            )
        else:
            items.append(video)
            infos.append(info)
    if not items:
        first = next(iter(failures.values()), "the list is empty")
        raise DataError(f"none of {len(videos)} videos can be read: {first}")
    return Indexed(videos.classes, tuple(items), tuple(infos), failures)


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
        self.sampler, self.transform = ClipSampler(transform), train_transform(section.augment, transform)
        self.shape = (transform.frames, 3, transform.size, transform.size)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: Key) -> Sample:
        draw, number = key
        video = self.videos.items[number]
        seed = seed_from(self.seed, draw, number)
        indices = self.sampler.random(self.videos.infos[number], np.random.default_rng(seed), video.segment)
        try:
            frames = self.videos.read(number, indices)
        except DataError as error:
            return Sample(torch.zeros(self.shape, dtype=torch.uint8), -1, video.name, str(error))
        # The transforms draw from torch's generator of this process, whose state others may rely on.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return Sample(self.transform(frames).contiguous(), video.label, video.name, "")


class Views(NamedTuple):
    """The views of a video in evaluation.

    Attributes:
        clips: uint8 (views, T, 3, H, W); black if the video could not be read.
        number: number of the video in its set.
        failure: reason; empty if the video was read.
    """

    clips: Tensor
    number: int
    failure: str


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
        try:
            frames = self.videos.read(number, indices.reshape(-1))
        except DataError as error:
            shape = (self.count, t.frames, 3, t.size, t.size)
            return Views(torch.zeros(shape, dtype=torch.uint8), number, str(error))
        clips = frames.unflatten(0, indices.shape)  # (1 or 1 + clips, T, 3, H, W)
        views = [crops(clips[0], t, 1)]
        views += [crops(clip, t, self.crop_count) for clip in clips[1:]]
        return Views(torch.cat(views), number, "")


def collate(samples: Sequence[Sample]) -> Batch:
    """Return the batch of some samples."""
    failures = {sample.name: sample.failure for sample in samples if sample.failure}
    labels = torch.tensor([sample.label for sample in samples])
    return Batch(torch.stack([sample.clip for sample in samples]), labels, failures)

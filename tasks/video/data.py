"""Clips for training and evaluation; what cannot be read is counted and named, never replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tasks.devices import make_accelerator
from tasks.engine import Key, seed_from
from tasks.errors import DataError
from tasks.progress import print_line
from tasks.splits import read_holdout, require_same_classes, split_sets
from tasks.video.config import DataSection
from tasks.video.decode import VideoInfo, read_frames
from tasks.video.index import Index
from tasks.video.sampling import ClipSampler
from tasks.video.sources import Video, Videos, folder_videos, kinetics_videos, list_videos
from tasks.video.transforms import crops, train_transform
from zoo import VideoTransform

SHOWN = 5  # names of videos in a message


@dataclass(frozen=True)
class Indexed:
    """A set of videos with what the index knows of them.

    Attributes:
        items, infos: those that can be read.
        failures: name -> reason, of those that cannot.
    """

    classes: tuple[str, ...]
    items: tuple[Video, ...]
    infos: tuple[VideoInfo, ...]
    failures: dict[str, str]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def total(self) -> int:
        """How many videos the set names."""
        return len(self.items) + len(self.failures)

    def read(self, number: int, indices: np.ndarray) -> Tensor:
        """Frames of a video: uint8 (len(indices), 3, H, W)."""
        path = self.items[number].path
        assert path is not None
        frames = read_frames(path, self.infos[number], indices.tolist())
        return torch.from_numpy(frames).permute(0, 3, 1, 2)


def load_videos(section: DataSection) -> tuple[Videos, Videos]:
    """The training and evaluation videos that the config names.

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
    """A set of labelled videos and the folder that they are in.

    Args:
        data: folder of videos for each class, file of 'path label' lines, or Kinetics' CSV.
        videos: folder of the videos that a file lists; default: the file's.
        subset: file with the names of those to take, as ``data.holdout``.

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
            raise DataError(f"{data}: not a folder of videos nor a list of them ({error})") from None
        found = (kinetics_videos if "youtube_id" in heading else list_videos)(data, root)
    if subset is not None:
        found = found.subset(read_holdout(subset, found.names()))
    return found, root


def index_videos(videos: Videos, index: Index, *, workers: int = 0) -> Indexed:
    """Probe all videos. Rank 0 probes and writes the index; the other ranks then read it.

    Raises:
        DataError: none can be read, or the index cannot be written.
    """
    accelerator = make_accelerator()
    paths = [video.path for video in videos.items if video.path is not None]
    with accelerator.main_process_first():
        if not accelerator.is_main_process:
            index = Index(index.path, index.root)
        found = index.entries(paths, workers=workers, write=accelerator.is_main_process)
    entries = dict(zip(paths, found, strict=True))
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
    """Print how many of ``total`` videos failed, and the first of them."""
    if not failures:
        return
    for reason in list(failures.values())[:SHOWN]:
        print_line(f"failed: {reason}")
    more = f", {len(failures) - SHOWN} more not shown" if len(failures) > SHOWN else ""
    print_line(f"{what}: {len(failures)} of {total} videos failed ({len(failures) / total:.1%}){more}")


class Batch(NamedTuple):
    """Clips uint8 (N, T, 3, H, W) and labels (N,), -1 for those that failed; and the failures, name -> reason."""

    clips: Tensor
    labels: Tensor
    failures: dict[str, str]


class Sample(NamedTuple):
    """One clip, or the reason why there is none."""

    clip: Tensor
    label: int
    name: str
    failure: str


class TrainSet(Dataset[Sample]):
    """Augmented clips by (epoch, number of the video). A video that fails gives a black one with label -1."""

    def __init__(self, videos: Indexed, section: DataSection, transform: VideoTransform, seed: int) -> None:
        self.videos, self.seed = videos, seed
        self.sampler, self.transform = ClipSampler(transform), train_transform(section, transform)
        self.shape = (section.clip.frames, 3, section.size, section.size)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: Key) -> Sample:
        epoch, number = key
        video = self.videos.items[number]
        seed = seed_from(self.seed, epoch, number)
        indices = self.sampler.random(self.videos.infos[number], np.random.default_rng(seed), video.segment)
        try:
            frames = self.videos.read(number, indices)
        except DataError as error:
            return Sample(torch.zeros(self.shape, dtype=torch.uint8), -1, video.name, str(error))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return Sample(self.transform(frames).contiguous(), video.label, video.name, "")


class Views(NamedTuple):
    """The views of a video: uint8 (views, T, 3, H, W), its number in the set, and whether (and why) it failed."""

    clips: Tensor
    number: int
    failure: str


class EvalSet(Dataset[Views]):
    """Views of videos by number: first the middle clip's centre, then, of several clips or crops, all of them.

    Args:
        transform: frames of a clip and their size.
    """

    def __init__(self, videos: Indexed, transform: VideoTransform, clips: int, crop_count: int) -> None:
        self.videos, self.transform, self.clips, self.crop_count = videos, transform, clips, crop_count
        self.sampler = ClipSampler(transform)
        self.count = 1 if clips * crop_count == 1 else 1 + clips * crop_count

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, number: int) -> Views:
        info, segment, t = self.videos.infos[number], self.videos.items[number].segment, self.transform
        middle = self.sampler.uniform(info, 1, segment)
        indices = middle
        if self.count > 1:
            indices = np.concatenate([middle, self.sampler.uniform(info, self.clips, segment)])
        try:
            frames = self.videos.read(number, indices.reshape(-1))
        except DataError as error:
            shape = (self.count, t.frames, 3, t.size, t.size)
            return Views(torch.zeros(shape, dtype=torch.uint8), number, str(error))
        clips = frames.unflatten(0, indices.shape)
        views = [crops(clips[0], t, 1)]
        views += [crops(clip, t, self.crop_count) for clip in clips[1:]]
        return Views(torch.cat(views), number, "")


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples -> a batch."""
    failures = {sample.name: sample.failure for sample in samples if sample.failure}
    labels = torch.tensor([sample.label for sample in samples])
    return Batch(torch.stack([sample.clip for sample in samples]), labels, failures)

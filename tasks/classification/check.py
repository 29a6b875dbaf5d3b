"""``rescalenet check`` for image classification: every picture is read once, as training reads it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import zoo
from tasks.check import SHOWN, Report, stops_at_start
from tasks.classification.config import ClassificationConfig, DataSection
from tasks.classification.data import (
    SETS,
    Images,
    TrainSet,
    describe_images,
    eval_transform,
    folder_images,
    spread,
)
from tasks.classification.model import Classification
from tasks.devices import available_cpus
from tasks.errors import DataError
from tasks.images import FRAMES_HINT, Exposure, exposure, has_frames, to_pixels, to_rgb, value_counts
from tasks.outputs import OutputFolder, try_to_draw
from tasks.printing import listed, printable
from tasks.progress import Progress
from tasks.shards import chunks
from tasks.splits import describe_set
from zoo.files import atomic_write

SAMPLES, COLUMNS = 8, 5  # rows and columns of the sheet: as in evaluation, then augmented
TILE = 224  # side of a picture on the sheet, in pixels
FAR_MEAN, FAR_STD = 1.0, 2.0  # distance of the means in stds of the input, and ratio of the stds, that are warned of
UNEVEN = 10  # ratio of the largest class to the smallest that is warned of

FILES = ("check.json", "samples.png")  # what is written


@dataclass(frozen=True)
class Look:
    """What a look at one picture found.

    Attributes:
        width, height: size in pixels, after the turn to its EXIF orientation.
        mode: mode of the file in PIL's words, or array.
        digest: hash of the size and the decoded pixels.
        exposure: black or white if the picture is nearly so.
        frames: whether the file has further frames, which are not read.
        mean: mean of each channel, on the 0..1 scale.
        square: mean of the squares of each channel.
    """

    width: int
    height: int
    mode: str
    digest: bytes
    exposure: Exposure | None
    frames: bool
    mean: tuple[float, ...]
    square: tuple[float, ...]


@dataclass
class CheckedSet:
    """The pictures of a set that were looked at.

    Attributes:
        name: name of the set: train or val.
        images: all images of the set.
        looks: description of each image that was read, by its number.
        unread: reason for each image that cannot be read, by its name.
    """

    name: str
    images: Images
    looks: dict[int, Look] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)


def look_at(images: Images, index: int) -> Look:
    """Read an image and describe it.

    Raises:
        DataError: an image that cannot be read.
    """
    picture = images.read(index)
    pixels = to_pixels(picture)  # (C, H, W)
    counts = value_counts(picture)  # (C, 256)
    values = np.arange(256) / 255
    shares = counts / counts.sum(1, keepdims=True)
    digest = hashlib.blake2b(repr(tuple(pixels.shape)).encode(), digest_size=16)
    digest.update(pixels.contiguous().numpy().tobytes())
    return Look(
        width=pixels.shape[2],
        height=pixels.shape[1],
        mode=_mode(images.paths[index]) if images.paths else "RGB",
        digest=digest.digest(),
        exposure=exposure(picture),
        frames=has_frames(picture),
        mean=tuple((shares @ values).tolist()),
        square=tuple((shares @ values**2).tolist()),
    )


def _mode(path: str) -> str:
    """Return the mode of a picture that can be read."""
    if Path(path).suffix.lower() == ".npy":
        return "array"
    with Image.open(path) as image:
        return image.mode


def look_at_all(name: str, images: Images, limit: int | None) -> CheckedSet:
    """Look at the images of a set, with one thread for each CPU.

    Args:
        name: name of the set.
        images: images of the set.
        limit: number of images to look at, evenly spread; None: all.
    """
    checked = CheckedSet(name, images)
    chosen = spread(len(images), limit)

    def look(index: int) -> Look | str:
        try:
            return look_at(images, index)
        except DataError as error:
            return str(error)

    done = 0
    with ThreadPoolExecutor(available_cpus()) as pool, Progress(len(chosen), 0, 1) as progress:
        for part in chunks(chosen, 256):
            for index, found in zip(part, pool.map(look, part), strict=True):
                if isinstance(found, Look):
                    checked.looks[index] = found
                else:
                    checked.unread[images.names[index]] = found
                done += 1
                progress.step(done, set=name)
    return checked


def check_data(
    data: ClassificationConfig | Path, out: Path | None, limit: int | None, *, overwrite: bool = False
) -> bool:
    """Check the data of a config or the images of a folder, print the report, and return whether training would run.

    Args:
        data: config; or a folder of class folders, or one with such trees in ``train`` and ``val``.
        out: folder for ``FILES``.
        limit: number of images of each set to look at; None: all.
        overwrite: whether earlier results in the folder are replaced.

    Raises:
        UserError, ZooError: a set that cannot be found, settings that do not go together, a folder that cannot be
            written or has earlier results.
    """
    report = Report()
    # 1. Find the images and the input of the net.
    if isinstance(data, Path):
        section, transform = DataSection(root=str(data)), zoo.InputTransform.imagenet()
        sets = _folder_sets(data, report)
        classes = [images.class_counts() for images in sets.values()]
        if len(classes[0]) < 2:
            report.stops.append(f"{data}: one class only; training needs two folders of images or more")
        if len(sets) == 2 and sets["train"].classes != sets["val"].classes:
            odd = sorted(set(sets["train"].classes) ^ set(sets["val"].classes))
            report.stops.append(f"train and val have different classes: {listed(odd, SHOWN)}")
    else:
        task = Classification(data)
        section, transform = task.config.data, task.transform
        sets = {"train": task.train_images, "val": task.val_images}
        report.stops += stops_at_start(task)
    folder = None
    if out is not None:  # so that a folder that cannot be written is known before the work
        inputs = [Path(path) for images in sets.values() for path in images.paths or ()]
        folder = OutputFolder(out, FILES, inputs, overwrite=overwrite)
    # 2. Look at the images, and describe them.
    if len(sets) == 2:
        report.lines += describe_images(*sets.values())
    else:
        (images,) = sets.values()
        report.lines += describe_set(len(images), "images", classes=len(images.classes), left_out=[images.left_out])
    checked = [look_at_all(name, images, limit) for name, images in sets.items()]
    report.content |= {"input": asdict(transform), "sets": {}}
    for found in checked:
        _describe(found, transform, report)
    _describe_classes(checked, report)
    _describe_duplicates(checked, report)
    # 3. Write the results.
    if folder is not None:
        report.write(folder.path)
        sheet = folder.path / "samples.png"
        try_to_draw(lambda: draw_samples(checked[0], section, transform, sheet), sheet)
    return report.show()


def _folder_sets(folder: Path, report: Report) -> dict[str, Images]:
    """Return the images of ``train`` and ``val`` in a folder, or of the class folders in it.

    Args:
        folder: folder to look at.
        report: report, to which other sets in the folder are added.
    """
    if not (folder / "train").is_dir():
        return {"train": folder_images(folder)}
    names = [name for name in ("train", "val") if (folder / name).is_dir()]
    others = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name.lower() in SETS - {*names})
    if others:
        report.lines.append(
            f"{folder}: not looked at: {', '.join(others)}; a config with data.val={others[0]} checks it beside train"
        )
    return {name: folder_images(folder / name) for name in names}


def _describe(checked: CheckedSet, transform: zoo.InputTransform, report: Report) -> None:
    """Add the sizes, modes, statistics and faults of a set to the report."""
    name, looks = checked.name, list(checked.looks.values())
    content: dict[str, Any] = {
        "images": len(checked.images),
        "checked": len(looks) + len(checked.unread),
        "classes": dict(zip(checked.images.classes, checked.images.class_counts(), strict=True)),
        "left_out": asdict(checked.images.left_out),
        "unreadable": checked.unread,
    }
    report.content["sets"][name] = content
    # Unreadable images stop training; an evaluation reports them.
    if checked.unread:
        faults = report.stops if name == "train" else report.warnings
        faults.append(f"{name}: images that cannot be read: {len(checked.unread)} of {content['checked']}")
        faults += [f"{name}: {printable(reason)}" for reason in checked.unread.values()]
    if not looks:
        return
    # Sizes and modes.
    for key in ("width", "height"):
        values = sorted(getattr(look, key) for look in looks)
        content[key] = {"min": values[0], "median": values[len(values) // 2], "max": values[-1]}
    modes = Counter(look.mode for look in looks)
    small = sum(min(look.width, look.height) < transform.size for look in looks)
    content |= {"modes": dict(modes.most_common()), "smaller_than_size": small}
    width, height = (content[key] for key in ("width", "height"))
    report.lines.append(
        f"{name}: {len(looks)} of {len(checked.images)} images read; width {width['min']} to {width['max']} (median "
        f"{width['median']}), height {height['min']} to {height['max']} (median {height['median']}), modes "
        + ", ".join(f"{mode} {count}" for mode, count in modes.most_common())
    )
    if small:
        report.lines.append(f"{name}: images smaller than the input of {transform.size} px: {small} of {len(looks)}")
    # Brightness and frames.
    odd = {
        "nearly_black": ("that are nearly black", [i for i, look in checked.looks.items() if look.exposure == "black"]),
        "nearly_white": ("that are nearly white", [i for i, look in checked.looks.items() if look.exposure == "white"]),
        "several_frames": (f"with {FRAMES_HINT}", [i for i, look in checked.looks.items() if look.frames]),
    }
    for key, (what, chosen) in odd.items():
        content[key] = names = [checked.images.names[i] for i in chosen]
        if names:
            shown = listed([printable(each) for each in names], SHOWN)
            report.warnings.append(f"{name}: images {what}: {len(names)} of {len(looks)}: {shown}")
    _compare_statistics(name, looks, transform, content, report)


def _compare_statistics(
    name: str, looks: Sequence[Look], transform: zoo.InputTransform, content: dict[str, Any], report: Report
) -> None:
    """Add mean and std of the data beside those of the input, in RGB; each image counts once."""
    mean = np.mean([look.mean for look in looks], axis=0)  # (C,)
    std = np.sqrt(np.maximum(np.mean([look.square for look in looks], axis=0) - mean**2, 0))
    content |= {"mean": mean.round(4).tolist(), "std": std.round(4).tolist()}
    reverse = transform.channel_order == "BGR"
    expected = [np.asarray(v[::-1] if reverse else v) for v in (transform.mean, transform.std)]
    shown = ["[" + ", ".join(f"{value:.3f}" for value in v) + "]" for v in (mean, std, *expected)]
    report.lines.append(f"{name}: mean {shown[0]}, std {shown[1]}; the input is standardised by {shown[2]}, {shown[3]}")
    ratios = np.maximum(std, 1e-6) / expected[1]
    far = np.abs(mean - expected[0]) / expected[1] > FAR_MEAN
    if far.any() or (ratios > FAR_STD).any() or (ratios < 1 / FAR_STD).any():
        report.warnings.append(
            f"{name}: mean and std of the data are far from those of the input; a net trained from the start can take "
            f"data.mean={shown[0]} data.std={shown[1]}, weights keep theirs"
        )


def _describe_classes(checked: Sequence[CheckedSet], report: Report) -> None:
    """Add the number of images of each class to the report."""
    counts = [found.images.class_counts() for found in checked]
    header = "".join(f"{found.name:>9}" for found in checked)
    names = checked[0].images.classes
    report.lines.append(f"{'class':<32}{header}")
    others = [dict(zip(found.images.classes, count, strict=True)) for found, count in zip(checked, counts, strict=True)]
    for name in names[: 10 * SHOWN]:
        report.lines.append(f"{printable(name):<32}" + "".join(f"{other.get(name, 0):>9}" for other in others))
    if len(names) > 10 * SHOWN:
        report.lines.append(f"... and {len(names) - 10 * SHOWN} more classes")
    if min(counts[0]) and max(counts[0]) >= UNEVEN * min(counts[0]):
        report.warnings.append(
            f"{checked[0].name}: the largest class has {max(counts[0])} images, the smallest {min(counts[0])}; see "
            "data.balanced and class_weights"
        )


def _describe_duplicates(checked: Sequence[CheckedSet], report: Report) -> None:
    """Add the pictures that occur more than once, pixel for pixel, to the report."""
    groups: dict[bytes, list[tuple[str, str, str]]] = defaultdict(list)  # (set, name, class) of equal pictures
    for found in checked:
        for index, look in found.looks.items():
            label = found.images.classes[found.images.labels[index]]
            groups[look.digest].append((found.name, found.images.names[index], label))
    repeated = [group for group in groups.values() if len(group) > 1]
    # Each kind of fault, as lists of SET/NAME.
    shown = [[f"{where}/{name}" for where, name, _ in group] for group in repeated]
    sets = [{where for where, _, _ in group} for group in repeated]
    labels = [{label for _, _, label in group} for group in repeated]
    kinds = {
        "within": [names for names, of in zip(shown, sets, strict=True) if len(of) == 1],
        "between": [names for names, of in zip(shown, sets, strict=True) if len(of) > 1],
        "other_labels": [names for names, of in zip(shown, labels, strict=True) if len(of) > 1],
    }
    report.content["duplicates"] = kinds
    words = {
        "within": "pictures that occur more than once in a set: {}: ",
        "between": "pictures in train and in val, of which the evaluation measures what was learned by heart: {}: ",
        "other_labels": "pictures that occur with different labels: {}: ",
    }
    for kind, found_groups in kinds.items():
        if found_groups:
            names = listed([printable(" = ".join(group)) for group in found_groups], SHOWN)
            report.warnings.append(words[kind].format(len(found_groups)) + names)


def draw_samples(checked: CheckedSet, section: DataSection, transform: zoo.InputTransform, path: Path) -> None:
    """Draw pictures as the net sees them: each as in evaluation, then with four draws of the augmentation."""
    readable = list(checked.looks)
    chosen = [readable[i] for i in spread(len(readable), SAMPLES)]
    data, evaluated = TrainSet(checked.images, section, transform, seed=0), eval_transform(transform)
    # An empty sheet with the names of its columns.
    gap, line, font = 8, 18, ImageFont.load_default(size=13)
    step = TILE + gap
    sheet = Image.new("RGB", (COLUMNS * step + gap, len(chosen) * (step + line) + line + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for column in range(COLUMNS):
        text = f"augmented {column}" if column else "as in evaluation"
        pen.text((gap + column * step, 2), text, fill="black", font=font)
    # A row for each picture, under its class and name.
    for row, index in enumerate(chosen):
        top = line + row * (step + line)
        name = f"{checked.images.classes[checked.images.labels[index]]}: {checked.images.names[index]}"
        pen.text((gap, top), printable(name), fill="black", font=font)
        seen = [evaluated(to_pixels(checked.images.read(index)))]
        seen += [data[draw, index][0] for draw in range(COLUMNS - 1)]
        for column, pixels in enumerate(seen):
            tile = to_rgb(pixels).resize((TILE, TILE))
            sheet.paste(tile, (gap + column * step, top + line))
    atomic_write(path, lambda temporary: sheet.save(temporary, format="PNG"))

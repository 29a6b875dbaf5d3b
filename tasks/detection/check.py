"""``rescalenet check`` for detection: annotations are checked as a run does, and every picture is read once."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tasks.check import SHOWN, Report, stops_at_start
from tasks.detection.coco import Coco, load_coco
from tasks.detection.config import DataSection, DetectionConfig
from tasks.detection.data import TrainSet, load_sets, make_target
from tasks.detection.evaluate import beyond_limit
from tasks.detection.layouts import find_sets
from tasks.detection.model import Detection, with_sizes
from tasks.devices import available_cpus
from tasks.errors import DataError, UserError
from tasks.images import EXPOSURE_HINTS, Exposure, exposure
from tasks.outputs import OutputFolder, try_to_draw
from tasks.printing import listed, printable
from tasks.progress import Progress
from tasks.shards import chunks
from zoo.errors import ZooError
from zoo.files import atomic_write

FILES = ("check.json", "samples.png")  # what is written
SAMPLES, COLUMNS = 8, 4  # rows and columns of the sheet: as annotated, then augmented
TILE = 320  # side of a picture on the sheet, in pixels
SMALL, LARGE = 32**2, 96**2  # pixels: limits of COCO's small, medium and large objects
TINY = 4  # pixels at the input of the net, below which an object leaves no trace
UNEVEN = 10  # ratio of the largest class to the smallest that is warned of


@dataclass
class CheckedSet:
    """A set that was looked at.

    Attributes:
        name: name of the set: train or val.
        data: images and annotations.
        looks: hash of the pixels and exposure of each image that was read, by its number.
        unread: reason for each image that cannot be read, by its name.
    """

    name: str
    data: Coco
    looks: dict[int, tuple[bytes, Exposure | None]] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)


def check_data(
    data: DetectionConfig | Path,
    out: Path | None,
    limit: int | None,
    *,
    images: Path | None = None,
    overwrite: bool = False,
) -> bool:
    """Check the data of a config, COCO file or folder, print the report, and return whether training would run.

    Args:
        data: config; or a COCO file, or a folder with one or two (``tasks.detection.layouts.find_sets``).
        out: folder for ``FILES``.
        limit: number of images of each set to read; None: all. Annotations are always checked completely.
        images: folder or zip file of the images of a COCO file; None: where tools put them.
        overwrite: whether earlier results in the folder are replaced.

    Raises:
        UserError: a set that cannot be found, a folder that cannot be written or has earlier results.
    """
    report = Report()
    # 1. Load the annotations; what a run would refuse is the report.
    sets: dict[str, Coco] = {}
    section, masks = DataSection(root="."), True
    folder = None if out is None else OutputFolder(out, FILES, overwrite=overwrite)
    try:
        if isinstance(data, Path):
            for name, (annotations, place) in find_sets(data, images).items():
                sets[name] = load_coco(annotations, place, masks=None, check="header")
            masks = all(found.has_masks for found in sets.values())
            if "val" in sets:
                sets["val"] = sets["val"].with_names(sets["train"].names)
        else:
            if images is not None:
                raise UserError("--images is for COCO files; a config names the images in its data section")
            section = data.data.model_copy(update={"check": "header"})
            masks = data.has_masks
            train, val = load_sets(section, masks=masks, report=False)
            sets = {"train": train, "val": val}
            section = _begin(data, train, val, report)
    except DataError as error:
        report.stops.append(str(error))
    # 2. Read the images, and describe the sets.
    checked = [look_at_all(name, found, limit) for name, found in sets.items()]
    report.content |= {"masks": masks, "sets": {}}
    for found in checked:
        _describe(found, section, report, masks=masks)
    if checked:
        _describe_classes(checked, report)
        _describe_duplicates(checked, report)
    # 3. Write the results.
    if folder is not None:
        report.write(folder.path)
        if checked:
            sheet = folder.path / "samples.png"
            try_to_draw(lambda: draw_samples(checked[0], section, sheet, masks=masks), sheet)
    return report.show()


def _begin(config: DetectionConfig, train: Coco, val: Coco, report: Report) -> DataSection:
    """Return the ``data`` section of a run with the sizes that it has; what keeps it from starting is reported."""
    try:
        task = Detection(config, sets=(train, val))
    except (UserError, ZooError) as error:
        report.stops.append(str(error))
        return with_sizes(config, None).data
    report.stops += stops_at_start(task)
    return task.config.data


def look_at_all(name: str, data: Coco, limit: int | None) -> CheckedSet:
    """Read the images of a set, with one thread for each CPU.

    Args:
        name: name of the set.
        data: images.
        limit: number of images to read, evenly spread; None: all.
    """
    checked = CheckedSet(name, data)
    count = len(data) if limit is None else min(len(data), limit)
    chosen = [i * len(data) // count for i in range(count)]

    def look(index: int) -> tuple[bytes, Exposure | None] | str:
        try:
            picture = data.read(data.images[index])
        except DataError as error:
            return str(error)
        digest = hashlib.blake2b(repr(picture.size).encode(), digest_size=16)
        digest.update(picture.tobytes())
        return digest.digest(), exposure(picture)

    done = 0
    with ThreadPoolExecutor(available_cpus()) as pool, Progress(count, 0, 1) as progress:
        for part in chunks(chosen, 256):
            for index, found in zip(part, pool.map(look, part), strict=True):
                if isinstance(found, str):
                    checked.unread[data.images[index].file_name] = found
                else:
                    checked.looks[index] = found
                done += 1
                progress.step(done, set=name)
    return checked


def _describe(checked: CheckedSet, section: DataSection, report: Report, *, masks: bool) -> None:
    """Add the sizes, objects and defects of a set to the report."""
    name, data = checked.name, checked.data
    read = len(checked.looks) + len(checked.unread)
    content: dict[str, Any] = {
        "annotations": str(data.path),
        "images": len(data),
        "checked": read,
        "unreadable": checked.unread,
        "problems": data.notes,
    }
    report.content["sets"][name] = content
    report.warnings += [f"{name}: {printable(line)}" for line in data.report() if "nearly" not in line]
    if checked.unread:  # unreadable images stop training; an evaluation reports them
        faults = report.stops if name == "train" else report.warnings
        faults.append(f"{name}: images that cannot be read: {len(checked.unread)} of {read}")
        faults += [f"{name}: {printable(reason)}" for reason in checked.unread.values()]
    for kind, hint in EXPOSURE_HINTS.items():
        names = [data.images[i].file_name for i, (_, found) in checked.looks.items() if found == kind]
        content[f"nearly_{kind}"] = names
        if names:
            shown = listed([printable(each) for each in names], SHOWN)
            report.warnings.append(f"{name}: images that are nearly {kind}: {len(names)} of {read} ({hint}): {shown}")
    _describe_objects(checked, section, content, report, masks=masks)


def _describe_objects(
    checked: CheckedSet, section: DataSection, content: dict[str, Any], report: Report, *, masks: bool
) -> None:
    """Add the sizes of images and objects to the report."""
    name, data = checked.name, checked.data
    # Count as the evaluator does.
    sides = np.array([(image.width, image.height) for image in data.images]).reshape(-1, 2)
    areas: list[float] = []
    crowds, tiny = 0, 0
    truth = data.ground_truth()["annotations"]
    short, long = section.min_size or 800, section.max_size or 1333
    scales = {
        image.id: min(short / min(image.width, image.height), long / max(image.width, image.height))
        for image in data.images
    }
    counts = Counter(annotation["image_id"] for annotation in truth if not annotation["iscrowd"])
    per_image = sorted(counts[image.id] for image in data.images)
    for annotation in truth:
        crowds += annotation["iscrowd"]
        if not annotation["iscrowd"]:
            areas.append(annotation["area"])
            tiny += max(annotation["bbox"][2:]) * scales[annotation["image_id"]] < TINY
    # Report the numbers.
    kinds = {
        "small": sum(area < SMALL for area in areas),
        "medium": sum(SMALL <= area < LARGE for area in areas),
        "large": sum(area >= LARGE for area in areas),
    }
    content |= {"objects": len(areas), "crowds": crowds, "areas": kinds, "tiny": tiny}
    content["classes"] = data.counts()
    if not len(sides):
        return
    for key, values in (("width", sides[:, 0]), ("height", sides[:, 1]), ("objects_per_image", per_image)):
        content[key] = {"min": int(min(values)), "median": int(np.median(values)), "max": int(max(values))}
    width, height, each = (content[key] for key in ("width", "height", "objects_per_image"))
    report.lines += [
        f"{name}: {len(data)} images, {content['checked']} read; width {width['min']} to {width['max']} (median "
        f"{width['median']}), height {height['min']} to {height['max']} (median {height['median']})",
        f"{name}: {len(areas)} objects in {len(data.names)} classes, {each['min']} to {each['max']} in an image "
        f"(median {each['median']}), {crowds} crowds; {'masks' if masks else 'boxes only'}; areas by COCO's classes: "
        f"small {kinds['small']}, medium {kinds['medium']}, large {kinds['large']}",
    ]
    # Warn of objects that the metrics or the net do not see.
    if (note := beyond_limit(data, section.max_dets, "data.max_dets")) is not None:
        report.warnings.append(f"{name}: {note}")
    if tiny:
        report.warnings.append(
            f"{name}: objects of less than {TINY} pixels at the input of the net (short side {short}, long side at "
            f"most {long}): {tiny} of {len(areas)}"
        )


def _describe_classes(checked: Sequence[CheckedSet], report: Report) -> None:
    """Add the number of objects of each class to the report."""
    counts = [found.data.counts() for found in checked]
    names = checked[0].data.names
    report.lines.append(f"{'class':<32}" + "".join(f"{found.name:>9}" for found in checked))
    for name in names[: 10 * SHOWN]:
        report.lines.append(f"{printable(name):<32}" + "".join(f"{count.get(name, 0):>9}" for count in counts))
    if len(names) > 10 * SHOWN:
        report.lines.append(f"... and {len(names) - 10 * SHOWN} more classes")
    present = [count for count in counts[0].values() if count]
    if not present:
        report.stops.append(f"{checked[0].name}: no objects to train on")
    elif max(present) >= UNEVEN * min(present):
        report.warnings.append(
            f"{checked[0].name}: the largest class has {max(present)} objects, the smallest {min(present)}; see "
            "data.repeat_threshold"
        )


def _describe_duplicates(checked: Sequence[CheckedSet], report: Report) -> None:
    """Add the images that occur more than once, pixel for pixel, to the report."""
    groups: dict[bytes, list[tuple[str, str]]] = defaultdict(list)  # (set, name) of equal images
    for found in checked:
        for index, (digest, _) in found.looks.items():
            groups[digest].append((found.name, found.data.images[index].file_name))
    repeated = [group for group in groups.values() if len(group) > 1]
    kinds = {
        "within": [group for group in repeated if len({name for name, _ in group}) == 1],
        "between": [group for group in repeated if len({name for name, _ in group}) > 1],
    }
    words = {
        "within": "images that occur more than once in a set",
        "between": "images in train and in val, of which the evaluation measures what was learned by heart",
    }
    report.content["duplicates"] = {key: [list(map("/".join, group)) for group in of] for key, of in kinds.items()}
    for key, found_groups in kinds.items():
        if found_groups:
            names = listed([printable(" = ".join(map("/".join, group))) for group in found_groups], SHOWN)
            report.warnings.append(f"{words[key]}: {len(found_groups)}: {names}")


def draw_samples(checked: CheckedSet, section: DataSection, path: Path, *, masks: bool) -> None:
    """Draw images with their objects: each as it is annotated, then as the augmentation gives it to the net."""
    data = checked.data
    full = [i for i in checked.looks if data.images[i].annotations] or list(checked.looks)
    chosen = [full[i * len(full) // min(len(full), SAMPLES)] for i in range(min(len(full), SAMPLES))]
    augmented = TrainSet(data, section, seed=0, masks=masks)
    # An empty sheet with the names of its columns.
    gap, line, font = 8, 18, ImageFont.load_default(size=13)
    step = TILE + gap
    sheet = Image.new("RGB", (COLUMNS * step + gap, len(chosen) * (step + line) + line + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for column in range(COLUMNS):
        pen.text((gap + column * step, 2), f"augmented {column}" if column else "as annotated", fill="black", font=font)
    # A row for each image, under its name.
    for row, index in enumerate(chosen):
        top = line + row * (step + line)
        image = data.images[index]
        pen.text((gap, top), printable(image.file_name), fill="black", font=font)
        tiles = [drawn(data.read(image), make_target(data, image, masks=masks), data.names)]
        for draw in range(COLUMNS - 1):
            pixels, target = augmented[draw, index]
            tiles.append(drawn(Image.fromarray(pixels.permute(1, 2, 0).numpy()), target, data.names))
        for column, tile in enumerate(tiles):
            sheet.paste(tile, (gap + column * step, top + line))
    atomic_write(path, lambda temporary: sheet.save(temporary, format="PNG"))


def drawn(image: Image.Image, target: dict[str, Tensor], names: Sequence[str]) -> Image.Image:
    """Return an image in a tile with masks, boxes and the classes of its objects.

    Args:
        image: RGB image.
        target: objects of the image (``tasks.detection.data.make_target``).
        names: names of the classes.
    """
    scale = TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    pixels = np.array(image.resize(size)).astype(np.float32)  # (H, W, 3)
    colours = [
        np.array(ImageDraw.ImageColor.getrgb(f"hsl({(47 * int(label)) % 360}, 90%, 55%)")) for label in target["labels"]
    ]
    for mask, colour in zip(target.get("masks", torch.zeros(0, 1, 1)), colours, strict=False):
        inside = np.asarray(Image.fromarray(mask.numpy()).resize(size, Image.Resampling.NEAREST)) > 0
        pixels[inside] = 0.6 * pixels[inside] + 0.4 * colour
    tile = Image.fromarray(pixels.round().astype(np.uint8))
    pen, font = ImageDraw.Draw(tile), ImageFont.load_default(size=11)
    for box, label, colour in zip(target["boxes"].tolist(), target["labels"].tolist(), colours, strict=True):
        place = [scale * value for value in box]
        pen.rectangle(place, outline=tuple(colour.tolist()))
        pen.text((place[0] + 2, place[1]), printable(names[label - 1]), fill=tuple(colour.tolist()), font=font)
    return tile

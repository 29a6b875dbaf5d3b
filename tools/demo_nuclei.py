"""Choose the pictures of nuclei that the demo shows, and copy them with their true masks.

    python tools/demo_nuclei.py DATA [--target pictures/nuclei]

DATA is the folder of the data set on which the weights were trained, with ``instances_val.json`` (whose images have a
``stain``) and ``val.zip`` or ``val/``. The detector is evaluated on each val picture alone. Pictures of one stain and
size form a kind, and of each kind the picture of the median mask AP is chosen.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer

import zoo
from tasks.demo import DETECTOR
from tasks.detection.coco import Coco, ImageRecord, load_coco
from tasks.detection.compare import compare
from tasks.detection.evaluate import detect
from tasks.devices import make_accelerator
from tasks.files import pictures_dir
from tasks.spec import load_model
from zoo.files import write_text

SMALLEST = 5  # pictures of a kind; one of fewer has no meaningful median


def choose(root: Path) -> tuple[Coco, list[ImageRecord]]:
    """Return the val set, and the picture of the median mask AP of each kind, largest kind first.

    Of an even number of pictures, the one below the middle is chosen; pictures of equal AP are in the order of their
    names.

    Args:
        root: folder of the data set.
    """
    # 1. Detect in all pictures.
    data = load_coco(root / "instances_val.json", root / "val", masks=True, check="none")
    accelerator = make_accelerator()
    model = load_model(zoo.get_weights(DETECTOR)).to(accelerator.device)
    results = detect(model, data, accelerator, progress=True)
    # 2. Sort the pictures of each kind by their AP.
    stains = {image["id"]: image["stain"] for image in json.loads(data.path.read_text())["images"]}
    kinds: dict[tuple[str, int, int], list[tuple[float, str, ImageRecord]]] = defaultdict(list)
    for compared in compare(data, results):
        image = compared.image
        row = (compared.report.stats[0], image.file_name, image)
        kinds[stains[image.id], image.width, image.height].append(row)
    # 3. Take the middle of each.
    chosen = []
    for kind, rows in sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0])):
        if len(rows) < SMALLEST:
            print(f"{kind}: fewer than {SMALLEST} pictures, left out")
            continue
        rows.sort(key=lambda row: row[:2])
        ap, name, image = rows[(len(rows) - 1) // 2]
        print(f"{kind}: {len(rows)} pictures, median {name} with mask AP {ap:.3f}")
        chosen.append(image)
    return data, chosen


def copy(data: Coco, chosen: list[ImageRecord], target: Path) -> None:
    """Copy pictures as they are, and write their part of the annotations into ``target/instances.json``."""
    content = json.loads(data.path.read_text())
    ids = [image.id for image in chosen]
    content["images"] = sorted((i for i in content["images"] if i["id"] in ids), key=lambda i: ids.index(i["id"]))
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    write_text(json.dumps(content, separators=(",", ":")) + "\n", target / "instances.json")
    for image in chosen:
        (target / image.file_name).write_bytes(data.files.read(image.file_name))


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of each picture and annotation file below ``folder`` into ``folder/SHA256SUMS``."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png", ".json"))
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(folder).as_posix()}" for p in files]
    write_text("\n".join(lines) + "\n", folder / "SHA256SUMS")


def main(
    data: Annotated[Path, typer.Argument(help="Folder of the data set.")],
    target: Annotated[Path | None, typer.Option(help="Folder to write; default: that of the demo.")] = None,
) -> None:
    """Choose the pictures, copy them, and write the sums of the folder above."""
    target = target or pictures_dir() / "nuclei"
    copy(*choose(data), target)
    write_sums(target.parent)


if __name__ == "__main__":
    typer.run(main)

"""From a run's folder to weights that ship: half precision, evaluated once, entered into the index.

    python -m tasks.publish RUN NAME.TAG EVALUATION --data "CIFAR-10" --licence "..." --command "..."

EVALUATION is what ``rescalenet eval`` takes: a folder of images or videos (with --subset, some of them), for detectors
a COCO JSON file, with --images, or parallel text (beam 5). The model card (``weights/NAME.TAG.md``) is written by
hand from what this prints.
"""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path
from typing import Annotated, Any

import torch
import torchvision
import typer

import zoo
from tasks.classification.data import folder_images
from tasks.classification.evaluate import evaluate_weights
from tasks.config import read_yaml
from tasks.detection.coco import load_coco
from tasks.detection.evaluate import evaluate_weights as evaluate_detector
from tasks.detection.evaluate import figures
from tasks.errors import UserError
from tasks.run import load_model, task_of
from tasks.translation.commands import evaluate_pairs
from tasks.translation.commands import read_set as read_pairs
from tasks.translation.search import Beam
from tasks.video.commands import read_set
from tasks.video.evaluate import evaluate_weights as evaluate_video
from tasks.video.index import Index
from zoo.files import write_json
from zoo.fingerprint import fingerprint
from zoo.weights import weights_dir

LIMIT = 12_000_000  # bytes of one file


def evaluate(
    entry: zoo.Weights,
    evaluation: Path,
    images: Path | None = None,
    subset: str | None = None,
    index: Path | None = None,
) -> dict[str, float]:
    """The metrics of weights on an evaluation set: of videos by one clip, of translations by a beam of 5.

    Args:
        evaluation, images, subset: as for ``publish``.
        index: of videos; default: beside them.

    Raises:
        UserError: a detector without ``images``.
    """
    task, model = task_of(entry), load_model(entry)
    if task == "classification":
        return evaluate_weights(model, entry, folder_images(evaluation)).metrics()
    if task == "translation":
        scores, _ = evaluate_pairs(entry, read_pairs(entry, evaluation), Beam(beam=5))
        return {"bleu": scores[0].value, "chrf": scores[1].value}
    if task == "video":
        videos, root = read_set(evaluation, subset=subset)
        return evaluate_video(model, entry, videos, Index(index or root / "video_index.json", root)).metrics()
    if images is None:
        raise UserError(f"{entry.name}: a detector is evaluated on COCO annotations and --images")
    data = load_coco(evaluation, images, masks=model.has_masks, check="header")
    return figures(evaluate_detector(model, entry, data))


def publish(
    run: Path,
    name: str,
    evaluation: Path,
    facts: dict[str, Any],
    target: Path,
    *,
    images: Path | None = None,
    subset: str | None = None,
) -> dict[str, Any]:
    """Write ``target/NAME.TAG.safetensors`` and its log, and enter it into ``target/index.json``.

    Args:
        run: the folder of a finished run; its last weights are taken, not the best on the evaluation set.
        evaluation: folder of images or videos, or COCO annotations; evaluated with the half-precision file that ships.
        facts: what the metadata says besides config and metrics: data, licence, command, commit, protocol.
        images: of COCO annotations: folder or zip file.
        subset: of videos: file with the names of those to evaluate.

    Returns:
        The metadata.

    Raises:
        UserError: the run is of another net, or the file is too large.
    """
    source = zoo.get_weights(str(run / "checkpoints" / "last.safetensors"))
    net, _, tag = name.partition(".")
    if source.config.name != net or not tag:
        raise UserError(f"{run} is of {source.config.name}; its weights are named {source.config.name}.TAG")
    config = read_yaml(run / "config.yaml")
    data = config["data"]
    folders = [
        (config, "output"),
        *((data, key) for key in ("root", "index", "folder")),
        (data.get("corpus", {}), "root"),
    ]
    for section, key in folders:
        section.pop(key, None)  # of the machine it ran on
    model = load_model(source)
    meta: dict[str, Any] = {
        **facts,
        "epochs": config["train"]["epochs"],
        "seed": config["train"]["seed"],
        "config": config,
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
            "rescalenet-zoo": zoo.__version__,
        },
    }

    path = target / f"{name}.safetensors"

    def save() -> str:
        return zoo.save_weights(
            model, path, transform=source.transform, classes=source.classes, meta=meta, dtype=torch.float16
        )

    save()  # evaluated as it ships, in half precision; then written again with what was measured
    meta["metrics"] = evaluate(zoo.get_weights(str(path)), evaluation, images, subset)
    digest = save()
    if path.stat().st_size > LIMIT:
        path.unlink()
        raise UserError(f"{name} takes more than {LIMIT} bytes")
    shutil.copyfile(run / "log.jsonl", target / f"{name}.log.jsonl")
    index = json.loads((target / "index.json").read_text(encoding="utf-8"))
    shipped = load_model(zoo.get_weights(str(path)))  # half precision rounds: not quite the net of the run
    index[name] = {
        "file": path.name,
        "sha256": digest,
        "bytes": path.stat().st_size,
        "logits": fingerprint(shipped, source.transform),
    }
    write_json(dict(sorted(index.items())), target / "index.json")
    return meta


def main(
    run: Path,
    name: str,
    evaluation: Path,
    data: Annotated[str, typer.Option()],
    licence: Annotated[str, typer.Option()],
    command: Annotated[str, typer.Option()],
    commit: Annotated[str, typer.Option()],
    protocol: Annotated[str, typer.Option()],
    images: Annotated[Path | None, typer.Option()] = None,
    subset: Annotated[str | None, typer.Option()] = None,
) -> None:
    facts = {"data": data, "licence": licence, "command": command, "commit": commit, "protocol": protocol}
    typer.echo(json.dumps(publish(run, name, evaluation, facts, weights_dir(), images=images, subset=subset), indent=1))


if __name__ == "__main__":
    typer.run(main)

"""From a run's folder to weights that ship: half precision, evaluated once, entered into the index.

    python -m tasks.publish RUN NAME.TAG EVALUATION --data "CIFAR-10" --licence "..." --command "..."

EVALUATION is a folder of images, or for detectors a COCO JSON file, with --images. The model card
(``weights/NAME.TAG.md``) is written by hand from what this prints.
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
from tasks.detection.detector import Detector, create_detector, is_detector
from tasks.detection.evaluate import evaluate_weights as evaluate_detector
from tasks.detection.evaluate import figures
from tasks.errors import UserError
from zoo.checkpoint import weights_dir, write_json

LIMIT = 12_000_000  # bytes of one file


def load_model(entry: zoo.Weights) -> zoo.Backbone | Detector:
    """The net that weights are of."""
    make = create_detector if is_detector(entry.config.name) else zoo.create_model
    return make(entry.config.name, entry.name)


def evaluate(entry: zoo.Weights, evaluation: Path, images: Path | None = None) -> dict[str, float]:
    """The metrics of weights on an evaluation set.

    Args:
        evaluation, images: as for ``publish``.

    Raises:
        UserError: a detector without ``images``.
    """
    model = load_model(entry)
    if not isinstance(model, Detector):
        return evaluate_weights(model, entry, folder_images(evaluation)).metrics()
    if images is None:
        raise UserError(f"{entry.name}: a detector is evaluated on COCO annotations and --images")
    data = load_coco(evaluation, images, masks=model.has_masks, check="header")
    return figures(evaluate_detector(model, entry, data))


def publish(
    run: Path, name: str, evaluation: Path, facts: dict[str, Any], target: Path, *, images: Path | None = None
) -> dict[str, Any]:
    """Write ``target/NAME.TAG.safetensors`` and its log, and enter it into ``target/index.json``.

    Args:
        run: the folder of a finished run; its last weights are taken, not the best on the evaluation set.
        evaluation: folder of images, or COCO annotations; evaluated with the half-precision file that ships.
        facts: what the metadata says besides config and metrics: data, licence, command, commit, protocol.
        images: of COCO annotations: folder or zip file.

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
    del config["output"], config["data"]["root"]  # folders of the machine it ran on
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
    meta["metrics"] = evaluate(zoo.get_weights(str(path)), evaluation, images)
    digest = save()
    if path.stat().st_size > LIMIT:
        path.unlink()
        raise UserError(f"{name} takes more than {LIMIT} bytes")
    shutil.copyfile(run / "log.jsonl", target / f"{name}.log.jsonl")
    index = json.loads((target / "index.json").read_text(encoding="utf-8"))
    index[name] = {"file": path.name, "sha256": digest, "bytes": path.stat().st_size}
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
) -> None:
    facts = {"data": data, "licence": licence, "command": command, "commit": commit, "protocol": protocol}
    typer.echo(json.dumps(publish(run, name, evaluation, facts, weights_dir(), images=images), indent=1))


if __name__ == "__main__":
    typer.run(main)

"""Publish a run's weights: convert them to half precision, evaluate them once, enter them into the index.

    python tools/publish.py RUN NAME.TAG EVALUATION --data "CIFAR-10" --licence "..." --command "..."

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
from tasks.config import read_yaml
from tasks.errors import UserError
from tasks.spec import load_model, spec_of
from zoo.files import write_json
from zoo.fingerprint import fingerprint
from zoo.weights import weights_dir

LIMIT = 12_000_000  # bytes of one file


def evaluate(entry: zoo.Weights, evaluation: Path, **options: Any) -> dict[str, float]:
    """Evaluate weights by the defaults of ``rescalenet eval``: videos by one clip, translations by a beam of 5.

    Args:
        entry: weights.
        evaluation: evaluation set, in the form that ``rescalenet eval`` accepts for the task.
        options: options of ``rescalenet eval``; None: not given.

    Raises:
        UserError: the task does not have an option, or a detector is evaluated without ``images``.
    """
    spec = spec_of(entry)
    return dict(spec.eval.run(entry, evaluation, None, 0, spec.options("eval", options, entry.name)).metrics)


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
        run: folder of a finished run, whose last weights are published, not the best on the evaluation set.
        name: name of the weights, NET.TAG.
        evaluation: folder of images or videos, COCO annotations or parallel text, on which the half-precision file that
            ships is evaluated.
        facts: metadata besides config and metrics: data, licence, command, commit, protocol.
        target: folder of the weights that ship.
        images: folder or zip file of the images of COCO annotations.
        subset: file with the names of the videos to evaluate.

    Returns:
        The metadata.

    Raises:
        UserError: the run is of another net, or the file is too large.
    """
    # Load the run's last weights, and compare their net with the name.
    source = zoo.get_weights(str(run / "checkpoints" / "last.safetensors"))
    net, _, tag = name.partition(".")
    if source.config.name != net or not tag:
        raise UserError(f"{run} is of {source.config.name}; its weights are named {source.config.name}.TAG")
    # Remove the folders of the machine from the config.
    config = read_yaml(run / "config.yaml")
    data = config["data"]
    folders = [
        (config, "output"),
        *((data, key) for key in ("root", "index", "folder")),
        (data.get("corpus", {}), "root"),
    ]
    for section, key in folders:
        section.pop(key, None)
    # Write the weights in half precision, evaluate that file, and write it again with its metrics.
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

    save()
    meta["metrics"] = evaluate(zoo.get_weights(str(path)), evaluation, images=images, subset=subset)
    digest = save()
    # Copy the log, and enter the weights into the index.
    if path.stat().st_size > LIMIT:
        path.unlink()
        raise UserError(f"{name}: the file must be at most {LIMIT} bytes")
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
    """Publish the weights of a run and print their metadata."""
    facts = {"data": data, "licence": licence, "command": command, "commit": commit, "protocol": protocol}
    typer.echo(json.dumps(publish(run, name, evaluation, facts, weights_dir(), images=images, subset=subset), indent=1))


if __name__ == "__main__":
    typer.run(main)

"""From a run's folder to weights that ship: half precision, evaluated once, entered into the index.

    python -m tasks.publish RUN NAME.TAG EVALUATION_FOLDER --data "CIFAR-10" --licence "..." --command "..."

The model card (``weights/NAME.TAG.md``) is written by hand from what this prints.
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
from tasks.errors import UserError
from zoo.checkpoint import weights_dir, write_json

LIMIT = 12_000_000  # bytes of one file


def publish(run: Path, name: str, evaluation: Path, facts: dict[str, Any], target: Path) -> dict[str, Any]:
    """Write ``target/NAME.TAG.safetensors`` and its log, and enter it into ``target/index.json``.

    Args:
        run: the folder of a finished run; its last weights are taken, not the best on the evaluation set.
        evaluation: folder of images; evaluated with the half-precision file that ships.
        facts: what the metadata says besides config and metrics: data, licence, command, commit, protocol.

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
    model = zoo.create_model(net, source.name)
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
    result = evaluate_weights(zoo.create_model(net, str(path)), zoo.get_weights(str(path)), folder_images(evaluation))
    meta["metrics"] = result.metrics()
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
) -> None:
    facts = {"data": data, "licence": licence, "command": command, "commit": commit, "protocol": protocol}
    typer.echo(json.dumps(publish(run, name, evaluation, facts, weights_dir()), indent=1))


if __name__ == "__main__":
    typer.run(main)

"""The command ``rescalenet``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.errors import UserError
from tasks.progress import say

if TYPE_CHECKING:
    import zoo

app = typer.Typer(
    name="rescalenet",
    help="Deep networks without normalization layers: train, evaluate, predict, export.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


_PREDICT_OUT, _DEMO_OUT = Path("out/predict"), Path("out/demo")


@app.command("list")
def list_(
    filter: Annotated[str, typer.Argument(help="Shell pattern.")] = "*",
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Only nets with weights.")] = False,
) -> None:
    """The nets, and the weights that can be loaded by name."""
    import zoo

    for name in zoo.list_models(filter, pretrained=pretrained):
        tags = ", ".join(zoo.model_info(name).weights)
        typer.echo(f"{name}  [{tags}]" if tags else name)


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that ships.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Show the resolved config and stop.")] = False,
) -> None:
    """Train by a recipe. Under torchrun: torchrun --no-python --nproc-per-node 2 rescalenet train CONFIG."""
    from tasks import config as cfg
    from tasks.run import make_task, resolve

    resolved = resolve(config, overrides or [])
    if print_config:
        typer.echo(cfg.dump(resolved), nl=False)
        return
    from tasks.engine import Trainer

    trainer = Trainer(make_task(resolved), resume=resume)
    metrics = trainer.fit()
    if trainer.accelerator.is_main_process:
        say(f"{resolved.output}: " + ", ".join(f"{key} {value:.4g}" for key, value in metrics.items()))


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="A net, or weights: name.tag or a safetensors file.")],
) -> None:
    """What a net offers, or what weights are: schemes, options, metrics, data, licence."""
    import dataclasses
    import json

    import torch

    import zoo

    if model.endswith(".safetensors") or "." in model:
        weights = zoo.get_weights(model)
        content: dict[str, Any] = {
            "weights": weights.name,
            **dataclasses.asdict(weights.config),
            "transform": dataclasses.asdict(weights.transform),
            "classes": list(weights.classes),
            "meta": weights.meta,
        }
    else:
        content = dataclasses.asdict(zoo.model_info(model))
        with torch.device("meta"):
            net = zoo.create_model(model)
        content["parameters"] = sum(p.numel() for p in net.parameters())
    typer.echo(json.dumps(content, indent=1))


@app.command("eval")
def eval_(
    weights: Annotated[str, typer.Argument(help="name.tag or a safetensors file.")],
    data: Annotated[str, typer.Argument(help="Folder with one folder of images for each class.")],
    out: Annotated[Path | None, typer.Option(help="Folder for metrics.json and confusion.png.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    workers: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Top-1, top-5, per-class table and confusion matrix of weights on an image folder."""
    from tasks.classification.data import folder_images
    from tasks.classification.evaluate import evaluate_weights

    model, entry = _open(weights)
    result = evaluate_weights(model, entry, folder_images(Path(data)), out=out, batch_size=batch_size, workers=workers)
    typer.echo(f"{'class':<24}{'images':>8}{'recall':>9}{'precision':>11}  most often taken for")
    for row in result.table(entry.classes):
        recall, precision = ("-" if row[k] is None else f"{row[k]:.1%}" for k in ("recall", "precision"))
        typer.echo(f"{row['class']:<24}{row['images']:>8}{recall:>9}{precision:>11}  {row['taken_for']}")
    typer.echo("  ".join(f"{key} {value:.6g}" for key, value in result.metrics().items()))


@app.command()
def predict(
    weights: Annotated[str, typer.Argument(help="name.tag or a safetensors file.")],
    inputs: Annotated[list[str], typer.Argument(help="Pictures and folders of pictures.")],
    out: Annotated[Path, typer.Option(help="Folder for predictions.json and contact_sheet.png.")] = _PREDICT_OUT,
    top: Annotated[int, typer.Option(min=1, help="Classes to report for each picture.")] = 5,
) -> None:
    """Classify pictures; writes JSON and a contact sheet."""
    from tasks.classification.predict import find_images
    from tasks.classification.predict import predict as run

    model, entry = _open(weights)
    predictions, failed = run(model, entry, find_images(inputs), top=top, out=out)
    for p in predictions:
        typer.echo(f"{p.file}: " + ", ".join(f"{c} {s:.1%}" for c, s in zip(p.classes, p.scores, strict=True)))
    say(f"written to {out}")
    if failed and not predictions:
        raise typer.Exit(1)


@app.command()
def export(
    weights: Annotated[str, typer.Argument(help="name.tag or a safetensors file.")],
    to: Annotated[str, typer.Option(help="Target: onnx.")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="File to write; default: NAME.onnx.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Input side in pixels; default: the weights'.")] = None,
    fold: Annotated[bool, typer.Option(help="Export the deployment form (zoo.fold), not the net as trained.")] = True,
) -> None:
    """Export weights and verify the file in the target's own runtime."""
    import zoo
    from zoo.errors import near

    if to != "onnx":
        raise UserError(f"unknown export target {to!r}{near(to, ['onnx'])}")
    from zoo.export.onnx import export_onnx

    model, entry = _open(weights)
    target = out or Path(f"{Path(entry.name).name.removesuffix('.safetensors')}.onnx")
    side = size or entry.transform.size
    model = zoo.fold(model) if fold else model
    typer.echo(str(export_onnx(model, target, input_size=side, in_chans=entry.config.in_chans)))


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of the authors' RescaleNet code (.pth).")],
    name: Annotated[str, typer.Argument(help="The net of ours that it is of, e.g. rescalenet50.")],
    out: Annotated[Path, typer.Argument(help="Safetensors file to write.")],
    classes: Annotated[Path | None, typer.Option(help="Text file with a class name on each line.")] = None,
) -> None:
    """Turn a checkpoint of the authors' code into weights of this zoo (ImageNet input assumed)."""
    import torch

    import zoo

    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{checkpoint}: not a checkpoint of tensors ({error})") from None
    model = zoo.convert.from_reference(content.get("state_dict", content), name)
    names = classes.read_text(encoding="utf-8").splitlines() if classes else [str(i) for i in range(model.num_classes)]
    transform = zoo.InputTransform(224, 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    zoo.save_weights(model, out, transform=transform, classes=names, meta={"converted_from": checkpoint.name})
    typer.echo(f"{out}: {name}, {model.num_classes} classes")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for pictures, curves and the report.")] = _DEMO_OUT,
) -> None:
    """Pretrained net on real photographs, fine-tuning at batch size 2 beside BatchNorm, ONNX export."""
    from tasks.demo import run

    run(out)


def _open(weights: str) -> tuple[zoo.Backbone, zoo.Weights]:
    """The model and the entry of weights by name or file."""
    import zoo

    entry = zoo.get_weights(weights)
    return zoo.create_model(entry.config.name, weights), entry


def main() -> None:
    """Run the command line: a user's error becomes one line and exit code 1."""
    import logging

    from zoo.errors import ZooError

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("rescalenet").setLevel(logging.INFO)
    try:
        app(standalone_mode=True)
    except (UserError, ZooError, OSError) as error:
        say(f"error: {_last_line(error)}")
        raise SystemExit(1) from None


def _last_line(error: BaseException) -> str:
    """The message; of an error that a data loading process raised, the part after its traceback."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return text


if __name__ == "__main__":
    main()

"""The command ``rescalenet``."""

from __future__ import annotations

from collections import Counter
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
    import fnmatch

    import zoo
    from zoo.checkpoint import weight_tags

    for name in zoo.list_models(filter, pretrained=pretrained):
        tags = ", ".join(zoo.model_info(name).weights)
        typer.echo(f"{name}  [{tags}]" if tags else name)
    nets = {name.split(".", 1)[0] for name in zoo.list_weights()} - set(zoo.list_models())
    for name in fnmatch.filter(sorted(nets), filter):  # nets of a task, which are made around any of these
        typer.echo(f"{name}  [{', '.join(weight_tags(name))}]")


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
    from tasks.detection.detector import DetectorOptions, create_detector, is_detector

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
        net: torch.nn.Module
        with torch.device("meta"):
            if is_detector(model):
                net = create_detector(model)
                content = {"options": dataclasses.asdict(DetectorOptions()), "strides": net.backbone.strides}
            else:
                content = dataclasses.asdict(zoo.model_info(model))
                net = zoo.create_model(model)
        content["parameters"] = sum(p.numel() for p in net.parameters())
    typer.echo(json.dumps(content, indent=1))


@app.command("eval")
def eval_(
    weights: Annotated[str, typer.Argument(help="name.tag or a safetensors file.")],
    data: Annotated[str, typer.Argument(help="A folder of images for each class, or a COCO JSON file.")],
    images: Annotated[Path | None, typer.Option(help="Detection: folder or zip file of the images.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for metrics.json and more.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Default: 256, or 1 for detection.")] = None,
    workers: Annotated[int, typer.Option(min=0)] = 0,
    fast: Annotated[bool, typer.Option("--fast", help="Detection: compute the figures with faster-coco-eval.")] = False,
) -> None:
    """Evaluate weights: top-1 and confusion matrix on an image folder, or COCO's figures for detectors."""
    import zoo

    entry = zoo.get_weights(weights)
    if _is_detector(entry):
        if images is None:
            raise UserError("evaluation of a detector needs --images, the folder or zip file of the images")
        _eval_detector(entry, Path(data), images, out, batch_size or 1, workers, fast)
        return
    if images is not None or fast:
        raise UserError(f"--images and --fast are for detectors; {entry.name} is a classifier")
    from tasks.classification.data import folder_images
    from tasks.classification.evaluate import evaluate_weights

    result = evaluate_weights(
        _classifier(entry), entry, folder_images(Path(data)), out=out, batch_size=batch_size or 256, workers=workers
    )
    typer.echo(f"{'class':<24}{'images':>8}{'recall':>9}{'precision':>11}  most often taken for")
    for row in result.table(entry.classes):
        recall, precision = ("-" if row[k] is None else f"{row[k]:.1%}" for k in ("recall", "precision"))
        typer.echo(f"{row['class']:<24}{row['images']:>8}{recall:>9}{precision:>11}  {row['taken_for']}")
    typer.echo("  ".join(f"{key} {value:.6g}" for key, value in result.metrics().items()))


def _eval_detector(
    entry: zoo.Weights, annotations: Path, images: Path, out: Path | None, batch_size: int, workers: int, fast: bool
) -> None:
    from accelerate import PartialState

    from tasks.detection.coco import load_coco
    from tasks.detection.detector import create_detector
    from tasks.detection.evaluate import evaluate_weights

    model = create_detector(entry.config.name, entry.name)
    data = load_coco(annotations, images, masks=model.has_masks, check="header")
    for line in data.report():
        say(line)
    reports = evaluate_weights(model, entry, data, out=out, fast=fast, batch_size=batch_size, workers=workers)
    if not PartialState().is_main_process:
        return
    for kind, report in reports.items():
        typer.echo(f"{kind}\n{report.text}")
    heads = "".join(f"{kind:>8}" for kind in reports)
    typer.echo(f"{'category':<24}{heads}")
    for name in data.names:
        values = (report.per_category[name] for report in reports.values())
        typer.echo(f"{name:<24}" + "".join(f"{'-' if v < 0 else format(v, '.3f'):>8}" for v in values))


@app.command()
def predict(
    weights: Annotated[str, typer.Argument(help="name.tag or a safetensors file.")],
    inputs: Annotated[list[str], typer.Argument(help="Pictures and folders of pictures.")],
    out: Annotated[Path, typer.Option(help="Folder for predictions.json and pictures.")] = _PREDICT_OUT,
    top: Annotated[int, typer.Option(min=1, help="Classification: classes to report for each picture.")] = 5,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Detection: least score of what is reported.")] = 0.5,
    tile: Annotated[int | None, typer.Option(min=1, help="Detection: side of tiles for large pictures.")] = None,
    overlap: Annotated[int | None, typer.Option(min=0, help="Of tiles, in pixels; default: a quarter.")] = None,
) -> None:
    """Classify pictures or find objects in them; writes JSON and pictures."""
    import zoo
    from tasks.images import find_images

    entry = zoo.get_weights(weights)
    files = find_images(inputs)
    if _is_detector(entry):
        from tasks.detection.detector import create_detector
        from tasks.detection.predict import predict as detect

        model = create_detector(entry.config.name, entry.name)
        found, failed = detect(model, entry, files, threshold=threshold, tile=tile, overlap=overlap, out=out)
        for p in found:
            counts = Counter(instance.label for instance in p.instances)
            typer.echo(f"{p.file}: " + (", ".join(f"{n} {label}" for label, n in counts.most_common()) or "nothing"))
        read = bool(found)
    else:
        from tasks.classification.predict import predict as classify

        predictions, failed = classify(_classifier(entry), entry, files, top=top, out=out)
        for c in predictions:
            typer.echo(f"{c.file}: " + ", ".join(f"{k} {s:.1%}" for k, s in zip(c.classes, c.scores, strict=True)))
        read = bool(predictions)
    say(f"written to {out}")
    if failed and not read:
        raise typer.Exit(1)


@app.command()
def export(
    weights: Annotated[str, typer.Argument(help="name.tag or a safetensors file.")],
    to: Annotated[str, typer.Option(help="Target: onnx.")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="File to write; default: NAME.onnx.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Classification: input side; default: the weights'.")] = None,
    fold: Annotated[bool, typer.Option(help="Export the deployment form (zoo.fold), not the net as trained.")] = True,
) -> None:
    """Export weights and verify the file in the target's own runtime."""
    import zoo
    from zoo.errors import near

    if to != "onnx":
        raise UserError(f"unknown export target {to!r}{near(to, ['onnx'])}")
    entry = zoo.get_weights(weights)
    target = out or Path(f"{Path(entry.name).name.removesuffix('.safetensors')}.onnx")
    if _is_detector(entry):
        from tasks.detection.detector import create_detector
        from zoo.export.onnx import export_detector_onnx

        detector = create_detector(entry.config.name, entry.name)
        typer.echo(str(export_detector_onnx(zoo.fold(detector) if fold else detector, target)))
        return
    from zoo.export.onnx import export_onnx

    assert isinstance(entry.transform, zoo.InputTransform)
    model = _classifier(entry)
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
    """Pretrained nets on real pictures, fine-tuning at batch size 2 beside BatchNorm, ONNX export, cell nuclei."""
    from tasks.demo import run

    run(out)


def _is_detector(entry: zoo.Weights) -> bool:
    from tasks.detection.detector import is_detector

    return is_detector(entry.config.name)


def _classifier(entry: zoo.Weights) -> zoo.Backbone:
    import zoo

    return zoo.create_model(entry.config.name, entry.name)


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

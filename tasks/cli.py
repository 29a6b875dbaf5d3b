"""The command ``rescalenet``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from tasks.errors import UserError, dead_worker
from tasks.progress import print_line

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
    takes: Annotated[str | None, typer.Option(help="Only nets that take images, clips or text.")] = None,
) -> None:
    """The nets, and the weights that can be loaded by name."""
    import fnmatch

    import zoo
    from zoo.registry import Takes
    from zoo.weights import weight_tags

    if takes not in (None, *get_args(Takes)):
        raise UserError(f"--takes {takes}: {', '.join(get_args(Takes))} are what nets take")
    for name in zoo.list_models(filter, pretrained=pretrained, takes=cast(Takes | None, takes)):
        tags = ", ".join(zoo.model_info(name).weights)
        typer.echo(f"{name}  [{tags}]" if tags else name)
    if takes not in (None, "images"):
        return
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
        print_line(f"{resolved.output}: " + ", ".join(f"{key} {value:.4g}" for key, value in metrics.items()))


@app.command()
def prepare(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that ships.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
) -> None:
    """Translation: clean the text, train the vocabulary and write the corpus that ``train`` reads."""
    from tasks.run import resolve
    from tasks.translation.config import TranslationConfig
    from tasks.translation.corpus import prepare

    resolved = resolve(config, overrides or [])
    if not isinstance(resolved, TranslationConfig):
        raise UserError(f"{config}: a config of {resolved.task}; only translation has a corpus to prepare")
    prepare(resolved.data.corpus, Path(resolved.data.folder))
    typer.echo(f"{resolved.data.folder}: ready for rescalenet train {config}")


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
            "transform": {k: _short(v) for k, v in dataclasses.asdict(weights.transform).items()},
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
    data: Annotated[
        Path, typer.Argument(help="A folder for each class, a COCO JSON file, a list of videos, parallel text.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for metrics.json and more.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Default: 256; text 64, video 8, detection 1.")] = None,
    workers: Annotated[int, typer.Option(min=0)] = 0,
    images: Annotated[Path | None, typer.Option(help="Detection: folder or zip file of the images.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Detection: compute the figures with faster-coco-eval.")] = False,
    videos: Annotated[Path | None, typer.Option(help="Video: folder of the videos that a file lists.")] = None,
    subset: Annotated[str | None, typer.Option(help="Video: file with the names of those to evaluate.")] = None,
    index: Annotated[Path | None, typer.Option(help="Video: default: video_index.json beside the videos.")] = None,
    clips: Annotated[int | None, typer.Option(min=1, help="Video: clips of each; 10 is usual.")] = None,
    crops: Annotated[int | None, typer.Option(min=1, max=3, help="Video: crops of each clip, 1 or 3.")] = None,
    beam: Annotated[int | None, typer.Option(min=1, help="Translation: default 5; 1 is greedy.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Translation: default 1.")] = None,
    tokenized: Annotated[bool, typer.Option("--tokenized", help="Translation: the text is Moses-tokenised.")] = False,
) -> None:
    """Evaluate weights: accuracy by class of images or videos, COCO's figures of detectors, BLEU of translations."""
    import zoo
    from tasks.run import command

    entry = zoo.get_weights(weights)
    options: dict[str, Any] = {
        "images": images,
        "fast": fast or None,
        "videos": videos,
        "subset": subset,
        "index": index,
    }
    options |= {"clips": clips, "crops": crops}
    options |= {"beam": beam, "length_penalty": length_penalty, "tokenized": tokenized or None}
    command("evaluate", entry, options)(entry, data, out, batch_size, workers)


@app.command()
def predict(
    weights: Annotated[str, typer.Argument(help="name.tag or a safetensors file.")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="Pictures or videos, and folders of them; sentences, files of them, - for standard input."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help=f"Folder for JSON and pictures; default: {_PREDICT_OUT}, of translations none.")
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Classification: classes to report; default 5.")] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Detection: least score of what is reported; default 0.5.")
    ] = None,
    tile: Annotated[int | None, typer.Option(min=1, help="Detection: side of tiles for large pictures.")] = None,
    overlap: Annotated[int | None, typer.Option(min=0, help="Of tiles, in pixels; default: a quarter.")] = None,
    clips: Annotated[int | None, typer.Option(min=1, help="Video: clips of each; default 10.")] = None,
    window: Annotated[float | None, typer.Option(help="Video: seconds of a timeline's windows.")] = None,
    step: Annotated[float | None, typer.Option(help="Video: seconds between windows; default: half a window.")] = None,
    annotate: Annotated[bool, typer.Option("--annotate", help="Video: write annotated copies.")] = False,
    beam: Annotated[int | None, typer.Option(min=1, help="Translation: default 5; 1 is greedy.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Translation: default 1.")] = None,
    nbest: Annotated[int | None, typer.Option(min=1, help="Translation: number, score and text of this many.")] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Translation: sample, do not search.")] = False,
    temperature: Annotated[float | None, typer.Option(help="Of samples; default 1.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="Sample from the best k tokens; 0: from all.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="Sample from the best that hold this mass.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of samples; default 0.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Translation: sentences at a time.")] = None,
    attention: Annotated[bool, typer.Option("--attention", help="Translation: pictures of where it looked.")] = False,
) -> None:
    """Classify pictures or videos, find objects in pictures, translate sentences."""
    import zoo
    from tasks.run import command, task_of

    entry = zoo.get_weights(weights)
    options: dict[str, Any] = {"top": top, "threshold": threshold, "tile": tile, "overlap": overlap}
    options |= {"clips": clips, "window": window, "step": step, "annotate": annotate or None}
    options |= {"beam": beam, "length_penalty": length_penalty, "nbest": nbest, "sample": sample or None}
    options |= {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed, "batch_size": batch_size}
    run = command("predict", entry, {**options, "attention": attention or None})
    if task_of(entry) == "translation":
        run(entry, inputs or [], out)
        return
    if not inputs:
        raise UserError("no input: name pictures or videos, or folders of them")
    folder = out or _PREDICT_OUT
    read = run(entry, inputs, folder)
    print_line(f"written to {folder}")
    if not read:
        raise typer.Exit(1)


@app.command()
def export(
    weights: Annotated[str, typer.Argument(help="name.tag or a safetensors file.")],
    to: Annotated[str | None, typer.Option(help="Target: onnx; for translation, fairseq.")] = None,
    out: Annotated[Path | None, typer.Option(help="File or folder to write; default: NAME.onnx, NAME.fairseq.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Classification: input side; default: the weights'.")] = None,
    fold: Annotated[bool, typer.Option(help="Export the deployment form (zoo.fold), not the net as trained.")] = True,
) -> None:
    """Export weights and verify the file in the target's own runtime."""
    import zoo
    from tasks.run import command, export_target

    entry = zoo.get_weights(weights)
    ending = export_target(entry, to)
    target = out or Path(f"{Path(entry.name).name.removesuffix('.safetensors')}.{ending}")
    typer.echo(command("export", entry, {"size": size})(entry, target, fold))


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


@app.command("convert-fairseq")
def convert_fairseq(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of fairseq's transformer or of the plug-in (.pt).")],
    languages: Annotated[str, typer.Argument(help="Source and target, as in en-de.")],
    out: Annotated[Path, typer.Argument(help="Safetensors file to write.")],
    dictionary: Annotated[list[Path], typer.Option(help="dict.txt; twice for a source's and a target's.")],
    sentencepiece: Annotated[list[Path], typer.Option(help="Sentencepiece model; twice for two.")],
) -> None:
    """Turn a checkpoint of fairseq, trained on sentencepiece tokens, into weights of this zoo."""
    import zoo
    from zoo.convert.fairseq import from_fairseq, read_dictionary, with_vocabularies
    from zoo.text import Vocabulary

    source, _, target = languages.partition("-")
    if not source or not target:
        raise UserError(f"languages {languages!r}: source-target is expected, as in en-de")
    if max(len(dictionary), len(sentencepiece)) > 2:
        raise UserError("--dictionary and --sentencepiece: one of each, or one for the source and one for the target")
    vocabularies = [Vocabulary(path.read_bytes(), str(path)) for path in sentencepiece]
    symbols = [read_dictionary(path) for path in dictionary]
    both = [vocabularies[0], vocabularies[-1]]
    model, missing = with_vocabularies(from_fairseq(checkpoint), [symbols[0], symbols[-1]], both)
    transform = zoo.TextTransform.of((source, target), *both)
    zoo.save_weights(model, out, transform=transform, classes=(), meta={"converted_from": checkpoint.name})
    unknown = f"; {missing} pieces are not in the dictionaries and behave as unknown" if missing else ""
    typer.echo(f"{out}: {model.config.name}, scheme {model.config.scheme}{unknown}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for pictures, curves and the report.")] = _DEMO_OUT,
) -> None:
    """Pretrained nets on real pictures, fine-tuning at batch size 2 beside BatchNorm, ONNX export, cell nuclei."""
    from tasks.demo import run

    run(out)


def main() -> None:
    """Run the command line: a user's error becomes one line and exit code 1."""
    import logging

    from zoo.errors import ZooError

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("rescalenet").setLevel(logging.INFO)
    try:
        app(standalone_mode=True)
    except (UserError, ZooError, OSError) as error:
        print_line(f"error: {_last_line(error)}")
        raise SystemExit(1) from None
    except RuntimeError as error:
        if (reason := dead_worker(error)) is None:
            raise
        print_line(f"error: {reason}")
        raise SystemExit(1) from None


def _short(value: Any) -> Any:
    """A value for people: of a long string, such as a vocabulary, its length."""
    return f"{len(value)} characters" if isinstance(value, str) and len(value) > 200 else value


def _last_line(error: BaseException) -> str:
    """The message; of an error that a data loading process raised, the part after its traceback."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return text


if __name__ == "__main__":
    main()

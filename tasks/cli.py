"""The command ``rescalenet``."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import select
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast, get_args

import typer
from typer.core import TyperGroup

from tasks.errors import Interrupted, UserError, dead_worker, out_of_memory
from tasks.files import input_path, name_or_path, output_path
from tasks.launch import is_first_process, process_count
from tasks.options import Device, OutputFormat, Overwrite, Workers, takes_task_options
from tasks.parent import end_with_parent
from tasks.printing import json_line, print_out, printable
from tasks.progress import print_line
from tasks.textfiles import read_names
from zoo.export import describe_targets

INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it
CLOSED = 141  # exit code where the reader of stdout has gone, as after head: 128 and the number of SIGPIPE


class _Program(TyperGroup):
    """The commands, of which typer does not see Ctrl-C and a closed stdout."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt:
            _end("error: interrupted", INTERRUPTED)
        except BrokenPipeError:
            if not _stdout_is_closed():  # a pipe to another process of ours
                raise
            raise SystemExit(CLOSED) from None
        return result


def _stdout_is_closed() -> bool:
    """Return whether the reader of stdout has gone; what is still to be written there is dropped then."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        if not any(event & select.POLLERR for _, event in poll.poll(0)):
            return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


app = typer.Typer(
    name="rescalenet",
    cls=_Program,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(given: bool) -> None:
    """Print the version and stop, if ``--version`` was given."""
    if given:
        from zoo import __version__

        typer.echo(f"rescalenet-zoo {__version__}")
        raise typer.Exit


SEVERAL = ("train", "eval", "study")  # commands that know of several processes; a study refuses them itself


@app.callback()
def _program(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Deep networks without normalization layers: train, evaluate, predict, export."""
    if (count := process_count()) > 1 and context.invoked_subcommand not in SEVERAL:
        raise UserError(
            f"rescalenet {context.invoked_subcommand} runs in one process, each of {count} (WORLD_SIZE) would do the "
            "same: run it without torchrun"
        )


@app.command("list")
def list_(
    filter: Annotated[str, typer.Argument(help="Shell pattern.")] = "*",
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Only nets with weights.")] = False,
    input_kind: Annotated[
        str | None,
        typer.Option(
            "--input-kind", "--takes", help="Only nets of this input: images, clips, text, image_lists (detectors)."
        ),
    ] = None,
    convertible: Annotated[
        bool,
        typer.Option("--convertible", help="Weights of torchvision and timm instead, which are converted when loaded."),
    ] = False,
) -> None:
    """Print the nets, and the weights that can be loaded by name."""
    import zoo
    from zoo.specs import InputKind

    if convertible:
        if pretrained or input_kind is not None:
            raise UserError("--convertible lists weights of others: leave --pretrained and --input-kind out")
        for row in zoo.sources.list_convertible(filter):
            metrics = ", ".join(f"{key} {value:g}" for key, value in row.metrics.items())
            typer.echo("  ".join(part for part in (row.model, row.weights, metrics) if part))
        return
    if input_kind not in (None, *get_args(InputKind)):
        raise UserError(f"--input-kind {input_kind}: must be one of {', '.join(get_args(InputKind))}")
    for name in zoo.list_models(filter, pretrained=pretrained, input_kind=cast(InputKind | None, input_kind)):
        tags = ", ".join(zoo.model_info(name).weights)
        typer.echo(f"{name}  [{tags}]" if tags else name)


@app.command()
def train(
    config: Annotated[
        str, typer.Argument(parser=name_or_path, help="A YAML file, or the name of a recipe that ships.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")] = False,
    changed_data: Annotated[
        bool, typer.Option("--changed-data", help="With --resume: the samples may have changed since; not the classes.")
    ] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved config and stop.")] = False,
    measure: Annotated[
        int | None,
        typer.Option(min=1, metavar="STEPS", help="Time some steps, print how long the run takes, stop."),
    ] = None,
    device: Device = None,
) -> None:
    """Train by a recipe, and print the last metrics as JSON.

    Under torchrun: torchrun --no-python --nproc-per-node 2 rescalenet train CONFIG.
    """
    from tasks import config as cfg
    from tasks.spec import make_task, resolve

    resolved = resolve(config, overrides or [])
    if print_config:
        typer.echo(cfg.dump(resolved), nl=False)
        return
    from tasks.devices import choose_device, start_processes
    from tasks.engine import Trainer
    from tasks.engine.signals import Signals

    choose_device(device)
    if changed_data and not resume:
        raise UserError("--changed-data: only with --resume")
    start_processes(resolved.train.timeout_minutes)
    if measure is not None:
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(make_task(resolved.model_copy(update={"output": f"{folder}/run"})))
            pace = trainer.measure(measure)
        if trainer.accelerator.is_main_process:
            typer.echo(json.dumps({**dataclasses.asdict(pace), "seconds": pace.seconds}))
        return
    with Signals():  # around fit too, which has its own: a signal between the two would kill the process
        trainer = Trainer(make_task(resolved), resume=resume, changed_data=changed_data)
        metrics = trainer.fit()
    if trainer.accelerator.is_main_process:
        print_line(f"{resolved.output}: " + ", ".join(f"{key} {value:.4g}" for key, value in metrics.items()))
        typer.echo(json_line({"output": resolved.output, "metrics": metrics}))


@app.command("fit-loss")
def fit_loss(
    run: Annotated[Path, typer.Argument(parser=input_path, help="Folder of a run.")],
    batches: Annotated[int, typer.Option(min=1, help="Number of training batches.")] = 80,
    device: Device = None,
) -> None:
    """Measure the loss of training samples in evaluation mode, without augmentation; writes fit_loss.json there."""
    from tasks.devices import choose_device
    from tasks.study.fit import measure_fit_loss

    choose_device(device)
    loss = measure_fit_loss(run, batches)
    print_line(f"{run}: loss {loss:.6g} of {batches} training batches in evaluation mode, without augmentation")


@app.command()
def study(
    file: Annotated[
        str,
        typer.Argument(parser=name_or_path, metavar="STUDY", help="A YAML file, or the name of a study that ships."),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value of every run ...")] = None,
    out: Annotated[
        Path | None, typer.Option(parser=output_path, help="Folder of the runs and tables; default: the study's.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; default: one for each GPU.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of a run; default: an equal share.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what the study costs, and stop.")] = False,
    trials: Annotated[bool, typer.Option("--trials", help="Stop before the final runs.")] = False,
    device: Device = None,
) -> None:
    """Compare settings of several schemes: trials on held-out data, then the best of each with several seeds.

    The same command continues a study that was stopped.
    """
    from tasks.devices import choose_device
    from tasks.study.config import read_study
    from tasks.study.runner import Slots, program_of
    from tasks.study.study import Study

    if process_count() > 1:
        raise UserError("rescalenet study starts the processes itself: run it without torchrun, with --jobs")
    choose_device(device)
    slots = Slots.of_machine(jobs, threads, program_of(sys.argv[0]), device)
    found = Study(read_study(file, overrides or [], out), slots)
    if plan:
        typer.echo("\n".join(found.plan()))
        return
    with found.locked():
        print_line("\n".join(found.plan()))
        lines = found.run(trials_only=trials)
    typer.echo("\n".join(lines))
    print_line(f"written to {found.config.output}: report.md, results.csv, study.png")


@app.command()
def diagnose(
    name: Annotated[
        str,
        typer.Argument(
            parser=name_or_path,
            metavar="NET",
            help="A run's folder, its log.jsonl alone, a config or recipe, weights, or a net by name.",
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value of a config; option=value of a net, as scheme=bn ...")
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(help='Another one beside it, with its overrides: "rescalenet50 scheme=none"; more than once.'),
    ] = None,
    noise: Annotated[
        str | None, typer.Option(help="pink (1/f, as photographs) or white noise in place of data; random tokens.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(parser=input_path, help="Pictures, or a file of sentences, for weights and nets; default: noise."),
    ] = None,
    batches: Annotated[
        int | None, typer.Option(min=1, help="Number of batches; default: 4 of a config's data, else 1.")
    ] = None,
    whole: Annotated[bool, typer.Option("--all", help="All batches of the data, not --batches.")] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples of a batch; default: the config's, or 8.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Side of noise in pixels, or its tokens; default: the net's.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of fresh weights of a net and of noise; default: 0.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=output_path, help="Folder of the report; default: out/diagnose, out/diagnose_2 ..."),
    ] = None,
    overwrite: Overwrite = False,
    format: OutputFormat = "text",
    device: Device = None,
) -> None:
    """See why a net trains, or why it does not: signals by depth, dead units, multipliers over time, and a verdict."""
    from tasks.devices import choose_device
    from tasks.diagnose.inputs import check_spectrum
    from tasks.diagnose.run import file_names, run_diagnosis, write_diagnosis
    from tasks.diagnose.subjects import Settings
    from tasks.outputs import OutputFolder, next_folder
    from tasks.printing import checked_format

    choose_device(device)
    chosen = checked_format(format)
    if chosen == "csv":
        raise UserError("--format csv: is in the files of the report; give text or json")
    if noise is not None and data is not None:
        raise UserError("--noise and --data: give one of the two")
    spectrum = None if noise is None else check_spectrum(noise)
    if whole and batches is not None:
        raise UserError("--all and --batches: give one of the two")
    settings = Settings(spectrum, data, "all" if whole else batches, batch_size, size, seed=seed)
    path = next_folder(Path("out/diagnose")) if out is None else out
    folder = OutputFolder(path, file_names(), overwrite=overwrite)
    found = run_diagnosis(name, overrides or [], compare or [], settings)
    print_out(json_line(found.as_dict()) if chosen == "json" else "\n".join(found.lines()))
    write_diagnosis(found, folder, " ".join([name, *(overrides or [])]))
    print_line(f"written to {path}: {', '.join(p.name for p in sorted(path.iterdir()))}")


@app.command()
def prepare(
    config: Annotated[
        str, typer.Argument(parser=name_or_path, help="A YAML file, or the name of a recipe that ships.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
) -> None:
    """Make what training reads: of text the vocabulary and corpus, of videos the index of their frame times."""
    from tasks.spec import run_prepare

    path = run_prepare(config, overrides or [])
    print_out(f"{path}: ready for rescalenet train {config}")


@app.command()
def info(
    model: Annotated[str | None, typer.Argument(help="A net, or weights: name.tag, a file, torchvision:...")] = None,
    env: Annotated[
        bool, typer.Option("--env", help="Versions, device and optional packages, for bug reports.")
    ] = False,
) -> None:
    """Describe a net (schemes, options, weights) or weights (metrics, data, licence)."""
    if env == (model is not None):
        raise UserError("info takes either a net or weights, or --env")
    if env:
        from tasks.environment import describe_environment

        for line in describe_environment():
            typer.echo(line)
        return
    assert model is not None
    import zoo

    typer.echo(json.dumps(_weights_info(model) if zoo.is_weights_name(model) else _net_info(model), indent=1))


def _weights_info(name: str) -> dict[str, Any]:
    import zoo

    # of torchvision and timm: what they state, without fetching the weights
    if stated := zoo.sources.describe(name):
        return {**stated, "transform": dataclasses.asdict(stated["transform"]), "classes": list(stated["classes"])}
    weights = zoo.get_weights(name)
    return {
        "weights": weights.name,
        **dataclasses.asdict(weights.config),
        "transform": {k: _short(v) for k, v in dataclasses.asdict(weights.transform).items()},
        "classes": list(weights.classes),
        "meta": weights.meta,
    }


def _net_info(name: str) -> dict[str, Any]:
    import torch

    import zoo

    with torch.device("meta"):  # counting parameters needs no memory
        net = zoo.create_model(name)
    content = {**dataclasses.asdict(zoo.model_info(name)), "parameters": sum(p.numel() for p in net.parameters())}
    if hasattr(net, "strides"):  # those of a detector's pyramid
        content["strides"] = net.strides
    return content


@app.command("eval")
@takes_task_options("eval")
def eval_(
    weights: Annotated[str, typer.Argument(help="name.tag or a safetensors file.")],
    data: Annotated[
        Path,
        typer.Argument(
            parser=input_path, help="A folder for each class, a COCO JSON file, a list of videos, parallel text."
        ),
    ],
    out: Annotated[Path | None, typer.Option(parser=output_path, help="Folder for metrics.json and more.")] = None,
    overwrite: Overwrite = False,
    format: OutputFormat = "text",
    workers: Workers = 0,
    device: Device = None,
    **options: Any,
) -> None:
    """Evaluate weights: accuracy by class of images or videos, COCO's metrics of detectors, BLEU of translations."""
    import zoo
    from tasks.devices import choose_device, process_state
    from tasks.outputs import OutputFolder, require_outside
    from tasks.printing import checked_format
    from tasks.report import print_evaluation
    from tasks.spec import spec_of

    # Check the options and the folder before anything is computed.
    choose_device(device)
    chosen = checked_format(format)
    entry = zoo.get_weights(weights)
    spec = spec_of(entry)
    given = spec.options("eval", options, entry.name)
    if out is not None:
        require_outside(out, data)
        OutputFolder(out, ["metrics.json", *spec.eval.files], [data], overwrite=overwrite)
    found = spec.eval.run(entry, data, out, workers, given)
    if process_state().is_main_process:
        print_evaluation(found, entry.name, str(data), chosen)


@app.command()
@takes_task_options("score")
def score(
    results: Annotated[
        Path, typer.Argument(parser=input_path, help="Detections in COCO's results format, of any program.")
    ],
    data: Annotated[Path, typer.Argument(parser=input_path, help="COCO JSON file with the true objects.")],
    out: Annotated[Path | None, typer.Option(parser=output_path, help="Folder for metrics.json.")] = None,
    overwrite: Overwrite = False,
    format: OutputFormat = "text",
    **options: Any,
) -> None:
    """Evaluate detections in a file by COCO's metrics, as eval does with those of weights."""
    from tasks.outputs import OutputFolder
    from tasks.printing import checked_format
    from tasks.report import print_evaluation
    from tasks.spec import run_score

    chosen = checked_format(format)
    if out is not None:
        OutputFolder(out, ["metrics.json"], [results, data], overwrite=overwrite)
    print_evaluation(run_score(results, data, out, options), str(results), str(data), chosen)


@app.command()
@takes_task_options("predict")
def predict(
    weights: Annotated[str, typer.Argument(help="name.tag or a safetensors file.")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="Pictures or videos, and folders of them; sentences, files of them, - for standard input."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=output_path,
            help="Folder for JSON and pictures; default: out/predict, out/predict_2 ..., of text none.",
        ),
    ] = None,
    no_files: Annotated[bool, typer.Option("--no-files", help="Write no files.")] = False,
    device: Device = None,
    **options: Any,
) -> None:
    """Classify pictures or videos, find objects in pictures, translate sentences."""
    import zoo
    from tasks.devices import choose_device
    from tasks.outputs import next_folder
    from tasks.spec import spec_of

    if no_files and out is not None:
        raise UserError(f"--no-files: writes nothing into --out {out}; leave one of them out")
    choose_device(device)
    entry = zoo.get_weights(weights)
    spec = spec_of(entry)
    given = spec.options("predict", options, entry.name)
    folder = out
    if out is None and not no_files and spec.predict_out is not None:
        folder = next_folder(spec.predict_out)
    found = spec.predict.run(entry, inputs or [], folder, given)
    if folder is not None:
        print_line(f"written to {folder}")
    if not found:
        raise typer.Exit(1)


@app.command()
@takes_task_options("check")
def check(
    data: Annotated[
        str,
        typer.Argument(
            parser=name_or_path,
            help="A config, the name of a recipe that ships, a folder of images, or a COCO file or folder.",
        ),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    out: Annotated[Path | None, typer.Option(parser=output_path, help="Folder for check.json and samples.png.")] = None,
    **options: Any,
) -> None:
    """Look at data before training: counts, sizes, damaged files, duplicates. Exit code 1 if training would stop."""
    from tasks.spec import run_check

    if not run_check(data, overrides or [], out, options):
        raise typer.Exit(1)


@app.command()
@takes_task_options("export")
def export(
    weights: Annotated[str | None, typer.Argument(help="name.tag or a safetensors file.")] = None,
    to: Annotated[str | None, typer.Option(help=f"Target, with the input it takes: {describe_targets()}.")] = None,
    out: Annotated[
        Path | None, typer.Option(parser=output_path, help="Folder to write; default: out/export/NAME/TARGET.")
    ] = None,
    fold: Annotated[bool, typer.Option(help="Export the deployment form (zoo.fold), not the net as trained.")] = True,
    half: Annotated[bool, typer.Option(help="Store weights in half precision.")] = False,
    int8: Annotated[bool, typer.Option(help="Quantise to int8, calibrated on --data.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            parser=input_path, help="Inputs to compare at: pictures, videos or sentences; default: the package's."
        ),
    ] = None,
    check: Annotated[
        Path | None, typer.Option(parser=input_path, help="Compare an earlier export in this folder again.")
    ] = None,
    trust: Annotated[bool, typer.Option(help="With --check: load files that may run code, such as pt2's.")] = False,
    overwrite: Overwrite = False,
    **options: Any,
) -> None:
    """Export weights and verify the files in the target's own runtime; manifest.json describes them."""
    from tasks.exporting import check_again, export_weights

    if check is not None:
        print_out(str(check_again(check, weights, trust=trust)))
        return
    if weights is None:
        raise UserError("export: give weights, as name.tag or a safetensors file, or --check FOLDER")
    made = export_weights(
        weights, to, out, fold=fold, data=data, half=half, int8=int8, overwrite=overwrite, options=options
    )
    print_out(str(made))


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            parser=name_or_path,
            help="torchvision:BUILDER:TAG, timm:ARCHITECTURE.TAG, https://...#sha256=HEX, weights of this zoo with "
            "scheme bn, or a checkpoint: .safetensors, .pth, .pt, .pkl, .pyth.",
        ),
    ],
    out: Annotated[Path, typer.Argument(parser=output_path, help="Safetensors file to write.")],
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    name: Annotated[str | None, typer.Option(help="Net, e.g. rescalenet50; default: the one that fits.")] = None,
    form: Annotated[str, typer.Option(help="Form of the converted net: gained, folded or balanced.")] = "gained",
    eps: Annotated[float | None, typer.Option(min=0, help="eps of the norms; default: the source's.")] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Text file with a class name on each line; for a detector also: all, which keeps every row of the "
            "checkpoint, or coco; default: the source's."
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE that a checkpoint's keys do not show, e.g. stride_in_1x1=true; more than once."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert weights with BatchNorm, or of the authors' RescaleNet code, to weights of this zoo."""
    import zoo
    from tasks import config as cfg
    from tasks.outputs import check_target

    if more:  # in 0.1.0 the name was the second argument
        raise UserError(
            f"convert takes SOURCE and OUT, and the net's name as an option: rescalenet convert {source} {more[-1]} "
            f"--name {out}"
        )
    check_target(out, overwrite=overwrite, source=Path(source))
    options = cfg.apply_overrides({}, option or [])
    if own := sorted({"name", "form", "eps", "classes", "source", "out"} & options.keys()):
        raise UserError(f"--option {own[0]}: has an argument of its own; see rescalenet convert --help")
    names: str | list[str] | None = classes
    if classes not in (None, "all", "coco"):
        names = [name.strip() for name in read_names(input_path(str(classes)), repeated=("N/A",))]  # as in COCO's list
    entry = zoo.sources.convert(source, out, name=name, form=cast(Any, form), eps=eps, classes=names, **options)
    typer.echo(f"{out}: {entry.config.name}, {entry.config.num_classes} classes")


@app.command()
def push(
    source: Annotated[
        str,
        typer.Argument(parser=name_or_path, help="Folder of a run, or weights: name.tag or a safetensors file."),
    ],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the hub.")],
    public: Annotated[bool, typer.Option("--public", help="A public repository, not a private one.")] = False,
    checkpoint: Annotated[str, typer.Option(help="Weights of the run: last, or best on the evaluation set.")] = "last",
    licence: Annotated[str | None, typer.Option(help="Licence of the weights; default: the inherited one.")] = None,
) -> None:
    """Upload weights with a generated card; hf-hub:OWNER/NAME loads them. Log in before: hf auth login."""
    import zoo

    if checkpoint not in ("last", "best"):
        raise UserError(f"--checkpoint {checkpoint}: must be last or best")
    address = zoo.push(source, repository, private=not public, checkpoint=cast(Any, checkpoint), licence=licence)
    typer.echo(f"{address}\nload it as hf-hub:{repository}")


@app.command("convert-fairseq")
def convert_fairseq(
    checkpoint: Annotated[
        Path,
        typer.Argument(parser=input_path, help="Checkpoint of fairseq's transformer or of the plug-in (.pt)."),
    ],
    languages: Annotated[str, typer.Argument(help="Source and target, as in en-de.")],
    out: Annotated[Path, typer.Argument(parser=output_path, help="Safetensors file to write.")],
    dictionary: Annotated[
        list[Path], typer.Option(parser=input_path, help="dict.txt; twice for a source's and a target's.")
    ],
    sentencepiece: Annotated[list[Path], typer.Option(parser=input_path, help="Sentencepiece model; twice for two.")],
    overwrite: Overwrite = False,
) -> None:
    """Convert a checkpoint of fairseq, trained on sentencepiece tokens, to weights of this zoo."""
    import zoo
    from tasks.outputs import check_target
    from zoo.convert.fairseq import from_fairseq, read_dictionary, read_vocabulary, with_vocabularies

    source, _, target = languages.partition("-")
    if not source or not target:
        raise UserError(f"languages {languages!r}: must be source-target, as in en-de")
    if max(len(dictionary), len(sentencepiece)) > 2:
        raise UserError("--dictionary and --sentencepiece: give one for both languages, or source and target")
    again = _is_conversion_of(out, checkpoint)
    for path in (checkpoint, *dictionary, *sentencepiece):
        check_target(out, overwrite=overwrite or again, source=path)
    # Given one file, both languages share it.
    vocabularies = [read_vocabulary(path) for path in sentencepiece]
    symbols = [read_dictionary(path) for path in dictionary]
    both = [vocabularies[0], vocabularies[-1]]
    model, missing = with_vocabularies(from_fairseq(checkpoint), [symbols[0], symbols[-1]], both)
    transform = zoo.TextTransform.from_vocabularies((source, target), *both)
    zoo.save_weights(model, out, transform=transform, classes=(), meta=_origin(checkpoint))
    unknown = f"; {missing} pieces are not in the dictionaries and behave as unknown" if missing else ""
    replaced = "; replaces the earlier conversion of this checkpoint" if again else ""
    typer.echo(f"{out}: {model.config.name}, scheme {model.config.scheme}{unknown}{replaced}")


def _origin(checkpoint: Path) -> dict[str, str]:
    """Return what converted weights state about the checkpoint that they were made of."""
    from zoo.files import sha256_of

    return {"converted_from": checkpoint.name, "source_sha256": sha256_of(checkpoint)}


def _is_conversion_of(out: Path, checkpoint: Path) -> bool:
    """Return whether a file is an earlier conversion of the checkpoint, which can be made again at any time.

    Weights that were trained on, or converted further, state something else.
    """
    from zoo.errors import ZooError
    from zoo.weights import get_weights

    if out.suffix != ".safetensors" or not out.is_file():
        return False
    try:
        return get_weights(str(out)).meta == _origin(checkpoint)
    except (ZooError, OSError):  # another file, or a checkpoint that cannot be read
        return False


@app.command()
def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            parser=output_path,
            help="Folder for pictures, curves and the report; default: out/demo, out/demo_2 ...",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Run seven small jobs: photographs, fine-tuning beside BatchNorm, ONNX, cell nuclei, a video, captions."""
    from tasks.demo import run
    from tasks.outputs import next_folder

    run(next_folder(Path("out/demo")) if out is None else out, overwrite=overwrite)


def main() -> None:
    """Run the command line: a user's error becomes one line and exit code 1 (docs/cli.md lists the codes)."""
    from zoo.errors import ZooError

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("rescalenet").setLevel(logging.INFO if is_first_process() else logging.WARNING)
    end_with_parent()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for terminals and pipes that cannot show every script
    try:
        app(standalone_mode=True)
    except (UserError, ZooError, OSError) as error:
        _end(f"error: {_last_line(error)}", 1)
    except Interrupted as stop:
        _end(stop.message, stop.exit_code)
    except (RuntimeError, MemoryError) as error:
        reason = dead_worker(error)
        if (short := out_of_memory(error)) is not None:
            reason = f"{short}: {_REMEDIES.get(_command(), 'use a smaller input')}"
        if reason is None:
            raise
        _end(f"error: {reason}", 1)


# what to lower where memory runs out, by command
_REMEDIES = {
    "train": "lower train.batch_size, and raise train.accumulate by the same factor",
    "fit-loss": "use the run's weights on a device with more memory, or --device cpu",
    "eval": "lower --batch-size, or choose another --device",
    "predict": "lower --batch-size, cut large pictures with --tile, or choose another --device",
}


def _command() -> str:
    """Return the name of the command that was called."""
    return next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")


def _end(line: str, code: int) -> NoReturn:
    """End the program with a line on stderr, which of several processes only the first prints."""
    if process_count() == 1 or _first_to_fail():
        print_line(printable(line), of_any_process=True)
    raise SystemExit(code) from None


def _first_to_fail() -> bool:
    from tasks.engine.ranks import first_to_fail

    return first_to_fail()


def _short(value: Any) -> Any:
    """Shorten a value for people: a long string, such as a vocabulary, to its length."""
    return f"{len(value)} characters" if isinstance(value, str) and len(value) > 200 else value


def _last_line(error: BaseException) -> str:
    """Return the message of an error, without the traceback in front if a data loading process raised it."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:  # not [Errno 17] File exists: 'a'
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return text


if __name__ == "__main__":
    main()

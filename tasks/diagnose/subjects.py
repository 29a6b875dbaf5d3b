"""What a diagnosis looks at: a run, a config, weights, a net by name, or the log of a run alone."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader

import zoo
from tasks.config import RunConfig, apply_overrides, read_yaml
from tasks.devices import dtype_of, make_accelerator
from tasks.diagnose.inputs import (
    Inputs,
    Spectrum,
    expected_power,
    noise_inputs,
    picture_inputs,
    sentence_inputs,
)
from tasks.diagnose.measure import diagnose, keeping_norms
from tasks.diagnose.signals import Signals
from tasks.engine.gradients import GradientChanges
from tasks.engine.optimizer import make_optimizer
from tasks.engine.run import count_calibration_batches
from tasks.engine.sampler import seed_from
from tasks.engine.state import RunFolder
from tasks.engine.task import Task
from tasks.errors import DataError, UserError
from tasks.files import name_or_path
from tasks.spec import check, load_model, make_task, resolve

_STARTING_WEIGHTS = ("weights", "weights_backbone")  # keys of a config's model that name weights to start from
BATCHES = 4  # training batches of a config
CALIBRATION_BATCHES = 8  # batches on which a net by name is calibrated, as published
BATCH_SIZE = 8  # samples of a batch of weights and nets by name
_FP16_SCALE = 1024.0  # as a gradient scaler has after some steps
CALIBRATE = "calibrate"  # key of a net's overrides that is no option: whether its biases are set from the inputs


@dataclass(frozen=True)
class Settings:
    """What the batches of a diagnosis are.

    Attributes:
        noise: spectrum of noise in place of data; None: data, or pink noise for nets and weights without data.
        data: pictures or sentences for nets and weights; None: noise.
        batches: number of batches, or ``all`` of the data; None for ``BATCHES`` of a config, else one.
        batch_size: samples of a batch; None: those of the config, or ``BATCH_SIZE``.
        size: side of pictures of noise in pixels, or tokens of its sentences; None: the net's own.
        units: whether the signs of each unit are counted.
        seed: seed of fresh weights of a net and of noise; None: 0.
    """

    noise: Spectrum | None = None
    data: Path | None = None
    batches: int | Literal["all"] | None = None
    batch_size: int | None = None
    size: int | None = None
    units: bool = True
    seed: int | None = None


@dataclass(frozen=True)
class Subject:
    """One net or run of a diagnosis.

    Attributes:
        label: name in tables and legends.
        measure: function that returns the signals; None for a log alone.
        log: log of the run, if there is one.
        fresh: function that returns the net as it was at the start of the run, to add to the log; None if that is not
            known.
    """

    label: str
    measure: Callable[[], Signals] | None = None
    log: Path | None = None
    fresh: Callable[[], nn.Module] | None = None


def find_subject(text: str, overrides: Sequence[str], settings: Settings, label: str = "") -> Subject:
    """Return the subject that a name stands for.

    Args:
        text: folder of a run, log of a run (.jsonl), config file or recipe, weights, or net.
        overrides: ``key=value``: dotted keys of a run's or recipe's config; options of ``zoo.create_model`` of a net.
        settings: batches.
        label: name in tables and legends; empty for the name and the overrides.

    Raises:
        UserError: overrides of weights or of a log, or a folder that has no run.
        ConfigError: no such recipe, or settings that are not valid.
        zoo.ZooError: no such net or weights, or options that it does not have.
    """
    path = Path(text)
    label = label or short_labels([(text, overrides)])[0]
    if path.suffix == ".jsonl":
        _no_overrides(text, overrides, "a log")
        if not path.is_file():
            raise DataError(f"{text}: no such file")
        weights = path.with_name(path.name.removesuffix(".log.jsonl") + ".safetensors")
        fresh = _fresh_of(weights) if weights.is_file() else None
        return Subject(label, log=path, fresh=fresh)
    if path.is_dir():
        return _run_subject(path, label, overrides, settings)
    if path.suffix in (".yaml", ".yml") or ("/" in text.removeprefix("./") and not zoo.is_weights_name(text)):
        config = resolve(text, overrides)
        return Subject(label, lambda: _of_config(config, None, label, settings))
    if zoo.is_weights_name(text):
        _no_overrides(text, overrides, "weights")
        entry = zoo.get_weights(text)
        return Subject(label, lambda: _of_weights(entry, label, settings))
    options = apply_overrides({}, overrides)
    calibrate = options.pop(CALIBRATE, True)
    if not isinstance(calibrate, bool):
        raise UserError(f"{CALIBRATE}={calibrate!r}: must be true or false")
    with torch.device("meta"):  # names and options are checked before anything is measured
        zoo.create_model(text, **options)
    return Subject(label, lambda: _of_net(text, options, calibrate, label, settings))


def short_labels(given: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Return the names of nets and runs without what all have in common, with no more folders than distinguish them.

    >>> short_labels([("a/r20", ["data.root=d", "model.scheme=bn"]), ("a/r20", ["data.root=d"])])
    ['r20 model.scheme=bn', 'r20']
    >>> short_labels([("rescalenet50", ["scheme=bn"]), ("rescalenet50", ["scheme=gn"])])
    ['rescalenet50 scheme=bn', 'rescalenet50 scheme=gn']
    >>> short_labels([("study/bn/seed0/log.jsonl", []), ("study/none/seed0/log.jsonl", [])])
    ['bn/seed0', 'none/seed0']
    >>> short_labels([("a/r20", ["data.root=b"]), ("a/r20", ["data.root=c"])])
    ['r20 data.root=b', 'r20 data.root=c']
    """
    common = set.intersection(*(set(overrides) for _, overrides in given)) if len(given) > 1 else set()
    own = [[key for key in keys if key not in common] for _, keys in given]
    brief = [[key for key in keys if not key.startswith("data.root=")] for keys in own]
    deepest = max(len(Path(text).parts) for text, _ in given)
    labels: list[str] = []
    for folders in range(max(deepest, 1)):
        names = [_short_name(text, folders) for text, _ in given]
        for shown in (brief, own):
            labels = [" ".join([name, *keys]) for name, keys in zip(names, shown, strict=True)]
            if len(set(labels)) == len(labels):
                return labels
    return labels


def _short_name(text: str, folders: int) -> str:
    """Return the name of a net or run behind so many folders; of a run's own log that of its folder."""
    path = Path(text)
    parts = [part for part in path.parts if part != path.anchor]
    if len(parts) > 1 and parts[-1] == "log.jsonl":
        parts.pop()
    return "/".join(parts[-1 - folders :]).removesuffix(".jsonl").removesuffix(".log")


def parse_compared(text: str) -> tuple[str, list[str]]:
    """Return the name and the overrides of ``--compare "NAME key=value ..."``.

    Raises:
        UserError: quotes that do not end, or no name.
    """
    try:
        parts = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--compare {text!r}: {error}") from None
    if not parts:
        raise UserError("--compare: empty; give a run, a config, weights or a net")
    return name_or_path(parts[0]), parts[1:]


def _no_overrides(text: str, overrides: Sequence[str], what: str) -> None:
    if overrides:
        raise UserError(f"{text}: {what} cannot be changed ({overrides[0]}); give a config that starts from it")


# -- runs and configs -----------------------------------------------------------------------------------


def _run_subject(folder: Path, label: str, overrides: Sequence[str], settings: Settings) -> Subject:
    files = RunFolder(folder)
    if not files.config.is_file():
        raise UserError(f"{folder}: no run in it ({files.config.name} is missing); give the folder of a run")
    config = check(apply_overrides(read_yaml(files.config), overrides), str(files.config))
    log = files.log if files.log.is_file() else None

    model: Any = config.model  # type: ignore[attr-defined]
    began_fresh = not any(getattr(model, key, None) for key in _STARTING_WEIGHTS)
    fresh = (lambda: fresh_net(model.name, model.scheme, model.options)) if began_fresh else None
    weights = files.last if files.last.is_file() else None
    if weights is None and log is None:
        raise UserError(f"{folder}: neither weights nor a log in it yet")
    measure = None if weights is None else lambda: _of_config(config, str(weights), label, settings)
    return Subject(label, measure, log, fresh)


def fresh_net(name: str, scheme: str | None, options: dict[str, Any]) -> nn.Module:
    """Return a net with fresh weights, whose norms hardly depend on the seed."""
    set_seed(0)
    model: nn.Module = zoo.create_model(name, scheme=scheme, **options)
    return model


def _fresh_of(weights: Path) -> Callable[[], nn.Module] | None:
    """Return a function that makes the net of weights as it was before their run; None if that began from others.

    Args:
        weights: file that states the config of its run.
    """
    entry = zoo.get_weights(str(weights))
    section = entry.meta.get("config", {}).get("model", {})
    if any(section.get(key) for key in _STARTING_WEIGHTS) or not section:
        return None
    config = entry.config
    return lambda: fresh_net(config.name, config.scheme, dict(config.options))


def _of_config(config: RunConfig, weights: str | None, label: str, settings: Settings) -> Signals:
    """Return the signals of a config's net at init, calibrated as in training, or of a run's weights."""
    # 1. The net, as training begins with it or as the run has left it.
    train = config.train
    if settings.data is not None:
        raise UserError("--data: a config and a run have their own data; leave it out, or give weights")
    if settings.noise is None and settings.size is not None:
        raise UserError("--size: a config and a run take their data as they are; leave it out, or give --noise")
    if settings.noise is None and settings.seed is not None:
        raise UserError(f"--seed: a config and a run have their own, train.seed={train.seed}; leave it out")
    accelerator = make_accelerator(precision=train.precision)
    set_seed(train.seed)
    section: Any = config.model  # type: ignore[attr-defined]
    entry = None if weights is None else zoo.get_weights(weights)
    dtype = dtype_of(train.precision)
    if entry is not None and settings.noise is not None:  # no data of the run is opened
        return _on_noise(
            load_model(entry).to(accelerator.device, dtype), label, settings, accelerator, trained=True, calibrate=False
        )
    task = make_task(config)
    model: Any = task.build_model() if entry is None else load_model(entry)
    if entry is not None:
        model.freeze(section.freeze)
    model = model.to(accelerator.device, dtype)
    calibrate = entry is None and train.calibrate
    if settings.noise is not None:
        return _on_noise(model, label, settings, accelerator, trained=False, calibrate=calibrate)
    # 2. Its batches, and how training uses them.
    batches = _Batches(task, accelerator, settings)

    def forward(net: nn.Module, batch: Any) -> None:
        with accelerator.autocast():
            task.calibration_forward(net, batch, dtype)

    def loss(net: nn.Module, batch: Any) -> Tensor:
        with keeping_norms(net, task.loss_mode(net)), accelerator.autocast():
            return torch.stack(list(task.losses(net, batch, dtype).values())).sum()

    # 3. Calibration and diagnosis.
    if calibrate:
        zoo.calibrate(model, task.merge(list(batches.of_calibration())), forward=forward)
    transform = getattr(task, "transform", None) if entry is None else entry.transform
    started = entry is not None or any(getattr(section, key, None) for key in _STARTING_WEIGHTS)
    return diagnose(
        model,
        batches,
        forward=forward,
        loss=loss,
        step=optimizer_step(config),
        loss_scale=_FP16_SCALE if train.precision == "fp16" else 1.0,
        units=settings.units,
        label=label,
        source=f"{batches.count} training batches of {batches.batch_size}",
        expected_power=expected_power(transform if started else None),
        trained=started,
    )


def optimizer_step(config: RunConfig) -> Callable[[nn.Module], None]:
    """Return a function that makes the first step of a config's optimizer, at the peak rate."""
    section = config.train.optimizer

    def step(model: nn.Module) -> None:
        optimizer = make_optimizer(model, section)
        GradientChanges(model, section).change()
        optimizer.step()

    return step


class _Batches(Iterable[Any]):
    """The training batches of epoch 0, on the device; each iteration begins anew.

    Args:
        task: task of a config.
        accelerator: the process, its device and precision.
        settings: number and size of the batches.
    """

    def __init__(self, task: Task, accelerator: Accelerator, settings: Settings) -> None:
        self.task, self.device = task, accelerator.device
        train = task.config.train
        self.seed = train.seed
        self.batch_size = settings.batch_size or train.batch_size
        self.sampler = task.batches(self.batch_size, train.seed)
        self.sampler.seek(0, 0)
        most = len(self.sampler)
        self.count = most if settings.batches == "all" else min(settings.batches or BATCHES, most)

    def __iter__(self) -> Iterator[Any]:
        return self._first(self.count)

    def of_calibration(self) -> Iterator[Any]:
        """Return the batches that the run calibrates on, which may be more than those of the diagnosis."""
        self.sampler.seek(0, 0)
        return self._first(count_calibration_batches(self.sampler, self.task.config.train, 1))

    def _first(self, count: int) -> Iterator[Any]:
        self.sampler.seek(0, 0)
        task = self.task
        loader: DataLoader[Any] = DataLoader(
            task.train_set(), batch_sampler=self.sampler, num_workers=task.config.train.workers, collate_fn=task.collate
        )
        for number, batch in enumerate(islice(loader, count)):
            set_seed(seed_from(self.seed, number) % 2**32)  # a detector samples anchors and proposals at random
            yield send_to_device(batch, self.device)


# -- nets and weights -----------------------------------------------------------------------------------


def _of_weights(entry: Any, label: str, settings: Settings) -> Signals:
    accelerator = make_accelerator()
    model = load_model(entry).to(accelerator.device)
    if settings.data is None:
        return _on_noise(model, label, settings, accelerator, trained=True, calibrate=False)
    if settings.size is not None:
        raise UserError("--size: pictures get the size that the weights state; leave it out, or give --noise")
    inputs = _data_inputs(entry.transform, model, settings.data, settings)
    return _on_inputs(
        model, inputs, label, settings, accelerator, expected=expected_power(entry.transform), trained=True
    )


def _of_net(name: str, options: dict[str, Any], calibrate: bool, label: str, settings: Settings) -> Signals:
    set_seed(settings.seed or 0)
    model: nn.Module = zoo.create_model(name, **options)
    accelerator = make_accelerator()
    model = model.to(accelerator.device)
    if settings.data is None:
        return _on_noise(model, label, settings, accelerator, trained=False, calibrate=calibrate)
    info = zoo.model_info(name)
    if info.input_kind != "images":
        raise UserError(f"--data: {name} has no weights that state its input; give a config with its data, or --noise")
    side = settings.size or info.input_size
    inputs = _data_inputs(zoo.InputTransform.imagenet(side, side), model, settings.data, settings)
    return _on_inputs(model, inputs, label, settings, accelerator, trained=False, calibrate=calibrate)


def _data_inputs(transform: Any, model: nn.Module, data: Path, settings: Settings) -> Inputs:
    size = settings.batch_size or BATCH_SIZE
    count = None if settings.batches == "all" else settings.batches or 1
    if isinstance(transform, zoo.InputTransform | zoo.DetectionTransform):
        channels = len(transform.mean)
        return picture_inputs(transform, data, channels=channels, count=count, batch_size=size)
    if isinstance(transform, zoo.TextTransform):
        assert isinstance(model, zoo.Transformer)
        longest = model.layout.max_length
        return sentence_inputs(transform, data, count=count, batch_size=size, longest=longest)
    raise UserError(f"--data: give a config or a run for {type(transform).__name__}, or --noise")


def _on_noise(
    model: nn.Module, label: str, settings: Settings, accelerator: Accelerator, *, trained: bool, calibrate: bool
) -> Signals:
    if settings.batches == "all":
        raise UserError("--all: noise has no end; give --batches")
    name = getattr(getattr(model, "config", None), "name", type(model).__name__)
    inputs = noise_inputs(
        model,
        zoo.model_info(name),
        settings.noise or "pink",
        count=settings.batches or 1,
        batch_size=settings.batch_size or BATCH_SIZE,
        size=settings.size,
        seed=settings.seed or 0,
    )
    return _on_inputs(model, inputs, label, settings, accelerator, trained=trained, calibrate=calibrate)


def _on_inputs(
    model: nn.Module,
    inputs: Inputs,
    label: str,
    settings: Settings,
    accelerator: Accelerator,
    *,
    expected: float = 1.0,
    trained: bool,
    calibrate: bool = False,
) -> Signals:
    def batches() -> Iterator[Any]:
        return (send_to_device(batch, accelerator.device) for batch in inputs.batches)

    if calibrate:
        zoo.calibrate(model, list(islice(batches(), CALIBRATION_BATCHES)), forward=inputs.forward)
    return diagnose(
        model,
        batches(),
        forward=inputs.forward if inputs.loss is None else None,
        loss=inputs.loss,
        units=settings.units,
        label=label,
        source=inputs.source,
        expected_power=math.nan if isinstance(model, zoo.Transformer) else expected,
        trained=trained,
        real_inputs=settings.data is not None,
    )

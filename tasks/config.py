"""Typed configs: YAML -> checked model, dotted overrides, clear errors.

Every field that a recipe may set is declared here (or in the task's config.py), with its meaning.
"""

from __future__ import annotations

import functools
import math
import operator
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

import pydantic
from pydantic import AfterValidator, Field, field_validator, model_validator

from tasks import yamltext
from tasks.errors import ConfigError
from tasks.files import configs_dir, find_file
from tasks.splits import read_holdout  # noqa: F401  (its place until 0.1.0)
from tasks.textfiles import read_text
from zoo.errors import reason_of, suggestion
from zoo.files import expand_path, is_address
from zoo.registry import model_info
from zoo.schemes import VISION_SCHEMES
from zoo.specs import InputKind, ModelInfo

VERSION = 1  # of the format of configs; see ``RunConfig.config_version``


class Strict(pydantic.BaseModel):
    """Base of all config sections: immutable, unknown keys refused, numbers finite.

    A number in a field for text is that text, as it was written.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _as_written(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        fields = cls.model_fields
        return {
            key: yamltext.fit(value, fields[key].annotation, Strict, key) if key in fields else value
            for key, value in content.items()
        }


def _weights_name(text: str) -> str:
    return text if is_address(text) else expand_path(text)


def _path_or_empty(text: str) -> str:
    return expand_path(text) if text else text


PathText = Annotated[str, AfterValidator(expand_path)]  # a path, in which ~, $NAME and ${NAME} are replaced
PathOrEmpty = Annotated[str, AfterValidator(_path_or_empty)]  # a path below another, which "" stands for
WeightsText = Annotated[str, AfterValidator(_weights_name)]  # weights by name, or by a path as above

# Arguments of ``zoo.create_model`` that a run sets in another place, or not at all.
_NO_OPTIONS = {
    "name": "set model.name",
    "weights": "set model.weights",
    "scheme": "set model.scheme",
    "num_classes": "leave it out, the data determine the number of classes",
    "features_only": "leave it out, a run trains the whole net",
    "out_indices": "leave it out, a run trains the whole net",
}


@dataclass(frozen=True)
class Free:
    """Mark of a field that may change when a run resumes: ``workers: Annotated[int, FREE]``.

    Such a field changes nothing that a run computes, beyond rounding and, with ``train.compile``, the numbers that
    dropout, stochastic depth and noise draw; or it names the data, which are compared by their fingerprint. All other
    fields bind the run.
    """


FREE = Free()


def binding(section: pydantic.BaseModel) -> dict[str, Any]:
    """Return the values of the fields that bind a run, as a mapping of the form of the section in YAML."""
    values = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        inner = getattr(section, name)
        if FREE in field.metadata:
            del values[name]
        elif isinstance(inner, pydantic.BaseModel):
            values[name] = binding(inner)
    return values


class ModelSection(Strict):
    """The net, as ``zoo.create_model`` takes it."""

    any_channels: ClassVar[bool] = False  # whether the task reads inputs of other channels than RGB

    name: str = Field(description="a name of zoo.list_models()")
    weights: WeightsText | None = Field(None, description="weights to start from: any name that zoo.get_weights opens")
    scheme: str | None = Field(None, description=f"{', '.join(VISION_SCHEMES)}; default: the weights' or rescale")
    options: dict[str, Any] = Field({}, description="other options of the net and of its scheme")

    @field_validator("options")
    @classmethod
    def _no_keys_of_their_own(cls, options: dict[str, Any]) -> dict[str, Any]:
        for key, advice in _NO_OPTIONS.items():
            if key in options:
                raise ValueError(f"{key}={options[key]!r} is no option of a net: {advice}")
        if "in_chans" in options and not cls.any_channels:
            raise ValueError(
                f"in_chans={options['in_chans']!r}: leave it out, only image classification reads other inputs than RGB"
            )
        return options


class BackboneSection(ModelSection):
    """A net with levels, of which the first may be fixed."""

    freeze: int = Field(
        0,
        ge=0,
        description="number of levels that stay as the weights have them: stem and stages, or embeddings and layers",
    )

    @field_validator("freeze")
    @classmethod
    def _something_to_keep(cls, freeze: int, info: pydantic.ValidationInfo) -> int:
        if freeze and info.data.get("weights") is None:
            raise ValueError("requires model.weights, because a fresh net has nothing to keep")
        return freeze


def net_info(name: str, input_kind: InputKind) -> ModelInfo:
    """Return ``zoo.model_info`` of the net that a config names.

    Args:
        name: value of ``model.name``.
        input_kind: input that the task has.

    Raises:
        ConfigError: the net has another input.
        zoo.ZooError: the name is unknown.
    """
    info = model_info(name)
    if info.input_kind != input_kind:
        raise ConfigError(
            f"model.name={name}: takes {info.input_kind}, not {input_kind}; "
            f"others: rescalenet list --input-kind {input_kind}"
        )
    return info


def check_size(size: int, info: ModelInfo) -> None:
    """Refuse images or frames that are too small for a net.

    Args:
        size: value of ``data.size``, in pixels.
        info: description of the net.

    Raises:
        ConfigError: the net requires a larger size.
    """
    if size < info.min_size:
        raise ConfigError(f"data.size={size}: must be >= {info.min_size} for {info.name}")


class SGDRule(Strict):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    lr: float = Field(gt=0, description="peak learning rate for the whole (global) batch")
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(1e-4, ge=0, description="decay of weights; biases, multipliers and norms have none")

    @model_validator(mode="after")
    def _momentum_of_nesterov(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=true requires momentum > 0")
        return self


Beta = Annotated[float, Field(ge=0, lt=1)]  # decay of a running mean


class AdamWRule(Strict):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(1e-2, ge=0)


class OptimizerSection(Strict):
    """Base of the optimizers: rates by kind and level, and what is done to the gradients before the update.

    The gradients are centralized first, then clipped by unit (``agc``), then clipped as a whole (``clip_norm``), so
    that each clipping measures the gradient that the update would use.
    """

    multiplier_lr: float = Field(1.0, ge=0, description="factor on lr for the multipliers m_k")
    bias_lr: float = Field(1.0, ge=0, description="factor on lr for biases initialised from data, and scalar ones")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor on lr for each feature level from the head, which has 1, back to the stem"
    )
    head_lr: float = Field(1.0, ge=0, description="factor on lr for all that follows the last feature level")
    centralize: bool = Field(
        False, description="subtract from the gradient of each weight its mean over all dimensions but the output's"
    )
    agc: float | None = Field(
        None,
        gt=0,
        description="limit on the ratio of gradient norm to weight norm, for each output of every weight but those of "
        "the last layers (adaptive gradient clipping)",
    )
    clip_norm: float | None = Field(None, gt=0, description="limit on the norm of the whole gradient")


class SGD(OptimizerSection, SGDRule):
    """Stochastic gradient descent with momentum, for all parameters."""


class AdamW(OptimizerSection, AdamWRule):
    """Adam with decoupled weight decay, for all parameters."""


class Muon(OptimizerSection):
    """Muon for hidden matrices and filters, and another optimizer for all other parameters (Jordan et al. 2024).

    The others are the weights of the first convolution, of embeddings and of the last layers, and all biases,
    multipliers and norm parameters. The schedule scales both rates.
    """

    name: Literal["muon"] = "muon"
    lr: float = Field(gt=0, description="peak learning rate of hidden matrices and filters")
    momentum: float = Field(0.95, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(0.1, ge=0, description="decoupled decay of hidden matrices and filters")
    ns_steps: int = Field(5, ge=1, lt=100, description="steps of the Newton-Schulz iteration")
    adjust_lr_fn: Literal["original", "match_rms_adamw"] = Field(
        "original",
        description="factor on lr for a matrix of A outputs and B inputs: sqrt(max(1, A/B)), or 0.2 sqrt(max(A, B)), "
        "with which rates of AdamW fit",
    )
    rest: Annotated[SGDRule | AdamWRule, Field(discriminator="name")] = Field(
        description="optimizer of the other parameters, with its own lr and weight_decay; multiplier_lr and bias_lr "
        "are factors on its lr"
    )


class ScheduleSection(Strict):
    """Base of the learning-rate schedules. A schedule is a subclass, registered by ``register_schedule``."""

    name: str

    @abstractmethod
    def factor(self, epoch: float, epochs: int, steps: int = 1) -> float:
        """Return the ratio of the learning rate to its peak.

        Args:
            epoch: fractional epoch, 0 at the start of the run.
            epochs: epochs of the whole run.
            steps: optimizer steps of an epoch.
        """


SCHEDULES: list[type[ScheduleSection]] = []  # the classes that ``train.schedule`` chooses from, by their ``name``
AnySchedule = TypeVar("AnySchedule", bound=ScheduleSection)


def register_schedule(schedule: type[AnySchedule]) -> type[AnySchedule]:
    """Make a schedule available to ``train.schedule``; a decorator.

    The field ``name`` of the schedule is a ``Literal`` whose default is that literal.

    Raises:
        ValueError: another schedule has the name.
    """
    name = schedule.model_fields["name"].default
    if any(known.model_fields["name"].default == name for known in SCHEDULES):
        raise ValueError(f"schedule {name!r} is registered already")
    SCHEDULES.append(schedule)
    return schedule


def _chosen_schedule(value: Any) -> Any:
    # The union is built at validation, not at import, so that it has the schedules registered since.
    union: Any = Annotated[functools.reduce(operator.or_, SCHEDULES), Field(discriminator="name")]
    return pydantic.TypeAdapter(union).validate_python(value)


def _after_warmup(epoch: float, warmup_epochs: float, factor: float) -> float:
    """Return the factor, or during the linear warm-up the share of the warm-up that is done."""
    return epoch / warmup_epochs if epoch < warmup_epochs else factor


@register_schedule
class Cosine(ScheduleSection):
    """Linear warm-up, then half a cosine down to ``final`` times the peak."""

    name: Literal["cosine"] = "cosine"
    warmup_epochs: float = Field(0.0, ge=0)
    final: float = Field(0.0, ge=0, le=1)

    def factor(self, epoch: float, epochs: int, steps: int = 1) -> float:
        progress = (epoch - self.warmup_epochs) / max(epochs - self.warmup_epochs, 1e-12)
        decay = self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
        return _after_warmup(epoch, self.warmup_epochs, decay)


@register_schedule
class MultiStep(ScheduleSection):
    """Linear warm-up, then the rate times ``gamma`` at each milestone."""

    name: Literal["multistep"] = "multistep"
    warmup_epochs: float = Field(0.0, ge=0)
    milestones: tuple[float, ...] = Field(description="epochs")
    gamma: float = Field(0.1, gt=0, le=1)

    def factor(self, epoch: float, epochs: int, steps: int = 1) -> float:
        decay = self.gamma ** sum(epoch >= milestone for milestone in self.milestones)
        return _after_warmup(epoch, self.warmup_epochs, decay)


@register_schedule
class OneCycle(ScheduleSection):
    """Cosine up over the first ``up`` share of training, then cosine down to zero (Smith 2018)."""

    name: Literal["onecycle"] = "onecycle"
    up: float = Field(0.3, gt=0, lt=1)
    start: float = Field(0.04, ge=0, le=1, description="ratio of the first learning rate to the peak")

    def factor(self, epoch: float, epochs: int, steps: int = 1) -> float:
        up = self.up * epochs
        if epoch < up:
            return self.start + (1 - self.start) * 0.5 * (1 - math.cos(math.pi * epoch / up))
        return 0.5 * (1 + math.cos(math.pi * (epoch - up) / (epochs - up)))


@register_schedule
class InverseSqrt(ScheduleSection):
    """Linear warm-up, then the peak times sqrt(warmup_steps / step) (Vaswani et al. 2017)."""

    name: Literal["inverse_sqrt"] = "inverse_sqrt"
    warmup_steps: int = Field(4000, ge=1)

    def factor(self, epoch: float, epochs: int, steps: int = 1) -> float:
        done = (epoch * steps + 1) / self.warmup_steps
        return done if done < 1 else done**-0.5


Optimizer = Annotated[SGD | AdamW | Muon, Field(discriminator="name")]
Schedule = Annotated[pydantic.SerializeAsAny[ScheduleSection], pydantic.PlainValidator(_chosen_schedule)]


class EMA(Strict):
    """Exponential moving average over the optimizer steps."""

    name: Literal["ema"] = "ema"
    decay: float = Field(0.9999, gt=0, lt=1)
    warmup: bool = Field(
        False,
        description="whether the decay after t earlier updates is at most (1 + t) / (10 + t), as in TensorFlow; the "
        "first update copies the weights",
    )


class LastEpochs(Strict):
    """The mean of the weights at the ends of the last epochs: fairseq's average_checkpoints."""

    name: Literal["last_epochs"] = "last_epochs"
    epochs: int = Field(5, ge=1)


Average = Annotated[EMA | LastEpochs, Field(discriminator="name")]


class EarlyStopping(Strict):
    """The end of a run whose metric has not improved for some time."""

    patience: int = Field(ge=1, description="evaluations in a row without a better metric after which the run ends")
    min_delta: float = Field(0.0, ge=0, description="increase over the last better value that counts as better")


class DiagnoseSection(Strict):
    """The signals in the net, logged during a run (``rescalenet diagnose`` draws them)."""

    every: int = Field(
        100, ge=1, description="optimizer steps between records; each takes the time of one or two steps"
    )
    share: float = Field(
        0.02, gt=0, le=1, description="largest share of the training time; records become rarer to stay within it"
    )


class TrainSection(Strict):
    """The engine's settings."""

    epochs: int = Field(ge=1, description="epochs of the run; when a run resumes, another number may be given")
    batch_size: int = Field(ge=1, description="samples of a forward, all ranks together")
    accumulate: int = Field(1, ge=1, description="forwards per optimizer step")
    optimizer: Optimizer
    schedule: Schedule = Cosine()
    precision: Literal["fp64", "fp32", "bf16", "fp16"] = "fp32"
    channels_last: Annotated[bool, FREE] = True
    compile: Annotated[bool, FREE] = Field(False, description="torch.compile the net")
    graphs: Annotated[bool, FREE] = Field(
        False,
        description="replay forward and backward of the net as CUDA graphs: for small nets on a GPU, whose kernels "
        "take less time than their launch",
    )
    seed: int = Field(0, ge=0, lt=2**32)  # numpy's range
    average: Average | None = Field(None, description="average of the weights, which is evaluated and stored")
    calibrate: bool = Field(
        True, description="initialise biases before products from data; false, for ablations: they begin at 0"
    )
    calibration_batches: int = Field(8, ge=1, description="batches whose means initialise biases before products")
    calibration_samples: int = Field(
        1024, ge=1, description="limit on the samples of those batches, all ranks together; at least one batch is taken"
    )
    center_inputs: bool = Field(
        True, description="move biases before products that a conversion left at 0 to minus the mean; the outputs stay"
    )
    workers: Annotated[int, FREE] = Field(0, ge=0, description="data loading processes on each rank")
    eval_every: Annotated[int, FREE] = Field(1, ge=1, description="epochs between evaluations")
    early_stopping: Annotated[EarlyStopping | None, FREE] = Field(
        None, description="end of the run before train.epochs if the metric stops to improve; null: none"
    )
    checkpoint_minutes: Annotated[float, FREE] = Field(
        10.0, ge=0, description="minutes between checkpoints within an epoch; 0: one after each step"
    )
    timeout_minutes: Annotated[float, FREE] = Field(
        30.0, gt=0, le=525_600, description="minutes that a process waits for the others before the run ends"
    )
    log_every: Annotated[int, FREE] = Field(
        50, ge=1, description="optimizer steps between records of the loss; an epoch ends with one"
    )
    diagnose: Annotated[DiagnoseSection | None, FREE] = Field(
        None, description="signals in the net that are logged every so many steps; null: none"
    )
    sinks: Annotated[tuple[str, ...], FREE] = Field(
        ("tensorboard",),
        description="destinations of records besides log.jsonl, by names of tasks.engine.register_sink",
    )

    @model_validator(mode="after")
    def _average_of_the_end(self) -> Self:
        if self.early_stopping is not None and isinstance(self.average, LastEpochs):
            raise ValueError(
                "early_stopping may end the run before the epochs that average=last_epochs takes: use the average ema, "
                "or leave one of them out"
            )
        return self


class RunConfig(Strict):
    """Base of the tasks' configs, which add their model and data sections.

    Attributes:
        held_out_setting: setting with which ``evaluates_held_out`` is true, for messages.
        test_set_setting: setting with which it is false.
    """

    held_out_setting: ClassVar[str] = "data.split: holdout"
    test_set_setting: ClassVar[str] = "data.split: official"

    task: str
    output: Annotated[PathText, FREE] = Field(description="the run's folder")
    config_version: Annotated[int, FREE] = Field(
        VERSION, ge=1, description="version of the format; a config without it is of version 1, the first"
    )
    train: TrainSection

    @field_validator("config_version")
    @classmethod
    def _known(cls, version: int) -> int:
        if version > VERSION:
            raise ValueError(f"made by a newer rescalenet-zoo, this one reads up to version {VERSION}: update it")
        return version

    @property
    def metric(self) -> str:
        """Name of the metric (higher is better) that chooses the best weights of a run, and settings in a study.

        Raises:
            ConfigError: a task whose config does not name it.
        """
        raise ConfigError(f"task={self.task}: {type(self).__name__} has no property metric, which a study requires")

    @property
    def evaluates_held_out(self) -> bool:
        """Whether evaluation is on a part of the training data that is kept apart, not on the test set."""
        return getattr(getattr(self, "data", None), "split", "official") != "official"

    def without_augmentation(self) -> Self:
        """Return the config without augmentation and label smoothing, to measure the loss of training samples.

        Raises:
            ConfigError: a task whose config cannot do so.
        """
        name = type(self).__name__
        raise ConfigError(f"task={self.task}: {name} has no method without_augmentation, which a study requires")


Section = TypeVar("Section", bound=Strict)


def find_config(name: str) -> Path:
    """Find a config file by its path, or by the name of a recipe that ships.

    Args:
        name: path, or name below ``configs/`` with or without ``.yaml`` (``classification/cifar10/rescalenet20``).

    Raises:
        ConfigError: there is no such file; the message has near matches.
    """
    root = configs_dir()
    short = name.removeprefix("configs/").removesuffix(".yaml")
    if path := find_file(name, f"{short}.yaml"):
        return path
    known = sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.yaml"))
    raise ConfigError(f"no config file {name!r}{suggestion(short, known)}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file; see ``tasks.yamltext`` for what values mean.

    Raises:
        ConfigError: the file is not YAML, or not a mapping, or a key stands twice.
    """
    content = yamltext.parse_yaml(read_text(path, ConfigError), str(path))
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected key: value sections, found {type(content).__name__}")
    return content


def apply_overrides(content: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the content with changes of the form ``train.epochs=3``; see ``tasks.yamltext.parse_value`` for values.

    Raises:
        ConfigError: an override lacks ``=`` or a value, or it is below a key that is not a section.
    """
    content = {**content}
    for override in overrides:
        dotted, value = parse_override(override)
        *sections, key = dotted.split(".")
        target = content
        for section in sections:
            inner = target.get(section, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"override {override!r}: {section!r} is a value, not a section")
            target[section] = {**inner}
            target = target[section]
        target[key] = value
    return content


def parse_override(override: str) -> tuple[str, Any]:
    """Return the dotted key and the value of ``section.key=value``.

    Raises:
        ConfigError: there is no ``=``, no value, or brackets, braces or quotes that are not YAML.
    """
    dotted, equals, text = override.partition("=")
    if not equals or not all(key.strip() == key != "" for key in dotted.split(".")):
        raise ConfigError(f"override {override!r}: must be section.key=value")
    try:
        return dotted, yamltext.parse_value(text)
    except ConfigError as error:
        raise ConfigError(f"override {override!r}: {error}") from None


def check(content: dict[str, Any], schema: type[Section], source: str) -> Section:
    """Return the typed config. One error names all keys at fault.

    Args:
        content: mapping read from the source.
        schema: section or whole config that the content must satisfy.
        source: file or place that messages name.

    Raises:
        ConfigError: keys are unknown (the message names the nearest valid one) or missing, or values are wrong.
    """
    try:
        return schema.model_validate(content)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(_explain(e, schema) for e in error.errors())) from None


def _explain(error: Any, schema: type[Strict]) -> str:
    """Describe one error of pydantic in the words of the file: the dotted key, and the nearest valid one."""
    # A location names the keys down to the fault, and behind each discriminated union the variant's tag, which is
    # not a key of the file:
    #   ("train", "epoch")                        -> train.epoch
    #   ("train", "optimizer", "sgd", "momentun") -> train.optimizer.momentun
    *parents, key = error["loc"] or ("",)
    keys: list[str] = []
    sections: list[type[Strict]] = [schema]  # the section at this place, or the variants of a union

    def tagged(part: Any) -> list[type[Strict]]:
        return [s for s in sections if len(sections) > 1 and s.model_fields["name"].default == part]

    for part in parents:
        if not tagged(part):
            keys.append(str(part))
        sections = tagged(part) or [v for s in sections if part in s.model_fields for v in _variants(s, part)]
    dotted = ".".join(keys if tagged(key) else [*keys, str(key)])
    if error["type"] == "extra_forbidden":
        return f"unknown key {dotted!r}{suggestion(str(key), [field for s in sections for field in s.model_fields])}"
    if error["type"] == "missing":
        return f"key {dotted!r} is missing"
    message = reason_of(error)
    if error["type"].startswith("union_tag"):  # the key that chooses a variant
        context = error["ctx"]
        chooser = f"{dotted}.{context['discriminator'].strip(chr(39))}"
        if "expected_tags" in context:
            return f"{chooser}={context['tag']!r}: must be one of {context['expected_tags']}"
        return f"key {chooser!r} is missing"
    if error["type"] == "value_error" and isinstance(error["input"], dict):  # keys of a section that do not go together
        return f"{dotted}: {message}" if dotted else message
    return f"{dotted}={error['input']!r}: {message}"


def _variants(section: type[Strict], key: Any) -> list[type[Strict]]:
    """Return the sections that a key of a section may have: one, the variants of a union, or none for a plain value."""

    def sections(annotation: Any) -> list[type[Strict]]:
        if isinstance(annotation, type) and issubclass(annotation, Strict):
            return [annotation]
        return [found for part in get_args(annotation) for found in sections(part)]

    annotation = section.model_fields[key].annotation
    return list(SCHEDULES) if annotation is ScheduleSection else sections(annotation)


def dump(config: pydantic.BaseModel) -> str:
    """Return the resolved config as YAML, in the order of the schema."""
    return yamltext.dump_yaml(config.model_dump(mode="json"))

"""Paths in configs and on the command line: ``~`` and variables are replaced in every one, and nowhere else."""

import inspect
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from tasks import cli
from tasks import config as cfg
from tasks.classification.config import ClassificationConfig
from tasks.detection.config import DetectionConfig
from tasks.errors import ConfigError, UserError
from tasks.files import find_files, input_path, name_or_path, output_path
from tasks.spec import resolve
from tasks.study.config import StudyConfig, read_study
from tasks.translation.config import TranslationConfig
from tasks.video.config import VideoConfig
from tests.helpers.classification import picture
from tests.helpers.commands import call

# Fields whose text is no path; the overrides of a study are checked in the configs of its runs.
NO_PATHS = {
    "class_weights",
    *("task", "name", "options", "scheme", "source", "target", "sinks", "schemes", "baseline", "columns", "tokenize"),
    *("overrides", "last_overrides", "trials", "grid"),
}
RECIPES = {
    "classification/cifar10/rescalenet20": ["output", "data.root", "data.train", "data.val", "data.holdout"],
    "detection/coco/mask_rcnn_rescalenet50_fpn_1x": [
        *("output", "data.root", "data.train_annotations", "data.train_images", "data.val_annotations"),
        *("data.val_images", "data.holdout"),
    ],
    "video/shapes/rescale_r3d_10": [
        *("output", "data.root", "data.train", "data.val", "data.videos", "data.holdout", "data.index"),
    ],
    "translation/multi30k/de_en": ["output", "data.folder", "data.corpus.root", "data.corpus.val"],
}
FIELDS = [(recipe, key) for recipe, keys in RECIPES.items() for key in keys]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DISK", "/disk of $X")
    monkeypatch.delenv("NOWHERE", raising=False)


def value_of(config, key):
    for part in key.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize(("recipe", "key"), FIELDS)
def test_every_path_is_expanded(recipe, key, tmp_path):
    assert value_of(resolve(recipe, [f"{key}=~/a"]), key) == f"{tmp_path}/home/a"
    assert value_of(resolve(recipe, [f"{key}=${{DISK}}/a #2"]), key) == "/disk of $X/a #2"
    with pytest.raises(ConfigError, match=rf"{key}=.*the environment variable 'NOWHERE' is not set; set it"):
        resolve(recipe, [f"{key}=$NOWHERE/a"])


def test_texts_of_every_config_are_paths_or_known_to_be_none():
    """A field for text that is added later must be a path, or be listed here."""

    def texts(section, prefix=""):
        for name, field in section.model_fields.items():
            inner = [kind for kind in kinds(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
            if inner:
                for kind in inner:
                    yield from texts(kind)
            elif str in kinds(field.annotation):
                yield name, field

    def kinds(annotation):
        inner = getattr(annotation, "__args__", ())
        return [each for part in inner for each in kinds(part)] if inner else [annotation]

    for config in (ClassificationConfig, DetectionConfig, VideoConfig, TranslationConfig, StudyConfig):
        plain = {name for name, field in texts(config) if not expands(field)}
        assert plain <= NO_PATHS, plain - NO_PATHS


def expands(field):
    """Whether a function that expands paths stands in the annotation of a field."""
    described = f"{field.annotation} {field.metadata}"
    return any(name in described for name in ("expand_path", "_path_or_empty", "_weights_name"))


@pytest.mark.parametrize("key", ["model.weights"])
def test_weights_are_names_or_paths(key, tmp_path):
    for text, expected in [
        ("~/w.safetensors", f"{tmp_path}/home/w.safetensors"),
        ("rescalenet20_cifar.cifar10", "rescalenet20_cifar.cifar10"),
        ("https://host/a$b#sha256=00", "https://host/a$b#sha256=00"),
        ("torchvision:resnet50:IMAGENET1K_V1", "torchvision:resnet50:IMAGENET1K_V1"),
        ("null", None),
    ]:
        assert value_of(resolve("classification/cifar10/rescalenet20", [f"{key}={text}"]), key) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("~nobody-of-this-name/a", "no user 'nobody-of-this-name'; write ./~nobody-of-this-name/a"),
        ("'a\\nb'", None),
        ('"a\\nb"', "must not have control characters"),
        ('"a\\0b"', "must not have control characters"),
        ("''", "the path is empty"),
        ("' '", "the path is empty"),
        ("null", "valid string"),
        ("~", "valid string"),
    ],
)
def test_paths_that_are_refused(text, reason):
    if reason is None:
        assert resolve("classification/cifar10/rescalenet20", [f"output={text}"]).output == "a\\nb"
        return
    with pytest.raises(ConfigError, match=rf"output=.*{reason}") as caught:
        resolve("classification/cifar10/rescalenet20", [f"output={text}"])
    assert len(str(caught.value).splitlines()) == 1


def test_dollars_that_no_name_follows_and_files_that_exist(tmp_path):
    known = resolve("classification/cifar10/rescalenet20", ["output=cost 5$", f"data.root={tmp_path}"])
    assert known.output == "cost 5$"
    odd = tmp_path / "a$NOWHERE"
    odd.mkdir()
    assert resolve("classification/cifar10/rescalenet20", [f"data.root={odd}"]).data.root == str(odd)


def test_an_expanded_path_is_read_back_from_the_stored_config(monkeypatch):
    monkeypatch.setenv("DISK", "/disk 5$/~")
    config = resolve("classification/cifar10/rescalenet20", ["output=$DISK/a", "data.root=~/a"])
    assert config.output == "/disk 5$/~/a"
    assert cfg.check(config.model_dump(mode="json"), ClassificationConfig, "stored") == config


def test_paths_of_a_study(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "recipe: classification/cifar10/rescalenet20\noutput: ~/s\nschemes: {rescale: {}}\n"
    )
    assert read_study(str(tmp_path / "s.yaml")).output == f"{tmp_path}/home/s"


# -- the command line ------------------------------------------------------------------------------

# Arguments and options whose text is no path; weights are expanded by zoo.get_weights, inputs of predict one by one.
NO_PATHS_OF_COMMANDS = {
    *("filter", "input_kind", "overrides", "device", "format", "to", "form", "option", "name", "more", "languages"),
    *("repository", "checkpoint", "licence", "tta", "weights", "model", "inputs", "metrics", "threshold", "tokenize"),
    *("columns", "noise"),
    "compare",  # a name with overrides behind it, which ``tasks.diagnose.subjects.parse_compared`` expands
    "classes",  # of eval and predict names, of convert a path or a word
}
PARSERS = (input_path, output_path, name_or_path)


def parameters():
    """Command, name, type and parser of every argument and option of the command line."""
    for command in cli.app.registered_commands:
        for parameter in inspect.signature(command.callback, eval_str=True).parameters.values():
            kind, info = get_args(parameter.annotation)[:2]
            yield command.callback.__name__, parameter.name, str(kind), info.parser


def test_every_path_of_the_command_line_is_expanded():
    """An argument or option that is added later must have one of the parsers, or be listed as one that is no path."""
    found = list(parameters())
    assert [name for command, name, *_ in found if command == "predict"][:4] == ["weights", "inputs", "out", "no_files"]
    plain = [(command, name) for command, name, kind, parser in found if "Path" in kind and parser not in PARSERS]
    assert plain == []
    texts = {name for _, name, kind, parser in found if "str" in kind and parser not in PARSERS}
    assert texts <= NO_PATHS_OF_COMMANDS, texts - NO_PATHS_OF_COMMANDS
    assert all(parser is output_path for _, name, _, parser in found if name in ("out", "index"))


def test_outputs_are_expanded_always_and_inputs_unless_they_exist(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "$DISK.png")
    picture(tmp_path / "~/a.png")
    assert output_path("~/a.png") == tmp_path / "home/a.png"
    assert input_path("~/a.png") == Path("~/a.png")
    assert input_path("~/b.png") == tmp_path / "home/b.png"
    assert (output_path("$DISK.png"), input_path("$DISK.png")) == (Path("/disk of $X.png"), Path("$DISK.png"))
    assert find_files(["$DISK.png"], [".png"], "images").files == [Path("$DISK.png")]
    assert name_or_path("torchvision:a$b:c") == "torchvision:a$b:c"
    assert name_or_path("${DISK}/c.yaml") == "/disk of $X/c.yaml"
    for text, reason in (
        ("", "the path is empty"),
        ("$NOWHERE/a", "'NOWHERE' is not set"),
        ("~no-such", "no user"),
    ):
        for parse in PARSERS:
            with pytest.raises(UserError, match=reason):
                parse(text)


def test_commands_expand_paths(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        for n, name in enumerate(("ant", "bee")):
            picture(tmp_path / "home/data" / split / name / "0.png", seed=10 * n + len(split))
    assert call(capsys, monkeypatch, "check", "~/data", "--out=$HOME/found")[0] == 0
    assert (tmp_path / "home/found/check.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    for out in ("--out=$NOWHERE/a", "--out="):
        code, _, err = call(capsys, monkeypatch, "check", "~/data", out)
        assert (code, len(err.splitlines())) == (1, 1)
    assert "error: no config file" in call(capsys, monkeypatch, "train", "~/c.yaml")[2]

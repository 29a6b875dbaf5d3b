"""Configs, overrides and the files of studies."""

from __future__ import annotations

import yaml
from hypothesis import strategies as st

from tests.fuzz.artefacts import FOLDER
from tests.fuzz.harness import FAST
from tests.fuzz.structures import changed, dumps
from tests.fuzz.yamls import YAML_VALUES, overrides, yaml_files

TASKS = ("classification", "detection", "video", "translation")
CONFIGS = {task: yaml.safe_load((FOLDER / "runs" / task / "config.yaml").read_text()) for task in TASKS}
for _config in CONFIGS.values():
    _config["output"] = "out/run"

_TRIED = {"trials": {"a": {"train.optimizer.lr": 0.03}}, "grid": {"train.optimizer.lr": [0.01, 0.02]}}
STUDY = {
    "output": "out/study",
    "recipe": "run.yaml",
    "overrides": {"train.sinks": []},
    "schemes": {"rescale": _TRIED, "none": _TRIED},
    "screening": {"overrides": {"data.split": "holdout", "data.holdout": "h.txt"}, "seeds": [0]},
    "finals": {"seeds": [0, 1], "schemes": ["rescale", "none"], "baseline": "none"},
}


def dotted(content, prefix=""):
    """The dotted keys of a mapping."""
    for key, value in content.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")


KEYS = list(dotted(CONFIGS["classification"]))


@st.composite
def configs(draw):
    """A config of any task, and overrides."""
    task = draw(st.sampled_from(TASKS))
    content = draw(yaml_files(CONFIGS[task]))
    return content, draw(st.lists(overrides(KEYS), max_size=2)) if draw(st.booleans()) else []


def test_configs_and_overrides(harness, fuzz):
    def run(case):
        content, changes = case
        harness.check({"c.yaml": content}, ["train", "--print-config", "c.yaml", "--", *changes])

    fuzz(configs(), run, FAST)


def study_files(fixed):
    """The file of a small study and its recipe."""
    recipe = {**CONFIGS["classification"], "task": "classification"}
    recipe["data"] = {**recipe["data"], "root": f"{fixed}/data/images"}
    files = {"run.yaml": recipe, "s.yaml": STUDY}
    return {name: yaml.safe_dump(content).encode() for name, content in files.items()} | {"h.txt": b"blue/0.png\n"}


def test_studies(harness, fuzz):
    valid = study_files(harness.fixed)
    assert harness.check(valid, ["@study", "s.yaml"]) == [0]

    def run(content):
        harness.check({**valid, "s.yaml": content}, ["@study", "s.yaml"])

    fuzz(yaml_files(STUDY), run, FAST // 8)


def test_training(harness, fuzz):
    """A run of a few steps, with values that no valid config would make it long with."""
    config = CONFIGS["classification"]
    config = {**config, "data": {**config["data"], "root": f"{harness.fixed}/data/images"}}
    config["train"] = {**config["train"], "epochs": 1, "sinks": [], "batch_size": 8}
    values = [value for value in YAML_VALUES if not (isinstance(value, int | float) and abs(value) > 64)]
    assert harness.check({"c.yaml": dumps(config).encode()}, ["train", "c.yaml"], seconds=30) == [0]
    changes = changed(config, values, most=1).map(lambda value: dumps(value).encode("utf-8", "surrogatepass"))

    def run(content):
        harness.check({"c.yaml": content}, ["train", "c.yaml"], seconds=30)

    fuzz(changes, run, FAST // 40)

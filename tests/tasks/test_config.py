"""Configs: every recipe that ships is valid; mistakes get the nearest valid key."""

from pathlib import Path

import pytest
import torch
import yaml

import zoo
from tasks import config as cfg
from tasks.config import check_size
from tasks.errors import ConfigError
from tasks.spec import resolve
from tests.helpers.paths import ROOT
from zoo.sources import torchvision

OTHERS = {"detectron2", "studies"}  # configs of another project, and files that are no config of a run
RECIPES = sorted(p.relative_to(ROOT / "configs") for p in (ROOT / "configs").rglob("*.yaml") if not OTHERS & {*p.parts})
SHIPPED = "classification/cifar10/rescalenet20"


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_recipes_are_valid_and_name_real_nets(recipe):
    config = resolve(str(Path("configs") / recipe))
    assert recipe.parts[0] == config.task
    section, optimizer = config.model, config.train.optimizer
    if config.task == "translation":  # its vocabularies are known when the text is
        info = zoo.model_info(section.name)
        assert section.options.keys() <= {**info.options, **info.scheme_options[section.scheme or "rescale"]}.keys()
    else:
        with torch.device("meta"):
            model = zoo.create_model(section.name, scheme=section.scheme, num_classes=3, **section.options)
        model.freeze(section.freeze)
        zoo.param_groups(model, 0.1, layer_decay=optimizer.layer_decay, head_lr=optimizer.head_lr)
    again = yaml.safe_load(cfg.dump(config))
    assert cfg.check(again, type(config), "dump") == config


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.parts[0] in ("classification", "video")], ids=str)
def test_the_input_of_a_recipe_fits_its_net(recipe):
    """The recipe's sizes, else the net's own."""
    config = resolve(str(Path("configs") / recipe))
    section, info = config.model, zoo.model_info(config.model.name)
    size = config.data.size or info.input_size
    check_size(size, info)
    assert config.data.resize is None or config.data.resize >= size
    frames = () if config.task == "classification" else (config.data.clip.frames if config.data.clip else 8,)
    with torch.device("meta"):
        model = zoo.create_model(section.name, scheme=section.scheme, num_classes=3, **section.options)
        assert model(torch.empty(2, model.in_chans, *frames, size, size)).shape == (2, 3)


def named_by_torchvision():
    """The recipe, the net and the name of each recipe's weights of torchvision."""
    for recipe in RECIPES:
        section = resolve(str(Path("configs") / recipe)).model
        net = section.name
        backbone = getattr(section, "weights_backbone", None)
        for name, of in ((section.weights, net), (backbone, net.split("_rcnn_")[-1].removesuffix("_fpn"))):
            if name is not None and name.startswith("torchvision:"):
                yield pytest.param(of, name, id=str(recipe))


@pytest.mark.parametrize(("net", "name"), list(named_by_torchvision()))
def test_weights_that_recipes_name_exist(net, name):
    """By torchvision's metadata; an image net that is inflated is named in full."""
    inflated = zoo.model_info(net).input_kind == "clips" and name.count(":") == 2
    stated = torchvision.describe(name, None if inflated else net)
    assert stated["model"] == net or (inflated and zoo.model_info(stated["model"]).input_kind == "images")


def test_overrides():
    config = resolve(SHIPPED, ["train.epochs=3", "model.options={width: 0.5}", "data.root=/x=y", "data.holdout=null"])
    assert config.train.epochs == 3
    assert config.model.options == {"width": 0.5}
    assert config.data.root == "/x=y"
    assert config.data.holdout is None
    assert resolve(SHIPPED, ["train.optimizer.lr=1e-3"]).train.optimizer.lr == 1e-3  # YAML 1.1 reads 1e-3 as text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.epoch=3"], r"unknown key 'train.epoch' \(did you mean epochs"),
        (["trian.epochs=3"], r"unknown key 'trian' \(did you mean train\?\)"),
        (["train.optimizer.momentun=0.9"], r"unknown key 'train.optimizer.momentun' \(did you mean momentum\?\)"),
        (["train.average={name: ema, deca: 0.9}"], r"unknown key 'train.average.deca' \(did you mean decay\?\)"),
        (["train.schedule.upp=0.9"], r"unknown key 'train.schedule.upp' \(did you mean up"),
        (["data.augment.crop.paddin=4"], r"unknown key 'data.augment.crop.paddin' \(did you mean padding\?\)"),
        (["data.augment.cutmx=1"], r"unknown key 'data.augment.cutmx' \(did you mean cutmix"),
        (["data.augment.cutmix=-1"], r"data.augment.cutmix=-1: Input should be greater than or equal to 0"),
        (["data.augment.copies=0"], r"data.augment.copies=0: Input should be greater than or equal to 1"),
        (["data.augment.auto_augment={name: random}"], r"auto_augment.name='random': must be one of 'rand', 'trivial'"),
        (["data.augment.auto_augment={name: rand, op: 1}"], r"unknown key 'data.augment.auto_augment.op' .*mean ops\?"),
        (
            ["data.augment.auto_augment={name: rand, magnitude: 31}"],
            r"data.augment.auto_augment.magnitude=31: Input should be less than or equal to 30",
        ),
        (["data.augment.erasing={value: 0}"], r"data.augment.erasing.value=0: Input should be 'mean' or 'random'"),
        (
            ["data.augment.erasing={scale: [0.1, 1.5]}"],
            r"data.augment.erasing.scale=\[0.1, 1.5\]: .*must be \[low, high\] with 0 < low <= high <= 1",
        ),
        (
            ["data.augment.crop={name: random_resized, scale: [1.0, 0.08]}"],
            r"data.augment.crop.scale=\[1.0, 0.08\]: must be \[low, high\] with 0 < low <= high <= 1",
        ),
        (["train.optimizer.nesterov=true", "train.optimizer.momentum=0"], r": train.optimizer: nesterov=true requires"),
        (["train.optimizer={name: adamw, lr: 0.1, betas: [1.0, 0.9]}"], r"train.optimizer.betas.0=1.0: .*less than 1"),
        (["train.optimizer.name=sdg"], r"train.optimizer.name='sdg': must be one of 'sgd', 'adamw'"),
        (["train.average={decay: 0.9}"], r"key 'train.average.name' is missing"),
        (
            ["train.early_stopping={patience: 1}", "train.average={name: last_epochs}"],
            r": train: early_stopping may end the run before the epochs that average=last_epochs takes",
        ),
        (["train.epochs=true"], r"train: epochs: must be a number, not true"),
        (["train.optimizer.lr=false"], r"train.optimizer: lr: must be a number, not false"),
        (["train.average={name: ema, decay: true}"], r"train.average: decay: must be a number, not true"),
        (["train.seed=4294967296"], r"train.seed=4294967296: Input should be less than 4294967296"),
        (["train.timeout_minutes=1e300"], r"train.timeout_minutes=1e\+300: .*less than or equal to 525600"),
        (["train.epochs=0"], r"train.epochs=0: Input should be greater than or equal to 1"),
        (["train.epochs=many"], r"train.epochs='many': Input should be a valid integer"),
        (["train.precision=fp8"], r"train.precision='fp8'"),
        (["train={}"], r"key 'train.epochs' is missing; key 'train.batch_size' is missing"),
        (["task=clasification"], r"task='clasification' \(did you mean classification"),
        (["task=[classification]"], r"task=\['classification'\] \(did you mean classification"),
        (["epochs"], r"override 'epochs': must be section.key=value"),
        (["train.epochs.more=1"], r"override .*: 'epochs' is a value, not a section"),
        (["train.epochs=[1"], r"override .*: the value, line 1: not valid YAML: expected ',' or '\]'"),
    ],
)
def test_mistakes(overrides, message):
    with pytest.raises(ConfigError, match=message):
        resolve(SHIPPED, overrides)


def test_files_that_are_no_configs(tmp_path):
    with pytest.raises(ConfigError, match=rf"no config file '.*rescalenet2' \(did you mean {SHIPPED}"):
        resolve("classification/cifar10/rescalenet2")
    for content, reason in (
        ("- a\n- b\n", ": expected key: value sections, found list"),
        ("a: [\n", ", line 2: not valid YAML: expected the node content"),
        ("", ": expected key: value sections, found NoneType"),
    ):
        path = tmp_path / "c.yaml"
        path.write_text(content)
        with pytest.raises(ConfigError, match=rf"c\.yaml{reason}"):
            resolve(str(path))


def test_configs_are_immutable():
    config = resolve(SHIPPED)
    with pytest.raises(ValueError, match="frozen"):
        config.train.epochs = 3

"""docs/extending.md: every example runs and has the effect that the page states."""

import configparser
import dataclasses
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from tasks import config as cfg
from tasks import spec
from tasks.engine import Trainer, read_log, read_records, runlog
from tasks.spec import make_task, resolve
from tests.helpers.commands import call
from tests.helpers.paths import ROOT
from tests.helpers.training import config
from zoo import export, families, registry, transforms, weights
from zoo.export.images import export_net
from zoo.schemes import VISION_SCHEMES, VisionScheme

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FILES = {code.split("\n", 1)[0].removeprefix("# "): code for kind, code in BLOCKS if kind != "diff"}
DIFFS = {re.findall(r"^\+\+\+ b/(\S+)$", code, re.MULTILINE)[0]: code for kind, code in BLOCKS if kind == "diff"}
MODULES = [name.removesuffix(".py") for name in FILES if name.endswith(".py")]
TINY = {"num_classes": 3, "width": 0.25}  # of rescalenet20_cifar
TRANSFORM = zoo.InputTransform.imagenet(16, 16)


# -- the page ---------------------------------------------------------------------------------------


def test_every_path_of_the_page_exists():
    paths = re.findall(r"(?<![\w/.])(?:zoo|tasks|tests|docs)/[\w./-]*\w/?", PAGE)
    assert len(set(paths)) > 40
    assert [path for path in paths if not (ROOT / path).exists()] == []
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link


def test_every_section_has_an_example_its_use_and_its_check():
    assert [section.split(".")[0] for section in SECTIONS[1:]] == [str(n) for n in range(1, 14)]
    for section in SECTIONS[1:]:
        assert re.search(r"^```(python|diff)$", section, re.MULTILINE), section[:40]
        assert re.search(r"^- Use: ", section, re.MULTILINE), section[:40]
        assert re.search(r"^- Check: .*tests/", section, re.MULTILINE), section[:40]


def test_an_example_changes_one_file_at_most():
    for section in SECTIONS:
        changed = re.findall(r"^\+\+\+ b/(\S+)$", section, re.MULTILINE)
        new = re.findall(r"^```python\n# \w+\.py$", section, re.MULTILINE)
        assert len(changed) + len(new) <= 1, section[:40]
    assert [name for name in FILES if (ROOT / name).exists()] == ["setup.cfg"]
    assert all((ROOT / name).is_file() for name in DIFFS)


def test_nothing_of_the_page_is_left_out():
    assert set(FILES) == {"plus.py", "rotation.yaml", "setup.cfg", *(f"{name}.py" for name in MODULES)}
    assert len(BLOCKS) == len(FILES) + len(DIFFS)
    for name in MODULES:
        assert name == "plus" or f'"{name}"' in (ROOT / "tests" / "test_extending.py").read_text(), name


# -- running the examples ---------------------------------------------------------------------------


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Imports an example of the page as the file that it names; what it registers is forgotten after the test."""
    tables = [registry.MODELS, families.FAMILIES, VisionScheme.registered, runlog.SINKS, export.TARGETS]
    tables += [transforms.KINDS, spec._registered]
    before = [dict(table) for table in tables]
    monkeypatch.setattr(cfg, "SCHEDULES", list(cfg.SCHEDULES))
    monkeypatch.setattr(weights, "SOURCES", list(weights.SOURCES))
    monkeypatch.syspath_prepend(tmp_path)
    imported = []

    def load(name: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(FILES[f"{name}.py"])
        importlib.invalidate_caches()
        imported.append(name)
        return importlib.import_module(name)

    yield load
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)
    for name in imported:
        del sys.modules[name]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures of three classes, 16 px, in ``train`` and ``val``."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.RandomState(0)
    for split, count in (("train", 4), ("val", 2)):
        for name in ("a", "b", "c"):
            (root / split / name).mkdir(parents=True)
            for n in range(count):
                Image.fromarray(random.randint(0, 256, (16, 16, 3), np.uint8)).save(root / split / name / f"{n}.png")
    return root


def trains_and_loads(model, path, size=16):
    """A step changes the loss, and the saved file gives the same logits."""
    x, target = torch.randn(4, 3, size, size), torch.tensor([0, 1, 2, 0])
    zoo.calibrate(model, [x])
    optimizer = torch.optim.SGD(zoo.param_groups(model, 1e-4), lr=0.01)
    losses = []
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    zoo.save_weights(model, path, transform=TRANSFORM, classes=["a", "b", "c"])
    again = zoo.create_model(model.config.name, str(path))
    with torch.no_grad():
        assert torch.equal(again.eval()(x), model.eval()(x))


def folds_to_equal_outputs(model, size=16):
    """In float64, with values other than those at init in every bias, norm and multiplier."""
    model = model.double()
    images = torch.randn(4, 3, size, size, dtype=torch.float64)
    zoo.calibrate(model, [images])
    model(images)  # statistics of BatchNorm
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 1:
                parameter += 0.3 * torch.rand_like(parameter)
        torch.testing.assert_close(zoo.fold(model)(images), model.eval()(images), rtol=1e-10, atol=1e-10)


def test_a_net(example):
    example("resnet14")
    info = zoo.model_info("rescalenet14")
    assert (info.family, info.input_size) == ("ResNet", 224)
    with torch.device("meta"):
        model = zoo.create_model("rescalenet14")
        zoo.create_model("mask_rcnn_rescalenet14_fpn", num_classes=2)
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(linear) == 14 + 4  # with the shortcuts' 1x1


def test_a_net_trains(example, tmp_path):
    example("resnet14")
    trains_and_loads(zoo.create_model("rescalenet14", num_classes=3, width=0.05), tmp_path / "a.safetensors", 32)


def test_a_family(example, tmp_path):
    example("convmixer")
    trains_and_loads(zoo.create_model("convmixer", num_classes=3, hidden=16), tmp_path / "a.safetensors")
    body = zoo.create_model("convmixer", features_only=True, hidden=16, depth=2)
    assert [tuple(x.shape) for x in body(torch.randn(2, 3, 18, 18))] == [(2, 16, 5, 5), (2, 16, 5, 5)]


@pytest.mark.parametrize("scheme", [name for name, cls in VISION_SCHEMES.items() if not cls.needs_weights])
def test_a_family_folds(example, scheme):
    example("convmixer")
    folds_to_equal_outputs(zoo.create_model("convmixer", scheme=scheme, num_classes=3, hidden=8, depth=3))


def test_a_family_around_nets(example, tmp_path):
    example("flipped")
    name = "flipped_rescalenet20_cifar"
    assert name in zoo.list_models("flipped_*")
    assert zoo.model_info(name).options["width"] == 1.0
    assert zoo.model_info(name).weights == ()  # those of the inner net have other names
    model = zoo.create_model(name, **TINY)
    trains_and_loads(model, tmp_path / "a.safetensors")
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(x.flip(-1)), model(x))
    with pytest.raises(zoo.ZooError, match="the weights fix width; leave them out"):
        zoo.create_model(name, str(tmp_path / "a.safetensors"), width=0.5)
    folds_to_equal_outputs(model)


def test_a_scheme_with_a_norm(example, tmp_path):
    example("layer_norm")
    assert zoo.model_info("rescalenet50").scheme_options["ln"] == {"post_bias": False, "eps": 1e-5}
    model = zoo.create_model("rescalenet20_cifar", scheme="ln", eps=1e-3, **TINY)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert len(norms) == 19 + 2
    assert {(m.num_groups, m.eps) for m in norms} == {(1, 1e-3)}
    trains_and_loads(model, tmp_path / "a.safetensors")
    folds_to_equal_outputs(model)


def test_a_scheme_with_a_join(example, tmp_path):
    example("rezero")
    model = zoo.create_model("rescalenet20_cifar", scheme="rezero", **TINY)
    x = torch.randn(2, 3, 16, 16)
    multipliers = {group["group"]: group["params"] for group in zoo.param_groups(model, 0.0)}["multipliers"]
    assert len(multipliers) == 9
    assert [row["m"] for row in zoo.branch_statistics(model)] == [0.0] * 9
    # at init the branches add nothing: their weights do not matter
    before = model(x)
    with torch.no_grad():
        for block in model.stages()[0]:
            block.conv1.weight.mul_(2)
    assert torch.equal(model(x), before)
    trains_and_loads(model, tmp_path / "a.safetensors")
    assert all(row["m"] != 0 for row in zoo.branch_statistics(model))
    folds_to_equal_outputs(model)


def test_a_schedule(example, photos, tmp_path):
    example("trapezoid")
    schedule = {"name": "trapezoid", "up": 0.5, "down": 1.0}
    run = config(photos, tmp_path / "run", epochs=2, batch_size=6, schedule=schedule)
    Trainer(make_task(run)).fit()
    rates = [record["lr"] for record in read_log(tmp_path / "run" / "log.jsonl") if record["event"] == "step"]
    assert rates == pytest.approx([0.0, 0.05, 0.05, 0.025])  # two steps an epoch
    overrides = ["train.schedule={name: trapezoid}", "train.schedule.down=5"]
    recipe = resolve("classification/digits/rescalenet20", overrides)
    assert recipe.train.schedule.factor(5, 8) == pytest.approx(3 / 5)
    with pytest.raises(cfg.ConfigError, match="train.schedule.up=0"):
        config(photos, tmp_path, schedule={"name": "trapezoid", "up": 0})


def test_an_augmentation(example, photos, tmp_path):
    example("grey")

    def samples(share):
        content = json.loads(config(photos, tmp_path / "run").model_dump_json())
        content["task"], content["data"]["augment"]["grey"] = "grey", share
        data = make_task(spec.check(content, "test")).train_set()
        return [data[0, index][0] for index in range(len(data))]

    def is_grey(image):
        return bool((image[0] == image[1]).all() and (image[1] == image[2]).all())

    assert [is_grey(image) for image in samples(0.0)] == [False] * 12
    assert [is_grey(image) for image in samples(1.0)] == [True] * 12
    assert all(map(torch.equal, samples(0.5), samples(0.5)))  # a function of the seed
    assert 0 < sum(map(is_grey, samples(0.5))) < 12


def test_a_target(example, tmp_path, monkeypatch, capsys):
    example("torchscript")
    model = zoo.create_model("rescalenet20_cifar", **TINY)
    zoo.save_weights(model, tmp_path / "a.safetensors", transform=TRANSFORM, classes=["a", "b", "c"])
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, monkeypatch, "export", "a.safetensors", "--to", "torchscript", "--out", "a")
    assert code == 0
    assert re.match(rf"a: agrees in torch {re.escape(version('torch'))} to \S+ at .*, 16, 21 and 18 px\n", out)
    read = torch.jit.load("a/model.ts")
    assert not any("pre_bias" in name for name in read.state_dict())  # the deployment form
    assert "torchscript (images, clips)" in export.describe_targets()
    # a file that differs from the net is refused
    monkeypatch.setattr(torch.jit, "load", lambda path: read)
    with torch.no_grad():
        model.fc.weight += 1
    with pytest.raises(zoo.ExportError, match="outputs differ by"):
        export_net(model, [torch.randn(n, 3, 16, 16) for n in (1, 2)], tmp_path / "b", "torchscript")
    assert not (tmp_path / "b").exists()


def test_a_source(example, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    example("address")
    model = zoo.create_model("rescalenet20_cifar", **TINY)
    path = tmp_path / "pets.safetensors"
    zoo.save_weights(model, path, transform=TRANSFORM, classes=["a", "b", "c"])
    state = zoo.create_model("rescalenet20_cifar", path.as_uri()).state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    path.unlink()
    assert zoo.get_weights(path.as_uri()).classes == ("a", "b", "c")  # downloaded once
    code, out, _ = call(capsys, monkeypatch, "info", path.as_uri())
    assert (code, json.loads(out)["classes"]) == (0, ["a", "b", "c"])
    with pytest.raises(zoo.WeightsError, match="cannot be downloaded"):
        zoo.get_weights("file:///nowhere/a.safetensors")


def test_a_sink(example, photos, tmp_path):
    module = example("csv_sink")
    Trainer(make_task(config(photos, tmp_path / "run", epochs=1, sinks=["csv"]))).fit()
    rows = [line.split(",") for line in (tmp_path / "run" / "numbers.csv").read_text().splitlines()]
    records = read_records(tmp_path / "run" / "log.jsonl")
    assert rows == [[str(r.step), name, str(value)] for r in records for name, value in r.scalars()]
    assert {"step/loss", "step/lr", "epoch/top1", "multiplier/layer1.0"} <= {name for _, name, _ in rows}
    # what comes again after a resume is dropped
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "numbers.csv").write_text("1,a,0.5\n2,a,0.25\n")
    module.CsvSink(folder, 1).close()
    assert (folder / "numbers.csv").read_text() == "1,a,0.5\n"


def test_a_task(example, photos, tmp_path, monkeypatch, capsys):
    example("rotation")
    (tmp_path / "rotation.yaml").write_text(FILES["rotation.yaml"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(photos)
    code, _, errors = call(capsys, monkeypatch, "train", "rotation.yaml", "train.log_every=1")
    assert code == 0, errors
    records = read_log(tmp_path / "runs/rotation/log.jsonl")
    assert [record["step"] for record in records if record["event"] == "step"] == [1, 2, 3]  # 12 pictures, batches of 4
    (accuracy,) = [record["accuracy"] for record in records if record["event"] == "epoch"]
    assert accuracy * 24 / 100 == pytest.approx(round(accuracy * 24 / 100))  # of 6 pictures, 4 turns
    # its weights are a classifier's
    file = "runs/rotation/checkpoints/best.safetensors"
    assert zoo.get_weights(file).meta["metrics"] == {"accuracy": accuracy}
    code, out, _ = call(capsys, monkeypatch, "predict", file, "photos/val/a/0.png", "--top", "1", "--out", "out")
    assert code == 0
    assert re.search(r"0\.png: (0|90|180|270) \d", out)
    with pytest.raises(cfg.ConfigError, match="key 'val_folder' is missing"):
        spec.check({**resolve("rotation.yaml").model_dump(exclude={"val_folder"})}, "test")


def test_turns_have_their_classes(example):
    turned = example("rotation").turned
    pictures = [torch.arange(12.0).view(3, 2, 2), torch.rand(3, 2, 2)]
    x, classes = turned(pictures)
    assert x.shape == (8, 3, 2, 2)
    for i, (picture, number) in enumerate(zip(x, classes.tolist(), strict=True)):
        assert torch.equal(picture.rot90(-number, (1, 2)), pictures[i % 2])
    assert x[2, 0].tolist() == [[1.0, 3.0], [0.0, 2.0]]  # a quarter turn to the left


@dataclass(frozen=True)
class Turned(zoo.InputTransform):
    kind: ClassVar[str] = "turned"


@pytest.mark.usefixtures("example")
def test_weights_of_a_task_with_a_transform_of_its_own(tmp_path):
    assert transforms.register_transform(Turned) is Turned
    path = tmp_path / "a.safetensors"
    model = zoo.create_model("rescalenet20_cifar", **TINY)
    zoo.save_weights(model, path, transform=Turned.imagenet(16, 20), classes=["a", "b", "c"])
    assert zoo.get_weights(str(path)).transform == Turned.imagenet(16, 20)
    original = spec.task_specs()["classification"]
    spec.register_task(dataclasses.replace(original, name="turned", transform="turned:Turned"))
    module = ModuleType("turned")
    module.Turned = Turned
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "turned", module)
        assert spec.task_of(zoo.get_weights(str(path))) == "turned"
    with pytest.raises(zoo.ZooError, match="kind 'turned' is registered already"):
        transforms.register_transform(Turned)


# -- diffs and the launcher, in a copy of the packages ----------------------------------------------


def patched(text: str, diff: str) -> str:
    """The text after a unified diff; the old lines of each hunk must occur exactly once."""
    for hunk in re.split(r"^@@.*\n", diff, flags=re.MULTILINE)[1:]:
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        new = "".join(line[1:] for line in lines if line[0] in " +")
        assert text.count(old) == 1, f"{text.count(old)} places for\n{old}"
        text = text.replace(old, new)
    return text


def install(folder):
    """An installed package with the entry points of the page, and objects in place of registrations."""
    parser = configparser.ConfigParser(delimiters="=")
    parser.read_string(FILES["setup.cfg"])
    lines = []
    for group, entry in parser["options.entry_points"].items():
        module, _, name = entry.partition(" = ")[2].partition(":")
        code, count = re.subn(
            r'^(?:zoo\.)?register_\w+\((?:"[^"]+", )?(.*)\)$',
            rf"{name} = (\1)",
            FILES[f"{module}.py"],
            flags=re.MULTILINE | re.DOTALL,
        )
        assert count == 1
        (folder / f"{module}.py").write_text(code)
        lines += [f"[{group}]", entry]
    (folder / "acme-1.0.dist-info").mkdir()
    (folder / "acme-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (folder / "acme-1.0.dist-info" / "entry_points.txt").write_text("\n".join(lines))
    (folder / "rotation.yaml").write_text(FILES["rotation.yaml"])


DRIVER = """
import contextlib, io, json, runpy, sys

found = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["rescalenet", *arguments]
    out, code = io.StringIO(), 0
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_path("plus.py", run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
    found.append([code, out.getvalue()])
import zoo
found.append([0, zoo.__file__])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, photos):
    """Exit codes and outputs of commands through ``plus.py``, with both diffs applied to a copy of the packages."""
    folder = tmp_path_factory.mktemp("copy")
    for package in ("zoo", "tasks"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", folder / "zoo" / "_configs")
    shutil.copytree(ROOT / "weights", folder / "zoo" / "_weights", ignore=shutil.ignore_patterns("*.safetensors"))
    for name, diff in DIFFS.items():
        (folder / name).write_text(patched((ROOT / name).read_text(encoding="utf-8"), diff))
    for name in ("plus.py", "rezero.py"):
        (folder / name).write_text(FILES[name])
    install(folder)
    torch.manual_seed(0)
    model = zoo.create_model("rescalenet20_cifar", **TINY)
    zoo.save_weights(model, folder / "a.safetensors", transform=TRANSFORM, classes=["a", "b", "c"])
    pictures = [str(photos / "val" / name) for name in ("a", "b", "c")]
    commands = {
        "list": ["list", "flipped_rescalenet20_*"],
        "targets": ["export", "--help"],
        "task": ["train", "rotation.yaml", "--print-config"],
        "info": ["info", "rescalenet20_cifar"],
        "help": ["predict", "--help"],
        "all": ["predict", "a.safetensors", *pictures, "--out", "all"],
        "none": ["predict", "a.safetensors", *pictures, "--out", "none", "--at-least", "1"],
        "refused": ["predict", "a.safetensors", *pictures, "--at-least", "2"],
        "eval": ["eval", "a.safetensors", str(photos / "val"), "--out", "metrics"],
    }
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(list(commands.values()))],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop()[1] == str(folder / "zoo" / "__init__.py")  # the copy, not the checkout
    return {"folder": folder, **{name: tuple(result) for name, result in zip(commands, found, strict=True)}}


def test_the_launcher_knows_what_its_files_register(outputs):
    code, text = outputs["info"]
    assert code == 0
    assert "rezero" in json.loads(text)["schemes"]


def test_entry_points(outputs):
    assert outputs["list"] == (0, "flipped_rescalenet20_cifar\n")
    assert outputs["targets"][0] == 0
    assert "torchscript (images, clips)" in " ".join(re.sub("[│\n]", " ", outputs["targets"][1]).split())
    code, text = outputs["task"]
    assert code == 0
    assert text.startswith("task: rotation\n")


def test_a_metric(outputs):
    code, text = outputs["eval"]
    assert code == 0
    report = json.loads((outputs["folder"] / "metrics" / "metrics.json").read_text())
    metrics = report["metrics"]
    assert f"kappa {metrics['kappa']:.6g}" in text
    # chance by hand: six pictures, two of each class, so each column's share counts a third
    assert metrics["kappa"] == pytest.approx((metrics["top1"] / 100 - 1 / 3) / (2 / 3))


def test_an_option(outputs):
    code, text = outputs["help"]
    assert code == 0
    panel = text[text.index("Classification and rotation ─") :].split("╯")[0]  # rotation has the same options
    assert "--at-least" in panel
    assert "Least score of the pictures to print. Default: 0.0." in panel
    assert outputs["all"][0] == outputs["none"][0] == 0
    assert outputs["all"][1].count(".png: ") == 6
    assert outputs["none"][1].count(".png: ") == 0
    assert outputs["refused"][0] == 2

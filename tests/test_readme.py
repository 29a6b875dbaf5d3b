"""What the README shows runs."""

import re
import shlex

import pytest
import torch
import torchvision

from tasks.config import find_config
from tasks.spec import resolve
from tests.helpers.captions import write_captions
from tests.helpers.commands import call
from tests.helpers.paths import ROOT
from tests.helpers.published import publish

README = (ROOT / "README.md").read_text()


def test_the_api_page_runs(tmp_path, monkeypatch):
    _, code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert scope["body"].feature_info.channels() == [64, 128, 256, 512]
    assert scope["body"].feature_info.reduction() == [4, 8, 16, 32]
    assert scope["features"].shape == (1, 64, 8, 8)
    assert scope["zoo"].list_models("rescalenet*", pretrained=True) == ["rescalenet18", "rescalenet20_cifar"]
    assert (tmp_path / "out/mine.safetensors").exists()


def test_the_pretrained_net_by_name_runs(tmp_path, monkeypatch):
    """With random weights under the name of torchvision's file."""
    monkeypatch.setenv("RESCALENET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("RESCALENET_OFFLINE", raising=False)
    net = torchvision.models.resnet50().eval()
    publish(net, torchvision.models.ResNet50_Weights.IMAGENET1K_V2, tmp_path, monkeypatch)
    code, _ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), scope)
    x = scope["weights"].transforms()(scope["picture"])[None]
    with torch.no_grad():
        right = net(x)
    assert (scope["logits"] - right).abs().max() < 3e-6 * right.abs().max()
    assert scope["finetune"].num_classes == 5
    assert re.search(r"\{'acc@1': [\d.]+, 'acc@5': [\d.]+\}", code)[0] == str(scope["weights"].meta["metrics"])


def test_named_files_and_commands_exist():
    for name in re.findall(r"\]\(([^)]+)\)", README):
        assert name.startswith("http") or (ROOT / name).exists(), name
    for name in re.findall(r"configs/\S+\.yaml", README):
        assert (ROOT / name).exists()
    from typer.main import get_command

    from tasks.cli import app

    commands = set(get_command(app).commands)
    assert set(re.findall(r"^(?:torchrun .* )?rescalenet (\w+)", README, re.MULTILINE)) <= commands
    assert find_config("classification/cifar10/rescalenet20")


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.stem)
def test_the_command_line_takes_the_commands_of_a_page(path, monkeypatch):
    """Arguments and options of every command in a block are known; nothing is run."""
    from typer.main import get_command

    from tasks.cli import app

    monkeypatch.chdir(ROOT)
    commands = get_command(app).commands
    blocks = re.findall(r"^```\w*\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
    shell = "\n".join(blocks).replace("\\\n", " ").replace("[", "").replace("]", "")  # optional arguments too
    for line in re.findall(r"^(?:\$ )?(?:\w+=\S+ |torchrun .*)*rescalenet ([a-z].*)", shell, re.MULTILINE):
        name, *arguments = shlex.split(re.split(r" (?:\||>|2>|&&) ", line)[0], comments=True)
        if "..." not in arguments:
            context = commands[name].make_context(name, arguments)
            assert not context.args or name == "train", line


def page(task):
    """Run the first block of a task's page, whose links and configs must exist: what it defined, how many blocks."""
    text = (ROOT / "docs" / f"{task}.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    scope: dict[str, object] = {}
    exec(compile(code[0], f"{task}.md", "exec"), scope)
    for name in re.findall(r"\]\(([^)]+)\)", text):
        assert (ROOT / "docs" / name).exists(), name
    for name in re.findall(rf"configs/{task}/\S+\.(?:yaml|py)", text):
        assert (ROOT / name).exists()
    return scope, len(code)


def test_the_page_on_fine_tuning_runs(tmp_path):
    scope, blocks = page("finetune")
    assert blocks == 1
    expected = {"layer2": 0.01125, "layer3": 0.015, "fc": 0.02, "head_bias": 0.02}
    assert scope["rates"] == pytest.approx(expected)
    text = (ROOT / "docs" / "finetune.md").read_text()
    recipes = re.findall(r"rescalenet train (\S+)", text)
    assert len(recipes) >= 8
    mine = next(code for code in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "runs/mine" in code)
    path = tmp_path / "mine.yaml"
    path.write_text(mine)
    assert resolve(str(path)).data.val_share == 0.1
    for name in recipes:
        assert name == "mine.yaml" or find_config(name)


def test_the_page_on_conversion_runs():
    text = (ROOT / "docs" / "convert.md").read_text()
    scope: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(code, "convert.md", "exec"), scope)
    ours, theirs, x = (scope[name] for name in ("ours", "theirs", "x"))
    with torch.no_grad():
        right = theirs(x)
        assert (ours(x) - right).abs().max() < 3e-6 * right.abs().max()
    assert ours.layer1[0].conv1.pre_bias.any()  # the second block has moved the biases
    for name in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert (ROOT / "docs" / name).exists(), name


def test_the_page_on_timm_runs(tmp_path, monkeypatch, capsys):
    scope, blocks = page("timm")
    assert blocks == 2
    assert scope["body"].feature_info.reduction() == [2, 4]
    assert [tuple(m.shape) for m in scope["body"](torch.zeros(1, 3, 33, 47))] == [(1, 32, 17, 24), (1, 64, 9, 12)]
    # the second block, on noise
    for i in range(32):
        path = tmp_path / "data/pets/train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        torchvision.io.write_png(torch.randint(256, (3, 70, 70), dtype=torch.uint8), str(path))
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs/timm.md").read_text(), re.DOTALL)[1]
    exec(compile(code, "timm.md", "exec"), {})
    assert capsys.readouterr().out.strip() in code  # in its comment
    assert (tmp_path / "start.pth").exists()


def test_the_page_on_detection_runs():
    scope, blocks = page("detection")
    assert blocks == 2  # the second is detectron2's: tests/interop
    assert scope["model"].config.name == "faster_rcnn_rescalenet101_fpn"


def test_the_page_on_translation_runs():
    scope, blocks = page("translation")
    assert blocks == 1
    assert scope["logits"].shape == (2, 3, 8000)
    assert type(scope["baseline"].encoder_end).__name__ == "LayerNorm"


def test_the_page_on_fine_tuning_a_translator_runs(tmp_path, monkeypatch, capsys):
    """Its commands in order, whose results are those of the page but for numbers that depend on the machine."""
    text = (ROOT / "docs" / "finetune_translation.md").read_text()
    monkeypatch.chdir(tmp_path)
    write_captions(tmp_path / "text", train=200, val=20)
    (tmp_path / "mine.yaml").write_text(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])
    commands = re.findall(r"```console\n\$ (.*?)```", text, re.DOTALL)[0].split("\n$ ")
    assert len(commands) == 7
    for block in commands:
        command, *shown = block.rstrip("\n").split("\n")
        _, *arguments = shlex.split(command.partition(" > ")[0])
        code, out, err = call(capsys, monkeypatch, *arguments)
        assert code == 0, err
        if arguments[0] in ("check", "prepare"):
            assert out.rstrip("\n").split("\n") == shown
        elif shown:  # the last digits of a training differ between machines
            assert [re.sub(r"[\d.]+", "N", line) for line in out.rstrip("\n").split("\n")] == [
                re.sub(r"[\d.]+", "N", line) for line in shown
            ]
    for name in re.findall(r"\]\(([^)]+)\)", text):
        assert (ROOT / "docs" / name).exists(), name


def test_the_page_on_weights_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RESCALENET_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    scope, blocks = page("weights")
    assert blocks == 1
    assert capsys.readouterr().out == "rescalenet50 {'acc@1': 80.858, 'acc@5': 95.434}\n"
    assert "torchvision:resnet50:IMAGENET1K_V2" in [row.weights for row in scope["rows"]]
    assert scope["model"].config == scope["entry"].config
    assert (tmp_path / "out/cifar10_converted.safetensors").exists()


def test_the_page_on_video_runs():
    scope, blocks = page("video")
    assert blocks == 1
    assert scope["video"].config.name == "rescale_i3d_r50"
    assert (scope["body"].feature_info.reduction(), scope["body"].feature_info.frames()) == ([8, 32], [2, 2])
    assert scope["weights"].transform.frames == 16
    assert scope["weights"].classes == ("circular", "horizontal", "vertical")

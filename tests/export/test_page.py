"""The lines of docs/export.md run in each target's own code and name what the net sees."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from tasks.exporting import export_weights
from tests.helpers.paths import ROOT
from zoo.errors import ExportError
from zoo.export import TARGETS

PAGE = (ROOT / "docs/export.md").read_text(encoding="utf-8")
WEIGHTS = "rescalenet20_cifar.cifar10_v2"
PICTURE = ROOT / "pictures/photographs/cat/chelsea.jpg"
SECTIONS = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
LINES = 10  # of a program, without imports and blank lines


def code_of(name):
    return re.findall(r"```python\n(.*?)```", SECTIONS[name], re.DOTALL)


def best_class():
    """What PyTorch finds in the picture that the page reads."""
    entry = zoo.get_weights(WEIGHTS)
    pixels = np.asarray(Image.open(PICTURE).convert("RGB").resize((32, 32)), np.float32).transpose(2, 0, 1) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (entry.transform.mean, entry.transform.std))
    with torch.no_grad():
        logits = zoo.create_model(entry.config.name, WEIGHTS).eval()(((torch.from_numpy(pixels) - mean) / std)[None])
    return entry.classes[int(logits.argmax())]


def test_every_target_has_a_section():
    assert set(TARGETS) <= set(SECTIONS)


@pytest.mark.parametrize(
    "name",
    [name for name in TARGETS if name in SECTIONS and any(f"out/cifar/{name}" in code for code in code_of(name))],
)
def test_the_lines_of_a_target(name, tmp_path, monkeypatch):
    target = TARGETS[name]
    try:
        target.functions()
    except ExportError as error:
        pytest.skip(str(error))
    if name == "coreml" and sys.platform != "darwin":
        pytest.skip("Core ML runs on macOS alone")
    (program,) = code_of(name)
    lines = [line for line in program.splitlines() if line.strip() and not re.match(r"(import|from) ", line)]
    assert len(lines) <= LINES
    assert "zoo" not in program
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").symlink_to(ROOT / "pictures")
    options = {"normalize": True, "softmax": True} if target.form == "graphs" else {}
    export_weights(
        WEIGHTS,
        name,
        tmp_path / "out/cifar" / name,
        fold=True,
        data=None,
        half=False,
        int8=False,
        overwrite=False,
        options=options,
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == best_class()  # MNN prints the features of the processor first


def test_the_lines_in_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"## From Python\n+```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(program, "docs/export.md", "exec"), {})
    assert (tmp_path / "out/from_python/model.onnx").is_file()

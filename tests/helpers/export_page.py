"""The page docs/export.md: the code and the commands of its sections, as tests run them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image

from tests.helpers.commands import call
from tests.helpers.paths import ROOT
from tests.helpers.published import publish

PAGE = (ROOT / "docs/export.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
PICTURE = ROOT / "pictures/photographs/cat/chelsea.jpg"  # the one that the page reads
LINES = 10  # of a program, without imports, blank lines and comments


def blocks_of(section: str, language: str) -> list[str]:
    """The blocks of a language in a section."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", SECTIONS[section], re.DOTALL | re.MULTILINE)
    return [code for name, code in blocks if name == language]


def programs_of(section: str) -> list[str]:
    """The programs in Python of a section: a few lines each."""
    programs = blocks_of(section, "python")
    for program in programs:
        lines = [line for line in program.splitlines() if line.strip() and not re.match(r"(import|from) |#", line)]
        assert len(lines) <= LINES, section
    return programs


def run_program(program: str) -> dict[str, Any]:
    """Run a program of the page in this process; what it defined."""
    scope: dict[str, Any] = {}
    exec(compile(program, "docs/export.md", "exec"), scope)
    return scope


def run_commands(section: str, capsys: Any, monkeypatch: Any) -> str:
    """Run the commands of a section whose arguments are given; what they print."""
    printed = ""
    lines = "".join(blocks_of(section, "")).replace("\\\n", " ").splitlines()
    for command in (shlex.split(line, comments=True) for line in lines if line.startswith("rescalenet ")):
        code, out, err = call(capsys, monkeypatch, *command[1:])
        assert code == 0, err
        printed += out
    assert printed, section
    return printed


def run_console(section: str, capsys: Any, caplog: Any, monkeypatch: Any) -> None:
    """Run the commands of a section, whose output must have the lines that the page shows, but for their numbers."""
    commands = "".join(blocks_of(section, "console")).split("$ ")[1:]
    assert commands, section
    for command, *shown in (text.splitlines() for text in commands):
        caplog.clear()
        code, out, err = call(capsys, monkeypatch, *shlex.split(command)[1:])
        assert code == 0, err
        printed = {_without_numbers(line) for line in [*out.splitlines(), *err.splitlines(), *caplog.messages]}
        for line in shown:
            assert line == "..." or _without_numbers(line) in printed, line


def _without_numbers(line: str) -> str:
    return re.sub(r"\d[\d.e+-]*(cpu|cu\d+)?", "N", line)


def pixels(height: int, width: int) -> torch.Tensor:
    """The picture as the page resizes it: float32 (3, H, W) in 0..1."""
    picture = Image.open(PICTURE).convert("RGB").resize((width, height))
    return torch.from_numpy(np.asarray(picture, np.float32).transpose(2, 0, 1) / 255)


def enter(folder: Path, monkeypatch: Any) -> Path:
    """Make a folder the current one, with the pictures as in the checkout."""
    (folder / "pictures").symlink_to(ROOT / "pictures")
    monkeypatch.chdir(folder)
    return folder


def published_resnet50(folder: Path, monkeypatch: Any) -> torch.nn.Module:
    """torchvision's ResNet-50 with random weights, which its code finds as IMAGENET1K_V2."""
    monkeypatch.setenv("RESCALENET_HOME", str(folder / "home"))
    monkeypatch.setenv("TORCH_HOME", str(folder / "torch"))
    monkeypatch.delenv("RESCALENET_OFFLINE", raising=False)
    net = torchvision.models.resnet50().eval()
    publish(net, torchvision.models.ResNet50_Weights.IMAGENET1K_V2, folder, monkeypatch)
    return net

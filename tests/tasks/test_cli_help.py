"""Help texts: their panels, and what they do not import."""

import os
import re
import subprocess
import sys

import pytest

SLOW = ("torch", "torchvision", "numpy", "PIL", "accelerate", "matplotlib")
PROBE = f"""
import sys, resource
from tasks.cli import app
try:
    app(sys.argv[1:])
except SystemExit:
    pass
used = resource.getrusage(resource.RUSAGE_SELF)
print("LOADED", *[name for name in {SLOW} if name in sys.modules])
print("SECONDS", used.ru_utime + used.ru_stime)
"""


def help_of(*arguments: str) -> tuple[str, list[str], float]:
    """The help text of a command, the slow packages that it loads, and its CPU time in seconds."""
    settings = {**os.environ, "COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    command = [sys.executable, "-c", PROBE, *arguments, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=settings, timeout=120)
    assert done.returncode == 0, done.stderr
    text, _, rest = done.stdout.partition("LOADED")
    return text, rest.splitlines()[0].split(), float(rest.split("SECONDS")[1])


@pytest.mark.parametrize("command", [(), ("predict",), ("eval",), ("export",), ("info",)])
def test_help_loads_nothing_slow(command):
    assert help_of(*command)[1] == []


def test_help_takes_less_than_half_a_second():
    assert min(help_of()[2] for _ in range(3)) < 0.5


def panels(text: str) -> dict[str, set[str]]:
    """The options of each panel."""
    found: dict[str, set[str]] = {}
    title = ""
    for line in text.splitlines():
        if heading := re.match(r"\W*[╭+]─* ?([A-Za-z][A-Za-z ]*[a-z]) ─", line):
            title = heading[1]
        elif option := re.match(r"[│|]\s+(--[a-z-]+)", line):
            found.setdefault(title, set()).add(option[1])
    return found


def test_options_are_grouped_by_task():
    found = panels(help_of("predict")[0])
    shared = {"--out", "--overwrite", "--format", "--workers", "--batch-size", "--device", "--help"}
    assert found["Options"] == {*shared, "--no-files"}
    assert found["Classification and video"] == {"--top"}
    assert found["Classification and detection"] == {"--threshold", "--classes", "--tta"}
    assert found["Detection"] == {"--tile", "--overlap", "--detections", "--nms", "--coco"}
    assert found["Video"] == {"--clips", "--window", "--step", "--annotate"}
    assert {"--beam", "--nbest", "--sample", "--attention"} < found["Translation"]
    found = panels(help_of("eval")[0])
    assert found["Options"] == shared
    assert found["Classification and detection"] == {"--tta"}
    assert found["Detection"] == {"--images", "--fast", "--max-dets", "--nms"}
    assert panels(help_of("score")[0])["Options"] >= {"--max-dets", "--fast", "--out", "--format"}
    assert panels(help_of("export")[0])["Classification and video"] == {"--size", "--softmax"}


def test_help_names_defaults_and_targets():
    text = " ".join(help_of("eval")[0].replace("│", " ").split())
    assert "Default: classification 256, detection 1, video 8, translation 64." in text
    text = " ".join(help_of("export")[0].replace("│", " ").split())
    assert "onnx (images, clips, image_lists, text); " in text
    assert "torchvision (images); " in text
    assert "fairseq (text)" in text


def test_info_env_prints_versions_and_device():
    done = subprocess.run([sys.executable, "-m", "tasks.cli", "info", "--env"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert names[:7] == ["rescalenet-zoo", "python", "torch", "torchvision", "CUDA", "device", "cores"]
    assert "onnxruntime" in names
    assert "pytest" not in names  # developers' packages
    for wrong in ([], ["rescalenet50", "--env"]):
        done = subprocess.run([sys.executable, "-m", "tasks.cli", "info", *wrong], capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr == "error: info takes either a net or weights, or --env\n"

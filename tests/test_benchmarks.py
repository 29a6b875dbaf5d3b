"""The benchmarks run and write what they measured; nothing is asserted about time."""

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import zoo
from benchmarks import finetune_forms
from tests.helpers.commands import environment
from tests.helpers.paths import ROOT, shared

SMALL = ["--size", "32", "--threads", "1", "--runtime", "tuned"]


def run(script, *arguments, out):
    command = [sys.executable, "-m", f"benchmarks.{script}", *SMALL, *arguments, "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    content = json.loads(out.read_text())
    assert content["environment"]["torch"]
    assert content["environment"]["runtime"] == "tuned"
    return done.stdout, content["results"]


@pytest.mark.slow
def test_train_step(tmp_path):
    names = ["floor", "floor_conv", "rescale", "rescale_conv", "gained", "naive", "bn", "frozen_bn", "gn", "nf"]
    arguments = ["--net", "50", "--batch", "2", "--repeats", "2", "--optimizer", "--baselines", *names]
    table, results = run("train_step", *arguments, out=tmp_path / "train.json")
    assert [r["rival"] for r in results] == names
    assert all(r["rival"] in table for r in results)
    assert results[0]["ratio"] == 1
    assert all(r["milliseconds"] > 0 and r["pairs"] == 2 for r in results)


@pytest.mark.slow
def test_train_step_compiled_in_bf16(tmp_path):
    arguments = ["--net", "18", "--batch", "1", "--repeats", "1", "--mode", "compile", "--dtype", "bf16"]
    _, results = run("train_step", *arguments, "--baselines", "floor", "rescale", out=tmp_path / "train.json")
    assert [r["mode"] for r in results] == ["compile", "compile"]


@pytest.mark.slow
def test_inference(tmp_path):
    arguments = ["--net", "18", "--batch", "2", "--repeats", "2", "--engine", "eager", "onnxruntime", "openvino"]
    _, results = run("inference", *arguments, out=tmp_path / "inference.json")
    names = ["bn folded", "bn folded, avgpool", "rescale folded", "bn", "rescale"]
    assert [(r["engine"], r["name"]) for r in results] == [
        (e, n) for e in ("eager", "onnxruntime", "openvino") for n in names
    ]


@pytest.mark.slow
def test_memory(tmp_path):
    """Run with the former name of --baselines, which docs and scripts may use."""
    arguments = ["--net", "18", "--rivals", "floor", "rescale", "bn", "--peak-batches", "8", "64"]
    _, results = run("memory", *arguments, out=tmp_path / "memory.json")
    floor, rescale, bn = results
    assert rescale["image"] <= 1.02 * floor["image"] < bn["image"]
    assert all(r["peak_constant"] > 0 for r in results)


@pytest.mark.slow
def test_detection(tmp_path):
    names = ["torchvision", "rescale", "frozen_bn", "bn", "gn"]
    arguments = ["--image", "64", "96", "--net", "18", "--repeats", "1"]
    _, results = run("detection", *arguments, out=tmp_path / "detection.json")
    found = {mode: [r["rival"] for r in results if r["mode"] == mode] for mode in ("saved", "train", "infer")}
    assert found == {"saved": names, "train": names, "infer": [*names, "rescale folded"]}
    saved = {r["rival"]: r["bytes"] for r in results if r["mode"] == "saved"}
    assert saved["frozen_bn"] == pytest.approx(saved["torchvision"], rel=0.01)  # the same net


@pytest.mark.slow
def test_video(tmp_path):
    """Every part runs on small input; each installed reader returns the frames that ours returns."""
    small = [
        "--net",
        "r3d18",
        "--frames",
        "4",
        "--baselines",
        "floor",
        "rescale",
        "bn",
        "--batch",
        "1",
        "--repeats",
        "2",
    ]
    table, results = run("video", *small, "--count", "1", "--keys", "50", out=tmp_path / "video.json")
    read = {r["reader"]: r for r in results if r["what"] == "read"}
    assert {"ours", "full decode", "full decode, clip converted"} <= read.keys()
    assert all(r["wrong"] == 0 for r in read.values())
    assert {r["part"] for r in results if r["what"] == "feed"} == {"read", "transform", "r3d18"}
    saved = {r["rival"]: r["clip"] for r in results if r["what"] == "saved"}
    assert saved["rescale"] <= 1.03 * saved["floor"] < saved["bn"]
    assert [r["rival"] for r in results if r["what"] == "step"] == ["floor", "rescale", "bn"]
    assert "rescale" in table


def test_saved_memory_of_a_converted_net():
    """The factors on filters save nothing for backward that grows with the batch."""
    from benchmarks.baselines import build
    from benchmarks.memory import saved_per_image

    saved = {variant: saved_per_image(build("50", variant), 64) for variant in ("floor", "floor_conv", "gained", "bn")}
    assert saved["gained"][0] <= 1.02 * min(saved["floor"][0], saved["floor_conv"][0])
    assert saved["gained"][0] <= 0.52 * saved["bn"][0]


def test_saved_memory_of_i3d():
    """The full net saves at most 1.03 of the bare convolutions with either shortcut, as the benchmark counts it."""
    from benchmarks.memory import saved_per_image
    from benchmarks.video import build

    saved = {
        r: saved_per_image(build("i3d50", r, "cpu"), 96, frames=4) for r in ("floor", "floor_conv", "rescale", "bn")
    }
    assert saved["rescale"][0] <= 1.03 * min(saved["floor"][0], saved["floor_conv"][0])
    assert saved["rescale"][0] <= 0.52 * saved["bn"][0]


@pytest.mark.slow
def test_translation(tmp_path):
    """Memory and steps of all schemes; decoding with a random net, whose lengths are fixed."""
    from tasks.translation.vocabulary import train_vocabulary
    from tests.helpers.transformers import make

    small = ["--net", "tiny", "--sentences", "4", "--length", "8", "--repeats", "2"]
    schemes = zoo.model_info("rescale_transformer_tiny").schemes
    _, results = run("translation", *small, "--schemes", *schemes, out=tmp_path / "translation.json")
    assert {r["drops"] for r in results if r["mode"] == "memory"} == {"none", "branches", "all"}
    steps = [r["rival"] for r in results if r["mode"] == "train"]
    assert steps[: len(schemes) + 1] == [*schemes, "torch"]
    assert ("fairseq" in steps) == bool(importlib.util.find_spec("fairseq"))
    vocabulary = train_vocabulary(["one two three four five"] * 20, 30, "bpe")
    size = {"source_vocabulary": len(vocabulary), "target_vocabulary": len(vocabulary)}
    transform = zoo.TextTransform.from_vocabularies(("en", "de"), vocabulary, vocabulary)
    zoo.save_weights(make("pre_ln", **size).float(), tmp_path / "w.safetensors", transform=transform, classes=())
    (tmp_path / "in.txt").write_text("one two\nthree four five\nfive\n")
    text = ["--mode", "decode", "--weights", tmp_path / "w.safetensors", "--text", tmp_path / "in.txt", "--count", "3"]
    for extra in ([], ["--random"]):
        _, results = run("translation", *small, *map(str, text), *extra, "--batches", "2", out=tmp_path / "decode.json")
        assert results[0]["rival"] == "ours"
        assert results[0]["sentences"] == 3
        assert results[0]["milliseconds"] > 0


def test_operations(tmp_path):
    """Two runs record equal sequences; a difference is shown with its place."""
    from benchmarks.operations import first_difference

    command = [sys.executable, "-m", "benchmarks.operations", "--only", "video-r3d-rescale", "--shapes", "--out"]

    def record(*arguments):
        return subprocess.run(
            [*command, *map(str, arguments)], cwd=ROOT, env=environment(), capture_output=True, text=True
        )

    done = record(tmp_path / "first")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "first/summary.txt").read_text() == done.stdout
    file = tmp_path / "first/video-r3d-rescale.txt"
    lines = file.read_text().splitlines()
    assert sum(line.startswith("aten.convolution.default 4x3x4x32x32 ") for line in lines) == 1  # the stem
    forward, backward = (
        sum(line.startswith(f"aten.convolution{kind}.default ") for line in lines) for kind in ("", "_backward")
    )
    assert forward == backward == 12  # four blocks of two, three projections, the stem
    done = record(tmp_path / "second", "--compare", tmp_path / "first")
    assert done.returncode == 0, done.stdout
    found = first_difference("name", lines, [*lines[:9], "aten.other.default", *lines[10:]])
    assert found.startswith(f"name: operation 10 of {len(lines)}, now of {len(lines)}\n")
    assert found.endswith(f"  - {lines[9]}\n  + aten.other.default")
    assert first_difference("name", lines, lines[:-1]).endswith("  + (end)")


@pytest.mark.slow
def test_finetune_forms(tmp_path):
    """Two methods for an epoch on the real data; a second call reads the finished runs."""
    for part in ("train", "val"):
        with zipfile.ZipFile(shared("data", "flowers", f"{part}.zip")) as archive:
            archive.extractall(tmp_path / "flowers")
    command = [sys.executable, "-m", "benchmarks.finetune_forms", "--methods", "gained", "scratch", "--epochs", "1"]
    command += ["--seeds", "0", "--root", str(tmp_path / "flowers"), "--out", str(tmp_path / "out")]
    lines = []
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        lines.append([json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")])
    gained, scratch = lines[0]
    assert gained["top1"] > 55
    assert scratch["top1"] > 25  # five classes
    assert lines[1] == lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["stable", "costs"])
def test_finetune_forms_on_few_images(tmp_path, part):
    """The largest stable rate, and time and memory."""
    for name, each in (("train", 8), ("val", 2)):
        with zipfile.ZipFile(shared("data", "flowers", f"{name}.zip")) as archive:
            for kind in {Path(file).parent for file in archive.namelist() if file.endswith(".jpg")}:
                files = sorted(file for file in archive.namelist() if Path(file).parent == kind)
                archive.extractall(tmp_path / "flowers", files[-each:])
    methods = ["bn", "centred", "scratch"]
    command = [sys.executable, "-m", "benchmarks.finetune_forms", part, "--methods", *methods]
    command += ["--seeds", "0", "--batch", "4", "--split", "official"]
    command += ["--root", str(tmp_path / "flowers"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(any(method in line for line in done.stdout.splitlines()) for method in methods)
    rows = [line.split("│") for line in done.stdout.splitlines() if "centred" in line]
    if part == "stable":
        assert float(rows[0][3]) in finetune_forms.LADDER
    else:
        assert 0.3 < float(rows[0][2]) < 10  # time over BatchNorm's
        assert float(rows[1][2]) > 1  # MiB an image

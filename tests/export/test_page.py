"""The lines of docs/export.md run in each target's own code and name what the net sees.

``tests/interop/test_export_page.py`` has those of detectron2 and fairseq, ``test_onnx_web.py`` those in JavaScript.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torchvision.transforms.v2.functional import normalize

import zoo
from tasks.exporting import export_weights
from tests.helpers.export_page import (
    PICTURE,
    blocks_of,
    enter,
    pixels,
    programs_of,
    published_resnet50,
    run_commands,
    run_console,
    run_program,
)
from zoo.errors import ExportError
from zoo.export import TARGETS

WEIGHTS = "rescalenet20_cifar.cifar10_v2"


def best_class():
    """What PyTorch finds in the picture that the page reads."""
    entry = zoo.get_weights(WEIGHTS)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (entry.transform.mean, entry.transform.std))
    with torch.no_grad():
        logits = zoo.create_model(entry.config.name, WEIGHTS).eval()(((pixels(32, 32) - mean) / std)[None])
    return entry.classes[int(logits.argmax())]


def export_cifar(name, folder):
    """Export as the page states it."""
    options = {"normalize": True, "softmax": True} if TARGETS[name].form == "graphs" else {}
    out = folder / "out/cifar" / name
    export_weights(WEIGHTS, name, out, fold=True, data=None, half=False, int8=False, overwrite=False, options=options)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return enter(tmp_path, monkeypatch)


def test_every_target_has_a_section_with_lines():
    assert [name for name in TARGETS if not programs_of(name)] == ["onnx-web"]  # JavaScript


@pytest.mark.parametrize(
    "name", [name for name in TARGETS if any(f"out/cifar/{name}" in code for code in programs_of(name))]
)
def test_the_lines_of_a_target(name, folder):
    target = TARGETS[name]
    try:
        target.functions()
    except ExportError as error:
        pytest.skip(str(error))
    if name == "coreml" and sys.platform != "darwin":
        pytest.skip("Core ML runs on macOS alone")
    (program,) = programs_of(name)
    assert "zoo" not in program
    export_cifar(name, folder)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == best_class()  # MNN prints the features of the processor first


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML runs the lines there")
def test_the_lines_of_core_ml_but_for_its_prediction(folder, capsys, monkeypatch):
    """Where Core ML does not run, PyTorch evaluates the program that the lines have loaded."""
    coremltools = pytest.importorskip("coremltools")
    from coremltools.converters.mil.frontend.milproto.load import load

    from zoo.export.mil import evaluate

    def predict(model, inputs):
        spec = model.get_spec()
        assert {port.name: tuple(port.type.multiArrayType.shape) for port in spec.description.input} == {
            name: values.shape for name, values in inputs.items()
        }
        program = load(spec, spec.specificationVersion, file_weights_dir=model.weights_dir)
        outputs = evaluate(
            program.functions["main"], {name: torch.from_numpy(values) for name, values in inputs.items()}
        )
        return {port.name: outputs[port.name].numpy() for port in spec.description.output}

    monkeypatch.setattr(coremltools.models.MLModel, "predict", predict)
    export_cifar("coreml", folder)
    (program,) = programs_of("coreml")
    run_program(program)
    assert capsys.readouterr().out.split()[-1] == best_class()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_lines_of_aoti_in_cpp(folder):
    """Compiled with the commands of the page, they print the classes that PyTorch finds in the same noise."""
    (program,), (commands,) = blocks_of("aoti", "cpp"), blocks_of("aoti", "sh")
    (folder / "run.cpp").write_text(program)
    export_cifar("aoti", folder)
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-ec", commands], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    entry = zoo.get_weights(WEIGHTS)
    torch.manual_seed(0)
    x = normalize(torch.rand(2, 3, 32, 32), list(entry.transform.mean), list(entry.transform.std))
    with torch.no_grad():
        expected = zoo.create_model(entry.config.name, WEIGHTS).eval()(x).argmax(1)
    assert done.stdout.split()[:2] == [str(int(number)) for number in expected]


def test_the_way_from_training_to_a_file_that_runs(folder, capsys, caplog, monkeypatch):
    """The commands of the page print what it shows, and the lines name the picture's class."""
    section = "From training to a file that runs"
    (config,) = blocks_of(section, "yaml")
    (folder / "mine.yaml").write_text(config)
    run_console(section, capsys, caplog, monkeypatch)
    (program,) = programs_of(section)
    assert "zoo" not in program
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((folder / "out/mine/onnx/manifest.json").read_text())
    assert manifest["classes"] == sorted(path.name for path in PICTURE.parents[1].iterdir())
    assert done.stdout.strip() == PICTURE.parent.name


def test_the_lines_of_torchvision(folder, capsys, monkeypatch):
    """With random weights under the name of torchvision's file: the logits are those of torchvision's own net."""
    net = published_resnet50(folder, monkeypatch)
    assert "agrees in torchvision" in run_commands("torchvision", capsys, monkeypatch)
    (program,) = programs_of("torchvision")
    assert "zoo" not in program
    scope = run_program(program)
    weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
    x = normalize(pixels(224, 224), weights.transforms().mean, weights.transforms().std)[None]
    with torch.no_grad():
        right = net(x)
    assert (scope["logits"] - right).abs().max() < 3e-6 * right.abs().max()
    assert capsys.readouterr().out.strip() == weights.meta["categories"][int(right.argmax())]


def test_the_lines_of_segmentation_models(folder, capsys):
    """The maps of the encoder are those of the weights at the picture that the lines prepare."""
    pytest.importorskip("segmentation_models_pytorch")
    (program,) = programs_of("segmentation_models_pytorch")
    scope = run_program(program)
    assert capsys.readouterr().out.strip() == "torch.Size([1, 2, 288, 448])"
    transform = zoo.get_weights("rescalenet18.flowers").transform
    x = normalize(pixels(288, 448), list(transform.mean), list(transform.std))[None]
    torch.testing.assert_close(scope["x"], x, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        found = scope["model"].encoder(x)[1:]
        expected = zoo.create_model("rescalenet18", "rescalenet18.flowers").eval().forward_levels(x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_the_lines_in_python(folder):
    (program,) = programs_of("From Python")
    run_program(program)
    assert (folder / "out/from_python/model.onnx").is_file()

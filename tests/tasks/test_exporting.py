"""rescalenet export: folders, options, and earlier exports that are compared again."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import zoo
from tasks.exporting import batches, other_sizes, resized, unstandardised
from tests.helpers.classification import picture
from tests.helpers.commands import call
from zoo.files import sha256_of

TRANSFORM = zoo.InputTransform(16, 20, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), channel_order="BGR")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = zoo.create_model("rescalenet20_cifar", num_classes=3, width=0.25)
    zoo.calibrate(net, [torch.randn(8, 3, 16, 16)])
    zoo.save_weights(net, tmp_path / "w.safetensors", transform=TRANSFORM, classes=["ant", "bee", "cow"])
    return lambda *arguments: call(capsys, monkeypatch, *arguments)


def output(folder, x):
    session = onnxruntime.InferenceSession(Path(folder) / "model.onnx")
    return session.run(None, {"images": x.numpy()})


def test_the_default_folder_and_its_manifest(run):
    code, out, _ = run("export", "w.safetensors")
    assert code == 0
    assert out.startswith("out/export/w/onnx: agrees in onnxruntime ")
    manifest = json.loads(Path("out/export/w/onnx/manifest.json").read_text())
    assert manifest["classes"] == ["ant", "bee", "cow"]
    assert manifest["input"]["channel_order"] == "BGR"
    assert manifest["input"]["mean"] == [0.4, 0.5, 0.6]
    assert manifest["input"]["size"] == 16
    assert not manifest["input"]["standardised_in_graph"]
    (graph,) = manifest["graphs"]
    assert graph["inputs"] == [{"name": "images", "axes": ["batch", 3, "height", "width"], "dtype": "float32"}]
    assert 0 < graph["largest_difference"]["relative"] < 1e-4
    assert set(manifest["versions"]) >= {"rescalenet-zoo", "python", "onnx", "onnxruntime", "torch"}
    assert manifest["weights"]["sha256"] == sha256_of(Path("w.safetensors"))


def test_standardisation_and_softmax_inside_the_graph(run):
    """RGB in 0..1 in, probabilities out: the same as the transform and the net, which takes BGR."""
    assert run("export", "w.safetensors", "--normalize", "--softmax", "--out", "inside")[0] == 0
    net = zoo.create_model("rescalenet20_cifar", "w.safetensors").eval()
    x = torch.rand(2, 3, 24, 40)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (TRANSFORM.mean, TRANSFORM.std))
    with torch.no_grad():
        expected = net((x.flip(1) - mean) / std).softmax(1).numpy()
    np.testing.assert_allclose(output("inside", x)[0], expected, rtol=0, atol=1e-6)


def test_feature_maps(run):
    code, _, err = run("export", "w.safetensors", "--features", "--softmax", "--out", "maps")
    assert (code, "feature maps have no classes; give one of the two" in err) == (1, True)
    assert run("export", "w.safetensors", "--features", "--out", "maps")[0] == 0
    body = zoo.FeatureExtractor(zoo.create_model("rescalenet20_cifar", "w.safetensors").eval(), None)
    x = torch.randn(2, 3, 24, 40)
    with torch.no_grad():
        expected = body(x)
    found = output("maps", x)
    assert len(found) == len(expected) == 4
    for ours, theirs in zip(expected, found, strict=True):
        np.testing.assert_allclose(theirs, ours.numpy(), rtol=0, atol=1e-5 * float(ours.abs().max()))


def test_another_size_and_the_users_pictures(run):
    for name in ("a", "b"):
        picture(Path("mine") / name / "0.png")
    code, out, _ = run("export", "w.safetensors", "--data", "mine", "--size", 20, "--out", "n")
    assert (code, "at pictures of mine, 20, 25 and 22 px" in out) == (0, True)
    code, out, _ = run("export", "--check", "n")
    assert (code, "at pictures of mine, 20, 25 and 22 px" in out) == (0, True)
    code, _, err = run("export", "w.safetensors", "--int8", "--out", "m")
    assert (code, "--int8: must be calibrated on inputs of the net's kind; give them with --data" in err) == (1, True)
    code, _, err = run("export", "w.safetensors", "--int8", "--half", "--data", "mine", "--out", "m")
    assert (code, "weights have one precision" in err) == (1, True)


def test_an_export_is_compared_again(run):
    assert run("export", "w.safetensors", "--out", "n")[0] == 0
    code, out, _ = run("export", "--check", "n")
    assert (code, out.startswith("n: agrees in onnxruntime ")) == (0, True)
    # other weights of the same net
    net = zoo.create_model("rescalenet20_cifar", "w.safetensors")
    with torch.no_grad():
        net.fc.weight.mul_(1.01)
    zoo.save_weights(net, Path("v.safetensors"), transform=TRANSFORM, classes=["ant", "bee", "cow"])
    code, _, err = run("export", "v.safetensors", "--check", "n")
    assert (code, "n: was made from other weights than v.safetensors" in err) == (1, True)
    # the file of another net with a manifest that was changed with it: the outputs differ
    assert run("export", "v.safetensors", "--out", "m")[0] == 0
    manifest = json.loads(Path("m/manifest.json").read_text())
    manifest["weights"] = json.loads(Path("n/manifest.json").read_text())["weights"]
    Path("m/manifest.json").write_text(json.dumps(manifest))
    code, _, err = run("export", "--check", "m")
    assert (code, "model: outputs differ by" in err) == (1, True)
    # files that are changed or missing
    Path("n/extra.txt").write_text("")
    assert run("export", "--check", "n")[0] == 0
    content = Path("n/model.onnx").read_bytes()
    Path("n/model.onnx").write_bytes(content[:-1])
    assert "model.onnx: is not the file that was exported" in run("export", "--check", "n")[2]
    Path("n/model.onnx").unlink()
    assert "model.onnx is missing; export again" in run("export", "--check", "n")[2]
    Path("n/manifest.json").write_text("{}")
    code, _, err = run("export", "--check", "n")
    assert (code, err.startswith("error: n/manifest.json: format: is missing; export again")) == (1, True)
    assert "error: nowhere/manifest.json: " in run("export", "--check", "nowhere")[2]
    assert "give weights, as name.tag or a safetensors file, or --check FOLDER" in run("export")[2]


def test_inputs_of_several_sizes():
    """Also of a single picture, whose mirror image differs from it."""
    transform = resized(TRANSFORM, 32)
    assert (transform.size, transform.resize) == (32, 40)
    plain = unstandardised(transform)
    assert (plain.mean, plain.std, plain.channel_order) == ((0.0,) * 3, (1.0,) * 3, "RGB")
    assert [other_sizes(size) for size in (32, 33, 34, 35)] == [(41, 34), (41, 34), (43, 38), (45, 38)]
    made = batches([torch.rand(3, 8, 8)], [torch.rand(3, 11, 11)], [torch.rand(3, 10, 10)])
    shapes = [(1, 3, 8, 8), (1, 3, 8, 8), (3, 3, 8, 8), (2, 3, 11, 11), (2, 3, 10, 10)]
    assert [tuple(x.shape) for x in made] == shapes
    assert torch.equal(made[0].flip(-1), made[1])
    assert not torch.equal(made[0], made[1])

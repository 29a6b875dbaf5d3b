"""Files for ncnn, run by its Python package without this one's wrapper."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from tasks.detection.fpn import BodyWithFPN
from tests.helpers.nets import narrow, samples, wake_
from zoo.errors import ExportError
from zoo.export import TARGETS, get_target
from zoo.export.graphs import Deployment, Graph, Port, Settings
from zoo.export.images import export_net, graph_of
from zoo.export.writing import check_graph, export

ncnn = pytest.importorskip("ncnn")
pytest.importorskip("pnnx")
TARGET = TARGETS["ncnn"]


def net(kind, **options):
    """A narrow net whose layers all have an effect."""
    torch.manual_seed(0)
    model = narrow(kind, **options).eval()
    wake_(model)
    return model


def sizes(kind):
    return [samples(kind, *shape) for shape in ((1, 64), (3, 64), (2, 97, 81))]


def run(folder, x, *, name="images", outputs=("logits",), **options):
    """The outputs of ncnn at a batch, by its own functions."""
    runtime = ncnn.Net()
    for option, value in options.items():
        setattr(runtime.opt, option, value)
    assert runtime.load_param(str(folder / "model.ncnn.param")) == 0
    assert runtime.load_model(str(folder / "model.ncnn.bin")) == 0
    extractor = runtime.create_extractor()
    extractor.input(name, ncnn.Mat(x.numpy(), batch_index=0).clone())
    found = [extractor.extract(output) for output in outputs]
    assert not any(code for code, _ in found)
    return [torch.from_numpy(np.array(mat.numpy(batch_index=0))) for _, mat in found]


FLOAT32 = dict.fromkeys(("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"), False)


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (5, 3, 65, 81), (1, 3, 33, 47)])
def test_batch_height_and_width_may_change(shape, tmp_path):
    model = net("basic")
    export_net(model, sizes("basic"), tmp_path / "net", "ncnn")
    x = torch.randn(shape)
    torch.testing.assert_close(run(tmp_path / "net", x, **FLOAT32)[0], model(x).detach(), rtol=1e-4, atol=1e-5)


def test_clips_of_another_size(tmp_path):
    model = net("r3d")
    export_net(model, [samples("r3d", 1, 32), samples("r3d", 2, 33, 47)], tmp_path / "net", "ncnn")
    x = samples("r3d", 3, 40, 35)
    found = run(tmp_path / "net", x, name="clips", **FLOAT32)[0]
    torch.testing.assert_close(found, model(x).detach(), rtol=1e-4, atol=1e-5)


def test_a_pyramid_compared_at_even_sizes_is_right_at_odd_ones(tmp_path):
    """pnnx takes a map that is resized to another's size for one of twice the size if all shapes that it sees are."""
    torch.manual_seed(0)

    body = zoo.create_model("rescalenet18", width=0.125, features_only=True, out_indices=(1, 2, 3, 4))
    wake_(body)
    model = BodyWithFPN(body, 8, plain=True).eval()
    export_net(model, [samples("basic", 1, 64), samples("basic", 2, 96, 64)], tmp_path / "net", "ncnn")
    x = samples("basic", 1, 65, 81)
    expected = model(x)
    names = [f"p{key}" if key.isdigit() else key for key in expected]
    found = run(tmp_path / "net", x, outputs=names, **FLOAT32)
    for ours, theirs in zip(expected.values(), found, strict=True):
        torch.testing.assert_close(theirs, ours.detach(), rtol=1e-4, atol=1e-4)


def test_the_folder_has_no_file_of_the_converter_besides(tmp_path):
    export_net(net("cifar"), sizes("cifar"), tmp_path / "net", "ncnn")
    names = sorted(path.name for path in (tmp_path / "net").iterdir())
    assert names == ["manifest.json", "model.ncnn.bin", "model.ncnn.param"]


def test_a_maximum_is_a_depthwise_convolution_and_an_addition_has_no_product_with_1(tmp_path):
    export_net(net("cifar"), sizes("cifar"), tmp_path / "net", "ncnn")
    lines = (tmp_path / "net/model.ncnn.param").read_text().splitlines()
    operations = [
        dict(pair.split("=", 1) for pair in line.split() if "=" in pair).get("0")
        for line in lines
        if line.startswith("BinaryOp")
    ]
    add, multiply, maximum = "0", "2", "4"
    assert sum(line.startswith("ConvolutionDepthWise") for line in lines) == 18
    assert add in operations
    assert multiply not in operations
    assert maximum not in operations


def test_half_halves_the_weights(tmp_path):
    model = net("basic")
    for name, half in (("full", False), ("half", True)):
        export_net(model, sizes("basic"), tmp_path / name, "ncnn", settings=Settings(half=half))
    sizes_of = [(tmp_path / name / "model.ncnn.bin").stat().st_size for name in ("full", "half")]
    assert sizes_of[1] < 0.55 * sizes_of[0]
    x = samples("basic", 2, 40)
    expected = model(x).detach()
    found = run(tmp_path / "half", x, **FLOAT32)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2 * float(expected.abs().max()))


def test_options_of_half_precision_are_off_in_the_comparison(tmp_path, monkeypatch):
    graph = graph_of(net("cifar"), sizes("cifar"), "noise")
    export(Deployment("images", (graph,), {}), TARGET, tmp_path / "net")
    made = []
    original = ncnn.Net

    def make():
        made.append(original())
        return made[-1]

    monkeypatch.setattr(TARGET.functions().ncnn, "Net", make)
    check_graph(graph, TARGET, tmp_path / "net", Settings())
    options = [name for name in dir(made[0].opt) if "fp16" in name or "bf16" in name]
    assert len(options) >= 4
    assert not any(getattr(made[0].opt, name) for name in options)


def test_a_changed_weight_is_noticed(tmp_path):
    graph = graph_of(net("cifar"), sizes("cifar"), "noise")
    export(Deployment("images", (graph,), {}), TARGET, tmp_path / "net")
    path = tmp_path / "net/model.ncnn.bin"
    content = bytearray(path.read_bytes())
    weights = np.frombuffer(content, np.float32, 400, offset=4)
    weights *= 1.01
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"model: outputs differ by .* at images \(1, 3, 64, 64\)"):
        check_graph(graph, TARGET, tmp_path / "net", Settings())


@pytest.mark.parametrize("name", ["model.ncnn.param", "model.ncnn.bin"])
def test_a_file_that_is_cut_is_named_and_nothing_is_printed(name, tmp_path, capfd):
    graph = graph_of(net("cifar"), sizes("cifar"), "noise")
    export(Deployment("images", (graph,), {}), TARGET, tmp_path / "net")
    path = tmp_path / "net" / name
    path.write_bytes(path.read_bytes()[:200])
    capfd.readouterr()
    with pytest.raises(ExportError, match=rf"{name}: ncnn does not read it") as error:
        check_graph(graph, TARGET, tmp_path / "net", Settings())
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_net_as_it_was_trained_is_refused_with_the_operator(tmp_path):
    with pytest.raises(ExportError, match=r"^model.ncnn.param: ncnn has no aten::addcmul"):
        export_net(net("cifar"), sizes("cifar"), tmp_path / "net", "ncnn", folded=False)
    assert not (tmp_path / "net").exists()


def test_an_operator_that_ncnn_does_not_have_is_named(tmp_path):
    class Sorted(nn.Module):
        def forward(self, x):
            return x.sort(1).values

    port = Port("images", ("batch", 3))
    graph = Graph("model", Sorted(), (port,), (port,), ((torch.randn(1, 3),), (torch.randn(2, 3),)), "noise")
    with pytest.raises(ExportError, match=r"model.ncnn.param: ncnn has no .*sort"):
        export(Deployment("images", (graph,), {}), TARGET, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "zoo.export.ncnn", raising=False)
    monkeypatch.setitem(sys.modules, "pnnx", None)
    with pytest.raises(ExportError, match=r"export to ncnn needs pnnx: pip install 'rescalenet-zoo\[ncnn\]'"):
        get_target("ncnn").functions()

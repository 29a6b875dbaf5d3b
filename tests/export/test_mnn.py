"""Files for MNN, run by its Python package without this one's wrapper."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.nets import narrow, samples, wake_
from zoo.errors import ExportError
from zoo.export import TARGETS, get_target
from zoo.export.graphs import Deployment, Settings
from zoo.export.images import export_net, graph_of
from zoo.export.writing import check_graph, export
from zoo.nets.residual import AvgPool3d, FramePool

MNN = pytest.importorskip("MNN")
pytest.importorskip("onnxscript")
TARGET = TARGETS["mnn"]


def net(kind, **options):
    """A narrow net whose layers all have an effect."""
    torch.manual_seed(0)
    model = narrow(kind, **options).eval()
    wake_(model)
    return model


def sizes(kind):
    return [samples(kind, *shape) for shape in ((1, 64), (3, 64), (2, 97, 81))]


def run(folder, x, name="images", output="logits"):
    """The output of MNN at a batch, by its own functions."""
    runtime = MNN.nn.create_runtime_manager(({"backend": "CPU", "precision": "high"},))
    module = MNN.nn.load_module_from_file(str(folder / "model.mnn"), [name], [output], runtime_manager=runtime)
    (found,) = module.forward([MNN.expr.const(x.numpy(), list(x.shape), MNN.expr.NCHW)])
    return torch.from_numpy(np.array(MNN.expr.convert(found, MNN.expr.NCHW).read()))


def test_batch_height_and_width_may_change(tmp_path):
    model = net("basic")
    export_net(model, sizes("basic"), tmp_path / "net", "mnn")
    for shape in [(1, 3, 64, 64), (5, 3, 65, 81), (1, 3, 33, 47)]:
        x = torch.randn(shape)
        torch.testing.assert_close(run(tmp_path / "net", x), model(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["i3d", "replicate"])
def test_clips_of_another_size(kind, tmp_path):
    model = net(kind)
    export_net(model, [samples(kind, 1, 32), samples(kind, 2, 33, 47)], tmp_path / "net", "mnn")
    x = samples(kind, 3, 40, 35)
    torch.testing.assert_close(run(tmp_path / "net", x, "clips"), model(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "pool",
    [
        AvgPool3d((2, 2, 2)),
        AvgPool3d((1, 2, 2)),
        FramePool(2),
        FramePool(3),
        nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
    ],
)
@pytest.mark.parametrize("shape", [(2, 3, 5, 9, 7), (1, 3, 4, 8, 8), (1, 2, 1, 1, 1)])
def test_pools_of_planes_equal_pools_of_clips(pool, shape):
    convertible = TARGET.functions().convertible
    x = torch.randn(shape)
    torch.testing.assert_close(convertible(nn.Sequential(pool))(x), pool(x))


def test_half_halves_the_weights(tmp_path):
    model = net("basic")
    for name, half in (("full", False), ("half", True)):
        export_net(model, sizes("basic"), tmp_path / name, "mnn", settings=Settings(half=half))
    sizes_of = [(tmp_path / name / "model.mnn").stat().st_size for name in ("full", "half")]
    assert sizes_of[1] < 0.6 * sizes_of[0]
    x = samples("basic", 2, 40)
    expected = model(x).detach()
    found = run(tmp_path / "half", x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2 * float(expected.abs().max()))


def test_files_that_are_damaged_are_noticed_and_nothing_is_printed(tmp_path, capfd):
    graph = graph_of(net("cifar"), sizes("cifar"), "noise")
    export(Deployment("images", (graph,), {}), TARGET, tmp_path / "net")
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == ["manifest.json", "model.mnn"]
    path = tmp_path / "net/model.mnn"
    content = path.read_bytes()
    weight = graph.module.net.layer2[0].conv1.weight.detach().numpy().tobytes()
    assert content.count(weight) == 1
    path.write_bytes(content.replace(weight, (1.01 * np.frombuffer(weight, np.float32)).tobytes()))
    with pytest.raises(ExportError, match=r"model: outputs differ by .* at images \(1, 3, 64, 64\)"):
        check_graph(graph, TARGET, tmp_path / "net", Settings())
    path.write_bytes(b"no file of MNN")
    with pytest.raises(ExportError, match=r"model.mnn: MNN does not read it") as error:
        check_graph(graph, TARGET, tmp_path / "net", Settings())
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_failure_of_the_converter_is_one_line_with_its_words(tmp_path, monkeypatch):
    module = TARGET.functions()
    monkeypatch.setattr(module, "CONVERT", "import sys; print('an operator\\nis missing'); sys.exit(1)")
    with pytest.raises(ExportError, match=r"^model.mnn: mnnconvert failed: an operator is missing$"):
        export_net(net("cifar"), sizes("cifar"), tmp_path / "net", "mnn")
    assert not (tmp_path / "net").exists()


def test_the_module_that_connects_to_a_server_is_not_imported():
    command = "import sys, zoo.export.mnn; print([name for name in sys.modules if name.startswith('MNN.tools')])"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "zoo.export.mnn", raising=False)
    monkeypatch.setitem(sys.modules, "MNN", None)
    with pytest.raises(ExportError, match=r"export to mnn needs MNN: pip install 'rescalenet-zoo\[mnn\]'"):
        get_target("mnn").functions()

"""Programs of torch.export, run by PyTorch without this package."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.helpers.nets import narrow, samples, wake_
from tests.helpers.transformers import VOCABULARY, batch, make
from zoo.errors import ExportError
from zoo.export import TARGETS
from zoo.export.graphs import Deployment, Graph, Port, Settings
from zoo.export.images import export_net, graph_of
from zoo.export.text import graphs_of
from zoo.export.writing import check_graph, export

ROOT = Path(__file__).resolve().parents[2]


def net(kind, **options):
    """A narrow net whose layers all have an effect."""
    torch.manual_seed(0)
    model = narrow(kind, **options).eval()
    wake_(model)
    return model


def sizes(kind, **options):
    return [samples(kind, *shape, **options) for shape in ((1, 64), (3, 64), (2, 97, 81))]


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (5, 3, 33, 70), (1, 3, 32, 32), (2, 3, 1, 1)])
def test_axes_may_have_any_length_even_if_maps_inside_are_single_pixels(shape, tmp_path):
    model = net("basic")
    export_net(model, sizes("basic"), tmp_path / "net", "pt2")
    x = torch.randn(shape)
    found = torch.export.load(tmp_path / "net/model.pt2").module()(x)
    torch.testing.assert_close(found, model(x).detach(), rtol=1e-4, atol=1e-5)


def test_a_file_has_no_sample_and_no_path_of_this_disk(tmp_path):
    export_net(net("cifar"), sizes("cifar"), tmp_path / "net", "pt2")
    with zipfile.ZipFile(tmp_path / "net/model.pt2") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert contents["model/data/sample_inputs/model.pt"] == b""
    assert not [name for name, content in contents.items() if str(ROOT).encode() in content]


def test_half_halves_the_weights_and_keeps_the_inputs_and_outputs(tmp_path):
    model = net("basic")
    for name, half in (("full", False), ("half", True)):
        export_net(model, sizes("basic"), tmp_path / name, "pt2", settings=Settings(half=half))
    program = torch.export.load(tmp_path / "half/model.pt2")
    assert {tensor.dtype for tensor in program.state_dict.values()} == {torch.float16}
    x = samples("basic", 2, 40)
    expected, found = model(x).detach(), program.module()(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2 * float(expected.abs().max()))
    sizes_of = [(tmp_path / name / "model.pt2").stat().st_size for name in ("full", "half")]
    bytes_of_weights = 4 * sum(p.numel() for p in model.parameters())
    assert sizes_of[0] - sizes_of[1] > 0.4 * bytes_of_weights


def test_a_changed_weight_is_noticed(tmp_path):
    graph = graph_of(net("cifar"), sizes("cifar"), "noise")
    export(Deployment("images", (graph,), {}), TARGETS["pt2"], tmp_path / "net")
    path = tmp_path / "net/model.pt2"
    program = torch.export.load(path)
    key = next(key for key in program.state_dict if key.endswith("layer2.0.conv1.weight"))
    program.state_dict[key].data.mul_(1.01)
    torch.export.save(program, path)
    with pytest.raises(ExportError, match=r"model: outputs differ by .* at images \(1, 3, 64, 64\)"):
        check_graph(graph, TARGETS["pt2"], tmp_path / "net", Settings())


def test_a_net_with_a_fixed_size_refuses_another(tmp_path):
    export_net(net("vgg"), sizes("vgg"), tmp_path / "net", "pt2")
    module = torch.export.load(tmp_path / "net/model.pt2").module()
    assert module(samples("vgg", 4, 64)).shape == (4, 5)
    with pytest.raises(RuntimeError, match=r"shape\[2\] to be equal to 64, but got 96"):
        module(samples("vgg", 1, 96))


def test_a_module_that_torch_export_does_not_take_is_refused_in_one_line(tmp_path):
    class Sign(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    port = Port("images", ("batch", 3))
    graph = Graph("model", Sign(), (port,), (port,), (torch.ones(1, 3), torch.ones(2, 3)), "ones")
    with pytest.raises(ExportError, match=r"^model: torch.export failed: ") as error:
        export(Deployment("images", (graph,), {}), TARGETS["pt2"], tmp_path / "net")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize("half", [False, True])
def test_texts_may_have_any_length(half, tmp_path):
    model = make().float()
    graphs = graphs_of(model, [batch(1)[0], batch(3)[0], batch(2)[0][:, :-1]], "sentences")
    export(Deployment("text", graphs, {}), TARGETS["pt2"], tmp_path / "net", Settings(half=half))
    encoder, decoder = (torch.export.load(tmp_path / f"net/{graph.name}.pt2").module() for graph in graphs)
    source, token = torch.randint(4, VOCABULARY, (4, 6)), torch.randint(4, VOCABULARY, (4, 1))
    for target in (0, 1, 12):  # tokens before the last one
        past = [torch.randn(4, target, 2, 4, 8) for _ in range(3)]
        expected = graphs[1].module(source, token, *graphs[0].module(source), *past)
        found = decoder(source, token, *encoder(source), *past)
        error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))
        assert error < (1e-2 if half else 1e-5)


def test_torch_export_load_runs_code_of_the_file(tmp_path):
    """The remark of the target is true: a file of a stranger is a program, not data."""
    export_net(net("cifar"), sizes("cifar"), tmp_path / "net", "pt2")
    changed = tmp_path / "changed.pt2"
    with zipfile.ZipFile(tmp_path / "net/model.pt2") as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data/sample_inputs/model.pt"):
                content = b"cbuiltins\nprint\n(S'code of the file runs'\ntR."
            target.writestr(name, content)
    command = f"import torch; torch.export.load({str(changed)!r})"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert "code of the file runs" in done.stdout

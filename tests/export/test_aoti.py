"""Packages of AOTInductor, run by PyTorch without this package. One narrow net: each is compiled in half a minute."""

import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

import zoo
from tests.helpers.detection import calibrated, sharpened, small
from tests.helpers.nets import narrow, samples, wake_
from zoo.errors import ExportError
from zoo.export import TARGETS, get_target
from zoo.export.graphs import Deployment, Settings
from zoo.export.images import export_net, graph_of
from zoo.export.writing import check_graph, export

inductor = pytest.importorskip("torch._inductor.config")
cpp_builder = pytest.importorskip("torch._inductor.cpp_builder")

ROOT = Path(__file__).resolve().parents[2]
SIZES = [(1, 32), (4, 32), (2, 33, 41)]  # the largest, which is compiled for, has even maps everywhere


@pytest.fixture(scope="module")
def compiler():
    """Skip without a C++ compiler."""
    try:
        cpp_builder.get_cpp_compiler()
    except RuntimeError:
        pytest.skip("no C++ compiler")


@pytest.fixture(scope="module")
def made(compiler, tmp_path_factory):
    """A graph with its package."""
    torch.manual_seed(0)
    model = narrow("cifar").eval()
    wake_(model)
    graph = graph_of(model, [samples("cifar", *size) for size in SIZES], "noise")
    folder = tmp_path_factory.mktemp("aoti") / "net"
    export(Deployment("images", (graph,), {}), TARGETS["aoti"], folder)
    return graph, folder


def compare(graph, package, shape):
    """Compare a package with its graph at random inputs of a shape."""
    x = torch.randn(shape)
    found = torch._inductor.aoti_load_package(str(package))(x)
    for output, expected in zip([found] if isinstance(found, torch.Tensor) else found, graph.run((x,)), strict=True):
        expected = torch.from_numpy(expected)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


# sizes that are even at some pools and odd at others, and maps that become single pixels
LENGTHS = [(1, 32, 32), (5, 33, 70), (2, 41, 33), (3, 34, 36), (17, 7, 15), (2, 1, 1), (1, 3, 2)]


@pytest.mark.parametrize("length", LENGTHS)
def test_axes_may_have_any_length(made, length):
    graph, folder = made
    compare(graph, folder / "model.pt2", (length[0], 3, *length[1:]))


NETS = [("maps", "cifar"), ("maps", "basic"), ("maps", "r3d"), ("maps", "pyramid"), ("classes", "bottleneck")]
NETS += [("classes", "r2plus1d"), ("classes", "replicate")]


@pytest.mark.parametrize(
    ("output", "kind"), [pytest.param(*net, marks=pytest.mark.slow if net != NETS[0] else ()) for net in NETS]
)
def test_nets_that_are_compiled_at_even_sizes_are_right_at_others(output, kind, compiler, tmp_path):
    """Without a setting, the compiler takes for granted that every pool divides its map without a remainder."""
    torch.manual_seed(0)
    if kind == "pyramid":
        model = small()
        calibrated(model)
        net = sharpened(model).eval().backbone
    else:
        net = narrow(kind).eval()
        wake_(net)
    if output == "maps" and kind != "pyramid":
        net = zoo.FeatureExtractor(net, None)
    inputs = [samples(kind, 1, 64), samples(kind, 3, 64)]
    graph = graph_of(net, inputs, "noise")
    export(Deployment("clips" if inputs[0].ndim == 5 else "images", (graph,), {}), TARGETS["aoti"], tmp_path / "net")
    for count, *size in [*LENGTHS, (2, 65, 65), (1, 66, 68), (2, 72, 129)]:
        compare(graph, tmp_path / "net" / "model.pt2", (count, *inputs[0].shape[1:-2], *size))


def test_the_code_is_for_every_x86_cpu_with_avx2(made):
    _, folder = made
    metadata = torch._inductor.aoti_load_package(str(folder / "model.pt2")).get_metadata()
    if metadata["AOTI_MACHINE"] != "x86_64":
        pytest.skip("another CPU is compiled for as it is")
    assert metadata["AOTI_CPU_ISA"] == "AVX2"
    with zipfile.ZipFile(folder / "model.pt2") as archive:
        sources = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".cpp")]
    assert all("march=x86-64-v3" in text and "march=native" not in text for text in sources)


def test_a_package_has_no_path_of_the_sources(made):
    _, folder = made
    with zipfile.ZipFile(folder / "model.pt2") as archive:
        assert not [name for name in archive.namelist() if str(ROOT / "zoo").encode() in archive.read(name)]


def test_inputs_of_another_shape_or_layout_are_refused_where_the_runtime_checks_them(made, monkeypatch):
    """Without the variable the runtime does not check: the page on exports states it."""
    _, folder = made
    model = torch._inductor.aoti_load_package(str(folder / "model.pt2"))
    monkeypatch.setenv("AOTI_RUNTIME_CHECK_INPUTS", "1")
    assert model(torch.randn(1, 3, 8, 8)).shape == (1, 5)
    assert model(torch.randn(17, 3, 9, 7)).shape == (17, 5)
    with pytest.raises(RuntimeError, match="unmatched dim value at 1, expected: 3"):
        model(torch.randn(1, 4, 8, 8))
    with pytest.raises(RuntimeError, match="unmatched dtype"):
        model(torch.randn(1, 3, 8, 8, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="unmatched stride value at 3, expected: 1"):
        model(torch.randn(1, 8, 8, 3).permute(0, 3, 1, 2))


def test_another_package_is_noticed(made, tmp_path):
    graph, folder = made
    torch.manual_seed(1)
    other = narrow("cifar").eval()
    wake_(other)
    changed = graph_of(other, [sample[0] for sample in graph.samples], "noise")
    with pytest.raises(ExportError, match=r"model: outputs differ by .* at images \(1, 3, 32, 32\)"):
        check_graph(changed, TARGETS["aoti"], folder, Settings())


def test_a_missing_compiler_is_named(tmp_path):
    cpp_builder.cpp_compiler_search.cache_clear()
    with (
        inductor.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(ExportError, match=r"needs a C\+\+ compiler: install g\+\+, or name yours in .* CXX$"),
    ):
        export_net(narrow("cifar"), [samples("cifar", *size) for size in SIZES], tmp_path / "net", "aoti")
    assert not (tmp_path / "net").exists()


def test_an_old_torch_is_named(monkeypatch, tmp_path):
    functions = get_target("aoti").functions()
    monkeypatch.setattr(functions, "supported", lambda: False)
    with pytest.raises(ExportError, match=r"needs torch>=2.15, not \S+: pip install -U torch torchvision$"):
        export_net(narrow("cifar"), [samples("cifar", *size) for size in SIZES], tmp_path / "net", "aoti")


PROGRAM = """
#include <iomanip>
#include <iostream>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

int main(int, char** arguments) {
  torch::inductor::AOTIModelPackageLoader model(arguments[1]);
  torch::Tensor images = torch::arange(2 * 3 * 20 * 24).reshape({2, 3, 20, 24}).to(torch::kFloat32) / 2880;
  std::cout << std::setprecision(9) << model.run({images})[0].flatten() << "\\n";
}
"""


@pytest.mark.slow
def test_a_program_in_c_plus_plus_runs_the_package(made, tmp_path):
    graph, folder = made
    (tmp_path / "run.cpp").write_text(PROGRAM)
    torch_folder = Path(torch.__file__).parent
    includes = [f"-I{torch_folder}/include", f"-I{torch_folder}/include/torch/csrc/api/include"]
    libraries = [f"-L{torch_folder}/lib", f"-Wl,-rpath,{torch_folder}/lib", "-ltorch", "-ltorch_cpu", "-lc10"]
    command = [cpp_builder.get_cpp_compiler(), "-std=c++20", "run.cpp", "-o", "run", *includes, *libraries]
    subprocess.run(command, cwd=tmp_path, check=True)
    done = subprocess.run(["./run", folder / "model.pt2"], cwd=tmp_path, check=True, capture_output=True, text=True)
    found = torch.tensor([float(line) for line in done.stdout.split() if line[0] in "-.0123456789"][:10])
    x = torch.arange(2 * 3 * 20 * 24).reshape(2, 3, 20, 24).float() / 2880
    expected = torch.from_numpy(graph.run((x,))[0]).flatten()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))

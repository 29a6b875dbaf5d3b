"""Packages of Core ML: what coremltools reads in them, and the evaluation of their programs."""

import json
import struct

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers.nets import narrow, samples, wake_
from zoo.errors import ExportError
from zoo.export import TARGETS
from zoo.export.graphs import Deployment, Graph, Port, Settings
from zoo.export.images import graph_of
from zoo.export.writing import check_graph, export

coremltools = pytest.importorskip("coremltools")
TARGET = TARGETS["coreml"]


def graph(kind="cifar", size=32, **options):
    """The graph of a narrow net whose layers all have an effect."""
    torch.manual_seed(0)
    model = narrow(kind, **options)
    wake_(model)
    return graph_of(model.eval(), [samples(kind, 1, size), samples(kind, 1, size)], "noise")


def of(module, *shape):
    """The graph of a module of one input and one output."""
    x = torch.randn(1, *shape)
    ports = Port("images", ("batch", *shape)), Port("out", ("batch", *module(x).shape[1:]))
    return Graph("model", module, ports[:1], ports[1:], ((x,), (torch.randn(1, *shape),)), "noise")


def exported(made, folder, description=None, **settings):
    return export(Deployment("images", (made,), description or {}), TARGET, folder, Settings(**settings))


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coreml") / "cifar"
    made = graph()
    description = {"input": {"layout": "NCHW", "range": [0, 1]}, "classes": ["cat", "dog"]}
    exported(made, folder, description)
    return made, folder


def test_the_package_has_the_inputs_the_system_and_the_metadata(cifar):
    _, folder = cifar
    spec = coremltools.utils.load_spec(str(folder / "model.mlpackage"))
    assert spec.WhichOneof("Type") == "mlProgram"
    assert spec.specificationVersion == coremltools.target.iOS16
    ends = [
        (port.name, list(port.type.multiArrayType.shape))
        for port in (*spec.description.input, *spec.description.output)
    ]
    assert ends == [("images", [1, 3, 32, 32]), ("logits", [1, 5])]
    assert {port.type.multiArrayType.dataType for port in (*spec.description.input, *spec.description.output)} == {
        coremltools.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT32
    }
    metadata = spec.description.metadata
    assert json.loads(metadata.userDefined["classes"]) == ["cat", "dog"]
    assert json.loads(spec.description.input[0].shortDescription)["range"] == [0, 1]


def test_the_program_has_the_operators_of_the_net_and_their_weights_in_float32(cifar):
    made, folder = cifar
    convs = [part for part in made.module.modules() if isinstance(part, nn.Conv2d)]
    model = coremltools.models.MLModel(str(folder / "model.mlpackage"), skip_model_load=True)
    spec = model.get_spec()
    (block,) = (value for value in spec.mlProgram.functions["main"].block_specializations.values())
    operators = [operation.type for operation in block.operations]
    assert operators.count("conv") == len(convs)
    assert operators.count("maximum") + operators.count("relu") == 19
    assert operators.count("linear") == 1
    blob = np.fromfile(folder / "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin", np.uint8).tobytes()
    for conv in convs:
        assert conv.weight.detach().numpy().tobytes() in blob


def test_the_folder_has_only_what_core_ml_reads(cifar):
    _, folder = cifar
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    data = "model.mlpackage/Data/com.apple.CoreML"
    assert found == [
        "manifest.json",
        f"{data}/model.mlmodel",
        f"{data}/weights/weight.bin",
        "model.mlpackage/Manifest.json",
    ]


def test_a_changed_weight_is_noticed(cifar, tmp_path):
    made, _ = cifar
    exported(made, tmp_path / "net")
    path = tmp_path / "net/model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    content = bytearray(path.read_bytes())
    weight = next(p for name, p in made.module.named_parameters() if name.endswith("layer2.0.conv1.weight"))
    start = content.find(weight.detach().numpy().tobytes())
    assert start > 0
    for i in range(9):
        content[start + 4 * i : start + 4 * i + 4] = struct.pack("<f", 1.0)
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"model: outputs differ by .* at images \(1, 3, 32, 32\)"):
        check_graph(made, TARGET, tmp_path / "net", Settings())


@pytest.mark.parametrize("name", ["weights/weight.bin", "model.mlmodel"])
def test_a_damaged_package_is_refused_in_one_line(name, cifar, tmp_path):
    made, _ = cifar
    exported(made, tmp_path / "net")
    path = tmp_path / "net/model.mlpackage/Data/com.apple.CoreML" / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ExportError, match=r"model.mlpackage: coremltools does not read it: ") as error:
        check_graph(made, TARGET, tmp_path / "net", Settings())
    assert "\n" not in str(error.value)


def test_a_package_of_another_shape_is_refused(cifar):
    _, folder = cifar
    with pytest.raises(ExportError, match=r"takes \{'images': \[1, 3, 32, 32\]\}, not \{'images': \[1, 3, 40, 40\]\}"):
        check_graph(graph(size=40), TARGET, folder, Settings())


@pytest.mark.parametrize("kind", ["cifar", "r3d"])
def test_half_computes_in_half_precision_between_inputs_and_outputs_in_float32(kind, tmp_path):
    made = graph(kind)
    folder = tmp_path / "net"
    made_of = export(
        Deployment("clips" if kind == "r3d" else "images", (made,), {}), TARGET, folder, Settings(half=True)
    )
    assert 0 < made_of.worst < 2e-3
    blob = (folder / "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    assert blob < 0.6 * 4 * sum(parameter.numel() for parameter in made.module.parameters())
    spec = coremltools.utils.load_spec(str(folder / "model.mlpackage"))
    assert {port.type.multiArrayType.dataType for port in (*spec.description.input, *spec.description.output)} == {
        coremltools.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT32
    }


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


# Operators with the settings that our nets do not have: the evaluation knows them, or refuses them.
FUNCTIONS = {
    "weighted addition": lambda x: torch.add(x, x.relu(), alpha=0.25),
    "addcmul": lambda x: torch.addcmul(x, x, x.relu(), value=0.5),
    "padded mean": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "padded mean without the padding": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "mean of incomplete windows": lambda x: F.avg_pool2d(x, 2, 2, 0, True),
    "padded maximum": lambda x: F.max_pool2d(x - 5, 3, 2, 1),
    "repeated border": lambda x: F.pad(x, (2, 1, 0, 3), "replicate"),
    "border of a constant": lambda x: F.pad(x, (2, 1, 0, 3), value=0.5),
    "part": lambda x: x[:, 1:, ::2, 3:-2],
    "reversed": lambda x: x.flip(1) * 2,
    "larger": lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
    "probabilities": lambda x: x.mean((2, 3)).softmax(1),
    "maximum of positions": lambda x: x.amax((2, 3)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_evaluation_computes_what_pytorch_does(name, tmp_path):
    exported(of(Function(FUNCTIONS[name]), 3, 9, 7), tmp_path / "net")


def test_a_program_that_is_not_evaluated_is_not_kept(tmp_path):
    with pytest.raises(ExportError, match=r"^Core ML program: the operator \w+ is not evaluated here"):
        exported(of(Function(torch.erf), 3, 4, 4), tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_a_module_that_coremltools_does_not_take_is_refused_in_one_line(tmp_path):
    with pytest.raises(ExportError, match=r"^model.mlpackage: coremltools failed: ") as error:
        exported(of(Function(lambda x: torch.special.i0(x)), 3, 4, 4), tmp_path / "net")
    assert "\n" not in str(error.value)

"""The metadata in the files themselves, read as users of each format read them."""

import json

import pytest
import torch

import zoo
from tasks.exporting import describe_images
from tests.helpers.nets import narrow
from zoo.errors import ExportError
from zoo.export import TARGETS
from zoo.export.graphs import Deployment
from zoo.export.images import graph_of
from zoo.export.writing import export

TRANSFORM = zoo.InputTransform(32, 32, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
INPUT = describe_images(TRANSFORM, normalize=False, layout="NCHW")
DESCRIPTION = {
    "task": "classification",
    "input": INPUT,
    "classes": ["kočka", "dog, wild"],
    "arguments": {"data": "/home/someone/pictures"},
}


def of_onnx(folder):
    import onnx

    return {entry.key: entry.value for entry in onnx.load(folder / "model.onnx").metadata_props}


def of_openvino(folder):
    import openvino

    model = openvino.Core().read_model(folder / "model.xml")
    return {key: model.get_rt_info(["rescalenet", key]).astype(str) for key in ("task", "input", "classes")}


def of_pt2(folder):
    files = {"rescalenet.json": ""}
    torch.export.load(folder / "model.pt2", extra_files=files)
    return json.loads(files["rescalenet.json"])


def of_aoti(folder):
    return torch._inductor.aoti_load_package(str(folder / "model.pt2")).get_metadata()


def of_litert(folder):
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs((folder / "model.tflite").read_bytes())
    entries = [model.Metadata(i) for i in range(model.MetadataLength())]
    (number,) = [entry.Buffer() for entry in entries if entry.Name() == b"rescalenet"]
    return json.loads(bytes(model.Buffers(number).DataAsNumpy()))


def of_coreml(folder):
    import coremltools

    spec = coremltools.utils.load_spec(str(folder / "model.mlpackage"))
    return dict(spec.description.metadata.userDefined)


READERS = {
    "onnx": of_onnx,
    "onnx-web": of_onnx,
    "tensorrt": of_onnx,
    "openvino": of_openvino,
    "pt2": of_pt2,
    "aoti": of_aoti,
    "litert": of_litert,
    "coreml": of_coreml,
}


@pytest.mark.parametrize("name", READERS)
def test_classes_and_input_are_in_the_file(name, tmp_path):
    target = TARGETS[name]
    try:
        target.functions()
    except ExportError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    net = narrow("cifar").eval()
    x = torch.randn(3, 3, 32, 32)
    graph = graph_of(net, [x[:1], x[1:2], x], "noise")
    export(Deployment("images", (graph,), DESCRIPTION), target, tmp_path / "out")
    found = READERS[name](tmp_path / "out")
    assert json.loads(found["classes"]) == DESCRIPTION["classes"]
    layout = "NHWC" if target.channels_last else "NCHW"
    assert json.loads(found["input"]) == INPUT | {"layout": layout}
    assert found["task"] == "classification"
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert not [path.name for path in files if b"/home/someone" in path.read_bytes()]

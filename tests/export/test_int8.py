"""Quantisation to int8: what stays in float, what is written and what is refused."""

import json

import numpy as np
import pytest
import torch

from tests.helpers.exports import distinct, pans, photographs
from tests.helpers.nets import narrow
from zoo.errors import ExportError
from zoo.export import TARGETS
from zoo.export.graphs import Deployment, Graph, Port, Settings
from zoo.export.images import graph_of
from zoo.export.verification import compare_int8
from zoo.export.writing import export
from zoo.folding import ChannelMax

PACKAGES = {"onnx": "onnxruntime.quantization", "openvino": "nncf"}


def deployment(scheme, kind="cifar"):
    inputs = photographs(64) if kind == "cifar" else pans(64)
    net = distinct(narrow(kind, scheme=scheme), inputs)
    graph = graph_of(net, [inputs[0][None], torch.stack(inputs[1:4])], "pictures")
    return Deployment("images" if kind == "cifar" else "clips", (graph,), {}), Settings(
        calibration=tuple((x[None],) for x in inputs)
    )


@pytest.mark.parametrize("kind", ["cifar", "r3d"])
@pytest.mark.parametrize("target", PACKAGES)
def test_no_activation_stays_in_float(target, kind, tmp_path):
    pytest.importorskip(PACKAGES[target])
    made, settings = deployment("rescale", kind)
    exported = export(made, TARGETS[target], tmp_path / "int8", settings)
    assert 1e-4 < exported.worst < 0.3
    manifest = json.loads((tmp_path / "int8" / "manifest.json").read_text())
    assert manifest["calibration"] == 6
    (graph,) = manifest["graphs"]
    assert graph["largest_difference"]["agreement"] >= 0.9
    islands = graph["float_islands"]
    assert not islands.keys() & {"Max", "Add", "Eltwise", "Conv", "Relu"}, islands
    assert "best class in" in str(exported)


@pytest.mark.parametrize("target", PACKAGES)
def test_islands_are_found_where_the_form_has_maxima(target, tmp_path, monkeypatch):
    pytest.importorskip(PACKAGES[target])
    made, settings = deployment("rescale")
    functions = TARGETS[target].functions()
    monkeypatch.setattr(functions, "separate_shifts", lambda module, **_: module)
    (graph,) = made.graphs
    functions.write(graph, tmp_path, settings)
    maxima = sum(isinstance(module, ChannelMax) for module in graph.module.modules())
    islands = functions.float_islands(graph, tmp_path)
    assert islands["Max" if target == "onnx" else "Eltwise"] == maxima == 18


def test_weights_are_stored_in_eight_bits(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip(PACKAGES["onnx"])
    made, settings = deployment("bn")
    export(made, TARGETS["onnx"], tmp_path / "int8", settings)
    tensors = onnx.load(tmp_path / "int8" / "model.onnx").graph.initializer
    kernels = [tensor for tensor in tensors if len(tensor.dims) == 4]
    assert kernels
    assert {tensor.data_type for tensor in kernels} == {onnx.TensorProto.INT8}


def test_text_and_whole_detectors_are_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    made, settings = deployment("bn")
    with pytest.raises(ExportError, match="--int8 is for nets of images and clips"):
        export(Deployment("image_lists", made.graphs, {}), TARGETS["onnx"], tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("noise", "flip", "message"), [(0.4, False, "differ by 0.4"), (0.0, True, "is the same in 50%")]
)
def test_outputs_that_are_too_far_are_refused(noise, flip, message):
    logits = torch.tensor([[100.0, 99.9], [99.9, 100.0]])
    graph = Graph(
        "model",
        torch.nn.Identity(),
        (Port("x", ("batch", 2)),),
        (Port("y", ("batch", 2)),),
        ((logits[:1],), (logits,)),
        "numbers",
    )

    def runner(inputs):
        (x,) = inputs
        return [x[:, ::-1] if flip and x[0, 0] < x[0, 1] else x * (1 + noise)]

    samples = [(logits[:1],), (logits[1:],)]
    with pytest.raises(ExportError, match=message):
        compare_int8(graph, runner, samples)
    assert compare_int8(graph, lambda inputs: [np.asarray(inputs[0]) * 1.1], samples).relative == pytest.approx(0.1)

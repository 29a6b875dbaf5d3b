"""Quantisation to int8: what stays in float, what is written and what is refused."""

import json

import numpy as np
import pytest
import torch

from tasks.exporting import check_again, export_weights
from tests.helpers.exports import distinct, pans, photographs
from tests.helpers.nets import narrow
from tests.helpers.paths import ROOT
from zoo.errors import ExportError
from zoo.export import TARGETS
from zoo.export.graphs import Deployment, Graph, Port, Settings
from zoo.export.images import graph_of
from zoo.export.verification import compare_int8, expected_at
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
    assert "in int8 with the same best class in" in str(exported)


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


def test_text_is_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    made, settings = deployment("bn")
    with pytest.raises(ExportError, match="--int8 is for nets of images and clips and for detectors"):
        export(Deployment("text", made.graphs, {}), TARGETS["onnx"], tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("target", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_detectors(target, features, tmp_path):
    """Every layer with weights is quantised, and nothing else: boxes are computed in float."""
    pytest.importorskip(PACKAGES[target])
    exported = export_weights(
        "mask_rcnn_rescalenet18_fpn.nuclei",
        target,
        tmp_path / "int8",
        fold=True,
        data=ROOT / "pictures/nuclei",
        half=False,
        int8=True,
        overwrite=False,
        options={"features": features},
    )
    assert 1e-4 < exported.worst < 0.15
    manifest = json.loads((tmp_path / "int8" / "manifest.json").read_text())
    (graph,) = manifest["graphs"]
    assert manifest["calibration"] == 3
    assert not graph["float_islands"].keys() & {"Max", "Add", "Sub", "Conv", "Gemm", "Convolution", "NonMaxSuppression"}
    if not features:
        assert graph["largest_difference"]["agreement"] >= 0.95
    assert check_again(tmp_path / "int8", None).differences == exported.differences
    if target == "onnx":
        onnx = pytest.importorskip("onnx")
        model = onnx.load(tmp_path / "int8" / "model.onnx").graph
        quantised = {name for node in model.node if node.op_type == "DequantizeLinear" for name in node.output}
        layers = [node for node in model.node if node.op_type in ("Conv", "Gemm", "ConvTranspose")]
        assert len(layers) == (44 if features else 69)
        kept = [node.name for node in layers if not set(node.input[:2]) <= quantised]
        assert all("ConvTranspose" in name for name in kept), kept
        others = [node for node in model.node if node.op_type in ("TopK", "NonMaxSuppression", "RoiAlign")]
        assert bool(others) != features
        assert not any(set(node.input) & quantised for node in others if node.op_type != "RoiAlign")


def test_objects_in_int8():
    """Objects of a score below 0.5 need no partner, those above do, of the same label and with an overlap."""
    axes = {"boxes": ("objects", 4), "labels": ("objects",), "scores": ("objects",)}
    ports = tuple(Port(name, of) for name, of in axes.items())
    graph = Graph("model", torch.nn.Identity(), (Port("x", (1,)),), ports, (), "numbers", compares="objects")
    boxes = np.float32([[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]])
    labels, scores = np.int64([1, 2, 1]), np.float32([0.9, 0.7, 0.3])

    def compared(*found):
        return compare_int8(graph, lambda inputs: list(found), [((torch.zeros(1),), (boxes, labels, scores))] * 10)

    assert compared(boxes + 1, labels, scores).agreement == 1
    assert compared(boxes[:2], labels[:2], scores[:2]).agreement == 1
    moved = compared(boxes, labels, scores - np.float32([0.09, 0, 0]))
    assert moved.absolute == pytest.approx(0.09)
    # of 2 objects in float32 and 2 in int8, with errors 0.09 and 0 each
    assert moved.relative == pytest.approx((2 * 0.09**2 / (0.9**2 + 0.81**2 + 2 * 0.7**2)) ** 0.5)
    for found in (
        (boxes[1:], labels[1:], scores[1:]),
        (boxes, np.int64([2, 2, 1]), scores),
        (boxes + np.float32([[6], [0], [0]]), labels, scores),
    ):
        with pytest.raises(ExportError, match=r"with the same objects in (50|67)%"):
            compared(*found)
    with pytest.raises(ExportError, match="model: no object has a score of 0.5: nothing could be compared"):
        compare_int8(graph, lambda inputs: [boxes] * 3, [((torch.zeros(1),), (boxes[:0], labels[:0], scores[:0]))][:0])


@pytest.mark.parametrize(
    ("noise", "flip", "message"), [(0.4, False, "differ by 0.4"), (0.0, True, "with the same best class in 50%")]
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
        compare_int8(graph, runner, expected_at(graph, samples))
    assert compare_int8(
        graph, lambda inputs: [np.asarray(inputs[0]) * 1.1], expected_at(graph, samples)
    ).relative == pytest.approx(0.1)

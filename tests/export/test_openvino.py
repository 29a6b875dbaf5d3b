"""Exports to OpenVINO, beside what its own runtime reports."""

import sys

import numpy as np
import pytest
import torch

from tasks.detection.export import whole_graph
from tests.helpers.detection import calibrated, sharpened, small
from tests.helpers.exports import distinct, export_detector, photographs
from tests.helpers.nets import narrow
from zoo.errors import ExportError
from zoo.export import TARGETS
from zoo.export.graphs import Deployment, Settings
from zoo.export.images import graph_of
from zoo.export.writing import check_graph, export

openvino = pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
F32 = {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.fixture(scope="module")
def deployment():
    inputs = photographs(64)
    net = distinct(narrow("cifar"), inputs)
    graph = graph_of(net, [inputs[0][None], torch.stack(inputs[1:4])], "pictures")
    return Deployment("images", (graph,), {})


@pytest.fixture(scope="module")
def folder(deployment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("openvino") / "out"
    export(deployment, TARGETS["openvino"], folder)
    return folder


def test_batch_and_size_are_dynamic_and_ports_have_names(folder, deployment):
    model = openvino.Core().read_model(folder / "model.xml")
    assert [(end.get_names(), str(end.partial_shape)) for end in (*model.inputs, *model.outputs)] == [
        ({"images"}, "[?,3,?,?]"),
        ({"logits"}, "[?,5]"),
    ]
    x = torch.randn(3, 3, 41, 57)
    found = openvino.Core().compile_model(model, "CPU", F32)({"images": x.numpy()})["logits"]
    expected = deployment.graphs[0].run((x,))[0]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_the_comparison_runs_in_float32(folder, deployment, monkeypatch):
    seen = []
    compile_model = openvino.Core.compile_model

    def recorded(*args, **kwargs):
        seen.append(compile_model(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(openvino.Core, "compile_model", recorded)
    TARGETS["openvino"].functions().load(deployment.graphs[0], folder)
    assert seen[0].get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32


def test_half_stores_weights_in_half_precision(folder, deployment, tmp_path):
    exported = export(deployment, TARGETS["openvino"], tmp_path / "half", Settings(half=True))
    sizes = [(path / "model.bin").stat().st_size for path in (tmp_path / "half", folder)]
    assert sizes[0] < 0.52 * sizes[1]
    assert 1e-5 < exported.worst < 1e-2
    (source,) = openvino.Core().read_model(tmp_path / "half" / "model.xml").inputs
    assert source.element_type == openvino.Type.f32


def test_changed_weights_are_noticed(folder, deployment, tmp_path):
    export(deployment, TARGETS["openvino"], tmp_path / "out")
    path = tmp_path / "out" / "model.bin"
    content = bytearray(path.read_bytes())
    content[-4000:-3600] = bytes(400)
    path.write_bytes(content)
    with pytest.raises(ExportError, match="model: outputs differ by"):
        check_graph(deployment.graphs[0], TARGETS["openvino"], tmp_path / "out", Settings())


def test_a_detector_that_finds_nothing_returns_no_object(tmp_path):
    model = small(detections=30, heads="4conv1fc")
    calibrated(model)
    sharpened(model).eval()
    image = photographs(96)[0].mul(0.2).add(0.5).clamp(0, 1)
    export_detector(model, [image], tmp_path / "out", "openvino")
    compiled = openvino.Core().compile_model(tmp_path / "out" / "model.xml", "CPU", F32)
    assert len(compiled({"image": image.numpy()})["boxes"])
    model.roi_heads.score_thresh = 1.0
    (tmp_path / "none").mkdir()
    functions = TARGETS["openvino"].functions()
    functions.write(whole_graph(model, [image], "picture"), tmp_path / "none", Settings())
    compiled = openvino.Core().compile_model(tmp_path / "none" / "model.xml", "CPU", F32)
    results = compiled({"image": image.numpy()})
    assert [results[name].shape for name in ("boxes", "labels", "scores")] == [(0, 4), (0,), (0,)]


def test_a_missing_package_is_named_with_its_extra(deployment, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "zoo.export.openvino", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ExportError, match=r"needs openvino: pip install 'rescalenet-zoo\[openvino\]'"):
        export(deployment, TARGETS["openvino"], tmp_path / "out")
    assert not (tmp_path / "out").exists()

"""LiteRT's files, run by its interpreter without this package."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.nets import narrow, samples, wake_
from zoo.errors import ExportError
from zoo.export import TARGETS
from zoo.export.graphs import Deployment, Graph, Port, Settings
from zoo.export.images import graph_of
from zoo.export.writing import check_graph, export

interpreter = pytest.importorskip("ai_edge_litert.interpreter")
pytest.importorskip("litert_torch")
TARGET = TARGETS["litert"]


def graph(kind="cifar", size=32, **options):
    """The graph of a narrow net whose layers all have an effect."""
    torch.manual_seed(0)
    model = narrow(kind, **options)
    wake_(model)
    inputs = [samples(kind, 1, size), samples(kind, 1, size), samples(kind, 2, size + 8)]
    return graph_of(model.eval(), inputs, "noise")


def exported(made, folder, **settings):
    kind = "clips" if len(made.inputs[0].axes) == 5 else "images"
    return export(Deployment(kind, (made,), {}), TARGET, folder, Settings(**settings))


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    folder = tmp_path_factory.mktemp("litert") / "cifar"
    made = graph()
    exported(made, folder)
    return made, folder


def test_images_have_the_channels_last_and_names(cifar):
    made, folder = cifar
    model = interpreter.Interpreter(str(folder / "model.tflite"))
    (source,) = model.get_input_details()
    assert (list(source["shape"]), source["dtype"]) == ([1, 32, 32, 3], np.float32)
    assert model.get_signature_list() == {"serving_default": {"inputs": ["images"], "outputs": ["logits"]}}
    x = samples("cifar", 1, 32)
    found = model.get_signature_runner()(images=x.movedim(1, -1).contiguous().numpy())["logits"]
    np.testing.assert_allclose(found, made.run((x,))[0], rtol=1e-4, atol=1e-5)
    (inputs,) = json.loads((folder / "manifest.json").read_text())["graphs"][0]["inputs"]
    assert inputs["axes"] == [1, 32, 32, 3]


def test_all_of_a_folded_net_of_images_runs_in_one_call_of_xnnpack(cifar):
    _, folder = cifar
    model = interpreter.Interpreter(str(folder / "model.tflite"))
    model.allocate_tensors()
    ends = {details[0]["index"] for details in (model.get_input_details(), model.get_output_details())}
    delegates = [op for op in model._get_ops_details() if op["op_name"] == "DELEGATE"]
    assert len(delegates) == 1
    assert ends <= {*delegates[0]["inputs"], *delegates[0]["outputs"]}


def test_the_interpreter_resizes_the_batch(cifar):
    made, folder = cifar
    model = interpreter.Interpreter(str(folder / "model.tflite"))
    x = samples("cifar", 3, 32)
    model.resize_tensor_input(model.get_input_details()[0]["index"], [3, 32, 32, 3])
    model.allocate_tensors()
    model.set_tensor(model.get_input_details()[0]["index"], x.movedim(1, -1).contiguous().numpy())
    model.invoke()
    found = model.get_tensor(model.get_output_details()[0]["index"])
    np.testing.assert_allclose(found, made.run((x,))[0], rtol=1e-4, atol=1e-5)


def test_the_manifest_has_the_layout_of_the_files(tmp_path):
    made = graph("r3d", 32)
    description = {"input": {"layout": "NCTHW"}}
    export(Deployment("clips", (made,), description), TARGET, tmp_path / "net")
    assert json.loads((tmp_path / "net/manifest.json").read_text())["input"] == {"layout": "NTHWC"}


def test_feature_maps_have_the_channels_last(tmp_path):
    class Maps(nn.Module):
        def forward(self, x):
            return x[:, :1] * 2, x.mean((2, 3))

    ports = Port("a", ("batch", 1, 4, 6)), Port("b", ("batch", 3))
    made = Graph("maps", Maps(), (Port("images", ("batch", 3, 4, 6)),), ports, ((torch.randn(1, 3, 4, 6),),), "noise")
    exported(made, tmp_path / "net")
    runner = interpreter.Interpreter(str(tmp_path / "net/maps.tflite")).get_signature_runner()
    x = np.random.default_rng(0).random((1, 4, 6, 3), np.float32)
    found = runner(images=x)
    np.testing.assert_allclose(found["a"], 2 * x[..., :1], rtol=1e-6)
    np.testing.assert_allclose(found["b"], x.mean((1, 2)), rtol=1e-5)


def test_half_halves_the_file_and_keeps_the_inputs_and_outputs(cifar, tmp_path):
    made, folder = cifar
    assert exported(made, tmp_path / "half", half=True).worst < 1e-3
    weights = 4 * sum(parameter.numel() for parameter in made.module.parameters())
    full, half = ((path / "model.tflite").stat().st_size for path in (folder, tmp_path / "half"))
    assert full - half > 0.4 * weights
    model = interpreter.Interpreter(str(tmp_path / "half/model.tflite"))
    assert model.get_input_details()[0]["dtype"] == model.get_output_details()[0]["dtype"] == np.float32


def test_half_of_clips_is_refused(tmp_path):
    with pytest.raises(ExportError, match=r"^model.tflite: ai-edge-quantizer stores no weights of 3-D convolutions"):
        exported(graph("r3d", 32), tmp_path / "net", half=True)
    assert not (tmp_path / "net").exists()


def test_a_weighted_addition_keeps_its_weight(tmp_path):
    class Weighted(nn.Module):
        def forward(self, x):
            return torch.add(x.mean((2, 3)), x.amax((2, 3)), alpha=0.25)

    ports = Port("images", ("batch", 3, 4, 4)), Port("sums", ("batch", 3))
    made = Graph("model", Weighted(), ports[:1], ports[1:], ((torch.randn(1, 3, 4, 4),),), "noise")
    exported(made, tmp_path / "net")


def test_a_changed_file_is_noticed(cifar):
    made, folder = cifar
    other = dataclasses.replace(made, module=graph("cifar").module)
    weight = next(p for name, p in other.module.named_parameters() if name.endswith("layer2.0.conv1.weight"))
    weight.data.mul_(1.01)
    with pytest.raises(ExportError, match=r"model: outputs differ by .* at images \(1, 3, 32, 32\)"):
        check_graph(other, TARGET, folder, Settings())


def test_a_damaged_file_is_refused_in_one_line(cifar, tmp_path):
    made, folder = cifar
    (tmp_path / "model.tflite").write_bytes((folder / "model.tflite").read_bytes()[:1000])
    with pytest.raises(ExportError, match=r"model.tflite: the interpreter of LiteRT does not read it: ") as error:
        check_graph(made, TARGET, tmp_path, Settings())
    assert "\n" not in str(error.value)

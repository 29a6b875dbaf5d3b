"""ONNX for TensorRT: fixed shapes and operators, and NVIDIA's parser and builder where its package is installed."""

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import zoo
from tests.helpers.nets import CLIPS, narrow, samples, wake_
from zoo.errors import ExportError
from zoo.export import TARGETS
from zoo.export.graphs import Deployment, Graph, Port, Settings
from zoo.export.images import graph_of
from zoo.export.tensorrt import OPERATORS, check
from zoo.export.writing import check_graph, export

TARGET = TARGETS["tensorrt"]


def graph(kind="cifar", size=32, features=False, **options):
    """The graph of a narrow net whose layers all have an effect."""
    torch.manual_seed(0)
    model = narrow(kind, **options)
    wake_(model)
    net = zoo.FeatureExtractor(model.eval(), None) if features else model.eval()
    return graph_of(net, [samples(kind, 1, size), samples(kind, 1, size), samples(kind, 2, size)], "noise")


def exported(made, folder, **settings):
    kind = "clips" if len(made.inputs[0].axes) == 5 else "images"
    return export(Deployment(kind, (made,), {}), TARGET, folder, Settings(**settings))


def written(path, *nodes, outputs=1, dtype=TensorProto.FLOAT, shape=(1, 3)):
    """Write a graph of these nodes from x to y0, y1, ..."""
    ends = [helper.make_tensor_value_info(name, dtype, shape) for name in ("x", *(f"y{i}" for i in range(outputs)))]
    onnx.save(helper.make_model(helper.make_graph(list(nodes), "graph", ends[:1], ends[1:])), path)
    return path


@pytest.mark.parametrize("half", [False, True])
def test_shapes_are_fixed_and_operators_supported(half, tmp_path):
    made = graph()
    assert exported(made, tmp_path / "net", half=half).worst < (1e-2 if half else 1e-5)
    model = onnx.load(tmp_path / "net/model.onnx")
    shapes = [
        [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [[1, 3, 32, 32], [1, 5]]
    assert {node.op_type for node in model.graph.node} <= OPERATORS
    assert 9 <= model.opset_import[0].version <= 20  # of TensorRT 10
    kinds = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4}
    assert kinds == {TensorProto.FLOAT16 if half else TensorProto.FLOAT}
    assert b"/zoo/" not in (tmp_path / "net/model.onnx").read_bytes()  # no paths of this disk


def test_a_changed_weight_is_noticed(tmp_path):
    made = graph()
    exported(made, tmp_path / "net")
    model = onnx.load(tmp_path / "net/model.onnx")
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    weight.CopyFrom(onnx.numpy_helper.from_array(1.01 * onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(model, tmp_path / "net/model.onnx")
    with pytest.raises(ExportError, match=r"model: outputs differ by .* at images \(1, 3, 32, 32\)"):
        check_graph(made, TARGET, tmp_path / "net", Settings())


def test_an_operator_that_was_not_checked_is_refused(tmp_path):
    class Sorted(nn.Module):
        def forward(self, x):
            return x.sort(1).values

    port = Port("images", ("batch", 3))
    made = Graph("model", Sorted(), (port,), (port,), ((torch.randn(1, 3),),), "noise")
    with pytest.raises(ExportError, match=r"^model.onnx: .*TopK.*: not among the operators that were checked"):
        exported(made, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_control_flow_other_domains_and_other_types_are_refused(tmp_path):
    relu = helper.make_node("Relu", ["x"], ["y0"])
    check(written(tmp_path / "a.onnx", relu))
    with pytest.raises(ExportError, match=r"^b.onnx: Relu: not among"):
        check(written(tmp_path / "b.onnx", helper.make_node("Relu", ["x"], ["y0"], domain="com.microsoft")))
    with pytest.raises(ExportError, match=r"^c.onnx: x: not float32 of a fixed shape"):
        check(written(tmp_path / "c.onnx", relu, dtype=TensorProto.INT64))
    with pytest.raises(ExportError, match=r"^d.onnx: x: not float32 of a fixed shape"):
        check(written(tmp_path / "d.onnx", relu, shape=("batch", 3)))
    assert not {"If", "Loop", "Scan"} & OPERATORS


BUILT = [
    *((kind, False, False) for kind in ("grouped", "vgg", "i3d", "replicate")),
    ("basic", True, False),
    ("cifar", False, True),
]


@pytest.mark.parametrize(("kind", "features", "half"), BUILT)
def test_nvidias_parser_and_builder_take_the_file(kind, features, half, tmp_path):
    """TensorRT for RTX builds engines without a GPU; it has the parser of TensorRT."""
    trt = pytest.importorskip("tensorrt_rtx")
    exported(graph(kind, 64, features), tmp_path / "net", half=half)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    taken = parser.parse_from_file(str(tmp_path / "net/model.onnx"))
    assert taken, [parser.get_error(i) for i in range(parser.num_errors)]
    frames = (5,) if kind in CLIPS else ()
    assert tuple(network.get_input(0).shape) == (1, 3, *frames, 64, 64)
    assert network.num_outputs == (5 if features else 1)
    assert builder.build_serialized_network(network, builder.create_builder_config()) is not None

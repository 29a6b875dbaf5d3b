"""Export for TensorRT: ONNX that ``trtexec`` builds an engine from, compared in onnxruntime. Requires ``onnx``.

All shapes are fixed, so that an engine is built without a profile. An engine is made for one GPU and one version of
TensorRT, on the machine that runs it.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from zoo.errors import ExportError
from zoo.export import onnx as onnx_target
from zoo.export.fixed import fixed
from zoo.export.graphs import Graph, Runner, Settings

# Operators of the graphs of nets, all of which TensorRT 10 supports: docs/operators.md of onnx-tensorrt, 10.1-GA, for
# opsets 9 to 20. The tests give graphs with these operators to NVIDIA's parser. None is control flow.
# fmt: off
OPERATORS = frozenset((
    "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Constant", "Conv", "Div", "Expand",
    "Flatten", "Gather", "GatherND", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "GroupNormalization",
    "Identity", "InstanceNormalization", "LayerNormalization", "MatMul", "Max", "MaxPool", "Mul", "Pad",
    "ReduceMax", "ReduceMean", "Relu", "Reshape", "Resize", "Slice", "Softmax", "Sqrt", "Squeeze", "Sub",
    "Transpose", "Unsqueeze", "Where",
))
# fmt: on


def write(graph: Graph, folder: Path, settings: Settings) -> None:
    """Write one ONNX file; it computes in half precision if ``settings.half``, as TensorRT 11 takes types from it.

    Raises:
        ExportError: the exporter failed, or the file has what TensorRT does not support.
    """
    onnx_target.write_graph(fixed(graph), folder, settings)
    check(onnx_target.path_of(graph, folder))


def check(path: Path) -> None:
    """Check that TensorRT supports a file: operators, fixed shapes, inputs and outputs in float32.

    Raises:
        ExportError: something that it does not support.
    """
    model = onnx.load(path)
    if len(model.functions) or model.graph.sparse_initializer:
        raise ExportError(f"{path.name}: functions and sparse weights are not for TensorRT")
    if other := sorted({node.op_type for node in model.graph.node if node.domain or node.op_type not in OPERATORS}):
        raise ExportError(f"{path.name}: {', '.join(other)}: not among the operators that were checked for TensorRT")
    for value in (*model.graph.input, *model.graph.output):
        tensor = value.type.tensor_type
        if tensor.elem_type != onnx.TensorProto.FLOAT or any(not axis.dim_value for axis in tensor.shape.dim):
            raise ExportError(f"{path.name}: {value.name}: not float32 of a fixed shape, which TensorRT takes")


def load(graph: Graph, folder: Path) -> Runner:
    """Return a function that runs the file in onnxruntime on the CPU."""
    return onnx_target.load(graph, folder)

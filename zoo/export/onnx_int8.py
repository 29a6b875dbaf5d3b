"""Post-training quantisation of ONNX files to int8 with onnxruntime, and what of them stays in float."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from zoo.export.graphs import Graph, Settings
from zoo.export.int8 import between


class _Reader(CalibrationDataReader):
    """The inputs of a graph for onnxruntime's calibration."""

    def __init__(self, graph: Graph, settings: Settings) -> None:
        names = [port.name for port in graph.inputs]
        self.inputs = (
            dict(zip(names, (x.cpu().numpy() for x in sample), strict=True)) for sample in settings.calibration
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.inputs, None)


def quantise(path: Path, graph: Graph, settings: Settings) -> None:
    """Replace a file by its quantised form: QDQ, weights int8 per channel, activations uint8 by their range.

    Args:
        path: file of a graph in float32.
        graph: graph of the file. The exporter names nodes by the module that they are of.
        settings: settings with the inputs of the calibration.
    """
    log = logging.getLogger()
    level = log.level
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        try:
            log.setLevel(logging.ERROR)  # onnxruntime advises to do what is done here
            quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(path),
                _Reader(graph, settings),
                nodes_to_quantize=[name for name in _names(prepared) if _is_quantised(name, graph)],
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        finally:
            log.setLevel(level)


def _names(path: Path) -> list[str]:
    return [node.name for node in onnx.load(path).graph.node]


def _is_quantised(name: str, graph: Graph) -> bool:
    """Return whether a node is of a part of the graph that int8 is for."""
    return not graph.quantised or name.startswith(tuple(f"/{part.replace('.', '/')}/" for part in graph.quantised))


def float_islands(path: Path, graph: Graph) -> dict[str, int]:
    """Return how many operators of each type compute in float between two quantised ones, in onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        nodes = list(onnx.load(options.optimized_model_filepath).graph.node)
    makers = {name: i for i, node in enumerate(nodes) for name in node.output}
    sources = [[makers[name] for name in node.input if name in makers] for node in nodes]
    found = between(
        sources,
        starts={i for i, node in enumerate(nodes) if node.op_type == "DequantizeLinear"},
        ends={i for i, node in enumerate(nodes) if node.op_type == "QuantizeLinear"},
    )
    return dict(Counter(nodes[i].op_type for i in found if _is_quantised(nodes[i].name, graph)))

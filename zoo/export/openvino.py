"""Export to OpenVINO's IR, compared in OpenVINO on the CPU. Requires the extra ``openvino``.

OpenVINO converts the ONNX file that ``zoo.export.onnx`` writes; of a detector it converts the module itself, because it
reads an empty constant of ONNX as one zero, so that a detector that finds nothing in an image returned one object.
"""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino.frontend import GeneralFailure, NotImplementedFailure, OpConversionFailure, OpValidationFailure

from zoo.errors import ExportError, one_line
from zoo.export import onnx
from zoo.export.graphs import Arrays, Deployment, Graph, Runner, Settings
from zoo.export.text import add_translator
from zoo.folding import separate_shifts

FAILURES = (GeneralFailure, NotImplementedFailure, OpConversionFailure, OpValidationFailure)
# Without this hint, OpenVINO computes in bfloat16 on CPUs that have it.
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32"}


def path_of(graph: Graph, folder: Path) -> Path:
    """Return the file of a graph; its weights are beside it in a file ``.bin``."""
    return folder / f"{graph.name}.xml"


def write(graph: Graph, folder: Path, settings: Settings) -> None:
    """Write ``NAME.xml`` and ``NAME.bin``, in which the named axes of all inputs may change.

    A maximum of each channel with a shift becomes a ReLU and an addition, which OpenVINO fuses into the convolution.

    Raises:
        ExportError: OpenVINO's converter failed.
    """
    path = path_of(graph, folder)
    graph = replace(graph, module=separate_shifts(graph.module))
    model = converted(graph, path)
    if settings.calibration:
        model = _int8().quantise(model, graph, settings)
    for key, text in graph.metadata.items():
        model.set_rt_info(text, ["rescalenet", key])
    openvino.save_model(model, path, compress_to_fp16=settings.half)


def float_islands(graph: Graph, folder: Path) -> dict[str, int]:
    """Return how many operators of a quantised graph compute in float between two quantised ones, by type."""
    return _int8().float_islands(path_of(graph, folder), graph)


def _int8() -> Any:
    """Return the module of the quantisation. It needs NNCF, whose import takes seconds.

    Raises:
        ExportError: NNCF is not installed.
    """
    try:
        return import_module("zoo.export.openvino_int8")
    except ModuleNotFoundError as error:
        raise ExportError(f"--int8 for openvino needs {error.name}: pip install 'rescalenet-zoo[int8]'") from None


def converted(graph: Graph, path: Path) -> openvino.Model:
    """Return the graph as a model of OpenVINO, in memory.

    Args:
        graph: graph to export.
        path: file that the model is for, which messages name.

    Raises:
        ExportError: OpenVINO's converter failed.
    """
    try:
        model = _traced(graph) if graph.compares == "objects" else _from_onnx(graph)
    except FAILURES as error:
        raise ExportError(f"{path.name}: OpenVINO's converter failed: {one_line(error)}") from error
    for ends, ports in ((model.inputs, graph.inputs), (model.outputs, graph.outputs)):
        for end, port in zip(ends, ports, strict=True):
            end.get_tensor().set_names({port.name})
    return model


def _from_onnx(graph: Graph) -> openvino.Model:
    with tempfile.TemporaryDirectory() as folder:
        onnx.write_graph(graph, Path(folder), Settings())
        model = openvino.convert_model(onnx.path_of(graph, Path(folder)))
        return model.clone()  # weights in memory, not in the file


def _traced(graph: Graph) -> openvino.Model:
    shapes = [
        openvino.PartialShape([-1 if isinstance(axis, str) else axis for axis in port.axes]) for port in graph.inputs
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about shapes that torchvision handles
        return openvino.convert_model(graph.module, example_input=graph.samples[0], input=shapes)


def finish(deployment: Deployment, folder: Path, settings: Settings) -> None:
    """Add the beam search of translation nets."""
    if deployment.kind == "text":
        add_translator(folder)


def load(graph: Graph, folder: Path) -> Runner:
    """Return a function that runs the files in OpenVINO on the CPU, in float32."""
    compiled = openvino.Core().compile_model(path_of(graph, folder), "CPU", SETTINGS)

    def run(inputs: Arrays) -> list[np.ndarray]:
        results = compiled(list(inputs))
        return [results[i] for i in range(len(graph.outputs))]

    return run

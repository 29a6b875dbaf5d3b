"""Export to ONNX, compared in onnxruntime. Requires the extra ``onnx``."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxscript  # noqa: F401  (torch.onnx requires it)
import torch

from zoo.errors import ExportError, one_line
from zoo.export import onnx_int8
from zoo.export.graphs import Arrays, Deployment, Graph, Runner, Settings
from zoo.export.half import in_half
from zoo.export.text import add_translator
from zoo.folding import separate_shifts

OPSET = 18  # of torch.onnx, which writes it without conversion
DETECTOR_OPSET = 17  # of the TorchScript exporter


def path_of(graph: Graph, folder: Path) -> Path:
    """Return the file of a graph."""
    return folder / f"{graph.name}.onnx"


def write(graph: Graph, folder: Path, settings: Settings) -> None:
    """Write one file, in which the named axes of all inputs may change.

    A maximum of each channel with a shift becomes a ReLU and the shift, as the bias of a depthwise convolution: that is
    what onnxruntime computes in the least time, in float32 and in int8 (``benchmarks/forms.py``).

    Raises:
        ExportError: the exporter failed.
    """
    write_graph(replace(graph, module=separate_shifts(graph.module, depthwise=True)), folder, settings)


def write_graph(graph: Graph, folder: Path, settings: Settings) -> None:
    """Write one file with the operators that the module has.

    The TorchScript exporter writes detectors, because torch.export does not support torchvision's.

    Raises:
        ExportError: the exporter failed.
    """
    path = path_of(graph, folder)
    if settings.half:
        graph = in_half(graph)
    try:
        if graph.compares == "objects":
            _trace(graph, path)
        else:
            _export(graph, path)
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"{path.name}: the ONNX exporter failed: {one_line(error)}") from error
    if settings.calibration:
        onnx_int8.quantise(path, graph, settings)
    model = onnx.load(path)
    onnx.helper.set_model_props(model, dict(graph.metadata))
    onnx.save(model, path)


def float_islands(graph: Graph, folder: Path) -> dict[str, int]:
    """Return how many operators of a quantised graph compute in float between two quantised ones, by type."""
    return onnx_int8.float_islands(path_of(graph, folder), graph)


def _export(graph: Graph, path: Path) -> None:
    largest = max(graph.samples, key=lambda sample: sum(x.numel() for x in sample))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names that several axes share, and about torch's own code
        program = torch.onnx.export(
            graph.module,
            largest,
            dynamo=True,
            opset_version=OPSET,
            input_names=[port.name for port in graph.inputs],
            output_names=[port.name for port in graph.outputs],
            dynamic_shapes=graph.dynamic_shapes(named=True),
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph:  # lines of sources with their paths on this disk are no part of an export
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
    program.save(str(path))


def _trace(graph: Graph, path: Path) -> None:
    axes = {
        port.name: {i: axis for i, axis in enumerate(port.axes) if isinstance(axis, str)}
        for port in (*graph.inputs, *graph.outputs)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about shapes that torchvision handles
        torch.onnx.export(
            graph.module,
            graph.samples[0],
            str(path),
            dynamo=False,
            opset_version=DETECTOR_OPSET,
            do_constant_folding=True,
            input_names=[port.name for port in graph.inputs],
            output_names=[port.name for port in graph.outputs],
            dynamic_axes=axes,
        )


def finish(deployment: Deployment, folder: Path, settings: Settings) -> None:
    """Add the beam search of translation nets."""
    if deployment.kind == "text":
        add_translator(folder)


def load(graph: Graph, folder: Path) -> Runner:
    """Return a function that runs the file in onnxruntime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(str(path_of(graph, folder)), options, providers=["CPUExecutionProvider"])
    names = [port.name for port in graph.outputs]

    def run(inputs: Arrays) -> list[np.ndarray]:
        return session.run(names, dict(zip((port.name for port in graph.inputs), inputs, strict=True)))

    return run

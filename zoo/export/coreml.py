"""Export to Core ML. Requires the extra ``coreml``.

Core ML runs on Apple's systems only. The package that was written is read again, and PyTorch evaluates the operators
of its program with its weights (``zoo.export.mil``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import coremltools
import numpy as np
import torch
from coremltools.converters.mil.frontend.milproto.load import load as read_program

from zoo.errors import ExportError, one_line
from zoo.export.fixed import named_program
from zoo.export.graphs import Arrays, Graph, Runner, Settings
from zoo.export.mil import evaluate

SYSTEM = coremltools.target.iOS16  # oldest system that runs the packages: iOS 16, macOS 13
SPEC = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("Data/com.apple.CoreML/weights")
DEBUG = "executorch_debug_handle_mapping.json"  # of no use outside of ExecuTorch


def path_of(graph: Graph, folder: Path) -> Path:
    """Return the package of a graph, a folder."""
    return folder / f"{graph.name}.mlpackage"


def write(graph: Graph, folder: Path, settings: Settings) -> None:
    """Write one package with the shapes of the first sample; it computes in half precision if ``settings.half``.

    Raises:
        ExportError: the converter failed.
    """
    path = path_of(graph, folder)
    inputs = {port.name: x for port, x in zip(graph.inputs, graph.samples[0], strict=True)}
    precision = coremltools.precision
    try:
        model = coremltools.convert(
            named_program(graph.module, inputs),
            outputs=[coremltools.TensorType(name=port.name, dtype=np.float32) for port in graph.outputs],
            convert_to="mlprogram",
            compute_precision=precision.FLOAT16 if settings.half else precision.FLOAT32,
            minimum_deployment_target=SYSTEM,
            skip_model_load=True,
        )
    except Exception as error:  # of coremltools, which raises any class
        raise ExportError(f"{path.name}: coremltools failed: {one_line(error)}") from error
    _describe(model, graph)
    model.save(str(path))
    (path / DEBUG).unlink(missing_ok=True)


def _describe(model: Any, graph: Graph) -> None:
    """Write the metadata, which Xcode shows."""
    texts = dict(graph.metadata)
    model.author = "RescaleNet model zoo"
    model.short_description = texts.get("weights", graph.name)
    model.license = texts.get("licence", "")
    model.user_defined_metadata.update(texts)
    for port in graph.inputs if "input" in texts else ():
        model.input_description[port.name] = texts["input"]


def load(graph: Graph, folder: Path) -> Runner:
    """Return a function that evaluates the program of the package with PyTorch.

    Raises:
        ExportError: a package that cannot be read, with other inputs or outputs, or with an operator that is not
            evaluated.
    """
    path = path_of(graph, folder)
    try:
        spec = coremltools.utils.load_spec(str(path))
        program = read_program(spec, spec.specificationVersion, file_weights_dir=str(path / WEIGHTS))
    except Exception as error:  # of protobuf and coremltools
        raise ExportError(f"{path}: coremltools does not read it: {one_line(error)}") from error
    first = graph.samples[0]
    expected = {port.name: list(x.shape) for port, x in zip(graph.inputs, first, strict=True)}
    found = {port.name: list(port.type.multiArrayType.shape) for port in spec.description.input}
    if found != expected:
        raise ExportError(f"{path}: takes {found}, not {expected}")
    if (names := [port.name for port in spec.description.output]) != [port.name for port in graph.outputs]:
        raise ExportError(f"{path}: has the outputs {names}")

    def run(inputs: Arrays) -> list[np.ndarray]:
        tensors = {port.name: torch.from_numpy(x) for port, x in zip(graph.inputs, inputs, strict=True)}
        outputs = evaluate(program.functions["main"], tensors)
        return [outputs[port.name].numpy() for port in graph.outputs]

    return run

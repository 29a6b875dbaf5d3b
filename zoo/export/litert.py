"""Export to LiteRT (TensorFlow Lite), compared in its interpreter on the CPU. Requires the extra ``litert``.

Inputs and outputs have the channels last, as LiteRT's kernels and its users have them: images are (N, H, W, C), clips
(N, T, H, W, C). All shapes are fixed, which delegates for GPUs and NPUs require.
"""

from __future__ import annotations

import json
from pathlib import Path

import flatbuffers
import litert_torch
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import qtyping, quantizer, recipe_manager
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from torch import Tensor, nn

from zoo.errors import ExportError, one_line
from zoo.export.fixed import named_program
from zoo.export.graphs import Arrays, Graph, Runner, Settings

METADATA = "rescalenet"
SIGNATURE = "serving_default"  # litert_torch's name of the only signature


def path_of(graph: Graph, folder: Path) -> Path:
    """Return the file of a graph."""
    return folder / f"{graph.name}.tflite"


class ChannelsLast(nn.Module):
    """A graph with (N, ..., C) in place of (N, C, ...), and its outputs by name."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.module = graph.module
        self.outputs = [port.name for port in graph.outputs]

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        outputs = self.module(*(x.movedim(-1, 1) for x in inputs))
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        return {name: y.movedim(1, -1) for name, y in zip(self.outputs, outputs, strict=True)}


def write(graph: Graph, folder: Path, settings: Settings) -> None:
    """Write one file with the shapes of the first sample.

    Raises:
        ExportError: the converter failed, or half precision of clips.
    """
    path = path_of(graph, folder)
    if settings.half and any(len(port.axes) == 5 for port in graph.inputs):
        raise ExportError(
            f"{path.name}: ai-edge-quantizer stores no weights of 3-D convolutions in half precision; leave half out"
        )
    samples = zip(graph.inputs, graph.samples[0], strict=True)
    inputs = {port.name: x.movedim(1, -1).contiguous() for port, x in samples}
    litert_torch.config.show_progress = False
    try:
        module = named_program(ChannelsLast(graph), inputs).module()
        module.training = False  # it is the default of a module that torch.export makes, whose eval() raises
        litert_torch.convert(module, sample_kwargs=inputs).export(str(path))
    except Exception as error:  # of litert_torch, jax and MLIR, which have no common class
        raise ExportError(f"{path.name}: litert-torch failed: {one_line(error)}") from error
    if settings.half:
        _store_half(path)
    if graph.metadata:
        _add_metadata(path, graph)


def _add_metadata(path: Path, graph: Graph) -> None:
    """Add the metadata of the graph as JSON, in the file's buffer of the name ``METADATA``."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes()))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(json.dumps(dict(graph.metadata)).encode(), np.uint8)
    entry.name, entry.buffer = METADATA, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or ()), entry]
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(builder.Output())


def _store_half(path: Path) -> None:
    """Store the weights of a file in half precision; operators compute in float32."""
    recipe = recipe_manager.RecipeManager()
    recipe.add_weight_only_config(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        num_bits=16,
        granularity=qtyping.QuantGranularity.TENSORWISE,
        algorithm_key=AlgorithmName.FLOAT_CASTING,
    )
    result = quantizer.Quantizer(str(path), recipe.get_quantization_recipe()).quantize(enable_progress_report=False)
    result.export_model(str(path), overwrite=True)


def load(graph: Graph, folder: Path) -> Runner:
    """Return a function that runs the file in the interpreter on the CPU, in float32.

    Raises:
        ExportError: a file that the interpreter does not read.
    """
    path = path_of(graph, folder)
    try:
        runner = Interpreter(model_path=str(path)).get_signature_runner(SIGNATURE)
    except (ValueError, RuntimeError) as error:
        raise ExportError(f"{path}: the interpreter of LiteRT does not read it: {one_line(error)}") from error

    def run(inputs: Arrays) -> list[np.ndarray]:
        ports = zip(graph.inputs, inputs, strict=True)
        outputs = runner(**{port.name: np.ascontiguousarray(np.moveaxis(x, 1, -1)) for port, x in ports})
        return [np.moveaxis(outputs[port.name], -1, 1) for port in graph.outputs]

    return run

"""Export to ncnn, compared in its Python runtime on the CPU. Requires the extra ``ncnn``.

The converter is pnnx, which reads a traced module. Its program is called, and not its Python function: that one writes
a Python file next to the module and runs it.
"""

from __future__ import annotations

import subprocess
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import ncnn
import numpy as np
import pnnx
import torch
from torch import nn

from zoo.errors import ExportError, one_line
from zoo.export.graphs import Arrays, Graph, Runner, Settings
from zoo.export.native_output import captured
from zoo.folding import separate_shifts
from zoo.joins import InPlaceJoin, PlainJoin

# Options of ncnn that compute in half precision; those that are on by default depend on the processor.
IN_HALF = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_packed", "use_bf16_storage")


def paths_of(graph: Graph, folder: Path) -> tuple[Path, Path]:
    """Return the files of a graph: the list of its layers, and their weights."""
    return folder / f"{graph.name}.ncnn.param", folder / f"{graph.name}.ncnn.bin"


def convertible(module: nn.Module) -> nn.Module:
    """Return a copy that computes the same by layers of ncnn.

    A maximum of each channel with a shift becomes a ReLU and the shift, as the bias of a depthwise convolution, which
    takes ncnn less time. An addition in place would become a product with 1 and an addition.
    """
    module = separate_shifts(module, depthwise=True)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, InPlaceJoin):
                setattr(parent, name, PlainJoin())
    return module.eval()


def write(graph: Graph, folder: Path, settings: Settings) -> None:
    """Write the list of layers and the weights.

    Raises:
        ExportError: the converter failed, or the graph has operators that ncnn does not have.
    """
    parameters, weights = paths_of(graph, folder)
    first = graph.samples[0]
    module = convertible(graph.module)
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "model.pt"
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the tracer: pnnx reads no other form
            torch.jit.trace(module, first, check_trace=False).save(str(program))
        shapes = [f"inputshape={_shown(x.shape for x in first)}", f"inputshape2={_shown(_uneven_shapes(graph))}"]
        command = [pnnx.EXEC_PATH, str(program), *shapes]
        done = subprocess.run(
            [*command, f"fp16={int(settings.half)}"], cwd=scratch, capture_output=True, text=True, check=False
        )
        made = program.with_suffix(".ncnn.param"), program.with_suffix(".ncnn.bin")
        if done.returncode or not all(path.is_file() for path in made):
            raise ExportError(f"{parameters.name}: pnnx failed: {one_line(done.stderr[-500:])}")
        names = {f"in{i}": port.name for i, port in enumerate(graph.inputs)}
        names |= {f"out{i}": port.name for i, port in enumerate(graph.outputs)}
        parameters.write_text(_renamed(made[0].read_text(), names, parameters.name))
        weights.write_bytes(made[1].read_bytes())


def _uneven_shapes(graph: Graph) -> list[list[int]]:
    """Return shapes of the inputs that differ from the first sample's in every named axis.

    pnnx fixes what two shapes have in common. With sizes of 64 n + 1 the maps of all levels have odd sizes, so that a
    map is not taken for one that has exactly half the size of another.
    """
    others = {"batch": 2}
    shapes = []
    for port, x in zip(graph.inputs, graph.samples[0], strict=True):
        for axis, length in zip(port.axes, x.shape, strict=True):
            if isinstance(axis, str):
                others.setdefault(axis, (length // 64 + 1) * 64 + 1)
        shapes.append([others[axis] if isinstance(axis, str) else axis for axis in port.axes])
    return shapes


def _shown(shapes: Iterable[Sequence[int]]) -> str:
    """Return shapes of inputs as pnnx takes them: ``[1,3,32,32]f32``."""
    return ",".join(f"[{','.join(map(str, shape))}]f32" for shape in shapes)


def _renamed(text: str, names: dict[str, str], file: str) -> str:
    """Return a list of layers in which these blobs have other names.

    A line has the layer's type and name, the numbers of its inputs and outputs, their names, and its parameters.

    Raises:
        ExportError: a layer of a type that ncnn does not have: pnnx writes PyTorch's name of the operator.
    """
    head, lines = text.splitlines()[:2], []
    unknown = set()
    for line in text.splitlines()[2:]:
        kind, name, inputs, outputs, *rest = line.split()
        count = int(inputs) + int(outputs)
        if not kind.isidentifier():
            unknown.add(kind)
        blobs = [names.get(blob, blob) for blob in rest[:count]]
        lines.append(" ".join([f"{kind:<24}", f"{name:<24}", inputs, outputs, *blobs, *rest[count:]]))
    if unknown:
        raise ExportError(f"{file}: ncnn has no {', '.join(sorted(unknown))}")
    return "\n".join([*head, *lines]) + "\n"


def load(graph: Graph, folder: Path) -> Runner:
    """Return a function that runs the files on the CPU, in float32.

    Raises:
        ExportError: files that ncnn does not read.
    """
    net = ncnn.Net()
    for option in IN_HALF:
        setattr(net.opt, option, False)
    for path, read in zip(paths_of(graph, folder), (net.load_param, net.load_model), strict=True):
        with captured() as printed:
            failed = read(str(path))
        if failed:
            raise ExportError(f"{path}: ncnn does not read it: {one_line(printed.text) if printed.text else failed}")

    def run(inputs: Arrays) -> list[np.ndarray]:
        extractor = net.create_extractor()
        outputs = []
        with captured() as printed:
            failed = 0
            for port, x in zip(graph.inputs, inputs, strict=True):
                # ncnn keeps no reference to the array, so that the Mat must be a copy
                failed |= extractor.input(port.name, ncnn.Mat(np.ascontiguousarray(x), batch_index=0).clone())
            for port in graph.outputs:
                code, output = extractor.extract(port.name)
                failed |= code
                outputs.append(np.array(output.numpy(batch_index=0)) if not code else np.empty(0))
        if failed:
            raise ExportError(
                f"{graph.name}: ncnn fails to run it: {one_line(printed.text) if printed.text else failed}"
            )
        return outputs

    return run

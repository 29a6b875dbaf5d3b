"""Export to MNN, compared in its Python runtime on the CPU in float32. Requires the extra ``mnn``.

MNN's converter reads the ONNX graph. Its native function is called in a process of its own: MNN's Python module for it
installs a package and connects to a server when it is imported.
"""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import ExportError, one_line
from zoo.export import onnx
from zoo.export.graphs import Arrays, Graph, Runner, Settings
from zoo.export.native_output import captured
from zoo.nets.residual import AvgPool3d, FramePool

with captured():  # MNN prints the features of the processor
    import MNN

CONVERT = "import sys, _tools; _tools.mnnconvert(sys.argv)"


def path_of(graph: Graph, folder: Path) -> Path:
    """Return the file of a graph."""
    return folder / f"{graph.name}.mnn"


class PoolsOfPlanes(nn.Module):
    """A pool of clips (N, C, T, H, W) as a pool of (H, W) and one of (T, H W), with equal results.

    MNN's own pools of clips round sizes down, and fail when the size changes.

    Args:
        kind: ``avg`` or ``max``.
        window: extent in T, H and W.
        stride: step in T, H and W.
        padding: padding in T, H and W.
        ceil_mode: whether sizes are rounded up.
    """

    def __init__(
        self,
        kind: str,
        window: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...] = (0, 0, 0),
        *,
        ceil_mode: bool = True,
    ) -> None:
        super().__init__()
        self.kind, self.window, self.stride, self.padding, self.ceil_mode = kind, window, stride, padding, ceil_mode

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, frames = x.shape[:3]
        if self.window[1:] != (1, 1):
            planes = self._pooled(x.reshape(batch, channels * frames, *x.shape[3:]), slice(1, 3))
            x = planes.reshape(batch, channels, frames, *planes.shape[2:])
        if self.window[0] != 1:
            sides = x.shape[3:]
            x = self._pooled(x.reshape(batch, channels, frames, sides[0] * sides[1]), slice(0, 1))
            x = x.reshape(batch, channels, x.shape[2], *sides)
        return x

    def _pooled(self, x: Tensor, axes: slice) -> Tensor:
        """Return planes pooled over their two axes, or over the first alone."""
        rest = 2 - len(self.window[axes])
        window, stride, padding = (
            (*values[axes], *[fill] * rest) for values, fill in ((self.window, 1), (self.stride, 1), (self.padding, 0))
        )
        if self.kind == "avg":
            return functional.avg_pool2d(x, window, stride, padding, self.ceil_mode, count_include_pad=False)
        return functional.max_pool2d(x, window, stride, padding, ceil_mode=self.ceil_mode)


def convertible(module: nn.Module) -> nn.Module:
    """Return a copy of a module whose pools of clips are pools of planes.

    Raises:
        ExportError: a pool of clips that this does not cover.
    """
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, AvgPool3d):
                setattr(parent, name, PoolsOfPlanes("avg", child.window, child.window))
            elif isinstance(child, FramePool):
                setattr(parent, name, PoolsOfPlanes("max", child.stride, child.stride))
            elif isinstance(child, nn.MaxPool3d):
                window, stride, padding = (_triple(x) for x in (child.kernel_size, child.stride, child.padding))
                pool = PoolsOfPlanes("max", window, stride, padding, ceil_mode=child.ceil_mode)
                setattr(parent, name, pool)
    return module.eval()


def _triple(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value,) * 3 if isinstance(value, int) else tuple(value)


def write(graph: Graph, folder: Path, settings: Settings) -> None:
    """Write one file, in which the named axes of all inputs may change.

    A maximum of each channel with a shift becomes a ReLU and the shift, as the bias of a depthwise convolution, which
    takes MNN less time. As an addition, MNN 3.6 computes it wrong in nets of the full width.

    Raises:
        ExportError: the exporter to ONNX or MNN's converter failed.
    """
    path = path_of(graph, folder)
    with tempfile.TemporaryDirectory() as scratch:
        source = dataclasses.replace(graph, module=convertible(graph.module))
        onnx.write(source, Path(scratch), Settings())
        made = Path(scratch) / path.name
        command = [sys.executable, "-c", CONVERT, "-f", "ONNX", "--bizCode", "rescalenet", "--MNNModel", str(made)]
        command += ["--modelFile", str(onnx.path_of(graph, Path(scratch))), *(["--fp16"] if settings.half else [])]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        if done.returncode or not made.is_file():
            raise ExportError(f"{path.name}: mnnconvert failed: {one_line((done.stdout + done.stderr)[-500:])}")
        path.write_bytes(made.read_bytes())


def load(graph: Graph, folder: Path) -> Runner:
    """Return a function that runs the file on the CPU with one thread, in float32.

    Raises:
        ExportError: a file that MNN does not read, or fails to run.
    """
    path = path_of(graph, folder)
    names = [port.name for port in graph.inputs], [port.name for port in graph.outputs]
    with captured() as printed:
        runtime = MNN.nn.create_runtime_manager(({"backend": "CPU", "precision": "high", "numThread": 1},))
        try:
            module = MNN.nn.load_module_from_file(str(path), *names, runtime_manager=runtime)
        except Exception as error:  # of pybind11, of several classes
            module, reason = None, error
    if module is None:
        raise ExportError(f"{path}: MNN does not read it: {one_line(printed.text or str(reason))}")

    def run(inputs: Arrays) -> list[np.ndarray]:
        with captured() as printed:
            values = [MNN.expr.const(np.ascontiguousarray(x), list(x.shape), MNN.expr.NCHW) for x in inputs]
            outputs = module.forward(values)
            arrays = [np.array(MNN.expr.convert(output, MNN.expr.NCHW).read()) for output in outputs]
        if len(arrays) != len(graph.outputs):
            raise ExportError(f"{path}: MNN fails to run it: {one_line(printed.text)}")
        return arrays

    return run

"""An ONNX file in onnxruntime-web under Node.js: the code that browsers run, without a browser."""

from __future__ import annotations

import json
import subprocess
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.errors import ExportError, one_line
from zoo.export.graphs import Arrays
from zoo.export.onnx_web.runtime import FOLDER, check, program

_SCRIPT = Path(__file__).parent / "run.mjs"


class NodeSession:
    """Function from the inputs of a graph to its outputs, in a process of Node.js that ends with this object.

    Args:
        folder: folder of an export, with the files of onnxruntime-web.
        path: ONNX file.
        inputs: names of the inputs in order.
        outputs: names of the outputs in order.

    Raises:
        ExportError: no Node.js, or other files than those of onnxruntime-web.
    """

    def __init__(self, folder: Path, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        check(folder)
        self.path, self.inputs, self.outputs = path, list(inputs), list(outputs)
        command = [program("node"), str(_SCRIPT), str((folder / FOLDER).absolute()), str(path.absolute())]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        weakref.finalize(self, _end, self._process)

    def __call__(self, arguments: Arrays) -> list[np.ndarray]:
        """Return the outputs in order.

        Raises:
            ExportError: onnxruntime-web does not run the graph; the message is its own.
        """
        arrays = [np.ascontiguousarray(x) for x in arguments]
        described = [
            {"name": name, "dtype": x.dtype.name, "shape": list(x.shape)}
            for name, x in zip(self.inputs, arrays, strict=True)
        ]
        header = json.dumps({"inputs": described, "outputs": self.outputs})
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(header.encode() + b"\n" + b"".join(x.tobytes() for x in arrays))
            stdin.flush()
            line = stdout.readline()
        except OSError:
            line = b""
        if not line:
            raise ExportError(f"{self.path.name}: Node.js ended while onnxruntime-web ran it (no memory?)")
        answer: Any = json.loads(line)
        if isinstance(answer, dict):
            raise ExportError(f"{self.path.name}: onnxruntime-web does not run it: {one_line(answer['error'])}")
        return [_read(stdout, np.dtype(each["dtype"]), each["shape"]) for each in answer]


def _read(stream: Any, dtype: np.dtype[Any], shape: Sequence[int]) -> np.ndarray:
    """Return an array whose bytes come next in a stream."""
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return np.frombuffer(bytearray(stream.read(count)), dtype).reshape(shape)  # that of bytes is read-only


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process, which waits for its input."""
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    process.wait()

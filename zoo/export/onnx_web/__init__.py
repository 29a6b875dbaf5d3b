"""Export to a static page that runs nets in the browser with onnxruntime-web, compared in Node.js.

The page is in the folder ``page``; ``zoo.export.onnx`` writes the graphs. Requires the extra ``onnx-web``, and Node.js
with npm for the files of onnxruntime-web (``runtime.py``).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from zoo.export import onnx
from zoo.export.graphs import Deployment, Graph, Runner, Settings
from zoo.export.onnx_web import runtime
from zoo.export.onnx_web.contents import add_example, is_shown
from zoo.export.onnx_web.node import NodeSession

VERSIONS = {"onnxruntime-web": runtime.VERSION}  # for the manifest
_PAGE = Path(__file__).parent / "page"


def write(graph: Graph, folder: Path, settings: Settings) -> None:
    """Write the ONNX file of a graph, and before the first one the files of onnxruntime-web.

    Raises:
        ExportError: no Node.js, no npm where it is required, or an exporter that failed.
    """
    runtime.copy_to(folder)
    onnx.write(graph, folder, settings)


def load(graph: Graph, folder: Path) -> Runner:
    """Return a function that runs the file in onnxruntime-web under Node.js."""
    names = ([port.name for port in graph.inputs], [port.name for port in graph.outputs])
    return NodeSession(folder, onnx.path_of(graph, folder), *names)


def finish(deployment: Deployment, folder: Path, settings: Settings) -> None:
    """Write the page, and an example of its input.

    Raises:
        ExportError: an input that the page cannot read.
    """
    shown = is_shown(deployment)
    shutil.copytree(_PAGE, folder, dirs_exist_ok=True)
    if shown:
        add_example(deployment, folder)

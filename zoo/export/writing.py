"""Export of a deployment to a target: write, compare, describe in a manifest, and keep only what agrees."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from zoo._version import __version__
from zoo.errors import ExportError, one_line
from zoo.export import Target
from zoo.export.graphs import Deployment, Graph, Port, Settings
from zoo.export.verification import HALF_TOLERANCE, TOLERANCE, Difference, compare, fitting_samples
from zoo.files import atomic_folder, write_json

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Exported:
    """An export that was read again by its target's runtime.

    Attributes:
        folder: folder that was written.
        target: name of the target.
        differences: largest differences from PyTorch, for each graph by name.
        shown: description of the inputs that were compared.
        remark: what a user must know.
    """

    folder: Path
    target: str
    differences: Mapping[str, Difference]
    shown: str
    remark: str = ""

    def __str__(self) -> str:
        worst = max(difference.relative for difference in self.differences.values())
        text = f"{self.folder}: agrees in {self.target} to {worst:.1e} at {self.shown}"
        return f"{text}; {self.remark}" if self.remark else text


def export(deployment: Deployment, target: Target, folder: str | Path, settings: Settings | None = None) -> Exported:
    """Write a folder of files for a target, run them in its runtime and compare them with PyTorch.

    The folder has the files of each graph, those of ``deployment.files`` and ``manifest.json``. It is written only if
    all outputs agree.

    Args:
        deployment: graphs and their description.
        target: one of ``zoo.export.TARGETS``.
        folder: folder to write; the caller has checked that it may be replaced.
        settings: settings of the export.

    Raises:
        ExportError: a kind of input or an option that the target does not take, a package that is missing, an export
            that fails, or outputs that differ or do not depend on the input.
    """
    folder, settings = Path(folder), settings or Settings()
    if deployment.kind not in target.kinds:
        raise ExportError(f"export to {target.name}: takes {', '.join(target.kinds)}, not {deployment.kind}")
    for option, given in (("half", settings.half), ("int8", settings.calibration)):
        if given and option not in target.options:
            raise ExportError(f"export to {target.name}: --{option} is not for this target; leave it out")
    functions = target.functions()
    differences: dict[str, Difference] = {}
    files: dict[str, list[str]] = {}

    def fill(temporary: Path) -> None:
        for graph in deployment.graphs:
            before = set(temporary.iterdir())
            functions.write(graph, temporary, settings)
            files[graph.name] = sorted(path.name for path in set(temporary.iterdir()) - before)
            if not files[graph.name]:
                raise ExportError(f"export to {target.name}: {graph.name} has no files")
            differences[graph.name] = check_graph(graph, target, temporary, settings)
        for name, content in deployment.files.items():
            (temporary / name).write_bytes(content)
        if hasattr(functions, "finish"):
            functions.finish(deployment, temporary, settings)
        manifest = describe(deployment, target, settings, files, differences, temporary)
        write_json(manifest, temporary / MANIFEST)

    try:
        atomic_folder(folder, fill)
    except ModuleNotFoundError as error:
        raise target.missing(error) from None
    except (RuntimeError, NotImplementedError) as error:
        raise ExportError(f"{folder}: the export to {target.name} failed: {one_line(error)}") from error
    return Exported(folder, target.name, differences, deployment.graphs[0].shown, target.remark)


def check_graph(graph: Graph, target: Target, folder: Path, settings: Settings) -> Difference:
    """Run the files of a graph in the target's runtime, and return the largest differences from PyTorch.

    Raises:
        ExportError: outputs that differ or do not depend on the input.
    """
    tolerance = HALF_TOLERANCE if settings.half else TOLERANCE
    samples = fitting_samples(graph, target.dynamic)
    return compare(graph, target.functions().load(graph, folder), samples, tolerance)


def describe(
    deployment: Deployment,
    target: Target,
    settings: Settings,
    files: Mapping[str, list[str]],
    differences: Mapping[str, Difference],
    folder: Path,
) -> dict[str, Any]:
    """Return the manifest of an export.

    Args:
        deployment: what was exported.
        target: target.
        settings: settings of the export.
        files: names of the files of each graph.
        differences: largest differences of each graph.
        folder: folder of the files.
    """
    weights = deployment.weights
    return {
        "format": FORMAT,
        "target": target.name,
        "versions": {
            "rescalenet-zoo": __version__,
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in target.packages},
        },
        "weights": None if weights is None else {"name": weights.name, "sha256": _digest(weights.path)},
        "half": settings.half,
        **deployment.description,
        "graphs": [
            {
                "name": graph.name,
                "files": {name: _digest(folder / name) for name in files[graph.name] if (folder / name).is_file()},
                "inputs": [_port(port, graph, i, target) for i, port in enumerate(graph.inputs)],
                "outputs": [
                    {"name": port.name, "axes": list(port.axes), "dtype": port.dtype} for port in graph.outputs
                ],
                "compared_at": graph.shown,
                "largest_difference": {
                    "absolute": differences[graph.name].absolute,
                    "relative": differences[graph.name].relative,
                },
            }
            for graph in deployment.graphs
        ],
    }


def _port(port: Port, graph: Graph, i: int, target: Target) -> dict[str, Any]:
    """Return the description of an input: its axes are numbers where the target fixes them."""
    first = graph.samples[0][i].shape
    axes = [
        axis if isinstance(axis, str) and ("batch" if axis == "batch" else "size") in target.dynamic else length
        for axis, length in zip(port.axes, first, strict=True)
    ]
    return {"name": port.name, "axes": axes, "dtype": port.dtype}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

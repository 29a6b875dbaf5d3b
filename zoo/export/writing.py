"""Export of a deployment to a target: write, compare, describe in a manifest, and keep only what agrees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from zoo.errors import ExportError, one_line
from zoo.export import VISION, Target
from zoo.export.graphs import Deployment, Graph, Settings
from zoo.export.manifest import (
    MANIFEST,
    Manifest,
    check_files,
    describe,
    files_in,
    metadata_of,
    read_manifest,
    remark_of,
)
from zoo.export.verification import (
    HALF_TOLERANCE,
    TOLERANCE,
    Difference,
    compare,
    compare_int8,
    expected_at,
    fitting_samples,
    require_contrast,
)
from zoo.files import atomic_folder, write_json


@dataclass(frozen=True)
class Exported:
    """An export that was read again by its target's runtime.

    Attributes:
        folder: folder that was written.
        target: target.
        differences: largest differences from PyTorch, for each graph by name.
        shown: description of what was compared.
        remark: note for users.
    """

    folder: Path
    target: Target
    differences: Mapping[str, Difference]
    shown: str
    remark: str = ""

    @property
    def runtime(self) -> str:
        """Package that ran the files, with its version."""
        package = self.target.runtime or self.target.packages[0]
        return f"{package} {self.target.versions()[package]}"

    @property
    def worst(self) -> float:
        """Largest relative difference of all graphs."""
        return max(difference.relative for difference in self.differences.values())

    def __str__(self) -> str:
        text = f"{self.folder}: agrees in {self.runtime} to {self.worst:.1e} at {self.shown}"
        for difference in self.differences.values():
            if difference.agreement is not None:
                text += f", in int8 with the same {difference.compared} in {difference.agreement:.1%}"
        return f"{text}; {self.remark}" if self.remark else text


def export(
    deployment: Deployment,
    target: Target,
    folder: str | Path,
    settings: Settings | None = None,
    *,
    overwrite: bool = False,
) -> Exported:
    """Write a folder of files for a target, run them in its runtime and compare them with PyTorch.

    The folder has the files of each graph, those of ``deployment.files`` and ``manifest.json``. It is written only if
    all outputs agree.

    Args:
        deployment: graphs and their description.
        target: one of ``zoo.export.TARGETS``.
        folder: folder to write.
        settings: settings of the export.
        overwrite: whether an earlier export in the folder is replaced. Other files never are.

    Raises:
        ExportError: a kind of input or an option that the target does not take, a folder with other files, a package
            that is missing, an export that fails, or outputs that differ or do not depend on the input.
    """
    # what is refused before anything is computed
    folder, settings = Path(folder), settings or Settings()
    if deployment.kind not in target.kinds:
        raise ExportError(f"export to {target.name}: takes {', '.join(target.kinds)}, not {deployment.kind}")
    for option, given in (("half", settings.half), ("int8", settings.calibration)):
        if given and option not in target.options:
            raise ExportError(f"export to {target.name}: --{option} is not for this target; leave it out")
    if settings.calibration and deployment.kind not in (*VISION, "image_lists"):
        raise ExportError("--int8 is for nets of images and clips and for detectors; leave it out")
    require_replaceable(folder, overwrite=overwrite)
    # the files, in a folder that is kept if they agree
    functions = target.functions()
    metadata = metadata_of(deployment, target)
    graphs = tuple(replace(graph, metadata=metadata) for graph in deployment.graphs)
    deployment = replace(deployment, graphs=graphs)
    differences: dict[str, Difference] = {}
    shown = [deployment.graphs[0].shown]

    def fill(temporary: Path) -> None:
        for graph in deployment.graphs:
            functions.write(graph, temporary, settings)
            differences[graph.name] = check_graph(graph, target, temporary, settings)
        for name, content in deployment.files.items():
            (temporary / name).write_bytes(content)
        if hasattr(functions, "finish"):
            functions.finish(deployment, temporary, settings)
        write_json(describe(deployment, target, settings, differences, temporary), temporary / MANIFEST)
        if deployment.check is not None and target.runs_deployments:
            shown.append(deployment.check(temporary, settings == Settings()))

    try:
        atomic_folder(folder, fill, replace=overwrite)
    except ModuleNotFoundError as error:
        raise target.missing(error) from None
    except OSError as error:
        raise ExportError(f"{folder}: cannot be written ({error.strerror or error})") from error
    except (RuntimeError, NotImplementedError) as error:
        raise ExportError(f"{folder}: the export to {target.name} failed: {one_line(error)}") from error
    return Exported(folder, target, differences, "; ".join(shown), remark_of(deployment, target))


def require_replaceable(folder: Path, *, overwrite: bool) -> None:
    """Check that an export may be written to a folder.

    Raises:
        ExportError: a file, or a folder with files that are not all of an earlier export that may be replaced.
    """
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise ExportError(f"{folder}: exists; choose another name, or give --overwrite")
        if not (folder / MANIFEST).is_file():
            raise ExportError(f"{folder}: has files that are not of an export; choose another name")
        known = read_manifest(folder).files
        if other := sorted(files_in(folder).keys() - known.keys()):
            raise ExportError(f"{folder}: {other[0]} is not of the export and would be lost; move it elsewhere")
    elif folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder}: is a file, and an export is a folder; choose another name")


def check_graph(graph: Graph, target: Target, folder: Path, settings: Settings) -> Difference:
    """Run the files of a graph in the target's runtime, and return the largest differences from PyTorch.

    Raises:
        ExportError: outputs that differ or do not depend on the input.
    """
    functions = target.functions()
    runner = functions.load(graph, folder)
    pairs = list(expected_at(graph, fitting_samples(graph, target.dynamic)))
    if graph.stand_in is None:
        require_contrast(graph, [expected for _, expected in pairs])
    if settings.calibration:
        difference = compare_int8(graph, runner, chain(pairs, expected_at(graph, settings.calibration)))
    else:
        difference = compare(graph, runner, pairs, HALF_TOLERANCE if settings.half else TOLERANCE)
    if graph.stand_in is None:
        return difference
    with TemporaryDirectory() as other:
        functions.write(graph.stand_in, Path(other), settings)
        return difference | check_graph(graph.stand_in, target, Path(other), settings)


def check_export(folder: Path, manifest: Manifest, deployment: Deployment, target: Target) -> Exported:
    """Compare an earlier export with the net again.

    Args:
        folder: folder of the export.
        manifest: manifest of the export.
        deployment: graphs of the same net, with inputs to compare at.
        target: target of the export.

    Raises:
        ExportError: files that are missing or changed, or outputs that differ.
    """
    check_files(folder, manifest)
    settings = Settings(manifest.half, deployment.calibration)
    differences = {graph.name: check_graph(graph, target, folder, settings) for graph in deployment.graphs}
    shown = [deployment.graphs[0].shown]
    if deployment.check is not None and target.runs_deployments:
        shown.append(deployment.check(folder, settings == Settings()))
    return Exported(folder, target, differences, "; ".join(shown), remark_of(deployment, target))

"""``rescalenet export``: what a task makes of weights, written for a target or compared again."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from tasks.errors import UserError
from tasks.files import pictures_dir
from tasks.images import read_picture
from tasks.spec import load_model, spec_of, without_defaults
from zoo.export import Target, get_target, targets_for
from zoo.export.graphs import Deployment, Settings
from zoo.export.images import graph_of
from zoo.export.manifest import read_manifest
from zoo.export.writing import Exported, check_export, export, require_replaceable
from zoo.files import sha256_of
from zoo.weights import ENDINGS

CALIBRATION = 256  # inputs that quantisation is calibrated on
FILE_ENDINGS = (".onnx", ".xml", ".pt2", ".pte", ".pth", ".pt", ".pkl", ".tflite", ".mnn", ".param", ".safetensors")


@dataclass(frozen=True)
class ExportRequest:
    """What a task's export must know besides its options.

    Attributes:
        target: target of the export.
        fold: whether graphs compute the deployment form.
        data: file or folder of the inputs at which the files are compared; None: inputs that ship with the package.
        calibration: number of inputs for quantisation, 0 for none.
    """

    target: Target
    fold: bool = True
    data: Path | None = None
    calibration: int = 0


def export_weights(
    name: str,
    to: str | None,
    out: Path | None,
    *,
    fold: bool,
    data: Path | None,
    half: bool,
    int8: bool,
    overwrite: bool,
    options: Mapping[str, Any],
) -> Exported:
    """Export weights to a target, and return the comparison.

    Args:
        name: name of the weights.
        to: name of the target; None for the first that takes the net.
        out: folder to write; None: ``out/export/NAME/TARGET``.
        fold: whether graphs compute the deployment form.
        data: file or folder of inputs; None: those of the package.
        half: whether weights are stored in half precision.
        int8: whether the net is quantised.
        overwrite: whether an earlier export is replaced.
        options: options of all tasks that were given.

    Raises:
        UserError: an unknown target, options that do not go together, or a folder that has other files.
        ExportError: see ``zoo.export.writing.export``.
    """
    entry = zoo.get_weights(name)
    spec = spec_of(entry)
    targets = targets_for(spec.input_kind)
    if options.get("features") and spec.input_kind == "image_lists":  # body and pyramid take batches
        targets = targets_for("images")
    if to not in (None, *targets):
        raise UserError(f"export target {to!r}: {entry.name} is of {spec.name}, which has {', '.join(targets)}")
    target = targets[to] if to else next(iter(targets.values()))
    if int8 and half:
        raise UserError("--int8 and --half: weights have one precision; give one of the two")
    if int8 and data is None:
        raise UserError("--int8: must be calibrated on inputs of the net's kind; give them with --data")
    folder = out or Path("out/export") / stem_of_weights(entry.name) / target.name
    if folder.suffix in FILE_ENDINGS:
        raise UserError(f"--out {folder}: an export is a folder; give it a name without {folder.suffix}")
    require_replaceable(folder, overwrite=overwrite)
    request = ExportRequest(target, fold and target.folded, data, CALIBRATION if int8 else 0)
    deployment = _deployment(entry, request, options)
    if int8 and not deployment.calibration:
        raise UserError("--int8: is for nets of images and clips and for detectors; leave it out")
    return export(deployment, target, folder, Settings(half, deployment.calibration), overwrite=overwrite)


def stem_of_weights(weights: str) -> str:
    """Return the name of weights as a file's name without ending: letters, digits, dots, hyphens and underscores."""
    path = Path(weights.partition("#")[0])
    return re.sub(r"[^\w.-]+", "_", path.stem if path.suffix in ENDINGS else path.name)


def check_again(folder: Path, weights: str | None, *, trust: bool = False) -> Exported:
    """Compare an export with its weights again, from its manifest.

    Args:
        folder: folder of the export.
        weights: name of its weights; None for those that the manifest names.
        trust: whether files are loaded that may run code.

    Raises:
        UserError: weights that are not those of the export, or files that may run code and are not trusted.
        ExportError: files that are missing or changed, or outputs that differ.
    """
    manifest = read_manifest(folder)
    if manifest.weights is None:
        raise UserError(f"{folder}: was made from a net without a weights file, which cannot be compared again")
    name, sha256 = weights or manifest.weights.name, manifest.weights.sha256
    entry = zoo.get_weights(name)
    if sha256_of(entry.path) != sha256:
        raise UserError(f"{folder}: was made from other weights than {name} (their sha256 is {sha256[:12]}...)")
    target = get_target(manifest.target)
    if target.runs_code and not trust:
        raise UserError(
            f"{folder}: files of {target.name} may run code when they are loaded; give --trust if you made them"
        )
    arguments = manifest.arguments
    data = arguments.get("data")
    request = ExportRequest(
        target, bool(arguments.get("fold")), None if data is None else Path(data), manifest.calibration
    )
    return check_export(folder, manifest, _deployment(entry, request, arguments.get("options", {})), target)


def _deployment(entry: zoo.Weights, request: ExportRequest, options: Mapping[str, Any]) -> Deployment:
    spec = spec_of(entry)
    deployment: Deployment = spec.export.run(entry, request, spec.options("export", options, entry.name))
    description = {
        "task": spec.name,
        "model": entry.config.name,
        "scheme": entry.config.scheme,
        "folded": request.fold,
        **deployment.description,
        "arguments": {
            "fold": request.fold,
            "data": None if request.data is None else str(request.data.absolute()),
            "options": without_defaults(options),
        },
    }
    return dataclasses.replace(deployment, description=description, weights=entry)


# -- inputs at which images nets are compared -----------------------------------------------------------


def shown_pictures(data: Path | None, folder: str) -> tuple[list[str], str]:
    """Return the paths of the pictures to compare at, and their description.

    Args:
        data: file or folder that the user gave.
        folder: folder of pictures that ship, which are taken otherwise.
    """
    if data is not None:
        return [str(data)], f"pictures of {data.name}"
    return list(map(str, sorted((pictures_dir() / folder).rglob("*.*g")))), f"the {folder} of the package"


def spread(files: Sequence[Path], count: int) -> list[Path]:
    """Return files at equal distances in a list, ``count`` or all, so that some of each class folder are among them.

    >>> [path.name for path in spread([Path(name) for name in "abcdefg"], 3)]
    ['a', 'c', 'e']
    """
    count = min(count, len(files))
    return [files[i * len(files) // count] for i in range(count)]


def read_inputs(files: Sequence[Path], channels: int, transform: Any) -> list[Tensor]:
    """Return pictures as a net takes them: tensors (C, H, W)."""
    return [transform(read_picture(path, channels)) for path in files]


def batches(inputs: Sequence[Tensor], *others: Sequence[Tensor]) -> list[Tensor]:
    """Return batches of several sizes: one input, another, three, and two of each other size.

    Args:
        inputs: inputs (C, ...); where there are fewer than 4, their mirror images are taken too.
        others: the same inputs in other sizes.
    """
    first = list(islice(_with_mirrored(inputs), 5))
    pairs = (torch.stack(list(islice(_with_mirrored(other), 2))) for other in others)
    return [first[0][None], first[1][None], torch.stack(first[2:5]), *pairs]


def _with_mirrored(inputs: Sequence[Tensor]) -> Iterator[Tensor]:
    return cycle([*inputs, *(x.flip(-1) for x in inputs)])


def require_graph(request: ExportRequest, *, normalize: bool, softmax: bool) -> None:
    """Check that a target of converted weights is not asked for more than the net.

    Raises:
        UserError: an option that changes the graph.
    """
    for option, given in (("normalize", normalize), ("softmax", softmax)):
        if given and request.target.form == "net":
            raise UserError(f"--{option}: {request.target.name} gets the weights of the net alone; leave it out")


def describe_images(transform: Any, *, normalize: bool, layout: str) -> dict[str, Any]:
    """Return the description of the input of a net of images or clips.

    Args:
        transform: transform of the weights, at the size of the export.
        normalize: whether the graph standardises.
        layout: letters of the axes, such as NCHW.
    """
    order = "RGB" if normalize else getattr(transform, "channel_order", "RGB")
    description = {
        "layout": layout,
        "channel_order": order if len(transform.mean) == 3 else None,
        "range": [0, 1],
        "mean": list(transform.mean),
        "std": list(transform.std),
        "standardised_in_graph": normalize,
    }
    fields = ("size", "resize", "interpolation", "crop_mode", "frames", "interval", "fps", "min_size", "max_size")
    return {**description, **{key: getattr(transform, key) for key in fields if hasattr(transform, key)}}


def standardisation(transform: Any, normalize: bool) -> tuple[Sequence[float], Sequence[float], bool] | None:
    """Return mean, standard deviation and whether channels are reversed, for a graph that standardises."""
    if not normalize:
        return None
    return transform.mean, transform.std, getattr(transform, "channel_order", "RGB") == "BGR"


def unstandardised(transform: Any) -> Any:
    """Return a transform to RGB in 0..1."""
    count = len(transform.mean)
    changed: dict[str, Any] = {"mean": (0.0,) * count, "std": (1.0,) * count}
    if hasattr(transform, "channel_order"):
        changed["channel_order"] = "RGB"
    return dataclasses.replace(transform, **changed)


def other_sizes(size: int) -> tuple[int, int]:
    """Return further sides at which graphs are compared, so that maps before pools have even and odd sides.

    Pools round up at odd sides. One of the two sides is odd itself; the other is even, and odd after its halving.
    """
    return round(1.25 * size) | 1, size + 1 + (1 - size) % 4


def sizes_of(sizes: Sequence[int]) -> str:
    """Return sides in words, such as ``32, 41 and 34 px``."""
    return f"{', '.join(map(str, sizes[:-1]))} and {sizes[-1]} px"


def resized(transform: Any, size: int) -> Any:
    """Return a transform to another side in pixels, with the same part of the picture in its crop."""
    resize = max(size, round(transform.resize * size / transform.size))
    return dataclasses.replace(transform, size=size, resize=resize)


def net_to_export(model: nn.Module, features: bool) -> nn.Module:
    """Return the net of a classifier, or its feature extractor with all levels."""
    return zoo.FeatureExtractor(model, None) if features else model  # type: ignore[arg-type]


def classifier_deployment(
    entry: zoo.Weights,
    request: ExportRequest,
    options: Any,
    transform: Any,
    samples: Sequence[Tensor],
    inputs: Sequence[Tensor],
    shown: str,
) -> Deployment:
    """Return the graph of a classifier of images (N, C, H, W) or clips (N, C, T, H, W), with its description.

    Args:
        entry: weights of the classifier.
        request: request of the command.
        options: options ``normalize``, ``softmax`` and ``features``.
        transform: transform of the weights, at the size of the export.
        samples: batches at which the graph is compared.
        inputs: single inputs, of which the first are for quantisation.
        shown: description of the samples.
    """
    clips = samples[0].ndim == 5
    graph = graph_of(
        net_to_export(load_model(entry), options.features),
        samples,
        shown,
        folded=request.fold,
        standardise=standardisation(transform, options.normalize),
        softmax=options.softmax,
        transform=transform,
    )
    layout = "NCTHW" if clips else "NCHW"
    description = {
        "input": describe_images(transform, normalize=options.normalize, layout=layout),
        "classes": [] if options.features else list(entry.classes),
    }
    calibration = tuple((x[None],) for x in inputs[: request.calibration])
    return Deployment("clips" if clips else "images", (graph,), description, calibration=calibration)

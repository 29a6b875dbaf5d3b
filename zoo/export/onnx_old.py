"""Export to ONNX, verified in onnxruntime. Requires the extra ``onnx``."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ExportError, one_line
from zoo.export import Verified
from zoo.files import atomic_write
from zoo.modules import evaluating


def export_batches(model: nn.Module, path: Path, example: tuple[Any, ...], weights: object) -> Verified:
    """Export a net of batches of the example's size: images (N, C, H, W), or clips (N, C, T, H, W)."""
    (batch,) = example
    return export_onnx(model, path, input_size=tuple(batch.shape[2:]), in_chans=batch.shape[1])


def export_image_lists(model: nn.Module, path: Path, example: tuple[Any, ...], weights: object) -> Verified:
    """Export a detector, compared at the example's images."""
    (images,) = example
    return export_detector_onnx(model, path, images=images)


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    input_size: int | tuple[int, ...],
    in_chans: int = 3,
    batch_sizes: tuple[int, ...] = (1, 3),
    tolerance: float = 1e-4,
) -> Verified:
    """Export with a dynamic batch, run the file in onnxruntime and compare.

    The input is named ``images``, or ``clips``. A net with one output has ``logits``; a list of feature maps gives
    ``map0``, ``map1``, ..., a dict its keys (``p0``, ... for numbers).

    Args:
        model: net of images (N, in_chans, H, W), or clips (N, in_chans, T, H, W); exported in eval mode, its mode is
            restored.
        path: ``.onnx`` file; it is written only if the outputs agree.
        input_size: H and W in pixels, of clips T, H and W; fixed in the file. One number is both H and W.
        in_chans: number of input channels.
        batch_sizes: batch sizes at which the outputs are compared.
        tolerance: largest |difference| over largest |output| that passes (float32).

    Raises:
        ExportError: the extra is not installed, the export fails, or outputs differ.
    """
    size = (input_size, input_size) if isinstance(input_size, int) else input_size
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)

    def sample(batch: int) -> Tensor:
        return torch.randn(batch, in_chans, *size, generator=generator).to(parameter)

    def build(temporary: Path) -> None:
        with torch.no_grad():
            names = list(_named(model(sample(1))))
        program = torch.onnx.export(
            model,
            (sample(2),),
            dynamo=True,
            input_names=["images" if len(size) == 2 else "clips"],
            output_names=names,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
        assert program is not None
        program.save(str(temporary))

    def expected(x: Tensor) -> dict[str, Tensor]:
        return _named(model(x))

    inputs = [sample(batch) for batch in batch_sizes]
    return _verified(
        model, Path(path), build, expected, inputs, f"batch sizes {batch_sizes}", tolerance, _largest_error
    )


def export_detector_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    images: Sequence[Tensor] = (),
    opset: int = 17,
    tolerance: float = 1e-3,
) -> Verified:
    """Export a detector of torchvision's form with a dynamic image size, run the file in onnxruntime and compare.

    Where no image has an object, nothing would be compared. Then a second file is made of the same model with
    ``roi_heads.score_thresh`` at 0, of which the objects of low scores are compared; it is not kept.

    The input ``image`` is one RGB image (3, H, W) in 0..1; the outputs are ``boxes``, ``labels``, ``scores`` and, of
    Mask R-CNN, ``masks`` (N, 1, H, W) of probabilities. The TorchScript exporter writes the file, because the newer
    one does not support torchvision's detectors.

    Args:
        model: detector, of which ``model([image])`` is a list of one dict; exported in eval mode, its mode is restored.
        path: ``.onnx`` file; it is written only if the outputs agree.
        images: images at which the outputs are compared; () for noise of three sizes.
        opset: version of ONNX's operators.
        tolerance: largest error that passes (float32): of boxes relative to the largest coordinate, of scores, and of
            a mask's mean probability.

    Raises:
        ExportError: the extra is not installed, the export fails, outputs differ, or no object is found at all.
    """
    parameter = next(model.parameters())
    inputs = [image.to(parameter) for image in images or noise_images()]

    def expected(x: Tensor) -> dict[str, Tensor]:
        return model([x])[0]

    def build(temporary: Path) -> None:
        with torch.no_grad():
            names = list(expected(inputs[0]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer, about shapes that torchvision handles
            torch.onnx.export(
                model,
                ([inputs[0]],),
                str(temporary),
                dynamo=False,
                opset_version=opset,
                do_constant_folding=True,
                input_names=["image"],
                output_names=names,
                dynamic_axes={
                    "image": {1: "height", 2: "width"},
                    **{name: {0: "objects"} for name in names},
                    **({"masks": {0: "objects", 2: "height", 3: "width"}} if "masks" in names else {}),
                },
            )

    sizes = ", ".join(f"{x.shape[-2]} x {x.shape[-1]}" for x in inputs)
    path = Path(path)

    def found() -> int:
        """Return the number of objects in all images."""
        with evaluating(model), torch.no_grad():
            return sum(len(expected(x)["boxes"]) for x in inputs)

    def export(target: Path, shown: str) -> Verified:
        return _verified(model, target, build, expected, inputs, shown, tolerance, _detection_error)

    if count := found():
        return export(path, f"image sizes {sizes} ({count} objects)")
    # No object has the score that is required: first compare a file without the requirement.
    heads: Any = getattr(model, "roi_heads", model)
    required, heads.score_thresh = heads.score_thresh, 0.0
    try:
        if not (count := found()):
            raise ExportError(f"{path}: the detector finds no object at image sizes {sizes}: nothing could be compared")
        with tempfile.TemporaryDirectory() as folder:
            lowered = export(Path(folder) / "lowered.onnx", f"image sizes {sizes}, with score_thresh=0")
    finally:
        heads.score_thresh = required
    shown = f"image sizes {sizes} (no object has a score of {required:g}; {count} objects with score_thresh=0)"
    return dataclasses.replace(export(path, shown), max_error=lowered.max_error)


def noise_images() -> list[Tensor]:
    """Return three images (3, H, W) of noise in 0..1, of different sizes."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=generator) for size in ((160, 224), (224, 160), (200, 312))]


def _named(output: Any) -> dict[str, Tensor]:
    """Return the outputs of a net by name."""
    if isinstance(output, Tensor):
        return {"logits": output}
    if isinstance(output, dict):
        return {f"p{key}" if key.isdigit() else key: value for key, value in output.items()}
    return {f"map{i}": value for i, value in enumerate(output)}


def _verified(
    model: nn.Module,
    path: Path,
    build: Callable[[Path], None],
    expected: Callable[[Tensor], dict[str, Tensor]],
    inputs: Sequence[Tensor],
    shown: str,
    tolerance: float,
    compare: Callable[[dict[str, Tensor], dict[str, Tensor]], float],
) -> Verified:
    """Write a file with ``build``, and keep it if its outputs in onnxruntime equal the model's.

    Args:
        model: net to export.
        path: file to write.
        build: function that writes the file.
        expected: function from an input to the model's outputs by name.
        inputs: inputs at which the outputs are compared.
        shown: description of the inputs.
        tolerance: largest error that passes.
        compare: function from the file's and the model's outputs to the error.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ImportError as error:
        raise ExportError(f"export to ONNX needs {error.name}: pip install 'rescalenet-zoo[onnx]'") from None
    # write a temporary file and compare; an error leaves no file at ``path``
    errors: list[float] = []

    def write(temporary: Path) -> None:
        build(temporary)
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        for x in inputs:
            with torch.no_grad():
                of_model = {key: value.cpu() for key, value in expected(x).items()}
            outputs = session.run(list(of_model), {name: x.cpu().numpy()})
            of_file = dict(zip(of_model, map(torch.from_numpy, outputs), strict=True))
            errors.append(compare(of_file, of_model))
            if not errors[-1] <= tolerance:
                raise ExportError(
                    f"{path}: outputs differ by {errors[-1]:.1e} (relative) at {shown}; must be <= {tolerance:g}"
                )

    try:
        with evaluating(model):
            atomic_write(path, write)
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        raise ExportError(f"{path}: the ONNX exporter failed: {one_line(error)}") from error
    return Verified(path, max(errors), shown, f"onnxruntime {onnxruntime.__version__}")


def _largest_error(of_file: dict[str, Tensor], of_model: dict[str, Tensor]) -> float:
    """Return the largest |difference| over largest |value| of all outputs; infinity if shapes differ."""
    worst = 0.0
    for key, value in of_model.items():
        if of_file[key].shape != value.shape:
            return math.inf
        worst = max(worst, float((of_file[key] - value).abs().max() / value.abs().max().clamp(min=1e-12)))
    return worst


def _detection_error(of_file: dict[str, Tensor], of_model: dict[str, Tensor]) -> float:
    """Return the largest error of boxes (over the largest coordinate), scores and masks (mean) of paired detections.

    Detections are paired by label and box, because rounding may swap neighbours in the order of scores. Up to 2 % of
    them may have no partner, because rounding may move their score across a threshold; if more have none, the error is
    infinite.
    """
    count = max(len(of_file["boxes"]), len(of_model["boxes"]))
    if not count:
        return 0.0
    # 1. distances between the M boxes of the model and the F boxes of the file, infinite between different labels
    extent = float(of_model["boxes"].abs().max()) if len(of_model["boxes"]) else 1.0
    distance = torch.cdist(of_model["boxes"], of_file["boxes"], p=math.inf) / extent  # (M, F)
    distance[of_model["labels"][:, None] != of_file["labels"]] = math.inf
    # 2. the nearest partner of each of the model's detections: ``rows`` of the model, ``partners`` of the file
    rows, partners = [], []
    for i, row in enumerate(distance):
        if len(row) and row.min() < 1e-3:
            rows.append(i)
            partners.append(int(row.argmin()))
    if count - len(set(partners)) > 0.02 * count:
        return math.inf
    # 3. the largest error of all pairs
    errors = [distance[rows, partners].max(), (of_model["scores"][rows] - of_file["scores"][partners]).abs().max()]
    if "masks" in of_model:  # (M, 1, H, W)
        errors.append((of_model["masks"][rows] - of_file["masks"][partners]).abs().flatten(1).mean(1).max())
    return float(max(errors))

"""ONNX, verified in onnxruntime. Needs the extra ``onnx``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from zoo.checkpoint import atomic_write
from zoo.errors import ExportError


@dataclass(frozen=True)
class Verified:
    """A file that was run in its target's runtime.

    Attributes:
        path: the file.
        max_error: largest |difference| over largest |output|, over all checked inputs.
        batch_sizes: of the checked inputs.
        runtime: name and version.
    """

    path: Path
    max_error: float
    batch_sizes: tuple[int, ...]
    runtime: str

    def __str__(self) -> str:
        return f"{self.path}: agrees in {self.runtime} to {self.max_error:.1e} at batch sizes {self.batch_sizes}"


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    input_size: int | tuple[int, int],
    in_chans: int = 3,
    batch_sizes: tuple[int, ...] = (1, 3),
    tolerance: float = 1e-4,
) -> Verified:
    """Export with a dynamic batch, run the file in onnxruntime and compare.

    Args:
        model: takes (N, in_chans, H, W); exported in eval mode, its mode is restored.
        path: of the ``.onnx`` file; nothing is left there unless the outputs agree.
        input_size: H and W in pixels; fixed in the file.
        batch_sizes: at which the outputs are compared.
        tolerance: largest relative error that passes (float32).

    Raises:
        ExportError: the extra is not installed, the export fails, or outputs differ.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ImportError as error:
        raise ExportError(f"ONNX export needs {error.name}: pip install 'rescalenet-zoo[onnx]'") from None
    path = Path(path)
    size = (input_size, input_size) if isinstance(input_size, int) else input_size
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    training = model.training
    model.eval()

    def build(temporary: Path) -> None:
        sample = torch.randn(2, in_chans, *size, generator=generator).to(parameter)
        program = torch.onnx.export(
            model,
            (sample,),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
        assert program is not None
        program.save(str(temporary))
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        for batch in batch_sizes:
            x = torch.randn(batch, in_chans, *size, generator=generator).to(parameter)
            with torch.no_grad():
                expected = model(x).cpu()
            got = torch.from_numpy(session.run(None, {"images": x.cpu().numpy()})[0])
            error = float((got - expected).abs().max() / expected.abs().max())
            if not error <= tolerance:
                raise ExportError(f"{path}: outputs differ by {error:.1e} (relative) at batch size {batch}")
            errors.append(error)

    errors: list[float] = []
    try:
        atomic_write(path, build)
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        raise ExportError(f"{path}: the ONNX exporter failed: {error}") from error
    finally:
        model.train(training)
    return Verified(path, max(errors), batch_sizes, f"onnxruntime {onnxruntime.__version__}")

"""What a page shows: which deployments it takes, and an example of their input, made from the first sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from sentencepiece import sentencepiece_model_pb2
from torch import Tensor

from zoo.errors import ExportError
from zoo.export.graphs import Deployment
from zoo.files import write_text
from zoo.text import EOS, PAD, Vocabulary

_RATE = 8  # frames per second of an example of a clip whose frames are spread over the whole video


def is_shown(deployment: Deployment) -> bool:
    """Return whether the page runs the net on a user's input; otherwise it lists the inputs and outputs of the graphs.

    It does so for feature maps, and for nets whose input or classes are not described.

    Raises:
        ExportError: pictures with other channels than RGB or grey, or a vocabulary of a kind that the page does not
            read.
    """
    description = deployment.description
    if deployment.kind == "text":
        names = description.get("vocabularies", {})
        for name in dict.fromkeys(names.values()):
            _require_read(deployment.files[name], name)
        return bool(names)
    if not (description.get("input") and description.get("classes")):
        return False
    channels = len(description["input"]["mean"])
    if channels not in (1, 3):
        raise ExportError(f"export to onnx-web: browsers read pictures of 1 or 3 channels, not {channels}")
    return True


def _require_read(model: bytes, name: str) -> None:
    """Check that the page reads a vocabulary (``page/js/sentencepiece.js``).

    Raises:
        ExportError: another kind of model, or pieces of other types than normal ones.
    """
    models: Any = sentencepiece_model_pb2
    proto = models.ModelProto.FromString(model)
    trainer, types = proto.trainer_spec, {piece.type for piece in proto.pieces}
    kinds = (trainer.UNIGRAM, trainer.BPE)
    pieces = (proto.SentencePiece.NORMAL, proto.SentencePiece.UNKNOWN, proto.SentencePiece.CONTROL)
    for fault, reason in (
        (trainer.model_type not in kinds, "a model of another kind than bpe and unigram"),
        (bool(types - set(pieces)), "pieces that are bytes, user-defined or unused"),
        (trainer.treat_whitespace_as_suffix, "blanks at the ends of words"),
        (trainer.unk_surface not in ("", " \u2047 "), "a text of its own for unknown pieces"),
        (bool(proto.denormalizer_spec.precompiled_charsmap), "rules for decoding"),
    ):
        if fault:
            raise ExportError(f"export to onnx-web: {name}: the page does not read {reason}; choose another target")


def add_example(deployment: Deployment, folder: Path) -> None:
    """Write an example of the input: ``example.png``, ``example.webm`` or ``example.txt``."""
    if deployment.kind == "text":
        model = deployment.files[deployment.description["vocabularies"]["source"]]
        rows = [row.tolist() for sample in deployment.graphs[0].samples[:2] for row in sample[0]]
        write_text("\n".join(_sentences(model, rows)) + "\n", folder / "example.txt")
        return
    (sample,) = deployment.graphs[0].samples[0]
    if deployment.kind == "image_lists":
        _to_image(sample).save(folder / "example.png")
        return
    pixels = _in_unit_range(sample[0], deployment.description["input"])
    if deployment.kind == "images":
        _to_image(pixels).save(folder / "example.png")
    else:
        _write_clip(pixels, deployment.description["input"], folder / "example.webm")


def _sentences(model: bytes, rows: Sequence[Sequence[int]]) -> list[str]:
    """Return the sentences of rows of source tokens."""
    vocabulary = Vocabulary(model)
    return [vocabulary.decode([i for i in row if i not in (PAD, EOS)]) for row in rows]


def _in_unit_range(sample: Tensor, layout: Mapping[str, Any]) -> Tensor:
    """Return an input (C, [T,] H, W) as RGB or grey in 0..1."""
    if layout["standardised_in_graph"]:
        return sample
    shape = (-1, *[1] * (sample.ndim - 1))
    pixels = sample * sample.new_tensor(layout["std"]).view(shape) + sample.new_tensor(layout["mean"]).view(shape)
    return pixels.flip(0) if layout["channel_order"] == "BGR" else pixels


def _to_array(pixels: Tensor) -> np.ndarray:
    """Return a picture (C, H, W) in 0..1 as uint8 (H, W, C)."""
    values: np.ndarray = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return values


def _to_image(pixels: Tensor) -> Image.Image:
    values = _to_array(pixels)
    return Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)


def _write_clip(pixels: Tensor, layout: Mapping[str, Any], path: Path) -> None:
    """Write a clip (C, T, H, W) in 0..1 as a video whose frames at the times of the transform are those of the clip."""
    repeats = max(1, round(layout["interval"] or 1))
    rate = Fraction(layout["fps"] or _RATE).limit_denominator(1001)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libvpx-vp9", rate=rate, options={"crf": "10", "b": "0"})
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = (size // 2 * 2 for size in pixels.shape[2:])  # of whole chroma samples
        for number in range(pixels.shape[1]):
            image = _to_array(pixels[:, number].expand(3, -1, -1))[: stream.height, : stream.width]
            for _ in range(repeats):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode(None))

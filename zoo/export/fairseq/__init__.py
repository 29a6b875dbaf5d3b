"""Export to fairseq: the folder of its plug-in, and checkpoints for it.

``fairseq-train DATA --user-dir "$(python -c 'import zoo.export.fairseq as f; print(f.USER_DIR)')" --arch
rescale_transformer_wmt_en_de ...`` trains the net in fairseq.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import zoo
from zoo.convert.fairseq import dictionary, from_fairseq, to_fairseq
from zoo.errors import ExportError, ZooError
from zoo.export import Verified
from zoo.files import atomic_write, write_text

USER_DIR = str(Path(__file__).parent / "rescalenet_fairseq")


@dataclass(frozen=True)
class FairseqExport(Verified):
    """A checkpoint for fairseq; ``max_error`` is the largest absolute difference of logits.

    Attributes:
        plugin: whether fairseq needs the plug-in to load the checkpoint.
    """

    plugin: bool

    def __str__(self) -> str:
        needs = f"; it requires --user-dir {USER_DIR}" if self.plugin else ""
        return f"{self.path}: checkpoint.pt and dictionaries, largest difference {self.max_error:.2g}{needs}"


def export_fairseq(weights: zoo.Weights, folder: str | Path) -> FairseqExport:
    """Write ``checkpoint.pt``, ``dict.LANGUAGE.txt`` and the sentencepiece models for fairseq, then verify them.

    The checkpoint is read again and its logits are compared. The dictionaries are for ``fairseq-preprocess --srcdict
    --tgtdict``; the text must be cut into pieces with the sentencepiece models.

    Raises:
        ZooError: weights of a net that does not take text.
        ExportError: the file's logits differ from the net's.
    """
    transform = weights.transform
    if not isinstance(transform, zoo.TextTransform):
        raise ZooError(f"{weights.name}: not weights of a translation net; export to fairseq takes no others")
    coder = transform.build()
    source = torch.arange(4, min(20, len(coder.source)))[None]  # (1, S)
    target = torch.arange(4, min(16, len(coder.target)))[None]  # (1, T)
    model = zoo.create_model(weights.config.name, weights.name)
    return export_text(model, Path(folder), (source, target), weights)


def export_text(model: Any, path: Path, example: tuple[Any, ...], weights: zoo.Weights) -> FairseqExport:
    """Write the files of ``export_fairseq`` for a net that is not folded; compare at the example's token ids."""
    transform = weights.transform
    assert isinstance(transform, zoo.TextTransform)
    model.eval()
    # 1. the checkpoint, with the parts of a run's state that fairseq reads
    arguments, state = to_fairseq(model)
    coder = transform.build()
    arguments |= {"source_lang": transform.source, "target_lang": transform.target}
    content = {
        "args": Namespace(**arguments, left_pad_source=True, left_pad_target=False, data=str(path.name)),
        "cfg": None,
        "model": state,
        "optimizer_history": [{"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "task_state": {},
        "last_optimizer_state": None,
    }
    checkpoint = path / "checkpoint.pt"
    atomic_write(checkpoint, lambda temporary: torch.save(content, temporary))
    # 2. dictionaries and sentencepiece models
    for language, vocabulary in ((transform.source, coder.source), (transform.target, coder.target)):
        write_text(dictionary(vocabulary), path / f"dict.{language}.txt")
        atomic_write(path / f"{language}.model", lambda temporary, v=vocabulary: temporary.write_bytes(v.model))  # type: ignore[misc]
    # 3. the net that is read from the checkpoint computes the same
    with torch.no_grad():
        difference = float((model(*example) - from_fairseq(checkpoint)(*example)).abs().max())
    if not difference <= 1e-4:
        raise ExportError(f"{checkpoint}: its logits differ from the net's by {difference:.3g}; must be <= 1e-4")
    shown = ", ".join(f"{ids.shape[1]} tokens" for ids in example)
    return FairseqExport(path, difference, shown, "zoo.convert.fairseq", arguments["arch"] != "transformer")

"""fairseq: where its plug-in is, and checkpoints for it.

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
from zoo.files import atomic_write, write_text

USER_DIR = str(Path(__file__).parent / "rescalenet_fairseq")


@dataclass(frozen=True)
class FairseqExport:
    """What was written.

    Attributes:
        difference: largest absolute difference of logits between the net and the file, read again.
        plugin: whether fairseq needs the plug-in for it.
    """

    folder: Path
    difference: float
    plugin: bool

    def __str__(self) -> str:
        needs = f"; it needs --user-dir {USER_DIR}" if self.plugin else ""
        return f"{self.folder}: checkpoint.pt and dictionaries, largest difference {self.difference:.2g}{needs}"


def export_fairseq(weights: zoo.Weights, folder: str | Path) -> FairseqExport:
    """Write ``checkpoint.pt``, ``dict.LANGUAGE.txt`` and the sentencepiece models for fairseq; read again and compared.

    The dictionaries are what ``fairseq-preprocess --srcdict --tgtdict`` takes; the text must be cut into pieces with
    the sentencepiece models.

    Raises:
        ZooError: weights of a net that does not take text.
        ExportError: the file's logits differ from the net's.
    """
    folder, transform = Path(folder), weights.transform
    if not isinstance(transform, zoo.TextTransform):
        raise ZooError(f"{weights.name}: not weights of a translation net; fairseq takes no others")
    model: Any = zoo.create_model(weights.config.name, weights.name).eval()
    arguments, state = to_fairseq(model)
    coder = transform.build()
    arguments |= {"source_lang": transform.source, "target_lang": transform.target}
    content = {
        "args": Namespace(**arguments, left_pad_source=True, left_pad_target=False, data=str(folder.name)),
        "cfg": None,
        "model": state,
        "optimizer_history": [{"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "task_state": {},
        "last_optimizer_state": None,
    }
    path = folder / "checkpoint.pt"
    atomic_write(path, lambda temporary: torch.save(content, temporary))
    for language, vocabulary in ((transform.source, coder.source), (transform.target, coder.target)):
        write_text(dictionary(vocabulary), folder / f"dict.{language}.txt")
        atomic_write(folder / f"{language}.model", lambda temporary, v=vocabulary: temporary.write_bytes(v.model))  # type: ignore[misc]
    source = torch.arange(4, min(20, len(coder.source)))[None]
    target = torch.arange(4, min(16, len(coder.target)))[None]
    with torch.no_grad():
        difference = float((model(source, target) - from_fairseq(path)(source, target)).abs().max())
    if not difference <= 1e-4:
        raise ExportError(f"{path}: its logits differ from the net's by {difference:.3g}")
    return FairseqExport(folder, difference, arguments["arch"] != "transformer")

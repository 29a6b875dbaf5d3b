"""Export to fairseq: the folder of its plug-in, and checkpoints for it.

``fairseq-train DATA --user-dir "$(python -c 'import zoo.export.fairseq as f; print(f.USER_DIR)')" --arch
rescale_transformer_wmt_en_de ...`` trains the net in fairseq.

Checkpoints are compared without fairseq, by ``zoo.convert.fairseq``, which reads them as those of fairseq.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

import zoo
from zoo.convert.fairseq import dictionary, from_fairseq, needs_plugin, to_fairseq
from zoo.errors import ZooError
from zoo.export import TARGETS
from zoo.export.graphs import Arrays, Deployment, Graph, Runner, Settings
from zoo.export.text import whole_graph
from zoo.export.writing import Exported, export
from zoo.files import write_text

USER_DIR = str(Path(__file__).parent / "rescalenet_fairseq")


def export_fairseq(weights: zoo.Weights, folder: str | Path) -> Exported:
    """Write ``model.pt``, ``dict.LANGUAGE.txt`` and the sentencepiece models for fairseq, then verify them.

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
    ids = (torch.arange(4, min(count, len(side))) for count, side in ((20, coder.source), (16, coder.target)))
    source, target = (torch.stack([row, row.flip(0)]) for row in ids)  # (2, S) and (2, T)
    samples = [(source[:1], target[:1]), (source, target), (source[:, :5], target[:, :3])]
    model = zoo.create_model(weights.config.name, weights.name)
    graph = whole_graph(model, samples, "sequences of token ids", transform)
    return export(Deployment("text", (graph,), {}, weights), TARGETS["fairseq"], folder)


def path_of(graph: Graph, folder: Path) -> Path:
    """Return the checkpoint of a graph."""
    return folder / f"{graph.name}.pt"


def write(graph: Graph, folder: Path, settings: Settings) -> None:
    """Write a checkpoint with the parts of a run's state that fairseq reads.

    Raises:
        ZooError: a folded net.
    """
    transform = _transform(graph)
    arguments, state = to_fairseq(_net(graph))
    arguments |= {"source_lang": transform.source, "target_lang": transform.target}
    content = {
        "args": Namespace(**arguments, left_pad_source=True, left_pad_target=False, data="."),
        "cfg": None,
        "model": state,
        "optimizer_history": [{"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "task_state": {},
        "last_optimizer_state": None,
    }
    torch.save(content, path_of(graph, folder))


def load(graph: Graph, folder: Path) -> Runner:
    """Return a function that runs the net which ``zoo.convert.fairseq`` reads from the checkpoint."""
    net = from_fairseq(path_of(graph, folder))

    def run(inputs: Arrays) -> list[Any]:
        with torch.no_grad():
            return [net(*map(torch.from_numpy, inputs)).numpy()]

    return run


def finish(deployment: Deployment, folder: Path, settings: Settings) -> None:
    """Write the dictionaries and the sentencepiece models."""
    transform = _transform(deployment.graphs[0])
    coder = transform.build()
    for language, vocabulary in ((transform.source, coder.source), (transform.target, coder.target)):
        write_text(dictionary(vocabulary), folder / f"dict.{language}.txt")
        (folder / f"{language}.model").write_bytes(vocabulary.model)


def remark(deployment: Deployment) -> str:
    """Return whether fairseq needs the plug-in to load the checkpoint."""
    if not needs_plugin(_net(deployment.graphs[0])):
        return ""
    return (
        "fairseq requires the plug-in: --user-dir \"$(python -c 'import zoo.export.fairseq as f; print(f.USER_DIR)')\""
    )


def _net(graph: Graph) -> Any:
    assert graph.net is not None
    return graph.net


def _transform(graph: Graph) -> zoo.TextTransform:
    assert isinstance(graph.transform, zoo.TextTransform)
    return graph.transform

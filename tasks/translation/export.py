"""What a translation net is exported as: its encoder and its decoder's step, with a beam search around them."""

from __future__ import annotations

from pathlib import Path

import torch

import zoo
from tasks.errors import DataError
from tasks.exporting import ExportRequest
from tasks.spec import load_model
from tasks.translation.commands import TranslationExportOptions
from tasks.translation.lines import read_lines
from tasks.translation.search import Beam, beam_search
from zoo.errors import ExportError
from zoo.export.graphs import Deployment
from zoo.export.text import graphs_of, whole_graph
from zoo.export.translate import Translator
from zoo.text import EOS, Tokenizer, padded

SENTENCES = {
    "en": (
        "A brown dog jumps into the water.",
        "Two children are playing football in a park.",
        "A man with a red hat is sitting on a bench and reading a newspaper, while a woman walks by.",
        "Three women are standing in front of a shop.",
    ),
    "de": (
        "Ein brauner Hund springt ins Wasser.",
        "Zwei Kinder spielen in einem Park Fußball.",
        "Ein Mann mit rotem Hut sitzt auf einer Bank und liest eine Zeitung, während eine Frau vorbeigeht.",
        "Drei Frauen stehen vor einem Laden.",
    ),
}
MOST = 32  # sentences of a user's file that are compared


def deployment(entry: zoo.Weights, request: ExportRequest, options: TranslationExportOptions) -> Deployment:
    """Return the graphs of a translation net; their searches must find the hypotheses of ours.

    Raises:
        DataError: no sentences.
    """
    transform = entry.transform
    assert isinstance(transform, zoo.TextTransform)
    # 1. the net and the sentences
    coder, net = transform.build(), load_model(entry).eval()
    languages = {"source": transform.source, "target": transform.target}
    ids, shown = _sentences(coder, transform, request.data, net.layout.max_length)
    samples = [padded(rows) for rows in ([ids[0]], ids[1:4], [ids[-1], ids[0]])]
    if request.target.form == "net":
        pairs = [(source, torch.cat([source[:, -1:], source[:, :-1]], 1)) for source in samples]
        return Deployment("text", (whole_graph(net, pairs, shown, transform),), {"languages": languages})
    # 2. what a user needs around the graphs
    names = {"source": f"source.{transform.source}.model", "target": f"target.{transform.target}.model"}
    description = {
        "languages": languages,
        "vocabularies": names,
        "tokens": {"padding": 1, "end": EOS, "unknown": 3},
        "cleaning": transform.cleaning,
        "longest": transform.longest,
        "max_length": net.layout.max_length,
    }
    files = {names["source"]: coder.source.model, names["target"]: coder.target.model}
    # 3. the hypotheses that the files must find
    settings = Beam(beam=4)
    expected = [beam_search(net, torch.tensor([row]), settings)[0] for row in ids]

    def same_hypotheses(folder: Path, exact: bool) -> str:
        translate = Translator(folder, beam=settings.beam)
        other = [
            row
            for row, hypotheses in zip(ids, expected, strict=True)
            if [tokens for tokens, _ in translate.search(row)] != [hypothesis.tokens for hypothesis in hypotheses]
        ]
        if other and exact:
            raise ExportError(f"translate.py: finds other hypotheses for {coder.source.decode(other[0])!r}")
        return f"{len(ids) - len(other)} of {len(ids)} sentences have the same {settings.beam} hypotheses"

    graphs = graphs_of(net, samples, shown, folded=request.fold)
    return Deployment("text", graphs, description, files=files, check=same_hypotheses)


def _sentences(
    coder: Tokenizer, transform: zoo.TextTransform, data: Path | None, longest: int
) -> tuple[list[list[int]], str]:
    """Return the ids of at least 4 sentences, each with </s>, and their description."""
    if data is not None:
        lines = [line for line in read_lines(data) if line.strip()][:MOST]
        shown = f"{len(lines)} sentences of {data.name}"
    else:
        lines = list(SENTENCES.get(transform.source, ()))
        shown = f"{len(lines)} captions"
    rows = [[*ids, EOS] for ids in coder.encode(lines) if 0 < len(ids) < longest]
    if len(rows) >= 4:
        return rows, shown
    if data is not None:
        raise DataError(f"{data}: has {len(rows)} sentences that the net takes; at least 4 are compared")
    # no sentences of this language are at hand: pieces of its vocabulary
    count = len(coder.source) - 4
    return [
        [4 + (start + i) % count for i in range(8 + start)] + [EOS] for start in range(4)
    ], "pieces of the vocabulary"

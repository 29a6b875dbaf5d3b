"""Translations of a set, and their scores with sacrebleu's signatures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import zoo
from tasks.devices import process_state
from tasks.errors import DataError
from tasks.progress import Progress, print_line
from tasks.shards import gather_in_order, own_batch_size, own_part
from tasks.spec import load_model
from tasks.translation.search import Beam, Hypothesis, beam_search
from tasks.translation.sources import find_pairs
from tasks.translation.text import Pair
from zoo.nets.transformer import Transformer
from zoo.text import EOS, Tokenizer, padded
from zoo.transforms import TextTransform


class Score(NamedTuple):
    """A metric's value in points, and the signature that makes it comparable."""

    name: str
    value: float
    signature: str

    def __str__(self) -> str:
        return f"{self.name} {self.value:.2f}  {self.signature}"


def score(hypotheses: Sequence[str], references: Sequence[str], *, tokenized: bool = False) -> list[Score]:
    """BLEU and chrF of translations (sacrebleu).

    Args:
        tokenized: hypotheses and references are Moses-tokenised text: BLEU takes their words as they are, and a third
            score is ``compound_split_bleu``. Else they are plain text, which BLEU tokenises itself (13a).
    """
    from sacrebleu.metrics import BLEU, CHRF

    found = []
    for metric in (BLEU(tokenize="none", force=True) if tokenized else BLEU(), CHRF()):
        result = metric.corpus_score(list(hypotheses), [list(references)])
        found.append(Score(result.name, result.score, str(metric.get_signature())))
    if tokenized:
        found.append(compound_split_bleu(hypotheses, references))
    return found


def compound_split_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> Score:
    """BLEU of Moses-tokenised text whose hyphens are words of their own, as papers on WMT14 En-De report.

    ``a-b`` counts as ``a ##AT##-##AT## b`` (fairseq's compound_split_bleu.sh). It is higher than the BLEU of the same
    text, and comparable to nothing else.
    """
    from sacrebleu.metrics import BLEU

    def split(text: str) -> str:
        return re.sub(r"(?<=\S)-(?=\S)", " ##AT##-##AT## ", text)

    metric = BLEU(tokenize="none", force=True)
    result = metric.corpus_score([split(h) for h in hypotheses], [[split(r) for r in references]])
    return Score("compound-split BLEU", result.score, str(metric.get_signature()))


def translate_ids(
    model: Transformer,
    sentences: Sequence[Sequence[int]],
    settings: Beam,
    batch_size: int,
    *,
    progress: bool = False,
) -> list[list[Hypothesis]]:
    """Hypotheses of sentences (ids without </s>), in their order; longest first, so that memory runs out early.

    Each rank translates its share of the batches; all return all of them.

    Args:
        model: net in eval mode, on its device.
        sentences: token ids of each sentence.
        settings: search.
        batch_size: number of sentences of all ranks together.
        progress: whether progress is shown.
    """
    device, ranks = model.encoder_embedding.weight.device, process_state()
    order = sorted(range(len(sentences)), key=lambda i: -len(sentences[i]))
    size = own_batch_size(batch_size, ranks)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    own = own_part(len(batches), ranks)
    found: dict[int, list[Hypothesis]] = {}
    shown = progress and ranks.is_main_process
    with Progress(len(own), 0, size * ranks.num_processes, unit="sentences", enabled=shown) as bar:
        for done, number in enumerate(own, 1):
            rows = batches[number]
            source = padded([[*sentences[i], EOS] for i in rows]).to(device)  # (B, S)
            found.update(zip(rows, beam_search(model, source, settings), strict=True))
            bar.step(done)
    return gather_in_order(found)


def tokens_within(limit: int, sentences: Sequence[Sequence[int]]) -> tuple[list[list[int]], int]:
    """Sentences cut to ``limit`` tokens, and how many were cut."""
    return [list(s[:limit]) for s in sentences], sum(len(s) > limit for s in sentences)


def as_dict(scores: Sequence[Score]) -> dict[str, Any]:
    """For JSON."""
    return {s.name: {"score": s.value, "signature": s.signature} for s in scores}


def load_folded(entry: zoo.Weights) -> tuple[Transformer, Tokenizer]:
    """The net of weights, folded, on this process's device, and its tokenizer."""
    model = zoo.fold(load_model(entry)).to(process_state().device)
    assert isinstance(model, Transformer)
    return model, _transform(entry).build()


def _transform(entry: zoo.Weights) -> TextTransform:
    assert isinstance(entry.transform, TextTransform)
    return entry.transform


def read_set(entry: zoo.Weights, data: Path) -> list[Pair]:
    """The pairs of a set to evaluate, in the languages of the weights.

    Args:
        entry: weights.
        data: files, as ``tasks.translation.sources.find_files`` names them, or ``sacrebleu:`` and ``hf:`` names.

    Raises:
        DataError: no such set, or one without sentences.
    """
    transform = _transform(entry)
    named = str(data).startswith(("sacrebleu:", "hf:"))
    root, name = (Path(), str(data)) if named else (data.parent, data.name)
    pairs = list(find_pairs(root, name, (transform.source, transform.target))())
    if not pairs:
        raise DataError(f"{data}: no sentences")
    return pairs


def evaluate_pairs(
    entry: zoo.Weights,
    pairs: list[Pair],
    settings: Beam,
    *,
    batch_size: int = 64,
    tokenized: bool = False,
    progress: bool = False,
) -> tuple[list[Score], list[str]]:
    """Scores and translations of a set.

    Args:
        entry: weights.
        pairs: sentences with their references.
        settings: search.
        batch_size: number of sentences of all ranks together.
        tokenized: see ``score``.
        progress: whether progress is shown.
    """
    model, coder = load_folded(entry)
    limit = model.layout.max_length - 1
    sources, cut = tokens_within(limit, coder.source.encode([pair.source for pair in pairs]))
    if cut and process_state().is_main_process:
        print_line(f"{cut} sources have more than the {limit} tokens that the net takes: cut there")
    found = translate_ids(model, sources, settings, batch_size, progress=progress)
    texts = [coder.decode(hypotheses[0].tokens) for hypotheses in found]
    return score(texts, [pair.target for pair in pairs], tokenized=tokenized), texts

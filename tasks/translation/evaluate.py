"""Translations of a set, and their scores with sacrebleu's signatures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from accelerate.utils import gather_object

from tasks.devices import process_state
from tasks.progress import Progress
from tasks.translation.search import Beam, Hypothesis, beam_search
from zoo.nets.transformer import Transformer
from zoo.text import EOS, padded


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
        model: in eval mode, on its device.
        batch_size: sentences of all ranks together.
        progress: show how far it is.
    """
    device, own = model.encoder_embedding.weight.device, process_state()
    order = sorted(range(len(sentences)), key=lambda i: -len(sentences[i]))
    size = max(1, batch_size // own.num_processes)
    starts = range(0, len(order), size)[own.process_index :: own.num_processes]
    found: dict[int, list[Hypothesis]] = {}
    shown = progress and own.is_main_process
    with Progress(len(starts), 0, size * own.num_processes, unit="sentences", enabled=shown) as bar:
        for number, start in enumerate(starts, 1):
            rows = order[start : start + size]
            source = padded([[*sentences[i], EOS] for i in rows]).to(device)
            found.update(zip(rows, beam_search(model, source, settings), strict=True))
            bar.step(number)
    found = dict(gather_object(list(found.items())))
    return [found[i] for i in range(len(sentences))]


def tokens_within(limit: int, sentences: Sequence[Sequence[int]]) -> tuple[list[list[int]], int]:
    """Sentences cut to ``limit`` tokens, and how many were cut."""
    return [list(s[:limit]) for s in sentences], sum(len(s) > limit for s in sentences)


def as_dict(scores: Sequence[Score]) -> dict[str, Any]:
    """For JSON."""
    return {s.name: {"score": s.value, "signature": s.signature} for s in scores}

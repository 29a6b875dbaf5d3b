"""Translation of sets, and scores with the signatures of sacrebleu."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import zoo
from tasks.devices import process_state
from tasks.errors import DataError
from tasks.progress import Progress, print_line
from tasks.shards import chunks, gather_in_order, own_batch_size, own_part
from tasks.spec import load_model
from tasks.translation.pieces import Splitter
from tasks.translation.search import Beam, Hypothesis, beam_search
from tasks.translation.sources import find_pairs
from tasks.translation.text import Pair
from zoo.nets.transformer import Transformer
from zoo.text import EOS, Tokenizer, padded
from zoo.transforms import TextTransform


class Score(NamedTuple):
    """The value of a metric.

    Attributes:
        name: name of the metric.
        value: value in points, 0 to 100.
        signature: settings of sacrebleu; scores are comparable if their signatures are equal.
    """

    name: str
    value: float
    signature: str

    def __str__(self) -> str:
        return f"{self.name} {self.value:.2f}  {self.signature}"


def score(hypotheses: Sequence[str], references: Sequence[str], *, tokenized: bool = False) -> list[Score]:
    """Return BLEU and chrF of translations (sacrebleu).

    Args:
        hypotheses: translations.
        references: reference of each translation.
        tokenized: False: the texts are plain, and BLEU tokenises them itself (13a). True: they are Moses-tokenised,
            BLEU uses their words as they are, and ``compound_split_bleu`` is the third score.
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
    """Return BLEU of Moses-tokenised text in which hyphens are words, as papers on WMT14 En-De report it.

    ``a-b`` counts as ``a ##AT##-##AT## b`` (fairseq's compound_split_bleu.sh). The score is higher than the BLEU of the
    same text, and only comparable with scores of this kind.
    """
    from sacrebleu.metrics import BLEU

    def split(text: str) -> str:
        """Separate the parts of compounds."""
        return re.sub(r"(?<=\S)-(?=\S)", " ##AT##-##AT## ", text)

    metric = BLEU(tokenize="none", force=True)
    result = metric.corpus_score([split(h) for h in hypotheses], [[split(r) for r in references]])
    return Score("compound-split BLEU", result.score, str(metric.get_signature()))


def longest_first(sentences: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Return the numbers of the sentences in batches, longest first, so that a lack of memory shows at once."""
    return list(chunks(sorted(range(len(sentences)), key=lambda i: -len(sentences[i])), size))


def translate_ids(
    model: Transformer,
    sentences: Sequence[Sequence[int]],
    settings: Beam,
    batch_size: int,
    *,
    progress: bool = False,
) -> list[list[Hypothesis]]:
    """Return the hypotheses of each sentence. Each rank translates its part, and returns the results of all ranks.

    Args:
        model: net in eval mode, on its device.
        sentences: token ids of each sentence, without </s>.
        settings: settings of the search.
        batch_size: number of sentences of a batch on all ranks together.
        progress: whether progress is shown.
    """
    device, ranks = model.encoder_embedding.weight.device, process_state()
    size = own_batch_size(batch_size, ranks)
    batches = longest_first(sentences, size)
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


def translate_texts(
    model: Transformer,
    splitter: Splitter,
    texts: Sequence[str],
    settings: Beam,
    batch_size: int,
    *,
    progress: bool = False,
) -> list[str]:
    """Return the best translation of each sentence, as ``rescalenet predict`` prints it; see ``translate_ids``.

    Args:
        model: net in eval mode, on its device.
        splitter: function that cuts long sentences into pieces.
        texts: sentences.
        settings: settings of the search.
        batch_size: number of pieces of a batch on all ranks together.
        progress: whether progress is shown.
    """
    parts = [splitter(text) for text in texts]
    longer = sum(len(part) > 1 for part in parts)
    if longer and process_state().is_main_process:
        print_line(f"{longer} source sentences have more than {splitter.usual} tokens: translated in parts")
    pieces = [piece for part in parts for piece in part]
    found = iter(translate_ids(model, pieces, settings, batch_size, progress=progress))
    return [splitter.join(splitter.coder.decode(next(found)[0].tokens) for _ in part) for part in parts]


def as_dict(scores: Sequence[Score]) -> dict[str, Any]:
    """Return scores as they are stored in JSON files."""
    return {s.name: {"score": s.value, "signature": s.signature} for s in scores}


def load_folded(entry: zoo.Weights) -> tuple[Transformer, Tokenizer]:
    """Return the folded net of weights, on the device of this process, and its tokenizer."""
    model = zoo.fold(load_model(entry)).to(process_state().device)
    assert isinstance(model, Transformer)
    coder = entry.transforms()
    assert isinstance(coder, Tokenizer)
    return model, coder


def read_set(entry: zoo.Weights, data: Path) -> list[Pair]:
    """Return the pairs of a set, in the languages of the weights.

    Args:
        entry: weights of a translation net.
        data: name of the set: a path (``tasks.translation.sources.find_pair_files``), or a name with ``sacrebleu:`` or
            ``hf:``.

    Raises:
        DataError: a set that does not exist, or has no sentences.
    """
    assert isinstance(entry.transform, TextTransform)
    languages = entry.transform.source, entry.transform.target
    named = str(data).startswith(("sacrebleu:", "hf:"))
    root, name = (Path(), str(data)) if named else (data.parent, data.name)
    pairs = list(find_pairs(root, name, languages)())
    if not pairs:
        raise DataError(f"{data}: has no sentences")
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
    """Translate a set; return its scores and translations.

    Args:
        entry: weights of a translation net.
        pairs: sentences with their references.
        settings: settings of the search.
        batch_size: number of sentences of a batch on all ranks together.
        tokenized: True: the pairs are Moses-tokenised text; see ``score``.
        progress: whether progress is shown.
    """
    model, coder = load_folded(entry)
    splitter = Splitter.of(entry, model, coder)
    texts = translate_texts(model, splitter, [pair.source for pair in pairs], settings, batch_size, progress=progress)
    return score(texts, [pair.target for pair in pairs], tokenized=tokenized), texts

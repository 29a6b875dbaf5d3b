"""Translation of sets, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zoo
from tasks.devices import process_state
from tasks.errors import DataError
from tasks.progress import Progress, print_line
from tasks.shards import chunks, gather_in_order, own_batch_size, own_part
from tasks.spec import load_model
from tasks.translation.columns import Columns, has_columns
from tasks.translation.pieces import Splitter
from tasks.translation.scores import Score, Scoring, score
from tasks.translation.search import Beam, Hypothesis, beam_search
from tasks.translation.sources import Referenced, read_referenced
from zoo.nets.transformer import Transformer
from zoo.text import EOS, Tokenizer, padded
from zoo.transforms import TextTransform


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


def read_set(
    entry: zoo.Weights, data: Path, further: Sequence[Path] = (), columns: Columns | None = None
) -> list[Referenced]:
    """Return the sentences of a set with their references, in the languages of the weights.

    Args:
        entry: weights of a translation net.
        data: name of the set: a path (``tasks.translation.sources.find_pair_files``), or a name with ``sacrebleu:`` or
            ``hf:``.
        further: files with a further reference on each line.
        columns: columns of a .tsv file; see ``tasks.translation.columns.read_columns``.

    Raises:
        DataError: a set that does not exist, or has no sentences; columns of another file.
    """
    assert isinstance(entry.transform, TextTransform)
    languages = entry.transform.source, entry.transform.target
    left, two, right = str(data).partition("::")
    if str(data).startswith(("sacrebleu:", "hf:")):
        root, name = Path(), str(data)
    elif two:  # the second name is a path of its own
        root, name = Path(), f"{left}::{right}"
    else:
        root, name = data.parent, data.name
    if columns is not None and not has_columns(name):
        raise DataError(f"{data}: --columns is for .tsv files")
    found = read_referenced(root, name, languages, further, columns)
    if not found:
        raise DataError(f"{data}: has no sentences")
    return found


def evaluate_pairs(
    entry: zoo.Weights,
    pairs: Sequence[Referenced],
    settings: Beam,
    scoring: Scoring,
    *,
    batch_size: int = 64,
    longest: int | None = None,
    progress: bool = False,
) -> tuple[list[Score], list[str]]:
    """Translate a set; return its scores and translations.

    Args:
        entry: weights of a translation net.
        pairs: sentences with their references.
        settings: settings of the search.
        scoring: settings of the scores.
        batch_size: number of sentences of a batch on all ranks together.
        longest: number of tokens above which a sentence is translated in parts; None: the weights'.
        progress: whether progress is shown.
    """
    model, coder = load_folded(entry)
    splitter = Splitter.of(entry, model, coder, longest)
    texts = translate_texts(model, splitter, [pair.source for pair in pairs], settings, batch_size, progress=progress)
    return score(texts, [pair.references for pair in pairs], scoring), texts

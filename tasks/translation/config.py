"""Config of the translation task."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.config import ModelSection, RunConfig, Strict
from zoo.schemes.text import TRANSFORMER_SCHEMES

_LANGUAGE = r"^[A-Za-z0-9_-]{1,20}$"  # as zoo.TextTransform takes it


class CleanSection(Strict):
    """Which training pairs are dropped."""

    max_words: int = Field(250, ge=1, description="on either side")
    max_ratio: float = Field(3.0, ge=1, description="of the words of the longer side to those of the shorter")
    duplicates: Literal["drop", "keep"] = "drop"


class VocabularySection(Strict):
    """Sentencepiece vocabularies."""

    kind: Literal["bpe", "unigram"] = "bpe"
    size: int = Field(32000, ge=8, description="pieces, of each vocabulary")
    share: Literal["joint", "separate"] = Field("joint", description="joint: one for both languages")
    coverage: float = Field(1.0, gt=0, le=1, description="share of the characters that get a piece of their own")
    weights: str | None = Field(None, description="take the vocabularies of these weights instead, to fine-tune them")


class CorpusSection(Strict):
    """Where the text is, and what ``rescalenet prepare`` makes of it."""

    root: str = Field(description="folder of the text")
    source: str = Field(pattern=_LANGUAGE, description="source language, as in the files' names")
    target: str = Field(pattern=_LANGUAGE, description="target language")
    train: tuple[str, ...] = Field(min_length=1, description="names below root: tasks.translation.sources.find_pairs")
    val: str
    test: dict[str, str] = Field({}, description="further sets by name, kept as text")
    holdout: int = Field(0, ge=0, description="each n-th training pair is held out as val instead; 0: none")
    clean: CleanSection = CleanSection()
    vocabulary: VocabularySection = VocabularySection()


class SearchSection(Strict):
    """Search in evaluation: tasks.translation.search.Beam."""

    beam: int = Field(4, ge=1, description="1: greedy")
    length_penalty: float = 1.0
    max_ratio: float = Field(1.5, ge=0)
    max_extra: int = Field(20, ge=0)


class DataSection(Strict):
    """The corpus, and how training and evaluation use it."""

    corpus: CorpusSection
    folder: str = Field(description="of the prepared corpus")
    max_length: int = Field(256, ge=2, description="training pairs with more tokens on a side are left out, counted")
    eval_batch_size: int = Field(64, ge=1, description="sentences of all ranks together")
    search: SearchSection = SearchSection()


class TranslationModelSection(ModelSection):
    """The net. The sizes of its vocabularies are the corpus's."""

    scheme: str | None = Field(None, description=", ".join(TRANSFORMER_SCHEMES))


class TranslationConfig(RunConfig):
    """A run of translation; ``train.batch_size`` counts tokens, padding included, of either side."""

    task: Literal["translation"]
    model: TranslationModelSection
    data: DataSection
    label_smoothing: float = Field(0.1, ge=0, lt=1)

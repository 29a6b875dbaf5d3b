"""Config of the translation task."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tasks.config import FREE, BackboneSection, PathText, RunConfig, Strict, WeightsText
from tasks.errors import ConfigError
from tasks.translation.columns import checked_columns, has_columns
from zoo.schemes.text import TRANSFORMER_SCHEMES

LANGUAGE = r"^[A-Za-z0-9_-]{1,20}$"  # as in zoo.TextTransform
SetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]  # it names files of the corpus


def _further_set(name: str) -> str:
    if name in ("train", "val"):
        raise ValueError(f"{name!r} is a set of its own; choose another name")
    return name


class CleanSection(Strict):
    """Limits of training pairs; other pairs are dropped (tasks.translation.clean)."""

    max_words: int = Field(250, ge=1, description="largest number of words of either side")
    max_ratio: float = Field(3.0, ge=1, description="largest ratio of the words of the longer and the shorter side")
    duplicates: Literal["drop", "keep"] = Field("drop", description="what happens to a pair that occurred before")


class VocabularySection(Strict):
    """Sentencepiece vocabularies."""

    kind: Literal["bpe", "unigram"] = "bpe"
    size: int = Field(32000, ge=8, description="number of pieces of each vocabulary")
    share: Literal["joint", "separate"] = Field("joint", description="joint: one vocabulary for both languages")
    coverage: float = Field(1.0, gt=0, le=1, description="share of the characters that get a piece of their own")
    weights: WeightsText | None = Field(
        None, description="weights whose vocabularies are used instead of new ones, to fine-tune them"
    )


class CorpusSection(Strict):
    """Text, and its preparation by ``rescalenet prepare``."""

    root: Annotated[PathText, FREE] = Field(description="folder of the text")
    source: str | None = Field(
        None,
        pattern=LANGUAGE,
        description="code of the source language, as in the names of the files; default: that of model.weights",
    )
    target: str | None = Field(None, pattern=LANGUAGE, description="code of the target language, likewise")
    train: tuple[PathText, ...] = Field(
        min_length=1, description="names of the training texts; see tasks.translation.sources.find_pairs"
    )
    val: PathText = Field(description="name of the evaluation text")
    test: dict[Annotated[SetName, AfterValidator(_further_set)], PathText] = Field(
        {}, description="names of further sets, which are stored as text"
    )
    holdout: int = Field(0, ge=0, description="every n-th training pair is held out and replaces val; 0: none")
    columns: Annotated[tuple[str, str], AfterValidator(checked_columns)] | None = Field(
        None,
        description="columns of source and target in .tsv files, by number, from 1, or by name in the first line; "
        "default: those that the first line names, or both of two",
    )
    clean: CleanSection = CleanSection()
    vocabulary: VocabularySection = Field(
        VocabularySection(), description="default: the vocabularies of model.weights; without weights, new ones"
    )

    @model_validator(mode="after")
    def _columns_of_a_file(self) -> Self:
        if self.columns is not None and not any(map(has_columns, (*self.train, self.val, *self.test.values()))):
            raise ValueError("columns: is for .tsv files, and no text of train, val and test is one")
        return self

    @property
    def languages(self) -> tuple[str, str]:
        """Codes of the source and the target language.

        Raises:
            ConfigError: one is missing.
        """
        if self.source is None or self.target is None:
            key = "source" if self.source is None else "target"
            raise ConfigError(f"data.corpus.{key}: is missing; only model.weights have languages as defaults")
        return self.source, self.target


class SearchSection(Strict):
    """Search in evaluation; see tasks.translation.search.Beam."""

    beam: int = Field(4, ge=1, description="width of the beam; 1: greedy search")
    length_penalty: float = Field(1.0, ge=-10, le=10, description="exponent of the length in a score")
    max_ratio: float = Field(1.5, ge=0, description="largest number of target tokens for each source token ...")
    max_extra: int = Field(20, ge=0, description="... and target tokens that are allowed in addition")


class DataSection(Strict):
    """The corpus, and its use in training and evaluation."""

    corpus: CorpusSection
    folder: Annotated[PathText, FREE] = Field(description="folder of the prepared corpus")
    max_length: int = Field(256, ge=2, description="training pairs with more tokens on either side are left out")
    eval_batch_size: Annotated[int, FREE] = Field(
        64, ge=1, description="sentences of a batch in evaluation, on all ranks together"
    )
    tokenize: str | None = Field(
        None, description="tokeniser of sacrebleu's BLEU; default: that of the target language"
    )
    search: SearchSection = SearchSection()


class TranslationModelSection(BackboneSection):
    """The net. The sizes of its vocabularies are those of the corpus."""

    scheme: str | None = Field(None, description=", ".join(TRANSFORMER_SCHEMES))


class TranslationConfig(RunConfig):
    """A run of translation; ``train.batch_size`` counts tokens, padding included, of either side."""

    held_out_setting: ClassVar[str] = "data.corpus.holdout: 10, and a data.folder that was prepared with it"
    test_set_setting: ClassVar[str] = "data.corpus.holdout: 0, and a data.folder that was prepared with it"

    task: Literal["translation"]
    model: TranslationModelSection
    data: DataSection
    label_smoothing: float = Field(0.1, ge=0, lt=1)

    @property
    def metric(self) -> str:
        return "bleu"

    @property
    def evaluates_held_out(self) -> bool:
        return self.data.corpus.holdout > 0

    def without_augmentation(self) -> TranslationConfig:
        return self.model_copy(update={"label_smoothing": 0.0})

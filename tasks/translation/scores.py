"""Scores of translations with the signatures of sacrebleu."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tasks.errors import UserError
from tasks.translation.languages import bleu_tokenizer
from zoo.errors import one_line, suggestion

METRICS = ("bleu", "chrf", "chrf++", "ter")
_PACKAGES = {"ja-mecab": "sacrebleu[ja]", "ko-mecab": "sacrebleu[ko]"}


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


@dataclass(frozen=True)
class Scoring:
    """Settings of the scores.

    Attributes:
        tokenize: sacrebleu's tokeniser of BLEU.
        lowercase: whether case does not count.
        metrics: names from ``METRICS``.
        tokenized: whether the texts are Moses-tokenised: BLEU takes their words as they are, and
            ``compound_split_bleu`` is added.

    Raises:
        UserError: an unknown name, or a tokeniser that needs a package or a download that is not there.
    """

    tokenize: str = "13a"
    lowercase: bool = False
    metrics: tuple[str, ...] = ("bleu", "chrf")
    tokenized: bool = False

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in METRICS:
                raise UserError(f"metric {name!r}: must be one of {', '.join(METRICS)}{suggestion(name, METRICS)}")
        self._bleu()

    @classmethod
    def of(cls, language: str, tokenize: str | None = None, **settings: Any) -> Scoring:
        """Return the settings for a target language.

        Args:
            language: code of the language.
            tokenize: tokeniser in place of that of the language.
            settings: other attributes.

        Raises:
            UserError: see the class.
        """
        return cls(tokenize or bleu_tokenizer(language), **settings)

    def _bleu(self) -> Any:
        """Return sacrebleu's BLEU.

        Raises:
            UserError: a tokeniser that is unknown, or cannot be used here.
        """
        from sacrebleu.metrics import BLEU

        name = "none" if self.tokenized else self.tokenize
        if name not in BLEU.TOKENIZERS:
            raise UserError(f"tokeniser {name!r}: must be one of {', '.join(BLEU.TOKENIZERS)}")
        try:
            return BLEU(tokenize=name, lowercase=self.lowercase, force=self.tokenized)
        except (Exception, SystemExit) as error:  # of imports, of downloads: sacrebleu ends the process where one fails
            other = "choose another tokeniser, such as char"
            if name in _PACKAGES:
                raise UserError(
                    f"BLEU with {name} requires a package: pip install '{_PACKAGES[name]}'; or {other}"
                ) from None
            raise UserError(f"BLEU with {name} cannot be computed here ({one_line(error)[:200]}); {other}") from None

    def _metric(self, name: str) -> Any:
        """Return sacrebleu's metric."""
        from sacrebleu.metrics import CHRF, TER

        if name == "ter":
            return TER(case_sensitive=not self.lowercase)
        return CHRF(word_order=2 if name == "chrf++" else 0, lowercase=self.lowercase)


def score(
    hypotheses: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str | None]],
    scoring: Scoring | None = None,
    *,
    tokenized: bool = False,
) -> list[Score]:
    """Return the scores of translations (sacrebleu).

    Args:
        hypotheses: translations.
        references: reference of each translation, or its references; None where a translator has none.
        scoring: settings; default: BLEU (13a) and chrF.
        tokenized: the setting of this name, without others.
    """
    scoring = Scoring(tokenized=tokenized) if scoring is None else scoring
    streams = _streams(references)
    found = []
    for name in scoring.metrics:
        metric = scoring._bleu() if name == "bleu" else scoring._metric(name)
        result = metric.corpus_score(list(hypotheses), streams)
        found.append(Score(result.name, result.score, str(metric.get_signature())))
    if scoring.tokenized:
        found.append(compound_split_bleu(hypotheses, references))
    return found


def _streams(references: Sequence[str] | Sequence[Sequence[str | None]]) -> list[list[Any]]:
    """Return the references of each translator."""
    rows = [(each,) if isinstance(each, str) else tuple(each) for each in references]
    return [list(stream) for stream in zip(*rows, strict=True)]


def compound_split_bleu(hypotheses: Sequence[str], references: Sequence[str] | Sequence[Sequence[str | None]]) -> Score:
    """Return BLEU of Moses-tokenised text in which hyphens are words, as papers on WMT14 En-De report it.

    ``a-b`` counts as ``a ##AT##-##AT## b`` (fairseq's compound_split_bleu.sh). The score is higher than the BLEU of the
    same text, and only comparable with scores of this kind.

    Args:
        hypotheses: translations.
        references: see ``score``.
    """
    from sacrebleu.metrics import BLEU

    def split(text: Any) -> Any:
        """Separate the parts of compounds."""
        return None if text is None else re.sub(r"(?<=\S)-(?=\S)", " ##AT##-##AT## ", text)

    metric = BLEU(tokenize="none", force=True)
    result = metric.corpus_score([split(h) for h in hypotheses], [[split(r) for r in s] for s in _streams(references)])
    return Score("compound-split BLEU", result.score, str(metric.get_signature()))

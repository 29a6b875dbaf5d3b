"""Scores of translations."""

import pytest

from tasks.errors import UserError
from tasks.translation.scores import Scoring, compound_split_bleu, score


def test_scores_are_sacrebleus():
    import sacrebleu

    hypotheses = ["Der Hund läuft schnell.", "Ein Mann sitzt auf der Bank ."]
    references = ["Der Hund rennt schnell.", "Ein Mann sitzt auf einer Bank."]
    bleu, chrf = score(hypotheses, references)
    assert bleu.value == sacrebleu.corpus_bleu(hypotheses, [references]).score
    assert chrf.value == sacrebleu.corpus_chrf(hypotheses, [references]).score
    assert bleu.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    words, _, split = score(hypotheses, references, tokenized=True)
    assert "tok:none" in words.signature
    assert split.name == "compound-split BLEU"
    assert split.value == words.value  # no hyphens
    hyphens = compound_split_bleu(["the rock-solid old house is here"], ["the rock-solid new house is here"])
    expected = sacrebleu.corpus_bleu(
        ["the rock ##AT##-##AT## solid old house is here"],
        [["the rock ##AT##-##AT## solid new house is here"]],
        tokenize="none",
        force=True,
    )
    assert hyphens.value == expected.score


def test_scores_of_chinese_are_not_of_13a():
    """13a takes a Chinese sentence for a word or two."""
    import sacrebleu

    hypotheses, references = ["那只黑色的狗跑得很快。"], ["那只黑狗跑得很快。"]
    (bleu, _) = score(hypotheses, references, Scoring.of("zh-CN"))
    assert bleu.value == sacrebleu.corpus_bleu(hypotheses, [references], tokenize="zh").score > 20
    assert "tok:zh" in bleu.signature
    assert "tok:char" in score(hypotheses, references, Scoring.of("th"))[0].signature
    assert "tok:13a" in score(hypotheses, references, Scoring.of("de"))[0].signature


@pytest.mark.parametrize("language", ["ja", "ko"])
def test_a_tokeniser_without_its_package_is_refused_in_one_line(language, monkeypatch):
    from sacrebleu.metrics import BLEU

    def fail(*args, **options):
        raise RuntimeError("\nrequires extra dependencies\n")

    monkeypatch.setattr(BLEU, "__init__", fail)
    message = (
        rf"BLEU with {language}-mecab requires a package: pip install 'sacrebleu\[{language}\]'; or choose another"
    )
    with pytest.raises(UserError, match=message):
        Scoring.of(language)


def test_names_of_scores():
    with pytest.raises(UserError, match="metric 'bleurt': must be one of bleu"):
        Scoring(metrics=("bleurt",))
    with pytest.raises(UserError, match="tokeniser 'moses': must be one of none"):
        Scoring(tokenize="moses")


def test_several_references_and_other_metrics():
    import sacrebleu

    hypotheses = ["Der Hund läuft schnell.", "ein Mann sitzt"]
    references = [("Der Hund rennt schnell.", "Schnell läuft der Hund."), ("Ein Mann sitzt.", None)]
    streams = [[r[i] for r in references] for i in range(2)]
    found = score(hypotheses, references, Scoring(metrics=("bleu", "chrf", "chrf++", "ter"), lowercase=True))
    assert [each.value for each in found] == [
        sacrebleu.corpus_bleu(hypotheses, streams, lowercase=True).score,
        sacrebleu.metrics.CHRF(lowercase=True).corpus_score(hypotheses, streams).score,
        sacrebleu.metrics.CHRF(word_order=2, lowercase=True).corpus_score(hypotheses, streams).score,
        sacrebleu.corpus_ter(hypotheses, streams).score,
    ]
    assert [each.name for each in found] == ["BLEU", "chrF2", "chrF2++", "TER"]
    assert "case:lc" in found[0].signature
    assert "nrefs:var" in found[0].signature

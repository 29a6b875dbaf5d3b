"""Scores of translations."""

from tasks.translation.evaluate import compound_split_bleu, score


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

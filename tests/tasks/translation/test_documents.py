"""Sentences with ids, in any order and with gaps: a pair is never made of two ids."""

import random
from xml.sax.saxutils import escape

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.errors import DataError
from tasks.translation.sources import find_pairs

KEYS = [(document, segment) for document in "ab" for segment in range(4)]
changes = st.tuples(st.randoms(use_true_random=False), st.sets(st.sampled_from(KEYS)), st.booleans())


def changed(how):
    """The keys in an order of their own within their documents, some without, some twice."""
    order, missing, twice = how
    kept = [key for key in KEYS if key not in missing]
    random.Random(order.random()).shuffle(kept)
    documents = {name: [key for key in kept if key[0] == name] for name in order.sample("ab", 2)}
    if twice and kept:
        documents[kept[0][0]].append(kept[0])
    return documents


def segments(keys, language):
    return "".join(f'<seg id="{n}">{escape(f"{language} <{d}{n}> & so")}</seg>' for d, n in keys)


def sgm(documents, kind, language):
    texts = "".join(f'<doc docid="{d}" sysid="x">{segments(keys, language)}</doc>' for d, keys in documents.items())
    return f"<{kind} setid='s'>{texts}</{kind}>"


def xml(source, target):
    documents = "".join(
        f'<doc id="{d}"><ref lang="de" translator="A"><p>{segments(target.get(d, ()), "de")}</p></ref>'
        f'<src lang="en"><p>{segments(keys, "en")}</p></src></doc>'
        for d, keys in source.items()
    )
    return f"<dataset>{documents}</dataset>"


@pytest.mark.parametrize("form", ["sgm", "xml"])
@given(changes, changes)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_pairs_are_those_of_the_ids(tmp_path, form, first, second):
    source, target = changed(first), changed(second)
    if form == "sgm":
        (tmp_path / "t-src.en.sgm").write_text(sgm(source, "srcset", "en"))
        (tmp_path / "t-ref.de.sgm").write_text(sgm(target, "refset", "de"))
    else:
        (tmp_path / "t.xml").write_text(xml(source, target))
    common = {key for keys in source.values() for key in keys} & {key for keys in target.values() for key in keys}
    read = find_pairs(tmp_path, "t" if form == "sgm" else "t.xml", ("en", "de"))
    twice = any(len(keys) > len(set(keys)) for each in (source, target) for keys in each.values())
    if twice or not common:
        with pytest.raises(DataError, match=r"twice|no segment|has no|no document"):
            list(read())
        return
    found = list(read())
    assert {pair.source.removeprefix("en ") for pair in found} == {f"<{d}{n}> & so" for d, n in common}
    assert all(pair.source.removeprefix("en") == pair.target.removeprefix("de") for pair in found)

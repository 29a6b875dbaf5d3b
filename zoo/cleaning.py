"""The cleaning of sentences before they are tokenised. It imports no other module, so that exports contain it."""

from __future__ import annotations

import re

# Version of the rules of ``clean``, which weights and prepared corpora store. 1, until 0.1.0: format characters became
# blanks, and the source sentences of evaluation sets were taken as they were.
CLEANING = 2

# Characters without a width, which stand inside words: soft hyphens, zero-width spaces, byte order marks, marks of the
# direction of writing, annotations. The format characters that are seen, such as Arabic number signs, are not here.
_FORMAT = (
    r"\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f"
)
# Joiners (ZWNJ, ZWJ) are part of the spelling behind letters of scripts that join them: Arabic to Tibetan, Burmese,
# Khmer, Mongolian and their relatives. Behind symbols, ZWJ makes one emoji of several. Elsewhere they have no effect.
_JOINING = (
    r"\u0600-\u109f\u1700-\u1aff\u1b00-\u1cff\ua800-\uabff\ufb50-\ufdcf\ufdf0-\ufdff\ufe70-\ufefc"
    r"\U00010a00-\U00011fff\U0001e900-\U0001e95f"
)
_EMOJI = r"\u2190-\u2bff\u3030\u303d\ufe0f\U0001f000-\U0001faff"
JOINERS = "\u200c\u200d"
_VANISHING = re.compile(f"[{_FORMAT}]")
_STRAY_JOINERS = re.compile(f"(?<![{_JOINING}])\u200c|(?<![{_JOINING}{_EMOJI}])\u200d")
# Controls, private characters, surrogates and code points that are no characters.
_NO_TEXT = re.compile(
    r"[\x00-\x1f\x7f-\x9f\ud800-\uf8ff\ufdd0-\ufdef\ufffe\uffff\U000f0000-\U0010ffff"
    + "".join(rf"\U{plane:04x}fffe\U{plane:04x}ffff" for plane in range(1, 15))
    + "]"
)


def clean(text: str) -> str:
    """Return a sentence as nets are trained on it and translate it.

    Format characters without a width vanish, also joiners behind letters of scripts without joining. Control and
    private characters become blanks. Runs of blanks become one space, and those at the ends vanish.

    The vocabularies normalise what remains to NFKC, so both Unicode forms of a letter have the same ids.

    >>> clean(" gui\u00adtar\ufeff  and\x01drums ")
    'guitar and drums'
    """
    if not (text.isascii() and text.isprintable()):
        text = _NO_TEXT.sub(" ", _STRAY_JOINERS.sub("", _VANISHING.sub("", text)))
    return " ".join(text.split())

"""What depends on languages and scripts: words, sentences, and the tokenisation of scores."""

from __future__ import annotations

import re
from collections.abc import Iterator

# Two-letter codes of ISO 639 by the other codes and the English names of languages.
_ALIASES = {
    other: code
    for code, others in {
        "af": "afr afrikaans",
        "ar": "ara arb arabic",
        "be": "bel belarusian",
        "bg": "bul bulgarian",
        "bn": "ben bengali",
        "bo": "bod tib dz dzo tibetan",
        "ca": "cat catalan",
        "cs": "ces cze czech",
        "cy": "cym wel welsh",
        "da": "dan danish",
        "de": "deu ger german",
        "el": "ell gre greek",
        "en": "eng english",
        "eo": "epo esperanto",
        "es": "spa spanish",
        "et": "est ekk estonian",
        "eu": "eus baq basque",
        "fa": "fas per pes persian farsi",
        "fi": "fin finnish",
        "fr": "fra fre french",
        "ga": "gle irish",
        "gl": "glg galician",
        "gu": "guj gujarati",
        "he": "heb iw hebrew",
        "hi": "hin hindi",
        "hr": "hrv croatian",
        "hu": "hun hungarian",
        "hy": "hye arm armenian",
        "id": "ind indonesian",
        "is": "isl ice icelandic",
        "it": "ita italian",
        "ja": "jpn japanese",
        "ka": "kat geo georgian",
        "kk": "kaz kazakh",
        "km": "khm khmer",
        "ko": "kor korean",
        "lo": "lao",
        "lt": "lit lithuanian",
        "lv": "lav lvs latvian",
        "mk": "mkd mac macedonian",
        "mr": "mar marathi",
        "ms": "msa may zsm malay",
        "mt": "mlt maltese",
        "my": "mya bur burmese",
        "ne": "nep npi nepali",
        "nl": "nld dut dutch",
        "no": "nor nb nob nn nno norwegian",
        "pl": "pol polish",
        "ps": "pus pbt pashto",
        "pt": "por portuguese",
        "ro": "ron rum romanian",
        "ru": "rus russian",
        "si": "sin sinhala",
        "sk": "slk slo slovak",
        "sl": "slv slovenian",
        "sq": "sqi alb albanian",
        "sr": "srp serbian",
        "sv": "swe swedish",
        "sw": "swa swh swahili",
        "ta": "tam tamil",
        "te": "tel telugu",
        "th": "tha thai",
        "tr": "tur turkish",
        "uk": "ukr ukrainian",
        "ur": "urd urdu",
        "vi": "vie vietnamese",
        "zh": "zho chi cmn yue wuu lzh chinese",
    }.items()
    for other in others.split()
}
# Languages that are written without blanks between words.
WITHOUT_BLANKS = frozenset(("zh", "ja", "th", "lo", "km", "my", "bo"))

# Characters of scripts without blanks between words: Han and kana, of which two are about a word, and the scripts of
# South-East Asia and Tibet, of which four are (Thai: 4 to 5 characters, marks included).
_HAN = (
    r"\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    r"\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_ASIAN = r"\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\ua9e0-\ua9ff\uaa60-\uaa7f"
_DENSE = re.compile(f"[{_HAN}{_ASIAN}]")
_WORD = re.compile(f"[{_HAN}]+|[{_ASIAN}]+|[^\\W{_HAN}{_ASIAN}]+")
_FIRST_HAN = re.compile(f"[{_HAN}]")


def language_of(code: str) -> str:
    """Return the code of a language without script and country, that of two letters for those in the table above.

    >>> language_of("zho_Hans"), language_of("pt-BR"), language_of("English")
    ('zh', 'pt', 'en')
    """
    first = re.split("[-_]", code.lower())[0]
    return _ALIASES.get(first, first)


def count_words(text: str) -> int:
    """Return the number of words between blanks; in scripts without blanks it is estimated from the characters.

    >>> count_words("A black dog runs."), count_words("我喜欢那只黑色的狗。")
    (4, 4)
    """
    words = text.split()
    if not _DENSE.search(text):
        return len(words)
    return sum(_dense_words(word) if _DENSE.search(word) else 1 for word in words)


def _dense_words(word: str) -> int:
    """Return the number of words in a text without blanks."""
    count = 0.0
    for run in _WORD.findall(word):
        count += len(run) / (2 if _FIRST_HAN.match(run) else 4) if _DENSE.match(run) else 1
    return max(1, round(count))


def joint(code: str) -> str:
    """Return what stands between two sentences of a language: a space, or nothing."""
    return "" if language_of(code) in WITHOUT_BLANKS else " "


def bleu_tokenizer(code: str) -> str:
    """Return the name of sacrebleu's tokeniser for a target language.

    >>> bleu_tokenizer("de"), bleu_tokenizer("zh-CN"), bleu_tokenizer("th")
    ('13a', 'zh', 'char')
    """
    language = language_of(code)
    own = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
    return own.get(language, "char" if language in WITHOUT_BLANKS else "13a")


# -- sentences -----------------------------------------------------------------------------------------

_CLOSING = "\"'\u2019\u201d\u00bb\u203a)]}\u300d\u300f\uff09\u3011\u300b"
_WIDE_END = re.compile(f"[\u3002\uff01\uff1f\uff61]+[{re.escape(_CLOSING)}]*")  # without a blank behind it
_ENDS = "!?\u2026\u061f\u06d4\u0964\u0965\u0589\u1362\u17d4\u17d5\u104b\u0f0d\u203c\u2049"  # with a blank behind it
# Words whose dot belongs to them: single letters, "z.B", "U.S", "Mr", "St", numbers of lists.
_ABBREVIATION = re.compile(
    r"\W*(?:\w|\w+(?:\.\w+)+|[A-Z\u00c0-\u00de][a-z]{1,2}|\d{1,3}|Prof|Mrs|Inc|Corp|Ltd|approx|vgl|bzw|etc|usw)"
)
_LONGEST_ABBREVIATION = 12  # characters
_TOKEN = re.compile(r"\S+\s*")


def sentences(text: str) -> list[str]:
    """Return the sentences of a cleaned line, with the blanks behind them: joined they are the line.

    A dot ends a sentence unless the word before it is short or has dots itself ("Dr.", "z.B."), or a small letter
    follows.

    >>> sentences("Dr. Who runs. He is late! 好。")
    ['Dr. Who runs. ', 'He is late! ', '好。']
    """
    ends = sorted({*_ends(text), len(text)})
    return [text[begin:end] for begin, end in zip([0, *ends], ends, strict=False) if end > begin]


def _ends(text: str) -> Iterator[int]:
    """Yield the places behind the ends of sentences."""
    for token in _TOKEN.finditer(text):
        word, end = token[0].rstrip(), token.end()
        for found in _WIDE_END.finditer(word):
            place = token.start() + found.end()
            yield end if found.end() == len(word) else place
        core = word.rstrip(_CLOSING)
        if core.endswith(tuple(_ENDS)) or (core.endswith(".") and _dot_ends(core.rstrip("."), text[end : end + 1])):
            yield end


def _dot_ends(word: str, following: str) -> bool:
    """Return whether a dot ends a sentence: the word before it, and the character that follows."""
    return not following.islower() and not (
        len(word) <= _LONGEST_ABBREVIATION and _ABBREVIATION.fullmatch(word) is not None
    )

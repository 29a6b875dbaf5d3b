"""Made captions in English and German."""

import random

from tests.helpers.translation import lines

WHO = (("A man", "Ein Mann"), ("A woman", "Eine Frau"), ("A dog", "Ein Hund"), ("A child", "Ein Kind"))
WHAT = (("runs", "rennt"), ("sleeps", "schläft"), ("stands", "steht"), ("sits", "sitzt"))
WHERE = (
    ("on the beach", "am Strand"),
    ("in the snow", "im Schnee"),
    ("on the street", "auf der Straße"),
    ("in a park", "in einem Park"),
    ("on a bench", "auf einer Bank"),
)


def captions(count, seed=0):
    """Sentences with their translations."""
    generator = random.Random(seed)
    found = []
    for _ in range(count):
        parts = [generator.choice(words) for words in (WHO, WHAT, WHERE)]
        number = generator.randrange(1000)
        found.append(tuple(" ".join(part[side] for part in parts) + f" {number}." for side in (0, 1)))
    return found


def write_captions(folder, **sets):
    """Write sets of that many captions as FOLDER/SET.en and SET.de."""
    for seed, (name, count) in enumerate(sets.items()):
        pairs = captions(count, seed)
        for side, language in enumerate(("en", "de")):
            lines(folder / f"{name}.{language}", *(pair[side] for pair in pairs))

"""Thousands of files of mixed lines: every line has one result, in order, and memory stays where it is."""

import gzip
import json
import random
import sys

import pytest

from tests.helpers.captions import captions
from tests.soak.kit import watch

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

HOSTILE = (
    "",
    "   ",
    "\u00ad\u200b\ufeff",
    "\x00\x01\x1b[2J",
    "a\u2028b\x85c\x0bd",
    "\U0010ffff\ue000",
    "\uff41\uff42\uff43 \ufdfa" * 20,
    "e\u0301" * 300,
    "x" * 3000,
    "one two three " * 300,
    "A dog runs. " * 60,
    "狗。" * 200,
    "👩\u200d🔬 \u202eabc",
)  # fmt: skip


def mixed_files(folder, count):
    """Files of a few lines of all kinds, some compressed; return their names and the lines in order."""
    generator = random.Random(0)
    names, every = [], []
    plain = [source for source, _ in captions(500)]
    for number in range(count):
        lines = [generator.choice(plain) for _ in range(generator.randint(0, 3))]
        if generator.random() < 0.1:
            lines.append(generator.choice(HOSTILE))
        ending = generator.choice(("\n", "\n", "\r\n"))
        content = "".join(line + ending for line in lines).encode()
        name = f"{number}.en"
        if number % 10 == 0:
            name, content = f"{name}.gz", gzip.compress(content)
        (folder / name).write_bytes(content)
        names.append(name)
        every += lines
    return names, every


def test_predict_over_many_files_of_lines(tmp_path, count):
    names, lines = mixed_files(tmp_path, count)
    weights = "rescale_transformer_tiny.multi30k_en_de"
    options = ["--format", "json", "--beam", "1", "--device", "cpu", "--out", "out"]
    found = watch("predict", weights, *names, *options, errors=tmp_path / "errors.txt", folder=tmp_path)
    assert found.code == 0, found.errors[-2000:]
    assert "Traceback" not in found.errors
    results = [json.loads(line) for line in found.lines]
    assert [result["source"] for result in results] == lines
    assert json.loads((tmp_path / "out/translations.json").read_text()) == results
    print(f"{len(results)} results, growth {found.growth():.1f} MB, peak {found.peak:.0f} MB")
    assert found.peak < 1200
    assert found.growth() < 64, found.memory[:: max(len(found.memory) // 20, 1)]

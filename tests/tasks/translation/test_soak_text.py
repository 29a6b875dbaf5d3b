"""Many mixed lines and files: every line has one result, in order, and memory stays flat."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys

import pytest

from tests.helpers.captions import captions
from tests.helpers.commands import environment

FILES = int(os.environ.get("RESCALENET_SOAK_FILES", "2000"))
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

PROGRAM = """
import resource, sys
from tasks import cli
from tasks.printing import Results

count, add = 0, Results.add

def counted(self, *arguments):
    global count
    add(self, *arguments)
    count += 1
    if count in (STEPS):
        with open("/proc/self/statm") as file:
            print("memory", count, int(file.read().split()[1]) * resource.getpagesize(), file=sys.stderr)

Results.add = counted
sys.argv = ["rescalenet", "predict", *sys.argv[1:]]
cli.main()
"""


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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_every_line_of_many_files_is_translated(tmp_path):
    names, lines = mixed_files(tmp_path, FILES)
    steps = [len(lines) // 3, len(lines) - 1]
    program = PROGRAM.replace("STEPS", ", ".join(map(str, steps)))
    weights = "rescale_transformer_tiny.multi30k_en_de"
    options = ["--format", "json", "--beam", "1", "--device", "cpu", "--out", "out"]
    call = [sys.executable, "-c", program, weights, *names, *options]
    ended = subprocess.run(call, cwd=tmp_path, env=environment(), capture_output=True, check=False)
    error = ended.stderr.decode()
    assert ended.returncode == 0, error[-2000:]
    assert "Traceback" not in error
    results = ended.stdout.decode().split("\n")[:-1]
    assert len(results) == len(lines)
    assert [json.loads(result)["source"] for result in results] == lines
    assert [entry["source"] for entry in json.loads((tmp_path / "out/translations.json").read_text())] == lines
    memory = [int(row.split()[2]) for row in error.split("\n") if row.startswith("memory ")]
    assert len(memory) == 2
    assert memory[1] - memory[0] < 2**26  # 64 MiB for two thirds of the lines


def test_a_program_gets_an_answer_before_it_writes_the_next_line():
    call = [sys.executable, "-m", "tasks.cli", "predict", "rescale_transformer_tiny.multi30k_en_de", "-", "--beam", "1"]
    process = subprocess.Popen(
        call, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for _ in range(2):  # without the answer, this reads until the time limit of the tests
        process.stdin.write(b"A dog runs.\n")
        assert "Hund" in process.stdout.readline().decode()
    process.stdin.close()
    assert process.wait(60) == 0


def test_an_input_that_cannot_be_read_costs_no_other_line(tmp_path):
    (tmp_path / "a.en").write_bytes(b"A dog runs.\nb\xe4d\nlost\n")
    (tmp_path / "b.en").write_text("A cat sleeps.\n")
    call = [sys.executable, "-m", "tasks.cli", "predict", "rescale_transformer_tiny.multi30k_en_de"]
    call += ["a.en", "b.en", "--beam", "1", "--out", "out"]
    ended = subprocess.run(call, cwd=tmp_path, env={**environment()}, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert len(ended.stdout.splitlines()) == 2
    assert ended.stderr.splitlines()[-1].startswith("error: a.en, line 2: not UTF-8")
    assert (tmp_path / "out/translations.json").read_text().count('"source"') == 2

"""Translation as a part of a pipe, and inputs that cannot be read to their ends."""

from __future__ import annotations

import subprocess
import sys

from tests.helpers.commands import environment


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
    ended = subprocess.run(call, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert len(ended.stdout.splitlines()) == 2
    assert ended.stderr.splitlines()[-1].startswith("error: a.en, line 2: not UTF-8")
    assert (tmp_path / "out/translations.json").read_text().count('"source"') == 2

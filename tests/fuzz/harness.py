"""Runs hostile inputs in forks of a process that has loaded everything, and checks how they end.

``Harness.check`` writes the files of an input into a fresh folder, runs commands on them in ``tests.fuzz.server``, and
asserts for each command:

- the exit status is 0, 1 or 2, and no signal ended the process;
- standard error has no traceback and no warning of Python, and with status 1 it ends with one line ``error: ...``
  (``predict`` may end with the number of files that could not be read instead, ``check`` with its report);
- no terminal escape sequences and other control characters are printed;
- no file outside of ``out`` was made, changed or removed, and no file of the neighbour folder was read;
- memory and time are within bounds.

An input that fails is written out whole, with the calls that run it again.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

MEMORY = 3 * 2**30  # bytes of address space beyond those of the loaded process
PEAK = 2**29  # bytes of memory beyond those of the loaded process, unless a test allows more
SECONDS = 10  # of processor time, for all commands of an input
LONGEST_LINE = 20_000  # characters of a line on standard error

FAST = 200  # inputs of a kind in make test; dear ones have a share of it

Command = Sequence[str]


class Harness:
    """A server that runs inputs; one for all tests of a process.

    Args:
        root: folder for the inputs, and for the home of the server.

    Attributes:
        fixed: folder of valid artefacts, which commands may name and never change.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.fixed, self.home = root, root / "fixed", root / "home"
        self.box = root / "box"
        for folder in (self.fixed, self.home, root / "capture", root / "tmp"):
            folder.mkdir()
        environment = {
            **os.environ,
            **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")},
            "MALLOC_ARENA_MAX": "1",  # arenas of threads would fill the address space
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.home),
            "TMPDIR": str(root / "tmp"),
            "RESCALENET_HOME": str(self.home / "cache"),
            "HF_HUB_OFFLINE": "1",
            "MPLBACKEND": "agg",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # CUDA's own check fails in forked processes, with a warning
            "TERM": "dumb",
            "COLUMNS": "100",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.server"],
            env=environment,
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(root / "server.err").open("w"),
        )
        assert self._read() == "ready", (root / "server.err").read_text()

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        """End the server: by an empty line, because processes that a test forked may hold the pipe open."""
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        self.process.stdin.close()
        self.process.wait(30)

    def check(
        self,
        files: Mapping[str, bytes],
        *commands: Command,
        writable: Sequence[str] = ("out",),
        peak: int = PEAK,
        seconds: int = SECONDS,
    ) -> list[int]:
        """Run commands on the files of an input, and assert that they end as the module's docstring says.

        Args:
            files: content of each file, by its path below the folder in which the commands run.
            commands: arguments of ``rescalenet``, or of a reader of ``tests.fuzz.readers`` with an @ before its name.
                ``{box}`` stands for the parent of the commands' folder, in the content of files as well.
            writable: paths below the folder that may change.
            peak: largest memory in bytes, beyond that of the loaded process.
            seconds: largest processor time.

        Returns:
            The exit status of each command.
        """
        self._write(files)
        work, before = self.box / "work", self._snapshot(writable)
        arguments = [[text.replace("{box}", str(self.box)) for text in command] for command in commands]
        request = {
            "folder": str(work),
            "writable": [str(work / name) for name in writable] + [str(self.home / "cache")],
            "secret": str(self.box / "neighbour"),
            "capture": str(self.root / "capture"),
            "commands": arguments,
            "seconds": seconds,
            "memory": MEMORY,
        }
        assert self.process.stdin is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        line = self._read()
        assert line, f"the server ended: {(self.root / 'server.err').read_text()[-2000:]}"
        reply = json.loads(line)
        if problems := self._problems(reply, arguments, before, writable, peak):
            self._fail(problems, files, arguments)
        return reply.get("statuses", [])

    def _fail(self, problems: Sequence[str], files: Mapping[str, bytes], commands: Sequence[Command]) -> None:
        """Fail with all that is needed to run the input again."""
        shown = [f"{name} ({len(content)} bytes): {content[:2000]!r}" for name, content in files.items() if content]
        lines = [f"rescalenet {' '.join(map(repr, command))}" for command in commands]
        pytest.fail("\n".join([*problems, *shown, f"in {self.box / 'work'}:", *lines]), pytrace=False)

    def _write(self, files: Mapping[str, bytes]) -> None:
        shutil.rmtree(self.box, ignore_errors=True)
        for name in ("work/out", "neighbour"):
            (self.box / name).mkdir(parents=True)
        (self.box / "neighbour" / "secret.txt").write_text("secret")
        for name, content in files.items():
            path = self.box / "work" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.replace(b"{box}", str(self.box).encode()))

    def _snapshot(self, writable: Sequence[str]) -> dict[str, tuple[int, int, int]]:
        """Return mode, size and time of everything in the folders that must stay as it is."""
        found = {}
        allowed = [self.box / "work" / name for name in writable]
        for top in (self.box, self.root / "tmp"):
            for folder, folders, files in os.walk(top):
                folders[:] = [name for name in folders if Path(folder, name) not in allowed]
                for name in [*folders, *files]:
                    path = Path(folder, name)
                    if path not in allowed:
                        stat = path.lstat()
                        found[str(path)] = (stat.st_mode, 0 if name in folders else stat.st_size, stat.st_mtime_ns)
                        if name in folders:
                            found[str(path)] = (stat.st_mode, 0, 0)
        return found

    def _problems(
        self,
        reply: dict,
        commands: Sequence[Command],
        before: dict[str, tuple[int, int, int]],
        writable: Sequence[str],
        peak: int,
    ) -> list[str]:
        """Return what the input did that no input may do."""
        if number := reply.get("signal"):
            name = signal.Signals(number).name if number > 0 else f"exit status {-number}"
            texts = [p.read_text(errors="replace")[-500:] for p in sorted((self.root / "capture").glob("*.err"))]
            return [f"ended by {name}", *texts]
        problems = [f"forbidden: {found}" for found in reply["found"]]
        for number, (command, status) in enumerate(zip(commands, reply["statuses"], strict=True)):
            out, err = ((self.root / "capture" / f"{number}.{name}").read_bytes() for name in ("out", "err"))
            problems += [f"{command[0]}: {text}" for text in wrong_output(command[0], status, out, err)]
        after = self._snapshot(writable)
        for path in sorted(before.keys() | after.keys()):
            if before.get(path) != after.get(path):
                problems.append(f"outside of {', '.join(writable)}: {path} was made, changed or removed")
        if reply["peak"] - reply["base"] > peak:
            problems.append(
                f"{(reply['peak'] - reply['base']) / 2**20:.0f} MiB of memory, must be <= {peak / 2**20:.0f}"
            )
        return problems


def wrong_output(command: str, status: int | str, out: bytes, err: bytes) -> list[str]:
    """Return what is wrong with the end of a command: its status, and what it printed.

    Args:
        command: name of the command.
        status: exit status, or the last line of a traceback.
        out: standard output.
        err: standard error.
    """
    text = err.decode("utf-8", "replace")
    if status not in (0, 1, 2):
        return [f"{status}\n{text[-1500:]}"]
    problems = []
    if "Traceback (most recent call last)" in text or "Warning: " in text:
        problems.append(f"a traceback or warning on standard error:\n{text[-1500:]}")
    lines = text.rstrip("\n").split("\n")
    errors = [line for line in lines if line.startswith("error: ")]
    unread = command == "predict" and lines and " could not be read" in text
    unread = unread or (command == "check" and b"stops training: " in out)  # its report is its result
    if status == 1 and not (len(errors) == 1 and lines[-1] == errors[0]) and not (unread and not errors):
        problems.append(f"exit status 1 without one last line 'error: ...':\n{text[-1500:]}")
    if status == 0 and errors:
        problems.append(f"exit status 0 with an error:\n{text[-1500:]}")
    if any(len(line) > LONGEST_LINE for line in lines):
        problems.append(f"a line of more than {LONGEST_LINE} characters on standard error:\n{text[:300]}...")
    shown = (text + out.decode("utf-8", "replace")).replace("\n", " ")
    if odd := {character for character in shown if ord(character) < 32 or 127 <= ord(character) < 160}:
        problems.append(f"control characters {sorted(odd)} printed:\n{text[-1500:]!r}")
    return problems

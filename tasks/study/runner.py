"""The runs of a study as processes: several at a time, each with its share of the threads."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from tasks.devices import available_cpus
from tasks.errors import UserError
from tasks.parent import PARENT
from tasks.study.plan import StudyRun
from tasks.study.results import Result, is_complete, read_result

LOG_FILE = "output.txt"  # in a run's folder: what its process prints
_POLL = 0.2  # seconds between looks at the processes


@dataclass(frozen=True)
class Slots:
    """The processes that run at the same time.

    Attributes:
        jobs: number of processes.
        threads: CPU threads of each.
    """

    jobs: int
    threads: int

    @classmethod
    def of_machine(cls, jobs: int | None = None, threads: int | None = None) -> Slots:
        """Return slots for this machine: by default one process for each GPU (at least one), and all CPUs shared."""
        jobs = jobs or max(1, torch.cuda.device_count())
        return cls(jobs, threads or max(1, available_cpus() // jobs))

    def environment(self, slot: int) -> dict[str, str]:
        """Return the environment of the process in a slot.

        Processes whose threads together exceed the CPUs slow each other down many times, because OpenMP's threads wait
        for each other actively. So each has its share, and waits passively. GPUs are dealt out in turn.
        """
        content = {
            **os.environ,
            "OMP_NUM_THREADS": str(self.threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            PARENT: str(os.getpid()),
        }
        if devices := visible_gpus():
            content["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
        return content


def visible_gpus() -> list[str]:
    """Return the names of the GPUs of this process, as ``CUDA_VISIBLE_DEVICES`` has them."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = listed.split(",") if listed else [str(i) for i in range(torch.cuda.device_count())]
    return names[: torch.cuda.device_count()]


def command(arguments: Sequence[str]) -> list[str]:
    """Return a command line that runs this program, with whatever extensions it was started with."""
    program = Path(sys.argv[0])
    if program.suffix == ".py" and program.name != "cli.py" and program.is_file():
        return [sys.executable, str(program), *arguments]
    return [sys.executable, "-m", "tasks.cli", *arguments]


@dataclass
class _Job:
    """A process at work on a run."""

    run: StudyRun
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    begun: float = field(default_factory=time.monotonic)


class Runner:
    """Runs processes in slots until all runs are done.

    Args:
        slots: processes that run at the same time.
        fit_batches: batches of ``rescalenet train-loss``.
    """

    def __init__(self, slots: Slots, fit_batches: int) -> None:
        self.slots, self.fit_batches = slots, fit_batches
        self.jobs: dict[int, _Job] = {}  # by slot
        self.failed: dict[str, str] = {}  # label of a run -> reason

    def execute(
        self,
        runs: Iterable[StudyRun],
        *,
        on_end: Callable[[Result, float], None],
        on_poll: Callable[[Sequence[StudyRun]], None],
    ) -> None:
        """Complete the runs that are not complete. A run that fails is noted in ``failed``, and the others go on.

        Args:
            runs: runs in the order in which they begin.
            on_end: function of the result of a run that ended and the seconds that it took.
            on_poll: function of the runs in progress, called several times a second.
        """
        waiting = list(runs)[::-1]
        try:
            while waiting or self.jobs:
                for slot in range(self.slots.jobs):
                    if slot not in self.jobs and waiting:
                        self._start(slot, waiting.pop())
                    if slot in self.jobs and self.jobs[slot].process.poll() is not None:
                        self._ended(slot, on_end)
                on_poll([job.run for job in self.jobs.values()])
                time.sleep(_POLL)
        finally:
            self._stop()

    def _start(self, slot: int, run: StudyRun, begun: float | None = None) -> None:
        """Start the next process of a run: training, or the measurement of its loss."""
        arguments = next_arguments(run, self.fit_batches)
        if arguments is None:
            return
        run.folder.mkdir(parents=True, exist_ok=True)
        output = (run.folder / LOG_FILE).open("ab")
        process = subprocess.Popen(
            command(arguments),
            env=self.slots.environment(slot),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        self.jobs[slot] = _Job(run, process, output, time.monotonic() if begun is None else begun)

    def _ended(self, slot: int, on_end: Callable[[Result, float], None]) -> None:
        """Go on after a process: with the next one of its run, or with the end of the run."""
        job = self.jobs.pop(slot)
        job.output.close()
        result = read_result(job.run)
        if job.process.returncode and result.status != "diverged":
            self.failed[job.run.label] = last_line(job.run.folder / LOG_FILE)
            on_end(result, time.monotonic() - job.begun)
            return
        self._start(slot, job.run, job.begun)
        if slot not in self.jobs:
            on_end(result, time.monotonic() - job.begun)

    def _stop(self) -> None:
        """End the processes that are left, as after Ctrl-C; their checkpoints stay."""
        for job in self.jobs.values():
            job.process.terminate()
        for job in self.jobs.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.process.wait(timeout=20)
            job.process.kill()
            job.output.close()
        self.jobs = {}


def next_arguments(run: StudyRun, fit_batches: int) -> list[str] | None:
    """Return the arguments of the next process of a run: None if it is complete."""
    result = read_result(run)
    if is_complete(result):
        return None
    if result.status == "unfinished":
        return run.arguments()
    return ["train-loss", str(run.folder), "--batches", str(fit_batches)]


def last_line(path: Path) -> str:
    """Return the last line of a file, which has the error of a process that failed."""
    return last_of(path.read_text(encoding="utf-8", errors="replace"))


def last_of(text: str) -> str:
    """Return the last line of a text that is not empty, without ``error: ``, which begins messages of this program."""
    lines = [line for line in text.split("\n") if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else "no output"


def measure_paces(runs: Sequence[StudyRun], slots: Slots, steps: int = 20) -> list[dict[str, Any]]:
    """Time a few steps of each run, in the slots that the study will use.

    Returns:
        A mapping for each run, with ``steps_per_epoch``, ``epochs``, ``seconds_per_step`` and ``seconds``.

    Raises:
        UserError: a run does not begin; the message has its error.
    """
    paces: list[dict[str, Any]] = []
    for first in range(0, len(runs), slots.jobs):
        group = list(runs[first : first + slots.jobs])
        with tempfile.TemporaryDirectory() as folder:
            started = []
            for slot, run in enumerate(group):
                output = f"output={folder}/{slot}"
                arguments = ["train", run.recipe, *run.overrides, output, "--measure", str(steps)]
                process = subprocess.Popen(
                    command(arguments),
                    env=slots.environment(slot),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                started.append((run, process))
            for run, process in started:
                out, errors = process.communicate()
                if process.returncode:
                    raise UserError(f"{run.label}: {last_of(errors)}")
                paces.append(json.loads(out.strip().splitlines()[-1]))
    return paces

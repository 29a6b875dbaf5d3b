"""The runs of a study as processes: several at a time, each with its share of the threads."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tasks.devices import available_cpus
from tasks.errors import UserError
from tasks.parent import PARENT
from tasks.study.plan import StudyRun
from tasks.study.results import Result, is_complete, read_result

OUTPUT_FILE = "output.txt"  # in a run's folder: what its process prints
_POLL = 0.2  # seconds between looks at the processes


# the command line of this package: -P keeps a module of the working directory from taking the place of one of ours
PROGRAM = (sys.executable, "-P", "-m", "rescalenet_zoo")
# what torchrun sets for its processes, and a process alone must not have
_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Slots:
    """The processes that run at the same time.

    Attributes:
        jobs: number of processes.
        threads: CPU threads of each.
        program: command line of ``rescalenet`` without its arguments.
        device: device of all processes; None: GPUs in turn, or the CPU.
    """

    jobs: int
    threads: int
    program: tuple[str, ...] = PROGRAM
    device: str | None = None

    @classmethod
    def of_machine(
        cls,
        jobs: int | None = None,
        threads: int | None = None,
        program: tuple[str, ...] = PROGRAM,
        device: str | None = None,
    ) -> Slots:
        """Return slots for this machine: by default one process for each GPU (at least one), and all CPUs shared.

        With a ``device`` all processes use it, and one runs at a time by default.
        """
        jobs = jobs or max(1, torch.cuda.device_count() if device is None else 1)
        return cls(jobs, threads or max(1, available_cpus() // jobs), program, device)

    def environment(self, slot: int) -> dict[str, str]:
        """Return the environment of the process in a slot.

        Processes whose threads together exceed the CPUs slow each other down many times, because OpenMP's threads wait
        for each other actively. So each has its share, and waits passively. GPUs are dealt out in turn.
        """
        content = {key: value for key, value in os.environ.items() if key not in _LAUNCHED}
        content["OMP_NUM_THREADS"] = str(self.threads)
        content["OMP_WAIT_POLICY"] = "PASSIVE"
        content[PARENT] = str(os.getpid())
        if self.device is None and (devices := visible_gpus()):
            content["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
        return content

    def start(self, slot: int, arguments: Sequence[str], **pipes: Any) -> subprocess.Popen[Any]:
        """Start ``rescalenet ARGUMENTS`` in a slot."""
        line = [*self.program, *arguments, *([] if self.device is None else ["--device", self.device])]
        return subprocess.Popen(line, env=self.environment(slot), stdin=subprocess.DEVNULL, **pipes)


def visible_gpus() -> list[str]:
    """Return the names of the GPUs of this process, as ``CUDA_VISIBLE_DEVICES`` has them."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = listed.split(",") if listed else [str(i) for i in range(torch.cuda.device_count())]
    return names[: torch.cuda.device_count()]


def program_of(started: str) -> tuple[str, ...]:
    """Return the command line of the program that was started, so that its processes have its extensions.

    Args:
        started: ``sys.argv[0]`` of ``rescalenet``, or of a Python file that registers extensions and calls
            ``tasks.cli.main`` (docs/extending.md).
    """
    path = Path(started)
    extended = path.suffix == ".py" and path.is_file() and path.resolve() not in own_files()
    return (sys.executable, str(path.resolve())) if extended else PROGRAM


def own_files() -> list[Path]:
    """Return the files that ``python -m tasks.cli`` and ``python -m rescalenet_zoo`` start."""
    root = Path(__file__).resolve().parents[2]
    return [root / "tasks" / "cli.py", root / "rescalenet_zoo" / "__main__.py"]


@dataclass
class _Job:
    """A process at work on a run.

    Attributes:
        run: run of the study.
        process: process that trains the run or measures its fit.
        trains: whether the process trains the run.
        epochs: epochs that were done when the run was started.
        begun: time when the run was started, in seconds.
    """

    run: StudyRun
    process: subprocess.Popen[Any]
    trains: bool
    epochs: int
    begun: float


@dataclass(frozen=True)
class Ended:
    """The end of a run in this session.

    Attributes:
        result: result of the run.
        seconds: time that it took.
        epochs: epochs that were trained in this time.
        failure: reason why the run is not complete; "" if it is.
    """

    result: Result
    seconds: float
    epochs: int
    failure: str = ""


class Runner:
    """Runs processes in slots until all runs are done.

    Args:
        slots: processes that run at the same time.
    """

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.jobs: dict[int, _Job] = {}  # by slot
        self.failed: dict[str, str] = {}  # reason by the label of a run

    def execute(
        self,
        runs: Iterable[StudyRun],
        *,
        on_end: Callable[[Ended], None],
        on_poll: Callable[[Sequence[StudyRun]], None],
    ) -> None:
        """Complete the runs that are not complete. A run that fails is noted in ``failed``, and the others go on.

        Args:
            runs: runs in the order in which they begin.
            on_end: function that is called when a run has ended.
            on_poll: function of the runs in progress, called several times a second.
        """
        waiting = [result for run in runs if not is_complete(result := read_result(run))][::-1]
        try:
            while waiting or self.jobs:
                for slot in range(self.slots.jobs):
                    if slot not in self.jobs and waiting:
                        result = waiting.pop()
                        self._start(slot, result, result.epochs, time.monotonic(), on_end)
                    if slot in self.jobs and self.jobs[slot].process.poll() is not None:
                        self._ended(slot, on_end)
                on_poll([job.run for job in self.jobs.values()])
                time.sleep(_POLL)
        finally:
            stop([job.process for job in self.jobs.values()])
            self.jobs = {}

    def _start(self, slot: int, result: Result, epochs: int, begun: float, on_end: Callable[[Ended], None]) -> None:
        """Start the next process of a run: training, or the measurement of its fit. A run that cannot start has ended.

        Args:
            slot: number of the slot.
            result: present result of the run.
            epochs: epochs that were done when the run was started.
            begun: time when the run was started, in seconds.
            on_end: function that is called when a run has ended.
        """
        run = result.run
        trains = result.status == "unfinished"
        arguments = run.arguments() if trains else run.fit_arguments()
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            with (run.folder / OUTPUT_FILE).open("ab") as output:
                process = self.slots.start(slot, arguments, stdout=output, stderr=subprocess.STDOUT)
        except OSError as error:  # such as a full disk, on which runs that have their files may go on
            self._end(result, epochs, begun, on_end, f"{run.folder}: {error.strerror}")
            return
        self.jobs[slot] = _Job(run, process, trains, epochs, begun)

    def _ended(self, slot: int, on_end: Callable[[Ended], None]) -> None:
        """Go on after a process: with the next one of its run, or with the end of the run."""
        job = self.jobs.pop(slot)
        result = read_result(job.run)
        if job.process.returncode == 0 and job.trains and result.status == "finished":
            self._start(slot, result, job.epochs, job.begun, on_end)
            return
        failure = "" if is_complete(result) else describe_failure(job.process.returncode, job.run.folder)
        self._end(result, job.epochs, job.begun, on_end, failure)

    def _end(self, result: Result, epochs: int, begun: float, on_end: Callable[[Ended], None], failure: str) -> None:
        """Note a failure, if there is one, and report the end of a run."""
        if failure:
            self.failed[result.run.label] = failure
        on_end(Ended(result, time.monotonic() - begun, result.epochs - epochs, failure))


def stop(processes: Sequence[subprocess.Popen[Any]]) -> None:
    """End processes, as after Ctrl-C; their checkpoints stay."""
    for process in processes:
        process.terminate()
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        process.kill()
        process.wait()


def describe_failure(code: int, folder: Path) -> str:
    """Describe why a process did not complete its run.

    Args:
        code: exit code of the process; negative for the number of a signal.
        folder: folder of the run.
    """
    last = last_of((folder / OUTPUT_FILE).read_text(encoding="utf-8", errors="replace"))
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return f"ended by signal {name} (SIGKILL: often for lack of memory), after: {last}"
    if code == 0:
        return f"{folder}: its weights or its log do not belong to the end of the run; remove the folder to repeat it"
    return last


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
        started: list[tuple[StudyRun, subprocess.Popen[str]]] = []
        try:
            for slot, run in enumerate(runs[first : first + slots.jobs]):
                arguments = ["train", run.recipe, *run.overrides, "--measure", str(steps)]
                pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
                started.append((run, slots.start(slot, arguments, **pipes)))
            for run, process in started:
                out, errors = process.communicate()
                if process.returncode:
                    raise UserError(f"{run.label}: {last_of(errors)}")
                paces.append(json.loads(out.strip().splitlines()[-1]))
        finally:
            stop([process for _, process in started])
    return paces

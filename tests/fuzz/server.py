"""The process in which hostile inputs are read: it has loaded everything once, and forks.

Run as ``python -m tests.fuzz.server``; ``tests.fuzz.harness`` starts it and sends one request a line. A fork (the
worker) answers up to ``INPUTS_OF_A_WORKER`` requests, so that a crash ends only the worker. The server itself stays
single-threaded, because locks and pools of other threads do not survive a fork.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from tests.helpers.memory import address_space

INPUTS_OF_A_WORKER = 25
# heavy or not installed, not needed
BESIDE = ("detectron2", "fairseq.rescalenet_fairseq", "timm", "graphs", "segmentation_models")
BESIDE += ("aoti", "coreml", "executorch", "export.mil", "fixed", "jax", "litert", "mnn", "ncnn", "onnx", "openvino")
BESIDE += ("programs", "pt2", "tensorrt")

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {  # audit events that change a file, with the positions of paths in their arguments
    **{f"os.{name}": (0,) for name in ("mkdir", "rmdir", "remove", "chown", "truncate", "setxattr")},
    "os.rename": (0, 1),
    "os.link": (1,),
    "os.symlink": (1,),
}
FORBIDDEN = (  # what no file may cause
    *("os.system", "os.exec", "os.spawn", "os.posix_spawn", "subprocess.Popen", "os.kill", "os.killpg"),
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request"),
)


class Watch:
    """Records what the code under test does to the file system and to other processes (an audit hook).

    Attributes:
        armed: whether events are recorded.
        writable: folders in which files may change.
        secret: folder from which nothing may be read.
        found: one line for each violation.
    """

    def __init__(self) -> None:
        self.armed = False
        self.writable: tuple[str, ...] = ()
        self.secret = ""
        self.found: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes):
                self._opened(os.fsdecode(path), flags or 0)
        elif event in CHANGES:
            folder = arguments[-1] if isinstance(arguments[-1], int) and arguments[-1] > 2 else None
            for position in CHANGES[event]:
                if isinstance(arguments[position], str | bytes):
                    path = os.fsdecode(arguments[position])
                    if folder is not None:  # the path is relative to an open folder
                        path = f"/proc/self/fd/{folder}/{path}"
                    self._changed(event, path)
        elif event in FORBIDDEN and not (event == "os.kill" and arguments[1] == 0):  # 0 asks whether a process lives
            self.found.append(f"{event}{arguments!r:.300}")

    def _opened(self, path: str, flags: int) -> None:
        if flags & WRITING:
            self._changed("open for writing", path)
        elif self._real(path).startswith(self.secret):
            self.found.append(f"read {path}")

    def _changed(self, event: str, path: str) -> None:
        real = self._real(path)
        if real != "/dev/null" and not any(real == f or real.startswith(f + "/") for f in self.writable):
            self.found.append(f"{event} {path}")

    @staticmethod
    def _real(path: str) -> str:
        try:
            return os.path.realpath(path)
        except (ValueError, OSError):  # a null character or a long name, which no system call takes
            return ""


def load_all() -> None:
    """Import all modules whose import does not need an optional package."""
    import matplotlib.pyplot
    import torch

    import tasks
    import zoo

    torch.set_num_threads(1)
    for package in (zoo, tasks):
        (folder,) = map(Path, package.__path__)
        for path in sorted(folder.rglob("*.py")):
            name = ".".join([package.__name__, *path.relative_to(folder).with_suffix("").parts])
            if not any(part in name for part in BESIDE):
                importlib.import_module(name.removesuffix(".__init__"))
    importlib.import_module("tests.fuzz.readers")
    figure = matplotlib.pyplot.figure()  # finds the fonts
    matplotlib.pyplot.close(figure)


def run_command(arguments: list[str]) -> int | str:
    """Run one command, and return its exit status, or the last line of the traceback.

    Args:
        arguments: arguments of ``rescalenet``; or the name of a reader of ``tests.fuzz.readers`` with an @ before it,
            and its arguments.
    """
    from tasks import cli
    from tests.fuzz import readers

    sys.argv = ["rescalenet", *arguments]
    try:
        if arguments[0].startswith("@"):
            readers.call(arguments[0][1:], arguments[1:])
        else:
            cli.main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else f"exit {stop.code!r}"
    except BaseException as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error!s:.300}"
    return 0


def answer(request: dict[str, Any], watch: Watch) -> dict[str, Any]:
    """Run the commands of a request, each with its output in files, and return statuses and violations."""
    os.chdir(request["folder"])
    watch.writable = tuple(map(os.path.realpath, [*request["writable"], tempfile.gettempdir()]))
    watch.secret, watch.found = os.path.realpath(request["secret"]) + "/", []
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + request["seconds"]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    signal.alarm(4 * request["seconds"])  # the machine may be busy
    statuses: list[int | str] = []
    for number, arguments in enumerate(request["commands"]):
        for descriptor, name in ((1, "out"), (2, "err")):
            file = os.open(f"{request['capture']}/{number}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, descriptor)
            os.close(file)
        watch.armed = True
        statuses.append(run_command(arguments))
        watch.armed = False
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(UnicodeError):
                stream.flush()
    signal.alarm(0)
    return {"statuses": statuses, "found": watch.found, "peak": peak_memory()}


def peak_memory() -> int:
    """Return the most memory in bytes that this process has held, without the pages of files mapped into it.

    A fork begins without the pages of the libraries, which the server has in memory, and takes them in as it runs.
    """
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - int(fields["RssFile"].split()[0]))


def work(requests: int, answers: int, memory: int) -> None:
    """Answer requests in this fork until they end."""
    watch, base = Watch(), peak_memory()
    sys.addaudithook(watch)
    size = address_space() + memory
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**26, 2**26))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with os.fdopen(requests) as lines, os.fdopen(answers, "w") as replies:
        for line in lines:
            replies.write(json.dumps({**answer(json.loads(line), watch), "base": base}) + "\n")
            replies.flush()


class Worker:
    """A fork, and the pipes to and from it."""

    def __init__(self, memory: int) -> None:
        threads = os.listdir("/proc/self/task")
        assert len(threads) == 1, f"{len(threads)} threads: a fork of this process could hang"
        requests, to_worker = os.pipe()
        from_worker, answers = os.pipe()
        self.count = 0
        self.pid = os.fork()
        if self.pid == 0:
            os.close(to_worker)
            os.close(from_worker)
            try:
                work(requests, answers, memory)
            finally:
                os._exit(99)
        os.close(requests)
        os.close(answers)
        self.requests, self.answers = os.fdopen(to_worker, "w"), os.fdopen(from_worker)

    def ask(self, line: str) -> str:
        """Return the worker's answer, an empty string if it has ended."""
        self.count += 1
        self.requests.write(line)
        self.requests.flush()
        return self.answers.readline()

    def close(self) -> int:
        """End the worker; return the number of the signal that had ended it, minus its exit status, or 0."""
        with contextlib.suppress(OSError):
            self.requests.close()
        self.answers.close()
        os.kill(self.pid, signal.SIGCONT)
        return -os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _is_spent(reply: dict[str, Any]) -> bool:
    """Return whether the next input needs a new worker: after a traceback, and as a process's peak never falls."""
    return reply["peak"] - reply["base"] > 2**27 or any(status not in (0, 1, 2) for status in reply["statuses"])


def main() -> None:
    """Serve requests from standard input, up to an empty line."""
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    load_all()
    gc.collect()
    gc.freeze()  # so that the collector of a fork copies no pages
    replies.write("ready\n")
    replies.flush()
    worker: Worker | None = None
    for line in requests:
        if not line.strip():  # the end
            break
        request = json.loads(line)
        if worker is None:
            worker = Worker(request["memory"])
        found = worker.ask(line)
        failed = not found
        reply = {"signal": worker.close()} if failed else json.loads(found)
        if not failed and (worker.count >= INPUTS_OF_A_WORKER or _is_spent(reply)):
            worker.close()
            failed = True
        worker = None if failed else worker
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()

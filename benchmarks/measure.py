"""Tools of all benchmarks: interleaved timing, paired ratios, tables and JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tasks.devices import synchronize
from zoo.files import write_json

# glibc returns freed memory to the system and requests it again page by page, so that a step would measure the kernel.
# With these settings it keeps the memory, as tcmalloc and jemalloc do. OpenMP's workers sleep between two operations
# and wake up slowly on a virtual machine; with ACTIVE they wait awake. Both settings are common for PyTorch on CPUs,
# and all nets of a comparison run with them.
_TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 36),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "MALLOC_ARENA_MAX": "1",
    "OMP_WAIT_POLICY": "ACTIVE",
}


def parser(description: str, *, nets: Sequence[str] = ("50", "18", "101", "x50")) -> argparse.ArgumentParser:
    """Return a parser with the arguments that all benchmarks share.

    Args:
        description: description of the benchmark.
        nets: names of the nets; the first is the default.
    """
    shared = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    shared.add_argument("--net", nargs="+", default=[nets[0]], choices=nets)
    shared.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    shared.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    shared.add_argument("--threads", type=int, default=os.cpu_count(), help="number of CPU threads")
    shared.add_argument("--layout", default="channels_last", choices=["channels_last", "contiguous"])
    shared.add_argument(
        "--runtime", default="tuned", choices=["tuned", "default"], help="settings of glibc's memory and OpenMP"
    )
    shared.add_argument("--json", type=Path, metavar="FILE", help="also write all results to this file")
    return shared


def add_baselines(parser: argparse.ArgumentParser, default: Sequence[str], further: Sequence[str] = ()) -> None:
    """Add the option that names the nets to compare; ``--rivals`` is its former name.

    Args:
        parser: parser of the benchmark.
        default: names of the nets that are compared by default.
        further: names of other nets that can be chosen.
    """
    parser.add_argument(
        "--baselines",
        "--rivals",
        nargs="+",
        default=list(default),
        choices=[*default, *further],
        help="nets to compare, ours among them",
    )


def start(arguments: argparse.Namespace) -> None:
    """Set the number of threads; restart the script in the tuned environment unless it runs in it already."""
    tuned = arguments.runtime == "tuned" and arguments.device == "cpu"
    if tuned and any(os.environ.get(key) != value for key, value in _TUNED.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **_TUNED})
    torch.set_num_threads(arguments.threads)


def layout(arguments: argparse.Namespace) -> torch.memory_format:
    """Return the memory format that ``--layout`` names."""
    return torch.channels_last if arguments.layout == "channels_last" else torch.contiguous_format


def interleave(
    steps: dict[str, Callable[[], object]], repeats: int, *, title: str, device: str, warmup: int = 2
) -> dict[str, list[float]]:
    """Return the seconds of each step in each round.

    A round runs every step once. Each round starts with another step, so that no step always follows the same one.

    Args:
        steps: functions to time, by name.
        repeats: number of rounds that are timed.
        title: title of the progress bar.
        device: device on which the steps run.
        warmup: number of rounds before those.
    """
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(title, total=warmup + repeats)
        for turn in range(-warmup, repeats):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                synchronize(torch.device(device))
                begin = time.perf_counter()
                steps[name]()
                synchronize(torch.device(device))
                if turn >= 0:
                    seconds[name].append(time.perf_counter() - begin)
            progress.advance(bar)
    return seconds


def ratios(seconds: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Return median and quartiles of the paired ratios to ``base``, and the median in milliseconds, for each step."""
    rows = {}
    for name, values in seconds.items():
        pairs = [value / other for value, other in zip(values, seconds[base], strict=True)]
        low, _, high = statistics.quantiles(pairs, n=4) if len(pairs) > 1 else (pairs[0],) * 3
        rows[name] = {
            "ratio": statistics.median(pairs),
            "quartile_1": low,
            "quartile_3": high,
            "milliseconds": statistics.median(values) * 1e3,
            "pairs": len(pairs),
        }
    return rows


def environment(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the machine and the versions of the packages."""
    facts = {"torch": torch.__version__, "torchvision": torchvision.__version__, "python": platform.python_version()}
    if arguments.device == "cpu":
        facts |= {"device": _cpu(), "threads": arguments.threads, "runtime": arguments.runtime}
    else:
        facts["device"] = torch.cuda.get_device_name()
    return facts


def _cpu() -> str:
    """Return the model of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on standard output."""
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def show_ratios(title: str, base: str, rows: dict[str, dict[str, float]]) -> None:
    """Print the table of ``ratios``."""
    cells = [
        [name, f"{r['ratio']:.3f}", f"{r['quartile_1']:.3f} .. {r['quartile_3']:.3f}", f"{r['milliseconds']:.1f}"]
        for name, r in rows.items()
    ]
    pairs = next(iter(rows.values()))["pairs"]
    show(f"{title}, {pairs:.0f} pairs", ["", f"time / {base}", "quartiles", "ms"], cells)


def finish(arguments: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """Print machine and versions; write the results to the file that ``--json`` names."""
    facts = environment(arguments)
    Console().print(json.dumps(facts), soft_wrap=True)
    if arguments.json is not None:
        write_json({"environment": facts, "results": results}, arguments.json)

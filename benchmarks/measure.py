"""Interleaved pairs, medians and spread; tables and JSON."""

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
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from zoo.files import write_json

# glibc returns freed memory to the system and takes it again page by page; a step then measures the kernel. With
# these it keeps what it has, as tcmalloc and jemalloc do. OpenMP's workers fall asleep between two operations and take
# long to wake on a virtual machine; ACTIVE lets them wait awake. Both are usual for PyTorch on CPUs; every rival gets
# the same.
_TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 36),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "MALLOC_ARENA_MAX": "1",
    "OMP_WAIT_POLICY": "ACTIVE",
}


def parser(description: str, *, nets: Sequence[str] = ("50", "18", "101", "x50")) -> argparse.ArgumentParser:
    """The arguments that all benchmarks share; the first of ``nets`` is the default."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--net", nargs="+", default=[nets[0]], choices=nets)
    made.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU")
    made.add_argument("--layout", default="channels_last", choices=["channels_last", "contiguous"])
    made.add_argument(
        "--runtime", default="tuned", choices=["tuned", "default"], help="glibc's memory, OpenMP's waiting"
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    return made


def start(arguments: argparse.Namespace) -> None:
    """Set threads; start the script again in the tuned environment, unless it is in it."""
    tuned = arguments.runtime == "tuned" and arguments.device == "cpu"
    if tuned and any(os.environ.get(key) != value for key, value in _TUNED.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **_TUNED})
    torch.set_num_threads(arguments.threads)


def layout(arguments: argparse.Namespace) -> torch.memory_format:
    """The memory format that was asked for."""
    return torch.channels_last if arguments.layout == "channels_last" else torch.contiguous_format


def interleave(
    steps: dict[str, Callable[[], object]], repeats: int, *, title: str, device: str, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of each step in each round. A round runs every step once, each time starting with another one."""
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(title, total=warmup + repeats)
        for turn in range(-warmup, repeats):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                _synchronize(device)
                begin = time.perf_counter()
                steps[name]()
                _synchronize(device)
                if turn >= 0:
                    seconds[name].append(time.perf_counter() - begin)
            progress.advance(bar)
    return seconds


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def ratios(seconds: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Median and quartiles of the paired ratios to ``base``, and the median in milliseconds, for each step."""
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
    """Machine and versions."""
    import torchvision

    facts = {"torch": torch.__version__, "torchvision": torchvision.__version__, "python": platform.python_version()}
    if arguments.device == "cpu":
        facts |= {"device": _cpu(), "threads": arguments.threads, "runtime": arguments.runtime}
    else:
        facts["device"] = torch.cuda.get_device_name()
    return facts


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output."""
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def show_ratios(title: str, base: str, rows: dict[str, dict[str, float]]) -> None:
    """The table of ``ratios``."""
    cells = [
        [name, f"{r['ratio']:.3f}", f"{r['quartile_1']:.3f} .. {r['quartile_3']:.3f}", f"{r['milliseconds']:.1f}"]
        for name, r in rows.items()
    ]
    pairs = next(iter(rows.values()))["pairs"]
    show(f"{title}, {pairs:.0f} pairs", ["", f"time / {base}", "quartiles", "ms"], cells)


def finish(arguments: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """Print machine and versions, write the JSON file if one was asked for."""
    facts = environment(arguments)
    Console().print(json.dumps(facts), soft_wrap=True)
    if arguments.json is not None:
        write_json({"environment": facts, "results": results}, arguments.json)

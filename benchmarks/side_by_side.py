"""What a training run loses to a second one beside it on the same CPUs: python -m benchmarks.side_by_side CONFIG

The same run is timed alone, with all threads and with half of them, then two at a time: with all threads each, as two
``rescalenet train`` started by hand, and with an equal share each, as ``rescalenet study --jobs 2`` starts them. Ratios
are to the run alone with half of the threads.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from tasks.devices import available_cpus
from tasks.spec import resolve
from tasks.study.plan import StudyRun, Trial
from tasks.study.runner import Slots, measure_paces
from zoo.files import write_json


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("config", help="config file or recipe")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--steps", type=int, default=20, help="steps of a measurement")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all results to this file")
    arguments = parser.parse_args()
    overrides = tuple(arguments.overrides)
    trial = Trial("", "", overrides)
    run = StudyRun("", trial, 0, arguments.config, overrides, resolve(arguments.config, overrides), fit_batches=1)
    cpus = available_cpus()
    share = max(1, cpus // 2)
    cases = {
        f"alone, {share} threads": (1, Slots(1, share)),
        f"alone, {cpus} threads": (1, Slots(1, cpus)),
        f"two, {share} threads each": (2, Slots(2, share)),
        f"two, {cpus} threads each": (2, Slots(2, cpus)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(arguments.repeats):
        for name, (count, slots) in cases.items():
            paces = measure_paces([run] * count, slots, arguments.steps)
            seconds[name].append(statistics.fmean(pace["seconds_per_step"] for pace in paces))
    base = next(iter(seconds.values()))
    for name, found in seconds.items():
        ratios = [value / alone for value, alone in zip(found, base, strict=True)]
        print(f"{name:<24} ratio {statistics.median(ratios):.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")
    if arguments.json:
        write_json({"seconds_per_step": seconds}, arguments.json)


if __name__ == "__main__":
    main()

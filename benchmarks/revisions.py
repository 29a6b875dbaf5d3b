"""Whether a change made training slower: short runs of two checkouts: python -m benchmarks.revisions BEFORE AFTER

A run is one epoch of the engine on ``--images`` images of CIFAR-10: set-up, calibration, steps, evaluation, weights and
states on the disk. One process for each checkout trains run after run, so that imports are not measured. Beside the
times, the operations of ATen in one training step are compared: two checkouts with the same steps have the same list.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# What each process does: a request on a line of its standard input is answered on one of its standard output.
_WORKER = """
import contextlib, json, os, shutil, sys, time
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from tasks.engine import Trainer
from tasks.spec import make_task, resolve

class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))

recipe, overrides, folder = sys.argv[1], sys.argv[2:-1], sys.argv[-1]
torch.set_num_threads(1)

def run():
    shutil.rmtree(folder, ignore_errors=True)
    begun = time.perf_counter()
    with contextlib.redirect_stderr(open(os.devnull, "w")):
        Trainer(make_task(resolve(recipe, [*overrides, f"output={folder}"]))).fit()
    return time.perf_counter() - begun

def operations():
    shutil.rmtree(folder, ignore_errors=True)
    trainer = Trainer(make_task(resolve(recipe, [*overrides, f"output={folder}"])))
    trainer.model.train()
    batches = iter(trainer.loader)
    first = [next(batches) for _ in range(trainer.train.accumulate)]
    second = [next(batches) for _ in range(trainer.train.accumulate)]
    trainer._step(first)
    with Names() as log:
        trainer._step(second)
    return log.names

for line in sys.stdin:
    print(json.dumps(run() if line.strip() == "run" else operations()), flush=True)
"""


class Checkout:
    """A process that trains with the code of a checkout.

    Args:
        root: folder of the checkout.
        recipe: config file.
        overrides: overrides of the config.
        folder: folder of its runs.
    """

    def __init__(self, root: Path, recipe: Path, overrides: list[str], folder: Path) -> None:
        command = [sys.executable, "-c", _WORKER, str(recipe), *overrides, str(folder)]
        # -c puts the working folder first on the path, before an installed version
        self.process = subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, request: str) -> Any:
        """Return the answer to ``run`` (seconds) or ``operations`` (names)."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def subset(source: Path, target: Path, images: int) -> None:
    """Link the first images of each class into another folder of the same form.

    Args:
        source: folder with train/<class> and test/<class>.
        target: folder to make.
        images: number of training images; a tenth as many for evaluation.
    """
    for split, count in (("train", images), ("test", images // 10)):
        classes = sorted(path for path in (source / split).iterdir() if path.is_dir())
        for each in classes:
            (target / split / each.name).mkdir(parents=True)
            for path in sorted(each.iterdir())[: count // len(classes)]:
                (target / split / each.name / path.name).symlink_to(path.absolute())


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("before", type=Path, help="checkout")
    parser.add_argument("after", type=Path, help="checkout")
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10 as train/<class>, val/<class>")
    parser.add_argument("--images", type=int, default=1280, help="training images of a run")
    parser.add_argument("--pairs", type=int, default=30, help="interleaved pairs of runs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        subset(arguments.data, root / "data", arguments.images)
        recipe = root / "recipe.yaml"
        shutil.copy(arguments.after / "configs/classification/cifar10/rescalenet20.yaml", recipe)
        overrides = ["data.source=folder", f"data.root={root / 'data'}", "train.epochs=1", "train.workers=0"]
        sides = {
            name: Checkout(path.absolute(), recipe, overrides, root / name)
            for name, path in (("before", arguments.before), ("after", arguments.after))
        }
        names = {name: side.ask("operations") for name, side in sides.items()}
        same = "the same" if names["before"] == names["after"] else "DIFFERENT"
        print(f"operations of a step: {len(names['before'])} before, {len(names['after'])} after: {same}")
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(arguments.pairs + 1):
            order = list(sides) if turn % 2 else list(sides)[::-1]
            for name in order:
                value = sides[name].ask("run")
                if turn:  # the first pair is not counted
                    seconds[name].append(value)
        ratios = [after / before for before, after in zip(seconds["before"], seconds["after"], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
        print(
            f"after / before: median {statistics.median(ratios):.3f}, quartiles {low:.3f} to {high:.3f}, "
            f"{len(ratios)} pairs; before {statistics.median(seconds['before']):.2f} s a run"
        )
        for side in sides.values():
            side.process.kill()


if __name__ == "__main__":
    main()

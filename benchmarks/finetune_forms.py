"""Fine-tuning of a converted BatchNorm net in its forms, beside BatchNorm: python -m benchmarks.finetune_forms

``gained``, ``folded`` and ``balanced`` keep the biases of 0 before the products that a conversion leaves. ``centred``
is the gained form as ``rescalenet train`` takes it, with biases from data. ``adapted`` is centred too; before its
conversion the statistics of the BatchNorm net are taken anew (AdaBN, arXiv:1603.04779).

Every run is ``rescalenet train`` of one recipe in a folder of its own. Finished runs are read, broken-off ones resume,
so that the command can be stopped and started again. A changed recipe or converter needs another folder.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F

import zoo
from benchmarks import measure
from benchmarks.memory import sample, saved_per_image
from tasks.engine.records import read_log
from tasks.images import find_images, read_image
from tasks.spec import make_task, resolve
from zoo.convert import Form, from_batchnorm

RECIPE = "classification/finetune/flowers64"
SOURCE = "rescalenet20_cifar.cifar10_bn"  # the net that is converted
FORMS: tuple[Form, ...] = ("gained", "folded", "balanced")
WEIGHTS = {"centred": "gained", "adapted": "adapted"}
METHODS = ("bn", "frozen_bn", *FORMS, *WEIGHTS, "scratch")
LADDER = tuple(0.00125 * 2**k for k in range(10))  # learning rates
DIVERGED = "Lower train.optimizer.lr"  # the engine's line at a loss or weight that is not finite


def overrides(method: str, folder: Path) -> list[str]:
    """Return the changes of the recipe for a method."""
    if method == "bn":
        return []
    if method == "frozen_bn":
        return ["model.scheme=frozen_bn"]
    if method == "scratch":
        return ["model.weights=null", "model.options={projection_gain: 2.0}"]
    if method in FORMS:
        return [f"model.weights={folder / method}.safetensors", "train.center_inputs=false"]
    return [f"model.weights={folder / WEIGHTS[method]}.safetensors"]


def write_converted(folder: Path, root: Path) -> None:
    """Write the converted nets: one for each form, and ``adapted`` with statistics of 256 training images.

    Those that are there are kept, because runs resume from them.
    """
    if all((folder / f"{name}.safetensors").is_file() for name in (*FORMS, "adapted")):
        return
    entry = zoo.get_weights(SOURCE)
    original = zoo.create_model(entry.config.name, SOURCE).eval()
    nets: dict[str, zoo.Backbone] = {form: from_batchnorm(original, form=form) for form in FORMS}
    transform = zoo.InputTransform(64, 72, entry.transform.mean, entry.transform.std).build()  # type: ignore[union-attr]
    paths = find_images([str(root / "train")])
    step = max(1, len(paths) // 256)  # the paths are sorted by class
    images = torch.stack([transform(read_image(path)) for path in paths[::step]])
    torch.optim.swa_utils.update_bn([images], original)
    nets["adapted"] = from_batchnorm(original.eval())
    for name, net in nets.items():
        zoo.save_weights(net, folder / f"{name}.safetensors", transform=entry.transform, classes=entry.classes)


def settings_of(method: str, lr: float, batch: int, seed: int, arguments: argparse.Namespace) -> tuple[str, list[str]]:
    """Return the name of a run and its changes of the recipe."""
    name = f"{method}.lr{lr:g}.b{batch}.s{seed}.e{arguments.epochs}.{arguments.split}"
    return name, [
        f"data.root={arguments.root}",
        f"data.split={arguments.split}",
        f"train.epochs={arguments.epochs}",
        f"train.eval_every={arguments.epochs}",
        f"train.batch_size={batch}",
        f"train.optimizer.lr={lr:g}",
        f"train.seed={seed}",
        *overrides(method, arguments.out),
    ]


def train(name: str, settings: list[str], arguments: argparse.Namespace) -> dict[str, float] | None:
    """Train, or read a finished run; return its accuracy and training loss, None if it diverged."""
    folder, output = arguments.out / name, arguments.out / f"{name}.log"
    found = result_of(folder, arguments.epochs)
    if found is not None or (output.is_file() and DIVERGED in output.read_text(encoding="utf-8")):
        return found
    resume = ["--resume"] if folder.is_dir() else []
    command = [sys.executable, "-m", "tasks.cli", "train", RECIPE, f"output={folder}", *settings, *resume]
    with output.open("a", encoding="utf-8") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    if done.returncode and DIVERGED not in output.read_text(encoding="utf-8"):
        raise SystemExit(f"{name} ended with {done.returncode}; see {output}")
    return result_of(folder, arguments.epochs)


def result_of(folder: Path, epochs: int) -> dict[str, float] | None:
    """Return accuracy and training loss of a finished run; None if it is not finished."""
    path = folder / "log.jsonl"
    if not path.is_file():
        return None
    for record in read_log(path):
        if record["event"] == "epoch" and record["epoch"] == epochs - 1 and "top1" in record:
            return {"top1": record["top1"], "train_loss": record["train_loss"]}
    return None


def accuracy(arguments: argparse.Namespace) -> None:
    """Train every method with every rate, batch size and seed; print the means over the seeds."""
    runs = [  # all methods of a seed before the next seed
        (method, lr, batch, seed)
        for seed in arguments.seeds
        for batch in arguments.batch
        for lr in arguments.lr
        for method in arguments.methods
    ]
    rows: dict[tuple[str, int, float], list[dict[str, float] | None]] = {}
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        results = pool.map(lambda run: train(*settings_of(run[0], run[1], run[2], run[3], arguments), arguments), runs)
        for (method, lr, batch, seed), found in zip(runs, results, strict=True):
            figures: Mapping[str, float | None] = found or {"top1": None}
            line = {"method": method, "lr": lr, "batch": batch, "seed": seed, **figures}
            print(json.dumps(line), flush=True)
            rows.setdefault((method, batch, lr), []).append(found)
    cells = []
    for (method, batch, lr), tried in rows.items():
        whole = [one for one in tried if one is not None]
        top1, loss = [one["top1"] for one in whole], [one["train_loss"] for one in whole]
        row = [method, f"{batch}", f"{lr:g}"]
        if whole:
            row += [
                f"{statistics.mean(top1):.2f}",
                f"{min(top1):.2f} .. {max(top1):.2f}",
                f"{statistics.mean(loss):.3f}",
            ]
        else:
            row += ["diverged", "", ""]
        cells.append([*row, f"{len(whole)} of {len(tried)}"])
    title = f"top-1 % after {arguments.epochs} epochs, split {arguments.split}"
    measure.show(title, ["", "batch", "lr", "mean", "least .. most", "training loss", "runs"], cells)


def stable(arguments: argparse.Namespace) -> None:
    """Print the largest rate of LADDER whose first epoch without clipping stays below the loss of guessing."""
    arguments.epochs = 1
    classes = sum(path.is_dir() for path in (arguments.root / "train").iterdir())

    def holds(method: str, batch: int, rate: float) -> bool:
        name, settings = settings_of(method, rate, batch, arguments.seeds[0], arguments)
        found = train(f"{name}.unclipped", [*settings, "train.optimizer.clip_norm=null"], arguments)
        return found is not None and found["train_loss"] < math.log(classes)

    def largest(method: str, batch: int) -> str:
        """Bisect, which takes for granted that a rate above one that diverges diverges too."""
        low, high = -1, len(LADDER)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if holds(method, batch, LADDER[middle]) else (low, middle)
        return f"{LADDER[low]:g}" if low >= 0 else f"below {LADDER[0]:g}"

    pairs = [(method, batch) for batch in arguments.batch for method in arguments.methods]
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        found = list(pool.map(lambda pair: largest(*pair), pairs))
    cells = [[method, f"{batch}", rate] for (method, batch), rate in zip(pairs, found, strict=True)]
    measure.show("largest stable rate without clipping, first epoch", ["", "batch", "lr"], cells)


def costs(arguments: argparse.Namespace) -> None:
    """Print time and saved memory of a training step of every method, in the recipe's precision, on one thread."""
    measure.start(argparse.Namespace(runtime="tuned", device="cpu", threads=1))
    nets = {method: net_of(method, arguments) for method in arguments.methods}
    for batch in arguments.batch:
        images, labels = sample(batch, 64), torch.randint(5, (batch,))

        def step(net: zoo.Backbone, images: torch.Tensor = images, labels: torch.Tensor = labels) -> None:
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(net(images), labels)
            loss.backward()
            net.zero_grad()

        steps: dict[str, Callable[[], object]] = {method: functools.partial(step, net) for method, net in nets.items()}
        seconds = measure.interleave(steps, 30, title=f"batch {batch}", device="cpu")
        measure.show_ratios(
            f"batch {batch}, 64 px, bf16", arguments.methods[0], measure.ratios(seconds, arguments.methods[0])
        )
    cells = []
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        for method, net in nets.items():
            image, constant = saved_per_image(net, 64)
            cells.append([method, f"{image / 2**20:.2f}", f"{constant / 1024:.1f}"])
    measure.show("saved for backward", ["", "MiB an image", "other, KiB"], cells)


def net_of(method: str, arguments: argparse.Namespace) -> zoo.Backbone:
    """Return the net that ``rescalenet train`` makes for a method, in training mode."""
    config = resolve(RECIPE, [f"data.root={arguments.root}", *overrides(method, arguments.out)])
    net = make_task(config).build_model()
    assert isinstance(net, zoo.Backbone)
    return net.to(memory_format=torch.channels_last).train()


PARTS = {"accuracy": accuracy, "stable": stable, "costs": costs}


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("part", nargs="?", default="accuracy", choices=PARTS, help="what is measured")
    parser.add_argument("--root", type=Path, default=Path("data/flowers"), help="folder with train/ and val/")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune_forms"), help="folder of the runs")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--lr", type=float, nargs="+", help="rates; default: the recipe's; stable: tries its own")
    parser.add_argument("--batch", type=int, nargs="+", default=[32])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="stable: the first of them")
    parser.add_argument("--epochs", type=int, default=10, help="stable: always 1")
    parser.add_argument("--split", default="holdout", choices=["holdout", "official"], help="official: for the end")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, of one thread each")
    arguments = parser.parse_args()
    arguments.root, arguments.out = arguments.root.resolve(), arguments.out.resolve()
    arguments.lr = arguments.lr or [resolve(RECIPE).train.optimizer.lr]
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_converted(arguments.out, arguments.root)
    PARTS[arguments.part](arguments)


if __name__ == "__main__":
    main()

"""Fine-tuning of a converted BatchNorm net in its forms, beside BatchNorm: python -m benchmarks.finetune_forms

Every run is ``rescalenet train`` of one recipe in a folder of its own. Finished runs are read, broken-off ones resume,
so that the command can be stopped and started again.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch

import zoo
from benchmarks import measure
from tasks.images import find_images, read_image
from zoo.convert import Form, center_inputs_, from_batchnorm

RECIPE = "classification/finetune/flowers64"
SOURCE = "rescalenet20_cifar.cifar10_bn"  # the net that is converted
FORMS: tuple[Form, ...] = ("gained", "folded", "balanced")
METHODS = ("bn", "frozen_bn", *FORMS, "centred", "scratch")


def overrides(method: str, folder: Path) -> list[str]:
    """Return the changes of the recipe for a method."""
    if method == "bn":
        return []
    if method == "frozen_bn":
        return ["model.scheme=frozen_bn"]
    if method == "scratch":
        return ["model.weights=null", "model.options={projection_gain: 2.0}"]
    return [f"model.weights={folder / method}.safetensors"]


def write_converted(folder: Path, root: Path) -> None:
    """Write the converted nets: one for each form, and the gained form with biases from 256 training images."""
    entry = zoo.get_weights(SOURCE)
    original = zoo.create_model(entry.config.name, SOURCE).eval()
    nets: dict[str, zoo.Backbone] = {form: from_batchnorm(original, form=form) for form in FORMS}
    nets["centred"] = from_batchnorm(original)
    transform = zoo.InputTransform(64, 72, entry.transform.mean, entry.transform.std).build()  # type: ignore[union-attr]
    paths = find_images([str(root / "train")])
    step = max(1, len(paths) // 256)  # the paths are sorted by class
    center_inputs_(nets["centred"], [torch.stack([transform(read_image(path)) for path in paths[::step]])])
    for name, net in nets.items():
        zoo.save_weights(net, folder / f"{name}.safetensors", transform=entry.transform, classes=entry.classes)


def train(method: str, lr: float, batch: int, seed: int, arguments: argparse.Namespace) -> dict[str, object]:
    """Train, or read a finished run, and return its figures."""
    name = f"{method}.lr{lr:g}.b{batch}.s{seed}.e{arguments.epochs}.{arguments.split}"
    folder = arguments.out / name
    settings = [
        f"output={folder}",
        f"data.root={arguments.root}",
        f"data.split={arguments.split}",
        f"train.epochs={arguments.epochs}",
        f"train.eval_every={arguments.epochs}",
        f"train.batch_size={batch}",
        f"train.optimizer.lr={lr:g}",
        f"train.seed={seed}",
        *overrides(method, arguments.out),
    ]
    found = result_of(folder, arguments.epochs)
    if found is None:
        resume = ["--resume"] if (folder / "checkpoints").is_dir() else []
        command = [sys.executable, "-m", "tasks.cli", "train", RECIPE, *settings, *resume]
        with (arguments.out / f"{name}.log").open("a", encoding="utf-8") as log:
            subprocess.run(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        found = result_of(folder, arguments.epochs)
    return {"method": method, "lr": lr, "batch": batch, "seed": seed, **(found or {"top1": None})}


def result_of(folder: Path, epochs: int) -> dict[str, float] | None:
    """Return accuracy and training loss of a finished run; None if it is not finished."""
    path = folder / "log.jsonl"
    if not path.is_file():
        return None
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["event"] == "epoch" and record["epoch"] == epochs - 1 and "top1" in record:
            return {"top1": record["top1"], "train_loss": record["train_loss"]}
    return None


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path("data/flowers"), help="folder with train/ and val/")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune_forms"), help="folder of the runs")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--lr", type=float, nargs="+", default=[0.02])
    parser.add_argument("--batch", type=int, nargs="+", default=[32])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--split", default="holdout", choices=["holdout", "official"], help="official: for the end")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, of one thread each")
    arguments = parser.parse_args()
    arguments.root, arguments.out = arguments.root.resolve(), arguments.out.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    # 1. The nets, then the runs: all methods of a seed before the next seed.
    write_converted(arguments.out, arguments.root)
    settings = [
        (method, lr, batch, seed, arguments)
        for seed in arguments.seeds
        for batch in arguments.batch
        for lr in arguments.lr
        for method in arguments.methods
    ]
    results: list[dict[str, object]] = []
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for done in pool.map(lambda setting: train(*setting), settings):
            print(json.dumps(done), flush=True)
            results.append(done)
    # 2. The table: a row for each method and setting.
    rows: dict[tuple[object, ...], list[float]] = {}
    for done in results:
        if isinstance(done["top1"], float):
            rows.setdefault((done["method"], done["batch"], done["lr"]), []).append(done["top1"])
    cells = [
        [str(method), f"{batch}", f"{lr:g}", f"{statistics.mean(found):.2f}", f"{min(found):.2f} .. {max(found):.2f}",
         f"{len(found)}"]
        for (method, batch, lr), found in rows.items()
    ]  # fmt: skip
    title = f"top-1 % after {arguments.epochs} epochs, split {arguments.split}"
    measure.show(title, ["", "batch", "lr", "mean", "least .. most", "seeds"], cells)


if __name__ == "__main__":
    main()

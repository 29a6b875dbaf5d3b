"""Memory of a training step of RescaleNet and of baselines: python -m benchmarks.memory

Bytes saved for backward are counted by saved-tensor hooks at two batch sizes, which separates the bytes per image from
those that do not depend on the batch. The peak memory of a step (forward, backward, SGD with momentum) is measured for
each net in a process of its own; it gives the largest batch that fits into a given memory. ``floor`` is the net of bare
convolutions, which saves the least of all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import measure
from benchmarks.baselines import NETS, build, builders

VARIANTS = ("floor", "floor_conv", "rescale", "rescale_conv", "gained", "naive", "bn", "frozen_bn", "gn", "nf")


def kept_bytes(forward: Callable[[], object], without: Iterable[torch.Tensor]) -> int:
    """Return the bytes of all storages that a forward saves for backward, each counted once.

    Args:
        forward: function that runs the forward.
        without: tensors whose storages are not counted.
    """
    known = {t.untyped_storage().data_ptr() for t in without}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = forward()
    total = sum(kept.values())
    del y  # keeps the graph alive until here
    return total


def saved_bytes(model: nn.Module, x: torch.Tensor) -> int:
    """Return the bytes that model(x) saves for backward, without parameters, buffers and x."""
    return kept_bytes(lambda: model(x), (x, *model.parameters(), *model.buffers()))


def sample(batch: int, size: int, *, frames: int | None = None, device: str = "cpu", in_chans: int = 3) -> torch.Tensor:
    """Return a random batch of images, or with ``frames`` of clips, channels last: (N, C, H, W) or (N, C, T, H, W)."""
    shape = (batch, in_chans, size, size) if frames is None else (batch, in_chans, frames, size, size)
    form = torch.channels_last if frames is None else torch.channels_last_3d
    return torch.randn(shape, device=device).to(memory_format=form)


def saved_per_image(
    model: nn.Module, size: int, *, frames: int | None = None, device: str = "cpu", in_chans: int = 3
) -> tuple[int, int]:
    """Return the saved bytes for each image or, with ``frames``, clip, and those that do not depend on the batch."""
    two, four = (  # not one and two, because BatchNorm requires more than one value for each channel
        saved_bytes(model, sample(n, size, frames=frames, device=device, in_chans=in_chans)) for n in (2, 4)
    )
    return (four - two) // 2, 2 * two - four


def peak_bytes(net: str, variant: str, batch: int, size: int, device: str) -> int:
    """Return the peak memory of this process in three steps, less its memory before the net was built."""
    torch.manual_seed(0)
    before = _peak(device)
    model = build(net, variant).to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-4, momentum=0.9)
    x = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    y = torch.randint(1000, (batch,), device=device)
    for _ in range(3):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return _peak(device) - before


def _peak(device: str) -> int:
    """Return the peak memory of this process in bytes.

    On the CPU it is read from /proc, because ru_maxrss begins with the memory of the parent process.
    """
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no VmHWM in /proc/self/status, which only Linux has; use --no-peak")


def _peak_elsewhere(net: str, variant: str, batch: int, arguments: argparse.Namespace) -> int:
    """Return ``peak_bytes`` of a new process."""
    command = [sys.executable, "-m", "benchmarks.memory", "--net", net, "--size", str(arguments.size)]
    command += ["--device", arguments.device, "--threads", str(arguments.threads), "--peak-of", variant, str(batch)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = measure.parser((__doc__ or "").split("\n")[0])
    measure.add_baselines(parser, VARIANTS)
    parser.add_argument("--peak-batches", type=int, nargs=2, default=(4, 12), help="batch sizes of the peak")
    parser.add_argument("--gib", type=float, default=16.0, help="memory for the largest batch, GiB")
    parser.add_argument("--no-peak", action="store_true", help="count saved bytes only")
    parser.add_argument("--peak-of", nargs=2, metavar=("NET", "BATCH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    # 1. In a process of --peak-of, print its peak.
    if arguments.peak_of:
        torch.set_num_threads(arguments.threads)
        variant, batch = arguments.peak_of
        print(peak_bytes(arguments.net[0], variant, int(batch), arguments.size, arguments.device))
        return
    measure.start(arguments)
    results: list[dict[str, Any]] = []
    for net in arguments.net:
        # 2. Measure each net.
        rows: dict[str, dict[str, float]] = {}
        for variant in (r for r in arguments.baselines if r in builders(net)):
            model = build(net, variant).to(arguments.device).to(memory_format=torch.channels_last).train()
            image, constant = saved_per_image(model, arguments.size, device=arguments.device)
            parameters = sum(p.numel() * p.element_size() for p in model.parameters())
            rows[variant] = {"image": image, "constant": constant, "constant / parameters": constant / parameters}
            del model
            if not arguments.no_peak:
                low, high = arguments.peak_batches
                peaks = [_peak_elsewhere(net, variant, batch, arguments) for batch in (low, high)]
                slope = (peaks[1] - peaks[0]) / (high - low)
                rows[variant] |= {"peak_image": slope, "peak_constant": peaks[0] - low * slope}
                rows[variant]["batch"] = (arguments.gib * 2**30 - rows[variant]["peak_constant"]) // slope
        # 3. Show the table.
        header = ["", "saved, MiB an image", "/ floor", "/ bn", "other saved, KiB"]
        if not arguments.no_peak:
            header += ["peak, MiB an image", f"largest batch in {arguments.gib:g} GiB", "/ bn"]
        cells = []
        for variant, row in rows.items():
            cells.append(
                [
                    variant,
                    f"{row['image'] / 2**20:.2f}",
                    *(f"{row['image'] / rows[b]['image']:.3f}" if b in rows else "" for b in ("floor", "bn")),
                    f"{row['constant'] / 1024:.1f}",
                ]
            )
            if not arguments.no_peak:
                against = f"{row['batch'] / rows['bn']['batch']:.2f}" if "bn" in rows else ""
                cells[-1] += [f"{row['peak_image'] / 2**20:.1f}", f"{row['batch']:.0f}", against]
            results.append({"net": net, "rival": variant, **row})
        measure.show(f"{NETS[net][0]}, {arguments.size} px, fp32", header, cells)
    measure.finish(arguments, results)


if __name__ == "__main__":
    main()

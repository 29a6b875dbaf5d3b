"""Time of the forms of a folded net in the runtimes of export targets: python -m benchmarks.forms

The forms are that of ``zoo.fold``, with a maximum of each channel (``maximum``), and those of
``zoo.folding.separate_shifts``. A target chooses the fastest one in its ``write``; here its choice is taken out, and
each form is written as it is. The baseline is a folded BatchNorm net with the same shortcuts as the others.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from benchmarks import measure
from benchmarks.baselines import NETS
from benchmarks.inference import candidates
from benchmarks.int8 import FORMS
from zoo.export import get_target
from zoo.export.graphs import Settings
from zoo.export.images import graph_of

TARGETS = ("onnx", "openvino", "mnn", "ncnn", "litert", "executorch", "pt2")
BASELINE = "bn folded, avgpool"


def forms_of(net: str) -> dict[str, nn.Module]:
    """Return the baseline and the forms of the net by name, with equal random weights."""
    known = candidates(net)
    torch.manual_seed(0)
    baseline = known[BASELINE]()
    torch.manual_seed(0)
    folded = known["rescale folded"]()
    return {BASELINE: baseline, **{name: change(folded) for name, change in FORMS.items()}}


def _unchanged(module: nn.Module, *, depthwise: bool = False) -> nn.Module:
    return module


def main() -> None:
    """Run the benchmark from the command line."""
    parser = measure.parser(__doc__ or "", nets=("18", "50", "101", "x50"))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--repeats", type=int, default=30, help="interleaved rounds")
    parser.set_defaults(device="cpu", runtime="default")  # OpenMP's threads take a core where they wait awake
    arguments = parser.parse_args()
    measure.start(arguments)
    results: list[dict[str, Any]] = []
    for net in arguments.net:
        modules = forms_of(net)
        for name in arguments.targets:
            target = get_target(name)
            for batch in arguments.batch:
                if batch > 1 and "batch" not in target.dynamic:
                    continue
                x = torch.randn(batch, 3, arguments.size, arguments.size)
                steps: dict[str, Callable[[], object]] = {}
                with ExitStack() as stack:
                    for form, module in modules.items():
                        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                        graph = graph_of(module, [x[:1], x], "noise", folded=False)
                        functions = target.functions()
                        if hasattr(functions, "separate_shifts"):
                            stack.enter_context(patch.object(functions, "separate_shifts", _unchanged))
                        functions.write(graph, folder, Settings())
                        steps[form] = partial(functions.load(graph, folder), (x.numpy(),))
                    title = f"{NETS[net][0]}, batch {batch}, {arguments.size} px, {name}"
                    seconds = measure.interleave(steps, arguments.repeats, title=title, device="cpu", warmup=4)
                rows = measure.ratios(seconds, BASELINE)
                measure.show_ratios(title, BASELINE, rows)
                results += [{"net": net, "target": name, "batch": batch, "form": n, **r} for n, r in rows.items()]
    measure.finish(arguments, results)


if __name__ == "__main__":
    main()

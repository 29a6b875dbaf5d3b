"""Time of a training step of RescaleNet and of baselines: python -m benchmarks.train_step

A step is forward, backward and, with ``--optimizer``, SGD. Ratios are to ``floor``, the net of bare convolutions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import measure
from benchmarks.baselines import NETS, build, builders

VARIANTS = ("floor", "rescale", "rescale_conv", "gained", "naive", "bn", "frozen_bn", "gn", "nf")


def step(net: str, variant: str, batch: int, arguments: Any, mode: str) -> Callable[[], None]:
    """Return a function that runs one training step.

    Args:
        net: key of ``benchmarks.baselines.NETS``.
        variant: key of ``benchmarks.baselines.builders``.
        batch: batch size.
        arguments: arguments of the command line.
        mode: "eager" or "compile".
    """
    form, device = measure.layout(arguments), arguments.device
    model = build(net, variant).to(device).to(memory_format=form).train()
    run = torch.compile(model, fullgraph=variant != "nf") if mode == "compile" else model
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, 1e-4, momentum=0.9)
    torch.manual_seed(1)
    x = torch.randn(batch, 3, arguments.size, arguments.size, device=device).to(memory_format=form)
    y = torch.randint(1000, (batch,), device=device)

    def do() -> None:
        half = torch.autocast(device, torch.bfloat16) if arguments.dtype == "bf16" else contextlib.nullcontext()
        with half:
            loss = F.cross_entropy(run(x), y)
        loss.backward()
        if arguments.optimizer:
            optimizer.step()
        optimizer.zero_grad()

    return do


def main() -> None:
    """Run the benchmark from the command line."""
    parser = measure.parser((__doc__ or "").split("\n")[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[4])
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"], help="bf16 is autocast")
    parser.add_argument("--mode", nargs="+", default=["eager"], choices=["eager", "compile"])
    measure.add_baselines(parser, VARIANTS, ["floor_conv"])
    parser.add_argument("--base", default="floor", help="net to which the ratios are")
    parser.add_argument("--repeats", type=int, default=30, help="interleaved rounds")
    parser.add_argument("--optimizer", action="store_true", help="include the step of the optimizer")
    arguments = parser.parse_args()
    measure.start(arguments)
    results: list[dict[str, Any]] = []
    for net in arguments.net:
        variants = [name for name in arguments.baselines if name in builders(net)]  # timm lacks some layouts
        for mode in arguments.mode:
            for batch in arguments.batch:
                # Dynamo limits the compilations of a function, and the nets share the functions of their layers.
                torch.compiler.reset()
                steps: dict[str, Callable[[], object]] = {
                    variant: step(net, variant, batch, arguments, mode) for variant in variants
                }
                title = f"{NETS[net][0]}, batch {batch}, {arguments.size} px, {arguments.dtype}, {mode}"
                seconds = measure.interleave(steps, arguments.repeats, title=title, device=arguments.device)
                rows = measure.ratios(seconds, arguments.base)
                measure.show_ratios(title, arguments.base, rows)
                facts = {"net": net, "mode": mode, "batch": batch, "dtype": arguments.dtype}
                results += [{**facts, "rival": variant, **row} for variant, row in rows.items()]
    measure.finish(arguments, results)


if __name__ == "__main__":
    main()

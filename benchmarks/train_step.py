"""Time of a training step (forward, backward, SGD) of RescaleNet and its rivals: python -m benchmarks.train_step"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import measure
from benchmarks.rivals import NETS, build, builders

RIVALS = ("floor", "rescale", "naive", "bn", "frozen_bn", "gn", "nf")


def step(net: str, rival: str, batch: int, arguments: Any, mode: str) -> Callable[[], None]:
    """A function that does one training step."""
    form, device = measure.layout(arguments), arguments.device
    model = build(net, rival).to(device).to(memory_format=form).train()
    run = torch.compile(model, fullgraph=rival != "nf") if mode == "compile" else model
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
    parser = measure.parser(__doc__ or "")
    parser.add_argument("--batch", type=int, nargs="+", default=[4])
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"], help="bf16 is autocast")
    parser.add_argument("--mode", nargs="+", default=["eager"], choices=["eager", "compile"])
    parser.add_argument("--rivals", nargs="+", default=list(RIVALS), choices=[*RIVALS, "floor_conv"])
    parser.add_argument("--base", default="floor", help="what the ratios are to")
    parser.add_argument("--repeats", type=int, default=30, help="interleaved rounds")
    parser.add_argument("--optimizer", action="store_true", help="with the optimizer's step, not forward+backward only")
    arguments = parser.parse_args()
    measure.start(arguments)
    results: list[dict[str, Any]] = []
    for net in arguments.net:
        known = builders(net)
        rivals = [r for r in arguments.rivals if r in known]
        for mode in arguments.mode:
            for batch in arguments.batch:
                torch.compiler.reset()
                steps: dict[str, Callable[[], object]] = {
                    rival: step(net, rival, batch, arguments, mode) for rival in rivals
                }
                title = f"{NETS[net][0]}, batch {batch}, {arguments.size} px, {arguments.dtype}, {mode}"
                seconds = measure.interleave(steps, arguments.repeats, title=title, device=arguments.device)
                rows = measure.ratios(seconds, arguments.base)
                measure.show_ratios(title, arguments.base, rows)
                for rival, row in rows.items():
                    results.append(
                        {"net": net, "mode": mode, "batch": batch, "dtype": arguments.dtype, "rival": rival, **row}
                    )
    measure.finish(arguments, results)


if __name__ == "__main__":
    main()

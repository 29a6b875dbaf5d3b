"""Time of inference of folded RescaleNets and folded BatchNorm nets: python -m benchmarks.inference

Engines with threads of their own, such as onnxruntime, OpenVINO and ncnn, need ``--runtime default``: in the tuned one
PyTorch's threads wait awake and take a core from them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import zoo
from benchmarks import measure
from benchmarks.baselines import NETS
from zoo.errors import ZooError
from zoo.export import get_target
from zoo.export.images import export_net, graph_of

ENGINES = ("eager", "compile", "onnxruntime", "openvino")
TARGETS = ("pt2", "aoti", "executorch", "ncnn", "mnn", "litert", "jax")  # of zoo.export, run as its comparison does


def candidates(net: str) -> dict[str, Callable[[], nn.Module]]:
    """Return functions that build the nets by name: folded and as trained.

    The BatchNorm nets have torchvision's shortcut; "bn folded, avgpool" has ours, for comparison.
    """
    name = NETS[net][0]
    return {
        "bn folded": lambda: zoo.fold(_randomized(zoo.create_model(name, scheme="bn"))),
        "bn folded, avgpool": lambda: zoo.fold(_randomized(zoo.create_model(name, scheme="bn", shortcut="avgpool"))),
        "rescale folded": lambda: zoo.fold(_randomized(zoo.create_model(name))),
        "bn": lambda: _randomized(zoo.create_model(name, scheme="bn")).eval(),
        "rescale": lambda: _randomized(zoo.create_model(name)).eval(),
    }


def _randomized(model: nn.Module) -> nn.Module:
    """Set biases and statistics to random values, since those of a new net are zero and folding would drop them."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.ndim == 1 and not name.endswith(("weight", "running_var")):
                tensor.normal_(0, 0.1)
    return model


def call(model: nn.Module, engine: str, batch: int, arguments: Any, folder: Path) -> Callable[[], object]:
    """Return a function that runs the model once in an engine.

    Args:
        model: net in eval mode.
        engine: one of ``ENGINES`` or ``TARGETS``.
        batch: batch size.
        arguments: arguments of the command line.
        folder: folder for the exported files.

    Raises:
        ZooError: a target whose packages are not installed, or that does not take the batch size.
    """
    form = measure.layout(arguments)
    x = torch.randn(batch, 3, arguments.size, arguments.size, device=arguments.device).to(memory_format=form)
    model = model.to(arguments.device).to(memory_format=form)
    if engine in ("eager", "compile"):
        run = torch.compile(model, fullgraph=True) if engine == "compile" else model

        def do() -> object:
            with torch.inference_mode():
                return run(x)

        return do

    # The other engines read exported files.
    small = torch.randn(2, 3, arguments.size, arguments.size)
    samples = [small[:1], small[1:], x.cpu()]
    images = x.cpu().contiguous().numpy()
    if engine in TARGETS:
        target = get_target(engine)
        if batch > 1 and "batch" not in target.dynamic:
            raise ZooError(f"{engine}: takes one image at a time")
        export_net(model.cpu(), samples, folder / "net", engine, folded=False)
        runner = target.functions().load(graph_of(model, samples, "noise", folded=False), folder / "net")
        return lambda: runner((images,))
    export_net(model.cpu(), samples, folder / "net", "onnx" if engine == "onnxruntime" else engine, folded=False)
    if engine == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = arguments.threads
        # Threads that keep spinning would slow down the next net.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        file = folder / "net" / "model.onnx"
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"images": images})
    try:
        import openvino
    except ImportError:
        raise SystemExit("OpenVINO is not installed; pip install 'rescalenet-zoo[bench]'") from None
    core = openvino.Core()
    graph = core.read_model(folder / "net" / "model.xml")
    graph.reshape([batch, 3, arguments.size, arguments.size])
    settings = {
        "INFERENCE_NUM_THREADS": arguments.threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(graph, "CPU", settings)
    request = compiled.create_infer_request()
    return lambda: request.infer([images])


def main() -> None:
    """Run the benchmark from the command line."""
    parser = measure.parser(__doc__ or "")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--engine", nargs="+", default=list(ENGINES), choices=(*ENGINES, *TARGETS))
    parser.add_argument("--nets", nargs="+", default=None, help="nets to compare; default: all")
    parser.add_argument("--repeats", type=int, default=40, help="interleaved rounds")
    arguments = parser.parse_args()
    measure.start(arguments)
    if hasattr(os, "sched_setaffinity"):  # the threads of every engine
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    results: list[dict[str, Any]] = []
    for net in arguments.net:
        known = candidates(net)
        for engine in arguments.engine:
            for batch in arguments.batch:
                torch.compiler.reset()
                steps = {}
                try:
                    for name in arguments.nets or known:
                        torch.manual_seed(0)
                        with tempfile.TemporaryDirectory() as folder:
                            steps[name] = call(known[name](), engine, batch, arguments, Path(folder))
                except ZooError as error:
                    print(f"left out: {engine}, batch {batch}: {error}")
                    continue
                title = f"{NETS[net][0]}, batch {batch}, {arguments.size} px, fp32, {engine}"
                seconds = measure.interleave(steps, arguments.repeats, title=title, device=arguments.device, warmup=4)
                rows = measure.ratios(seconds, next(iter(steps)))
                measure.show_ratios(title, next(iter(steps)), rows)
                results += [{"net": net, "engine": engine, "batch": batch, "name": n, **r} for n, r in rows.items()]
    measure.finish(arguments, results)


if __name__ == "__main__":
    main()

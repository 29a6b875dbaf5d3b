"""Accuracy and time in int8 beside float32, in onnxruntime and OpenVINO: python -m benchmarks.int8 TEST TRAIN

TEST and TRAIN are folders of class folders with pictures. Quantisation is calibrated on pictures of TRAIN. The forms of
a net in int8 are that of float32 (``maximum``) and those of ``zoo.folding.separate_shifts``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import torch
from torch import Tensor, nn

import zoo
from benchmarks import measure
from tasks.images import find_images, read_image
from tasks.spec import load_model
from zoo.export import onnx, onnx_int8, openvino_int8
from zoo.export import openvino as to_openvino
from zoo.export.graphs import Graph, Settings
from zoo.export.images import graph_of
from zoo.folding import separate_shifts

Run = Callable[[np.ndarray], list[np.ndarray]]
NETS = ("rescalenet20_cifar.cifar10_v2", "rescalenet20_cifar.cifar10_v2_bn")
FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "maximum": lambda module: module,
    "addend": separate_shifts,
    "depthwise": lambda module: separate_shifts(module, depthwise=True),
}


def write(tool: str, graph: Graph, folder: Path, settings: Settings) -> tuple[Path, dict[str, int]]:
    """Write a graph as it is, in float32 or quantised, and return the file and what stays in float."""
    folder.mkdir()
    if tool == "onnxruntime":
        path = onnx.path_of(graph, folder)
        onnx.write_graph(graph, folder, Settings())
        if settings.calibration:
            onnx_int8.quantise(path, graph, settings)
            return path, onnx_int8.float_islands(path, graph)
        return path, {}
    path = to_openvino.path_of(graph, folder)
    model = to_openvino.converted(graph, path)
    if settings.calibration:
        model = openvino_int8.quantise(model, graph, settings)
    openvino.save_model(model, path, compress_to_fp16=False)
    return path, openvino_int8.float_islands(path, graph) if settings.calibration else {}


def runner(file: Path) -> Run:
    """Return a function that runs a file with one input on one thread."""
    if file.suffix == ".onnx":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        (source,) = session.get_inputs()
        return lambda x: session.run(None, {source.name: x})
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(file, "CPU", settings)
    return lambda x: [value.copy() for value in compiled([x]).values()]


def inputs_of(folder: Path, transform: Callable[..., Tensor], each: int) -> tuple[Tensor, np.ndarray]:
    """Return up to ``each`` inputs of each class folder, and their class numbers."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    pairs = [(path, i) for i, c in enumerate(classes) for path in find_images([str(c)])[:each]]
    return torch.stack([transform(read_image(path)) for path, _ in pairs]), np.array([i for _, i in pairs])


def accuracy(run: Run, inputs: Tensor, labels: np.ndarray) -> float:
    """Return the percentage of the inputs whose best class is the label."""
    found = [run(part.numpy())[0].argmax(1) for part in inputs.split(100)]
    return 100 * float((np.concatenate(found) == labels).mean())


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("test", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("--weights", nargs="+", default=list(NETS))
    parser.add_argument("--tools", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--each", type=int, default=1000, help="test pictures of each class")
    parser.add_argument("--calibration", type=int, default=30, help="training pictures of each class")
    parser.add_argument("--batch", type=int, default=8, help="batch size of the timing")
    parser.add_argument("--pairs", type=int, default=60, help="interleaved rounds of the timing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for tool in arguments.tools:
        runs: dict[str, Run] = {}
        with tempfile.TemporaryDirectory() as folder:
            for name in arguments.weights:
                entry = zoo.get_weights(name)
                transform = entry.transform.build()
                test, labels = inputs_of(arguments.test, transform, arguments.each)
                train, _ = inputs_of(arguments.train, transform, arguments.calibration)
                graph = graph_of(load_model(entry).eval(), [test[:1], test[1:9]], "pictures")
                settings = Settings(calibration=tuple((x[None],) for x in train))
                forms = arguments.forms if "bn" not in name.split("_") else ["maximum"]
                for form in ("float32", *forms):
                    other = graph if form == "float32" else replace(graph, module=FORMS[form](graph.module))
                    place = Path(folder) / f"{name} {form}"
                    path, islands = write(tool, other, place, Settings() if form == "float32" else settings)
                    runs[f"{name} {form}"] = run = runner(path)
                    figure = accuracy(run, test, labels)
                    print(f"{tool}, {name}, {form}: accuracy {figure:.2f} %, in float between: {islands}", flush=True)
            x = test[: arguments.batch].numpy()
            steps: dict[str, Callable[[], object]] = {name: partial(run, x) for name, run in runs.items()}
            seconds = measure.interleave(steps, arguments.pairs, title=tool, device="cpu", warmup=4)
            for name in arguments.weights:
                own = {key.split(" ")[1]: value for key, value in seconds.items() if key.split(" ")[0] == name}
                measure.show_ratios(f"{tool}, {name}, one thread", "float32", measure.ratios(own, "float32"))


if __name__ == "__main__":
    main()

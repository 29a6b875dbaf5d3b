"""Post-training quantisation of models of OpenVINO to int8 with NNCF, and what of them stays in float."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import nncf
import openvino

from zoo.export.graphs import Graph, Settings
from zoo.export.int8 import between

MOVES = {"Reorder", "Reshape", "FakeQuantize"}  # what only changes the layout or the dtype


def quantise(model: openvino.Model, graph: Graph, settings: Settings) -> openvino.Model:
    """Return the quantised model: weights int8 per channel, activations uint8 or int8 by their range.

    Args:
        model: model of a graph in float32.
        graph: graph of the model.
        settings: settings with the inputs of the calibration.
    """
    names = [port.name for port in graph.inputs]
    inputs = [dict(zip(names, (x.cpu().numpy() for x in sample), strict=True)) for sample in settings.calibration]
    # the range of an activation is not symmetric: below 0 it ends at the smallest shift
    preset = nncf.QuantizationPreset.MIXED
    return nncf.quantize(model, nncf.Dataset(inputs), preset=preset, subset_size=len(inputs))


def float_islands(path: Path) -> dict[str, int]:
    """Return how many operators of each type compute in float between two quantised ones, in OpenVINO on the CPU."""
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    nodes = compiled.get_runtime_model().get_ordered_ops()
    facts = [{key: str(value.value) for key, value in node.get_rt_info().items()} for node in nodes]
    places = {node.get_friendly_name(): i for i, node in enumerate(nodes)}
    sources = [[places[end.get_source_output().get_node().get_friendly_name()] for end in n.inputs()] for n in nodes]
    quantised = {
        i
        for i, fact in enumerate(facts)
        if fact["runtimePrecision"] in ("i8", "u8") and fact["layerType"] not in ("Const", *MOVES)
    }
    found = between(sources, quantised, quantised)
    return dict(Counter(facts[i]["layerType"] for i in found if facts[i]["layerType"] not in MOVES))

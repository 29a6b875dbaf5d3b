"""Post-training quantisation of models of OpenVINO to int8 with NNCF, and what of them stays in float."""

from __future__ import annotations

import logging
import re
import tempfile
from collections import Counter
from pathlib import Path

import nncf
import openvino
from nncf.quantization.range_estimator import RangeEstimatorParametersSet

from zoo.export.graphs import Graph, Settings
from zoo.export.int8 import between

MOVES = {"Reorder", "Reshape", "FakeQuantize"}  # what only changes the layout or the dtype


def quantise(model: openvino.Model, graph: Graph, settings: Settings) -> openvino.Model:
    """Return the quantised model: weights int8 per channel, activations uint8 or int8 by their range.

    Args:
        model: model of a graph in float32. Its nodes are named by the module that they are of.
        graph: graph of the model.
        settings: settings with the inputs of the calibration.
    """
    nncf.set_log_level(logging.WARNING)  # it names each operator that stays in float
    with tempfile.TemporaryDirectory() as folder:  # NNCF finds nodes by names, which are unique in files alone
        path = Path(folder) / "model.xml"
        openvino.save_model(model, path, compress_to_fp16=False)
        model = openvino.Core().read_model(path).clone()
    names = [port.name for port in graph.inputs]
    inputs = [dict(zip(names, (x.cpu().numpy() for x in sample), strict=True)) for sample in settings.calibration]
    # The range of an activation is not symmetric: below 0 it ends at the smallest shift. It covers the extremes of all
    # inputs, not their mean, which NNCF takes by default and which costs detectors 2 points of AP.
    preset = nncf.QuantizationPreset.MIXED
    ranges = nncf.AdvancedQuantizationParameters(activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX)
    ignored = None
    if graph.quantised:
        parts = "|".join(re.escape(part) for part in _prefixes(graph))
        ignored = nncf.IgnoredScope(patterns=[f"^(?!.*({parts})).*$"])
    return nncf.quantize(
        model,
        nncf.Dataset(inputs),
        preset=preset,
        subset_size=len(inputs),
        ignored_scope=ignored,
        advanced_parameters=ranges,
    )


def _prefixes(graph: Graph) -> tuple[str, ...]:
    """Return how names of nodes begin that are of a part that int8 is for; () for all."""
    return tuple(f"__module.{part}." for part in graph.quantised)


def float_islands(path: Path, graph: Graph) -> dict[str, int]:
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
    parts = _prefixes(graph) or ("",)
    inside = [i for i in found if nodes[i].get_friendly_name().startswith(parts)]
    return dict(Counter(facts[i]["layerType"] for i in inside if facts[i]["layerType"] not in MOVES))

"""Export to detectron2: checkpoints and config lines for its own classes, without a plug-in.

A ResNet becomes a file for ``build_resnet_backbone`` or ``build_resnet_fpn_backbone`` with ``NORM: FrozenBN``, in the
form of detectron2's own pretrained weights. A detector with detectron2's conventions becomes a file for its Faster or
Mask R-CNN. Only nets that its classes can compute have one (``zoo.export.batchnorm_form``).

The files are compared in detectron2 if it is installed, else in the net that ``zoo.convert`` reads from them.
"""

from __future__ import annotations

import pickle
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from zoo.convert.batchnorm import convert_batchnorm
from zoo.convert.checkpoints import read_checkpoint
from zoo.convert.detectron2 import feature_names
from zoo.convert.layouts.detectron2 import foreign_key
from zoo.convert.layouts.detectron2_heads import background_last, their_key
from zoo.errors import ExportError, one_line
from zoo.export.batchnorm_form import BatchNormForm, is_norm, trained_net
from zoo.export.detectron2_configs import (
    LEVELS,
    Config,
    as_resnet,
    detector_config,
    input_config,
    options_of,
    resnet_config,
)
from zoo.export.graphs import Arrays, Deployment, Graph, Runner, Settings
from zoo.layers import GainedConv
from zoo.nets.base import Backbone, FeatureExtractor
from zoo.nets.resnet import ResNet

NAME = "detectron2"
AUTHOR = "rescalenet-zoo"  # the loader of detectron2 takes a pickle with an author as its own
BODY = "backbone.bottom_up."  # prefix of a body's keys in a detector
_NORM = ("weight", "bias", "running_mean", "running_var")


def write(graph: Graph, folder: Path, settings: Settings) -> None:
    """Write ``.pkl``, which MODEL.WEIGHTS names, and ``.yaml`` with the config lines that go with it.

    Raises:
        ExportError: a net that detectron2's classes cannot compute, with the reason.
    """
    net = trained_net(graph, NAME)
    whole = graph.compares == "objects"
    config = detector_config(net) if whole else backbone_config(net, graph)
    state = detector_state(net) if whole else body_state(_body(net))
    content = {
        "model": {key: np.ascontiguousarray(value.detach().float().cpu().numpy()) for key, value in state.items()},
        "__author__": AUTHOR,
        "matching_heuristics": not whole,  # a body's keys have other prefixes in each model
    }
    with (folder / f"{graph.name}.pkl").open("wb") as file:
        pickle.dump(content, file)
    text = yaml.safe_dump({"VERSION": 2, **config}, default_flow_style=None, sort_keys=False)
    (folder / f"{graph.name}.yaml").write_text(text, encoding="utf-8")


def load(graph: Graph, folder: Path) -> Runner:
    """Return a function that runs the files in detectron2, or in the net that ``zoo.convert`` reads from them."""
    net = trained_net(graph, NAME)
    runtime = _runtime()
    if runtime is None:
        state = read_checkpoint(folder / f"{graph.name}.pkl")
        return _read_detector(net, state, graph) if graph.compares == "objects" else _read_net(net, state)
    files = folder / f"{graph.name}.yaml", folder / f"{graph.name}.pkl"
    if graph.compares == "objects":
        return runtime.detector_runner(*files, net, [port.name for port in graph.outputs])
    return runtime.body_runner(*files, _body(net), _maps(net))


def remark(deployment: Deployment) -> str:
    """Return what the files were compared in."""
    if (runtime := _runtime()) is None:
        return "detectron2 is not installed, so that the net which zoo.convert reads from the file was compared"
    return f"compared in detectron2 {runtime.VERSION}"


def _runtime() -> Any:
    """Return ``zoo.export.detectron2_runtime``; None if detectron2 is not installed.

    Raises:
        ExportError: detectron2 is installed, but cannot be imported.
    """
    if not find_spec("detectron2"):
        return None
    try:
        return import_module("zoo.export.detectron2_runtime")
    except ImportError as error:
        raise ExportError(
            f"export to {NAME}: it is installed, but cannot be imported ({one_line(error)}): see its installation notes"
        ) from None


# -- what is written -----------------------------------------------------------------------------------


def backbone_config(net: nn.Module, graph: Graph) -> Config:
    """Return the config lines of a net or a feature extractor.

    Raises:
        ExportError: detectron2's ResNets cannot compute this net, with the reason.
    """
    body = _body(net)
    lines = resnet_config(body, _maps(net) or LEVELS)
    if body is net and len(body.stages()) < len(LEVELS):
        raise ExportError(f"{body.config.name} has no counterpart in detectron2: the net was cut off after a stage")
    if body.num_classes and body.global_pool != "avg":
        raise ExportError(
            f"{body.config.name} has no counterpart in detectron2: global_pool={body.global_pool!r}, it takes the mean"
        )
    pixels = input_config(graph.transform)
    return {**pixels, "MODEL": {**lines, **pixels.get("MODEL", {})}}


def body_state(body: Backbone) -> dict[str, Tensor]:
    """Return the tensors of a net by detectron2's keys; those of its classifier are ``linear``.

    Raises:
        ExportError: a net with GroupNorm, or with a bias before a padded product.
    """
    form = BatchNormForm.of(body, NAME)
    state: dict[str, Tensor] = {}
    for name in form.modules():
        leaves = _NORM if is_norm(name) else ("weight", "bias") if name == "fc" else ("weight",)
        state |= {foreign_key(f"{name}.{leaf}"): form.tensor(name, leaf) for leaf in leaves}
    return state


def detector_state(detector: Any) -> dict[str, Tensor]:
    """Return the tensors of a detector by detectron2's keys, with the gains of its pyramid in the weights.

    Raises:
        ExportError: a body with GroupNorm, or with a bias before a padded product.
    """
    body = {f"{BODY}{key}": value for key, value in body_state(detector.backbone.body.body).items()}
    around = {key: value for key, value in detector.state_dict().items() if not key.startswith("backbone.body.")}
    for name, module in detector.named_modules():
        if isinstance(module, GainedConv):
            gain = around.pop(f"{name}.gain.gain")
            around[f"{name}.weight"] = around.pop(f"{name}.conv.weight") * gain
            around[f"{name}.bias"] = around.pop(f"{name}.conv.bias")
    convs = options_of(detector)["rpn_convs"]
    return body | {their_key(key, convs): value for key, value in background_last(around).items()}


def _body(net: nn.Module) -> ResNet:
    """Return the ResNet in a graph's net.

    Raises:
        ExportError: another module.
    """
    return as_resnet(net.body if isinstance(net, FeatureExtractor) else net)


def _maps(net: nn.Module) -> list[str]:
    """Return detectron2's names of the maps of a feature extractor; [] for a net with one output.

    Raises:
        ExportError: the map of the stem.
    """
    if not isinstance(net, FeatureExtractor):
        return []
    names = [feature_names(net.body)[i] for i in net.out_indices]
    if "stem" in names:
        raise ExportError(f"export to {NAME}: its stem ends behind the max pool; leave feature level 0 out")
    return names


# -- the files without detectron2 ----------------------------------------------------------------------


def _read_net(net: nn.Module, state: dict[str, Tensor]) -> Runner:
    """Return a function that runs the net which ``zoo.convert`` reads from a file."""
    body = _body(net)
    own = {"stride_in_1x1": body.config.options.get("stride_in_1x1", False)}
    if len(body.stages()) < len(LEVELS):
        raise ExportError(f"export to {NAME}: a net that was cut off is compared in detectron2 alone; install it")
    again: Any = convert_batchnorm(state, body.config.name, form="folded", **own).model.eval()
    if isinstance(net, FeatureExtractor):
        again = FeatureExtractor(again, net.out_indices)
    elif not body.num_classes:
        again.reset_classifier(0, body.global_pool)

    def run(inputs: Arrays) -> list[np.ndarray]:
        with torch.no_grad():
            output = again(torch.from_numpy(inputs[0]))
        return [x.numpy() for x in ([output] if isinstance(output, Tensor) else output)]

    return run


def _read_detector(detector: Any, state: dict[str, Tensor], graph: Graph) -> Runner:
    """Return a function that runs the detector which ``zoo.convert`` reads from a file."""
    heads, input, options = detector.roi_heads, detector.input, dict(detector.config.options)
    body = options.pop("body", {})
    again: Any = convert_batchnorm(
        state,
        detector.config.name,
        form="folded",
        classes="all",
        body={"stride_in_1x1": body.get("stride_in_1x1", False)},
        min_size=input.min_size,
        max_size=input.max_size,
        mean=input.mean,
        std=input.std,
        **{**options, "score_thresh": heads.score_thresh, "detections": heads.detections_per_img},
    ).model.eval()

    def run(inputs: Arrays) -> list[np.ndarray]:
        image = torch.from_numpy(inputs[0])
        # the reader takes the input for BGR
        with torch.no_grad():
            found = again([image if input.channel_order == "BGR" else image.flip(0)])[0]
        return [found[port.name].numpy() for port in graph.outputs]

    return run

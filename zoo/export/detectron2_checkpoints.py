"""Weights of the zoo in MODEL.WEIGHTS: what detectron2's checkpointer loads into a model with a backbone of the zoo.

detectron2 makes its checkpointer by name in ``DefaultTrainer`` and ``DefaultPredictor``, and has no place to add a
format. ``extend_checkpointer`` therefore wraps two of its methods. Models without a backbone of the zoo load as before.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

import zoo
from zoo.convert.detectron2 import BODY, KEY, write_description
from zoo.convert.layouts.detectron2_heads import background_last, their_key
from zoo.errors import WeightsError, ZooError
from zoo.export.detectron2 import ZooBackbone, names_weights, net_of_weights
from zoo.weights import open_weights

log = logging.getLogger("rescalenet")

SHOWN = 10  # classes of weights that a line names
_LAST = ("roi_heads.box_predictor.", "roi_heads.mask_head.predictor.")  # layers whose size is the number of classes


def extend_checkpointer() -> None:
    """Make ``DetectionCheckpointer`` load weights of the zoo, and refuse files without the backbone's tensors."""
    load, load_model = DetectionCheckpointer.load, DetectionCheckpointer._load_model
    if hasattr(load, "of_zoo"):  # done before
        return

    @functools.wraps(load)
    def load_any(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        try:
            if path and names_weights(path, _name_of_net(self.model)):
                return _load_weights(self, path)
            return load(self, path, *args, **kwargs)
        except ZooError as error:
            raise type(error)(f"MODEL.WEIGHTS={path}: {error}") from None

    @functools.wraps(load_model)
    def load_complete(self: Any, checkpoint: Any) -> Any:
        incompatible = load_model(self, checkpoint)
        if (found := find_backbone(self.model)) is not None:
            _refuse_part(*found, incompatible)
        return incompatible

    load_any.of_zoo = True  # type: ignore[attr-defined]
    DetectionCheckpointer.load, DetectionCheckpointer._load_model = load_any, load_complete


def _load_weights(checkpointer: Any, weights: str) -> dict[str, Any]:
    """Load weights of the zoo into a checkpointer's model, and return what else they have for it: nothing.

    Raises:
        ZooError: a model without a backbone of the zoo, or weights of another net.
    """
    checkpointer.logger.info("Loading from %s ...", weights)
    state = detectron2_state(weights, checkpointer.model)
    checkpointer._log_incompatible_keys(checkpointer._load_model({"model": state}))
    return {}


def _name_of_net(model: nn.Module) -> str | None:
    """Return the name of the net in a model; None if its backbone is not of the zoo."""
    found = find_backbone(model)
    return None if found is None else found[1].body.config.name


def find_backbone(model: nn.Module) -> tuple[str, ZooBackbone] | None:
    """Return the backbone of the zoo in a model, with the prefix of its keys; None if there is none."""
    for name, module in model.named_modules():
        if isinstance(module, ZooBackbone):
            return (f"{name}." if name else ""), module
    return None


def _refuse_part(prefix: str, backbone: ZooBackbone, incompatible: Any) -> None:
    """Refuse a checkpoint that leaves a part of the backbone, or an untrained one, as it is.

    Args:
        prefix: prefix of the backbone's keys.
        backbone: backbone.
        incompatible: keys that detectron2 did not load.

    Raises:
        WeightsError: the first tensor that was not loaded, with the remedy.
    """
    lost = [*incompatible.missing_keys, *(key for key, *_ in incompatible.incorrect_shapes)]
    lost = sorted(key for key in lost if key.startswith(f"{prefix}body."))
    if not lost:
        return
    name, count = backbone.body.config.name, len(backbone.body.state_dict())
    if len(lost) == count and backbone.has_weights:
        log.warning("the checkpoint has no tensors of the backbone %s, which keeps those of MODEL.ZOO.WEIGHTS", name)
        return
    raise WeightsError(
        f"{len(lost)} of the {count} tensors of the backbone {name} are not in it, the first {lost[0]}; checkpoints of "
        "other nets are converted first (rescalenet convert FILE OUT.safetensors), and OUT.safetensors is given here"
    )


def detectron2_state(weights: str, model: nn.Module) -> dict[str, Tensor]:
    """Return weights of the zoo as the state of a model of detectron2.

    Weights of a detector give the pyramid too. Its heads are taken where they compute the same in detectron2: with the
    option ``conventions="detectron2"``, plain heads and equal anchors. What is left out is logged.

    Args:
        weights: name of weights of the backbone, or of a detector around it.
        model: model of detectron2 with a backbone of the zoo.

    Raises:
        ZooError: a model without a backbone of the zoo, or weights of another net, scheme or options.
    """
    if (found := find_backbone(model)) is None:
        raise ZooError("weights of the RescaleNet zoo, but the model has no backbone of it (build_zoo_backbone)")
    prefix, backbone = found
    own = backbone.body.config
    net, transform = net_of_weights(own.name, weights, own.scheme, {})
    body = zoo.FeatureExtractor(net, backbone.body.out_indices).state_dict()
    state = {f"{prefix}{BODY}{key.removeprefix('body.')}": value for key, value in body.items()}
    state[prefix + KEY] = write_description(net.config, transform)
    entry = open_weights(weights, own.name)
    if entry.config.name != own.name:
        detector = zoo.create_model(entry.config.name, weights)
        state |= _around(detector, model, weights, entry.classes)
    return state


def _around(detector: Any, model: nn.Module, weights: str, classes: Sequence[str]) -> dict[str, Tensor]:
    """Return the pyramid and the heads of a detector of the zoo as far as they fit a model of detectron2.

    A model of detectron2 has no names of classes, so that the last layers cannot be compared with those of its data.
    """
    options = {**zoo.model_info(detector.config.name).options, **detector.config.options}
    state = {key: value for key, value in detector.state_dict().items() if not key.startswith("backbone.body.")}
    state = {their_key(key, options["rpn_convs"]): value for key, value in background_last(state).items()}
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    pyramid = {key: value for key, value in state.items() if key.startswith("backbone.")}
    if any(shapes.get(key) != value.shape for key, value in pyramid.items()):
        log.warning("%s: its pyramid is another than the model's, so that the backbone alone was loaded", weights)
        return {}
    heads = {key: value for key, value in state.items() if key not in pyramid}
    last = {key for key in heads if key.startswith(_LAST)}
    reason = ""
    if options["conventions"] != "detectron2":
        reason = "it was trained with torchvision's anchors and pooling (conventions)"
    elif key := next((key for key in heads if key not in last and shapes.get(key) != heads[key].shape), None):
        reason = f"{key} is not in the model with that shape"
    elif not _same_anchors(detector, model):
        reason = "its anchors are others than those of MODEL.ANCHOR_GENERATOR"
    if reason:
        log.warning("%s: backbone and pyramid were loaded, its heads were not: %s", weights, reason)
        return pyramid
    if any(shapes.get(key) != heads[key].shape for key in last):
        log.warning("%s: its last layers are for %d classes and were not loaded", weights, detector.num_classes)
        heads = {key: value for key, value in heads.items() if key not in last}
    elif len(classes) > 1:
        names = f"{', '.join(map(repr, classes[:SHOWN]))}{', ...' if len(classes) > SHOWN else ''}"
        log.warning("%s: its classes are %s; the data set must list the same in this order", weights, names)
    return {**pyramid, **heads}


def _same_anchors(detector: Any, model: Any) -> bool:
    """Return whether the anchors at a position are the same in a detector of the zoo and in a model of detectron2."""
    generator = detector.rpn.anchor_generator
    sides, ratios = generator.sizes, generator.aspect_ratios
    ours = [generator.generate_anchors(list(s), list(r)) for s, r in zip(sides, ratios, strict=True)]
    theirs = [cell.cpu() for cell in model.proposal_generator.anchor_generator.cell_anchors]
    return len(ours) == len(theirs) and all(
        a.shape == b.shape and torch.allclose(a, b.float(), atol=1e-3) for a, b in zip(ours, theirs, strict=True)
    )

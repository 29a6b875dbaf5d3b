"""Export to JAX, to go on training there: the weights as trained, and a net in Flax NNX that reads and writes them.

``rescalenet_flax.py`` is that net. Exports contain a copy of it, which requires neither this package nor PyTorch.
Requires the extra ``jax``.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax  # noqa: F401  (train.py in the export requires it)
from flax import nnx
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

from zoo.errors import ExportError, one_line
from zoo.export.batchnorm_form import trained_net
from zoo.export.graphs import Arrays, Deployment, Graph, Runner, Settings
from zoo.export.jax import rescalenet_flax
from zoo.headers import HEADER_KEY, Header, write_header
from zoo.nets.base import Net
from zoo.nets.transformer import Transformer


def path_of(graph: Graph, folder: Path) -> Path:
    """Return the file of a graph."""
    return folder / f"{graph.name}.safetensors"


def write(graph: Graph, folder: Path, settings: Settings) -> None:
    """Write the tensors of a net as trained, by their keys in PyTorch.

    Raises:
        ExportError: a net, a scheme or a part of a net that ``rescalenet_flax.py`` does not have.
    """
    net = _net(graph)
    config = dataclasses.asdict(net.config)
    try:
        rescalenet_flax.options_of(config)
    except ValueError as error:
        raise ExportError(f"export to jax: {error}") from None
    header: dict[str, Any] = {"config": config, "transform": None, "classes": [], "meta": {}}  # ``finish`` adds to it
    tensors = {key: _stored(value, settings) for key, value in net.state_dict().items()}
    path_of(graph, folder).write_bytes(serialize(tensors, {HEADER_KEY: json.dumps(header), "format": "pt"}))


def _net(graph: Graph) -> Net:
    """Return the net of a graph.

    Raises:
        ExportError: a graph of something else than a whole net.
    """
    net = trained_net(graph, "jax")
    if isinstance(net, Transformer) and graph.module is not net:
        raise ExportError(
            f"export to jax: {graph.name}: takes the graph of the whole net (zoo.export.text.whole_graph)"
        )
    if not isinstance(net, Net):
        raise ExportError(
            f"export to jax: takes whole nets, not {type(net).__name__}; in JAX, net.feature_maps(images) returns the "
            "feature maps of a whole net"
        )
    return net


def _stored(value: Tensor, settings: Settings) -> Tensor:
    value = value.detach().cpu().contiguous()
    return value.half() if settings.half and value.is_floating_point() else value


def load(graph: Graph, folder: Path) -> Runner:
    """Return a function that runs the file on the CPU, in float32; inputs and outputs are channels-first.

    Raises:
        ExportError: a file that is damaged or of another net.
    """
    path = path_of(graph, folder)
    cpu = jax.devices("cpu")[0]
    try:
        with jax.default_device(cpu):
            net, _ = rescalenet_flax.load(path)
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        raise ExportError(f"{path}: cannot be read in JAX: {one_line(error)}") from None
    net.eval()
    compiled = nnx.jit(lambda net, *inputs: net(*inputs))

    def run(inputs: Arrays) -> list[np.ndarray]:
        images = inputs[0].ndim > 2
        arrays = [np.moveaxis(x, 1, -1) if images else x.astype(np.int32) for x in inputs]
        with jax.default_device(cpu), jax.default_matmul_precision("highest"):
            output = np.asarray(compiled(net, *arrays))
        return [np.moveaxis(output, -1, 1) if images else output]

    return run


def finish(deployment: Deployment, folder: Path, settings: Settings) -> None:
    """Add the net's source and an example of training, and complete the header, so that ``zoo.create_model`` reads it.

    The header stays incomplete if the net's transform or its classes are not known.
    """
    source = Path(rescalenet_flax.__file__)
    shutil.copyfile(source, folder / source.name)
    shutil.copyfile(source.with_name("train_text.py" if deployment.kind == "text" else "train.py"), folder / "train.py")
    weights = deployment.weights
    for graph in deployment.graphs:
        config, path = _net(graph).config, path_of(graph, folder)
        transform = graph.transform if weights is None else weights.transform
        classes = deployment.description.get("classes", ()) if weights is None else weights.classes
        if transform is not None and len(classes) == config.num_classes:
            header = Header(config, transform, tuple(classes), {} if weights is None else weights.meta)
            metadata = {HEADER_KEY: write_header(header, path), "format": "pt"}
            path.write_bytes(serialize(load_file(path), metadata))

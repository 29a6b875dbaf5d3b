"""Export to programs of torch.export (.pt2), compared after ``torch.export.load``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from zoo.export.graphs import Arrays, Graph, Runner, Settings
from zoo.export.programs import outputs_in_order, program_of

METADATA = "rescalenet.json"  # one of the extra files that torch.export.load returns


def path_of(graph: Graph, folder: Path) -> Path:
    """Return the file of a graph."""
    return folder / f"{graph.name}.pt2"


def write(graph: Graph, folder: Path, settings: Settings) -> None:
    """Write one file, in which the named axes of all inputs may change. It contains no sample.

    Raises:
        ExportError: torch.export does not take the graph.
    """
    program = program_of(graph, half=settings.half)
    program.example_inputs = None
    torch.export.save(program, path_of(graph, folder), extra_files={METADATA: json.dumps(dict(graph.metadata))})


def load(graph: Graph, folder: Path) -> Runner:
    """Return a function that runs the file in PyTorch."""
    module = torch.export.load(path_of(graph, folder)).module()

    def run(inputs: Arrays) -> list[np.ndarray]:
        with torch.no_grad():
            return outputs_in_order(module(*map(torch.from_numpy, inputs)))

    return run

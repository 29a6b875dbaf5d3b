"""Export to AOTInductor packages (.pt2): machine code for the CPU. Requires a C++ compiler."""

from __future__ import annotations

import logging
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._inductor
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from zoo.errors import ExportError
from zoo.export.graphs import Arrays, Deployment, Graph, Runner, Settings
from zoo.export.programs import outputs_in_order, program_of

log = logging.getLogger("rescalenet")

# Every x86 CPU with AVX2 runs the code, not only CPUs as new as the one that compiles it. PyTorch's own kernels, such
# as the convolutions, choose the instructions of the CPU at run time.
X86 = {"cpp.march": "x86-64-v3", "cpp.simdlen": 256}
COMMON = {
    "aot_inductor.enable_line_tables": False,  # which name the folders of this disk
    "aot_inductor.check_lowerbound": False,  # of 2: an input with one image is right
    "aot_inductor.check_upperbound": False,  # of 15 images, where one thread exports: more are right
}


def path_of(graph: Graph, folder: Path) -> Path:
    """Return the file of a graph."""
    return folder / f"{graph.name}.pt2"


def compile_settings() -> dict[str, Any]:
    """Return the settings of the compiler on this machine. Another CPU than x86 is compiled for as it is."""
    return COMMON | (X86 if platform.machine() in ("x86_64", "AMD64") else {})


def supported() -> bool:
    """Return whether this version of torch compiles for other CPUs than its own."""
    return hasattr(torch._inductor.config.cpp, "march")


def write(graph: Graph, folder: Path, settings: Settings) -> None:
    """Compile one package, in which the named axes of all inputs may change.

    Raises:
        ExportError: an old torch, no C++ compiler, or torch.export does not take the graph.
    """
    if not supported():
        raise ExportError(
            f"export to aoti needs torch>=2.15, not {torch.__version__}: pip install -U torch torchvision"
        )
    try:
        compiler = get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ExportError(
            "export to aoti needs a C++ compiler: install g++, or name yours in the environment variable CXX"
        ) from None
    program = program_of(graph, half=settings.half)
    log.info("aoti: %s compiles %s, which takes minutes for large nets", compiler, graph.name)
    # Without this, the compiler takes for granted at every size what is true of the sample's. Where the pool of a
    # shortcut has an even map in the sample, it rounds odd ones down, and the sum with the branch reads beyond its map.
    # Packages do not check what the compiler took for granted: https://github.com/pytorch/pytorch/issues/150364.
    with (
        torch.fx.experimental._config.patch(backed_size_oblivious=True),  # type: ignore[attr-defined]
        torch.no_grad(),
    ):
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(path_of(graph, folder)),
            inductor_configs=compile_settings() | {"aot_inductor.metadata": dict(graph.metadata)},
        )


def remark(deployment: Deployment) -> str:
    """Return which CPUs run the package, and what its runtime does not check."""
    x86 = compile_settings().keys() >= X86.keys()
    cpus = "every x86 CPU with AVX2" if x86 else f"CPUs as this one ({platform.machine()})"
    return f"it runs on {cpus}; inputs must be contiguous, which AOTI_RUNTIME_CHECK_INPUTS=1 checks"


def load(graph: Graph, folder: Path) -> Runner:
    """Return a function that runs the file in PyTorch's runtime of AOTInductor."""
    with torch._inductor.config.patch(compile_settings()):  # else a newer CPU warns that it is newer
        model = torch._inductor.aoti_load_package(str(path_of(graph, folder)))

    def run(inputs: Arrays) -> list[np.ndarray]:
        with torch.no_grad():
            return outputs_in_order(model(*(torch.from_numpy(np.ascontiguousarray(x)) for x in inputs)))

    return run

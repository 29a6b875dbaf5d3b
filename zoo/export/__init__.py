"""Export to other frameworks: one module for each target, verified in the target's own runtime.

``TARGETS`` is the table of targets. A package outside of this one adds its target by an entry point of the group
``rescalenet.targets`` (value: ``module:TARGET``) or by ``register_target``.

A target's module has two functions, and may have two more:

- ``write(graph, folder, settings)`` writes a graph's files into the folder; their names begin with ``graph.name``.
- ``load(graph, folder) -> Runner`` returns a function that runs these files in the target's runtime, in float32.
- ``finish(deployment, folder, settings)`` adds what the graphs need around them, such as a page.
- ``remark(deployment) -> str`` returns what a user must know of this export; "": nothing.

``VERSIONS``, which a module may have too, are the versions of packages that are not on PyPI, by their names.

``zoo.export.writing`` does what all targets share: it compares the files with the net, writes the manifest, and keeps
the folder only if everything agrees.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from zoo.errors import ExportError, ZooError, suggestion
from zoo.plugins import load_plugins

ENTRY_POINTS = "rescalenet.targets"
ANY_SHAPE = frozenset({"batch", "size"})


@dataclass(frozen=True)
class Target:
    """A framework that nets can be exported to.

    Attributes:
        name: name of the target, as ``rescalenet export --to`` takes it.
        module: module with the functions of the target, which is imported when it is used.
        kinds: kinds of input that it takes: ``images`` (a net of batches (N, C, H, W)), ``clips`` (of (N, C, T, H, W)),
            ``image_lists`` (a whole detector of images (C, H, W)) and ``text`` (a translation net).
        packages: packages whose versions the manifest lists, by the names on PyPI.
        extra: extra of this package that installs the target's packages; None if it needs none.
        dynamic: axes that may change after the export: ``batch``, and ``size`` for all others.
        folded: whether the graphs compute the deployment form (``zoo.fold``), unless the user requests the net as
            trained.
        form: contents of a deployment for it: ``graphs``, or ``net``, which is one graph of the whole net as it was
            trained, without standardisation or softmax; the target converts its weights.
        options: options of the export that it takes: ``half``, ``int8``.
        channels_last: whether the files take and return (N, ..., C) in place of (N, C, ...).
        remark: note for users, such as that the runtime does not run here; the export prints it.
        runtime: package that runs the files, one of ``versions``; None for the first of ``packages``.
        runs_code: whether loading a file may run code that the file has, so that files of strangers are not loaded.
        runs_deployments: whether the runtime runs what is around the graphs too, such as the beam search of
            translations.
    """

    name: str
    module: str
    kinds: tuple[str, ...]
    packages: tuple[str, ...] = ()
    extra: str | None = None
    dynamic: frozenset[str] = ANY_SHAPE
    folded: bool = True
    form: Literal["graphs", "net"] = "graphs"
    options: frozenset[str] = frozenset()
    channels_last: bool = False
    remark: str = ""
    runtime: str | None = None
    runs_deployments: bool = False
    runs_code: bool = False

    def functions(self) -> Any:
        """Import the target's module.

        Raises:
            ExportError: a package is missing; the message names the extra that installs it.
        """
        try:
            return import_module(self.module)
        except ModuleNotFoundError as error:
            raise self.missing(error) from None

    def versions(self) -> dict[str, str]:
        """Return the version of each package that the target uses."""
        from importlib.metadata import version

        found = {package: version(package) for package in self.packages}
        return found | getattr(self.functions(), "VERSIONS", {})

    def missing(self, error: ModuleNotFoundError) -> ExportError:
        """Return the error of a package that is missing."""
        hint = f": pip install 'rescalenet-zoo[{self.extra}]'" if self.extra else ""
        return ExportError(f"export to {self.name} needs {error.name}{hint}")


TARGETS: dict[str, Target] = {}


def register_target(target: Target) -> Target:
    """Add a target to the table.

    Raises:
        ZooError: the name is taken.
    """
    if target.name in TARGETS:
        raise ZooError(f"export target {target.name!r} is registered already")
    TARGETS[target.name] = target
    return target


VISION = ("images", "clips")
EVERY = (*VISION, "image_lists", "text")

register_target(
    Target(
        "onnx",
        "zoo.export.onnx",
        EVERY,
        packages=("onnx", "onnxruntime", "onnxscript", "torch"),
        extra="onnx",
        runtime="onnxruntime",
        runs_deployments=True,
        options=frozenset({"half", "int8"}),
    )
)
register_target(
    Target(
        "onnx-web",
        "zoo.export.onnx_web",
        EVERY,
        packages=("onnx", "onnxruntime", "onnxscript", "torch"),
        extra="onnx-web",
        runtime="onnxruntime-web",
        remark="to see the page: python -m http.server -d FOLDER",
    )
)
register_target(
    Target(
        "openvino",
        "zoo.export.openvino",
        EVERY,
        packages=("openvino", "onnx", "onnxscript", "torch"),
        extra="openvino",
        runs_deployments=True,
        options=frozenset({"half", "int8"}),
    )
)
register_target(
    Target(
        "tensorrt",
        "zoo.export.tensorrt",
        VISION,
        packages=("onnx", "onnxruntime", "onnxscript", "torch"),
        extra="tensorrt",
        runtime="onnxruntime",
        dynamic=frozenset(),
        options=frozenset({"half"}),
        remark="no engine was built; on the machine with the GPU: trtexec --onnx=model.onnx --saveEngine=model.engine",
    )
)
register_target(
    Target(
        "pt2",
        "zoo.export.pt2",
        (*VISION, "text"),
        packages=("torch",),
        options=frozenset({"half"}),
        runs_code=True,
        remark="torch.export.load runs code of the file: load only files that you trust",
    )
)
register_target(
    Target(
        "aoti",
        "zoo.export.aoti",
        (*VISION, "text"),
        packages=("torch",),
        options=frozenset({"half"}),
        runs_code=True,
        remark="it has machine code: load only files that you trust, with the version of torch that wrote them",
    )
)
register_target(
    Target(
        "executorch", "zoo.export.executorch", ("images", "text"), packages=("executorch", "torch"), extra="executorch"
    )
)
register_target(
    Target(
        "ncnn",
        "zoo.export.ncnn",
        VISION,
        packages=("ncnn", "pnnx", "torch"),
        extra="ncnn",
        options=frozenset({"half"}),
        remark="float32 needs ncnn's options of fp16 and bf16 off",
    )
)
register_target(
    Target(
        "mnn",
        "zoo.export.mnn",
        VISION,
        packages=("mnn", "onnx", "onnxscript", "torch"),
        extra="mnn",
        options=frozenset({"half"}),
        remark="float32 needs MNN's precision high",
    )
)
register_target(
    Target(
        "litert",
        "zoo.export.litert",
        VISION,
        packages=("ai-edge-litert", "ai-edge-quantizer", "litert-converter", "litert-torch", "torch"),
        extra="litert",
        dynamic=frozenset(),
        options=frozenset({"half"}),
        channels_last=True,
    )
)
register_target(
    Target(
        "coreml",
        "zoo.export.coreml",
        VISION,
        packages=("coremltools", "torch"),
        extra="coreml",
        runtime="torch",
        dynamic=frozenset(),
        options=frozenset({"half"}),
        remark="Core ML itself does not run here: PyTorch evaluated the operators of the saved program",
    )
)
register_target(
    Target(
        "jax",
        "zoo.export.jax",
        (*VISION, "text"),
        packages=("flax", "jax", "optax", "safetensors"),
        extra="jax",
        runtime="jax",
        folded=False,
        form="net",
        channels_last=True,
        options=frozenset({"half"}),
        remark="train.py in the folder goes on training",
    )
)
register_target(
    Target(
        "torchvision",
        "zoo.export.torchvision_layout",
        ("images",),
        packages=("torch", "torchvision"),
        runtime="torchvision",
        folded=False,
        form="net",
    )
)
register_target(
    Target(
        "detectron2",
        "zoo.export.detectron2_layout",
        ("images", "image_lists"),
        packages=("torch",),
        folded=False,
        form="net",
        runs_code=True,
    )
)
register_target(
    Target("fairseq", "zoo.export.fairseq", ("text",), packages=("torch", "sentencepiece"), folded=False, form="net")
)


@functools.cache
def _load_entry_points() -> None:
    """Register the targets of other packages."""
    for target in load_plugins(ENTRY_POINTS):
        register_target(target)


def get_target(name: str) -> Target:
    """Return a target by name.

    Raises:
        ZooError: there is none of this name; the message has near matches.
    """
    _load_entry_points()
    if name not in TARGETS:
        raise ZooError(f"export target {name!r}{suggestion(name, TARGETS)}")
    return TARGETS[name]


def targets_for(kind: str) -> dict[str, Target]:
    """Return the targets that take nets of this kind of input, by name; the first is the default."""
    _load_entry_points()
    return {name: target for name, target in TARGETS.items() if kind in target.kinds}


def describe_targets() -> str:
    """Return a line of all targets with the kinds of input that they take, for help texts."""
    _load_entry_points()
    return "; ".join(f"{name} ({', '.join(target.kinds)})" for name, target in TARGETS.items())

"""Names and module paths of version 0.1.0 that have moved: they still work, with a ``DeprecationWarning``."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

# old module -> modules that have its names now
MOVED: dict[str, tuple[str, ...]] = {
    "zoo.backbone": ("zoo.nets.base", "zoo.nets.parameters"),
    "zoo.checkpoint": ("zoo.weights", "zoo.states", "zoo.transforms", "zoo.files"),
    "zoo.functional": ("zoo.products", "zoo.products.convolution", "zoo.products.common"),
    "zoo.linear": ("zoo.products.linear", "zoo.products.common"),
    "zoo.rescale": ("zoo.method", "zoo.calibration"),
    "zoo.residual": ("zoo.nets.residual",),
    "zoo.resnet": ("zoo.nets.resnet",),
    "zoo.resnet3d": ("zoo.nets.resnet3d",),
    "zoo.transformer": ("zoo.nets.transformer",),
    "zoo.transformer_schemes": ("zoo.schemes.text", "zoo.schemes.base", "zoo.joins"),
    "zoo.vgg": ("zoo.nets.vgg",),
}

# old module -> its names that are others in the new modules
RENAMED: dict[str, dict[str, str]] = {
    "zoo.rescale": {"positions": "only_positions"},
    "zoo.transformer_schemes": {"Rescale": "TextRescale", "TransformerScheme": "TextScheme"},
}


def moved_names(old: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a module that still exists but has lost names to other modules.

    Args:
        old: name of the module.
        names: place of each object that the module has lost, as ``module:name`` by name.
    """

    def lookup(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        module, _, new = names[name].partition(":")
        warnings.warn(f"{old}.{name} has moved to {module}.{new}", DeprecationWarning, stacklevel=2)
        return resolve_name(names[name])

    return lookup


def _importer_level() -> int:
    """Return the ``stacklevel``, for ``exec_module``, of the code that imports an old module or reads ``zoo.NAME``.

    ``warnings`` leaves out ``importlib._bootstrap``, but not the frames of ``importlib`` and ``zoo`` on the way. By
    default Python shows deprecations at lines of ``__main__`` only, so that at these it would show nothing.
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        name = frame.f_globals.get("__name__")
        level += name != "importlib._bootstrap"
        if name not in ("importlib._bootstrap", "importlib", "zoo"):
            break
    return level


class _MovedModules(MetaPathFinder, Loader):
    """Finder and loader of the modules of ``MOVED``: they get the names of their successors."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        old, new = module.__name__, MOVED[module.__name__]
        warnings.warn(f"{old} has moved to {' and '.join(new)}", DeprecationWarning, stacklevel=_importer_level())
        homes, renamed = [importlib.import_module(name) for name in new], RENAMED.get(old, {})

        def lookup(name: str) -> Any:
            for home in homes:
                if not name.startswith("__") and hasattr(home, renamed.get(name, name)):  # not its __path__ or __file__
                    return getattr(home, renamed.get(name, name))
            raise AttributeError(f"module {old!r} has moved to {' and '.join(new)}, which have no {name!r}")

        module.__getattr__ = lookup  # type: ignore[method-assign]


if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
    sys.meta_path.append(_MovedModules())

"""Every target with every family of nets, at real inputs, in the target's own runtime.

What works is recorded in ``tests/expected/exports``; the tables of README.md and docs/export.md are made of it.
"""

import json
from pathlib import Path

import pytest
from filelock import FileLock

from tests.helpers.exports import FAMILIES
from zoo.errors import ExportError, ZooError
from zoo.export import TARGETS
from zoo.export.verification import TOLERANCE, fitting_samples
from zoo.export.writing import export

RECORD = Path(__file__).parents[1] / "expected" / "exports.json"


def record(target: str, family: str, cell: dict, write: bool) -> None:
    """Compare a cell with the recorded one, or record it."""
    with FileLock(RECORD.with_suffix(".lock")):
        cells = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        if write:
            cells.setdefault(target, {})[family] = cell
            RECORD.write_text(json.dumps(cells, indent=1, sort_keys=True) + "\n")
    assert cells.get(target, {}).get(family) == cell, "pytest --write-expected records it; look at the difference"


COMPILED = ("aoti", "executorch")  # whose compilers take half a minute for each net
QUICK = ("ResNet for CIFAR", "ResNet, feature maps", "Transformer")
CELLS = [
    pytest.param(name, family, marks=pytest.mark.slow if name in COMPILED and family not in QUICK else ())
    for name in TARGETS
    for family in FAMILIES
]


@pytest.mark.parametrize(("name", "family"), CELLS)
def test_a_family_in_a_target(name, family, tmp_path, request):
    target = TARGETS[name]
    try:
        target.functions()
    except ExportError as error:
        pytest.skip(str(error))
    deployment = FAMILIES[family](target)
    made, reason = None, ""
    try:
        made = export(deployment, target, tmp_path / "out")
    except ZooError as error:
        reason = str(error).replace(f"{tmp_path}/", "")
    if made is None:
        assert not (tmp_path / "out").exists()
        assert "outputs differ" not in reason
        cell = {"reason": reason}
    else:
        assert made.worst <= TOLERANCE
        free = {}
        for graph in deployment.graphs:
            samples = fitting_samples(graph, target.dynamic)
            for i, port in enumerate(graph.inputs):
                for j, axis in enumerate(port.axes):
                    if isinstance(axis, str):
                        free.setdefault(axis, set()).update(sample[i].shape[j] for sample in samples)
        cell = {"free": sorted(axis for axis, sizes in free.items() if len(sizes) > 1)}
    record(name, family, cell, request.config.getoption("write_expected"))

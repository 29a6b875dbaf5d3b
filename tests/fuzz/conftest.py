"""The harness, and the number of inputs of each kind."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies

from tests.fuzz.artefacts import write_fixed
from tests.fuzz.harness import Harness

INPUTS = "RESCALENET_FUZZ_INPUTS"  # environment variable: inputs of each test, in place of its own number
MORE = 50  # times the inputs of the fast tests: 10,000 where those have 200

if sys.platform != "linux":
    collect_ignore_glob = ["test_*.py"]  # forks, audit hooks and /proc


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """The process that runs inputs, with valid artefacts."""
    found = Harness(tmp_path_factory.mktemp("fuzz"))
    write_fixed(found.fixed)
    yield found
    found.close()


@pytest.fixture(params=["few", pytest.param("many", marks=pytest.mark.slow)])
def fuzz(request: pytest.FixtureRequest) -> Callable[..., None]:
    """``fuzz(strategy, run, count)``: run a function on inputs of a strategy, the same ones each time.

    ``count`` is the number of inputs of the fast test; the slow one has ``MORE`` times as many.
    """

    def run_all(strategy: strategies.SearchStrategy[Any], run: Callable[[Any], Any], count: int) -> None:
        @settings(
            max_examples=int(os.environ.get(INPUTS, count * (MORE if request.param == "many" else 1))),
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )
        @given(strategy)
        def inputs(value: Any) -> None:
            run(value)

        inputs()

    return run_all

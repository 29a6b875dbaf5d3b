"""timm's own tests of models, on our nets (``make test-interop``). Ours of the registration: tests/zoo/export."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FOLDER = Path(sys.prefix) / "timm-1.0.31"  # where fetch_timm_tests.py puts them


@pytest.mark.skipif(not FOLDER.is_dir(), reason="timm's tests are not here: make test-interop fetches them")
def test_timms_own_tests_of_models():
    """Forward, backward, default configs, classifier reset, features, intermediates, pruning, loading."""
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(FOLDER), "-p", "timm_plugin"]
    done = subprocess.run(
        [*command, str(FOLDER / "tests" / "test_models.py")],
        cwd=FOLDER,
        env={**os.environ, "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    (passed,) = re.findall(r"(\d+) passed", done.stdout)
    assert int(passed) >= 140
    assert "skipped" not in done.stdout

"""Runs a script of timm with the zoo's nets among its models: ``python -m zoo.export.timm train.py ARGUMENTS``."""

import runpy
import sys
from pathlib import Path

import zoo.export.timm  # noqa: F401  (importing it registers the nets)

if __name__ == "__main__":
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        sys.exit("python -m zoo.export.timm SCRIPT ARGUMENTS: SCRIPT must be a file, for example timm's train.py")
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)  # as if the script had been started itself
    runpy.run_path(sys.argv[0], run_name="__main__")

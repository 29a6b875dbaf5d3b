"""Put the tests of timm's source distribution into the environment that runs this: ``python fetch_timm_tests.py``."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
import urllib.request
from pathlib import Path

URL = (
    "https://files.pythonhosted.org/packages/d8/f0/"
    "ef613e01647ba8e39d073df11bfe157ea16d0280a9b4a973f1caf0601856/timm-1.0.31.tar.gz"
)
SHA256 = "baa0b333339c46d3d6d4965d99b69f5053afed71210e8f433d7ea5ee6a18f0ec"
FOLDER = Path(sys.prefix) / "timm-1.0.31"


def main() -> None:
    content = urllib.request.urlopen(URL, timeout=120).read()
    if (digest := hashlib.sha256(content).hexdigest()) != SHA256:
        raise SystemExit(f"{URL}: sha256 is {digest}, not {SHA256}")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = [member for member in archive.getmembers() if member.name.startswith(f"{FOLDER.name}/tests/")]
        archive.extractall(FOLDER.parent, members, filter="data")
    print(f"{len(members)} files of timm's tests in {FOLDER}")


if __name__ == "__main__":
    main()

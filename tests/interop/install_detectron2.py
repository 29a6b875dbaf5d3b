"""Put detectron2's Python part into the environment that runs this: ``python install_detectron2.py``.

PyPI's ``pb1-detectron2`` is a source distribution without the C++ sources, which pip cannot build. Its Python files
are all that the adapter's tests need (``standins.py`` stands in for the compiled module).
"""

from __future__ import annotations

import hashlib
import io
import sysconfig
import tarfile
import urllib.request
from pathlib import Path

URL = (
    "https://files.pythonhosted.org/packages/60/26/"
    "48f5bbb7ee492696a21da23303daeecdfe3942c498a70d34108acf63b2bd/pb1-detectron2-0.6.tar.gz"
)
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
PREFIX = "pb1-detectron2-0.6/detectron2/"


def main() -> None:
    content = urllib.request.urlopen(URL, timeout=120).read()
    if (digest := hashlib.sha256(content).hexdigest()) != SHA256:
        raise SystemExit(f"{URL}: sha256 is {digest}, not {SHA256}")
    target = Path(sysconfig.get_path("purelib"))
    count = 0
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive.getmembers():
            if member.isfile() and member.name.startswith(PREFIX):
                member.name = member.name.removeprefix("pb1-detectron2-0.6/")
                archive.extract(member, target, filter="data")
                count += 1
    print(f"{count} files of detectron2 0.6 in {target}")


if __name__ == "__main__":
    main()

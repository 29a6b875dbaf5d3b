"""The files of onnxruntime-web: the npm package in the cache, and what a page needs of it.

npm fetches the package, so that its settings (registry, proxy) apply. The package must have the integrity that is
written here. The variable ``RESCALENET_ONNXRUNTIME_WEB`` names a package that was fetched before, for machines without
network: ``npm pack onnxruntime-web@VERSION``.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from zoo.errors import ExportError, one_line
from zoo.files import atomic_write, expand_path, sha256_of, write_json
from zoo.sources.cache import cache_root, locked, offline

VERSION = "1.30.0"
# as ``npm view onnxruntime-web@VERSION dist.integrity`` prints it
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
PACKAGE = f"onnxruntime-web@{VERSION}"
VARIABLE = "RESCALENET_ONNXRUNTIME_WEB"
FOLDER = "onnxruntime"  # of the files in an export
SCRIPT, BINARY = "ort.wasm.bundle.min.js", "ort-wasm-simd-threaded.wasm"
# Name in the export: name in the package and sha256. The smallest build that has all operators and needs no WebGPU.
# The script ends in .js, because some servers do not know the type of .mjs files.
FILES = {
    SCRIPT: (
        "package/dist/ort.wasm.bundle.min.mjs",
        "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    ),
    BINARY: (
        "package/dist/ort-wasm-simd-threaded.wasm",
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    ),
}
_TIMEOUT = 900.0  # seconds for 33 MB


def program(name: str) -> str:
    """Return the path of ``node`` or ``npm``.

    Raises:
        ExportError: it is not on the PATH.
    """
    if (path := shutil.which(name)) is None:
        raise ExportError(f"export to onnx-web needs {name} on the PATH: install Node.js, https://nodejs.org")
    return path


def copy_to(folder: Path) -> None:
    """Copy the files of onnxruntime-web into a folder ``FOLDER`` of an export; it stays if it is there.

    Raises:
        ExportError: no npm, no network, or a package with another integrity.
    """
    target = folder / FOLDER
    if target.is_dir():
        return
    package = find_package()
    target.mkdir()
    with tarfile.open(package) as archive:
        for name, (member, _) in FILES.items():
            content = archive.extractfile(member)
            assert content is not None  # of a package with this integrity
            with (target / name).open("wb") as file:
                shutil.copyfileobj(content, file)
    shutil.copyfile(Path(__file__).parent / "onnxruntime_LICENSE.txt", target / "LICENSE.txt")
    # for Node.js: the script is a module
    described = {"name": "onnxruntime-web", "version": VERSION, "license": "MIT", "type": "module"}
    write_json(described, target / "package.json")
    check(folder)


def check(folder: Path) -> None:
    """Check that an export has the files of onnxruntime-web, before Node.js runs them.

    Raises:
        ExportError: other files.
    """
    for name, (_, sha256) in FILES.items():
        path = folder / FOLDER / name
        if not path.is_file() or sha256_of(path) != sha256:
            raise ExportError(f"{path}: not the file of {PACKAGE}; export again")


def find_package() -> Path:
    """Return the path of the package: the one that ``VARIABLE`` names, or that of the cache, fetched if necessary.

    Raises:
        ExportError: no npm, no network, or a package with another integrity.
    """
    if named := os.environ.get(VARIABLE):
        path = Path(expand_path(named))
        if not path.is_file():
            raise ExportError(f"{VARIABLE}={named}: no such file; make it: npm pack {PACKAGE}")
        if integrity_of(path) != INTEGRITY:
            raise ExportError(f"{VARIABLE}={named}: not {PACKAGE}, or damaged; make it: npm pack {PACKAGE}")
        return path
    path = cache_root() / "npm" / f"onnxruntime-web-{VERSION}.tgz"
    if _is_whole(path):
        return path
    if setting := offline():
        raise ExportError(
            f"{path}: missing or damaged, and {setting} forbids the download; fetch {PACKAGE} elsewhere with npm pack "
            f"and name the file in {VARIABLE}"
        )
    npm = program("npm")
    with locked(path.stem, PACKAGE):
        if not _is_whole(path):  # another process may have fetched it meanwhile
            atomic_write(path, lambda temporary: _fetch(npm, temporary))
    return path


def integrity_of(path: Path) -> str:
    """Return the sha512 of a file as npm writes it."""
    with path.open("rb") as file:
        return f"sha512-{base64.b64encode(hashlib.file_digest(file, 'sha512').digest()).decode()}"


def _is_whole(path: Path) -> bool:
    return path.is_file() and integrity_of(path) == INTEGRITY


def _fetch(npm: str, path: Path) -> None:
    """Fetch the package with npm.

    Raises:
        ExportError: npm failed, or the package has another integrity.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", PACKAGE, "--pack-destination", folder, "--silent"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ExportError(f"npm pack {PACKAGE}: {one_line(error)}; check the network") from None
        found = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(found) != 1:
            reason = one_line(done.stderr or done.stdout or f"exit status {done.returncode}")
            raise ExportError(f"npm pack {PACKAGE}: {reason}; check the network and the registry of npm")
        if (integrity := integrity_of(found[0])) != INTEGRITY:
            raise ExportError(f"npm pack {PACKAGE}: integrity {integrity}, not {INTEGRITY}; check the registry of npm")
        shutil.copyfile(found[0], path)

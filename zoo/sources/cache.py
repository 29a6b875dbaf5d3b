"""The cache of converted and downloaded weights: its folder, its locks, and what is believed of a file in it.

    ROOT/converted/SHA256-KEY.safetensors   a conversion; SHA256 is of the source, KEY of what was asked for
    ROOT/records/KEY.json                   the sha256 of the source and of the conversion
    ROOT/downloads/SHA256.ENDING            a file of a server
    ROOT/locks/KEY.lock

All names are hashes, so that no name from a file or a server becomes a path. Files are renamed into place when they
are complete, so that readers need no lock.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from zoo.errors import one_line
from zoo.files import sha256_of, write_json
from zoo.jsontext import read_json

if TYPE_CHECKING:
    from zoo.convert.rescaled import Form

log = logging.getLogger("rescalenet")

_HASH = re.compile(r"[0-9a-f]{64}")
LONGEST_RECORD = 2**16  # bytes
_TRUE = ("1", "on", "true", "yes")
_forbidden: ContextVar[str | None] = ContextVar("_forbidden", default=None)  # what ``without_downloads`` states


def cache_root() -> Path:
    """Return the folder: ``RESCALENET_HOME``, else ``rescalenet`` in ``XDG_CACHE_HOME`` or in ``~/.cache``."""
    if home := os.environ.get("RESCALENET_HOME"):
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rescalenet"


def offline() -> str | None:
    """Return what forbids downloads, ``RESCALENET_OFFLINE=1`` or ``HF_HUB_OFFLINE=1``; None if nothing does.

    See also ``without_downloads``.
    """
    if (what := _forbidden.get()) is not None:
        return what
    for name in ("RESCALENET_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(name, "").lower() in _TRUE:
            return f"{name}={os.environ[name]}"
    return None


@contextmanager
def without_downloads(what: str) -> Iterator[None]:
    """Forbid downloads in a block: weights are found on this machine, or are an error.

    Args:
        what: noun for messages of what forbids them.
    """
    token = _forbidden.set(what)
    try:
        yield
    finally:
        _forbidden.reset(token)


def is_sha256(text: object) -> bool:
    """Return whether a value is a sha256 in lower-case hexadecimal digits."""
    return isinstance(text, str) and _HASH.fullmatch(text) is not None


@dataclass(frozen=True)
class Request:
    """One conversion that was asked for.

    Attributes:
        source: full name of the source.
        model: name of our net; None for the one that the converter finds.
        form: form of the converted net.
        eps: eps that was asked for; None for the source's own.
        converter: version of the converter.
        content: sha256 of the source's file where its name does not determine it, as on this machine; else None.
    """

    source: str
    model: str | None
    form: Form
    eps: float | None
    converter: int
    content: str | None = None

    @property
    def key(self) -> str:
        """Hash of all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def converted_path(key: str, source_sha256: str) -> Path:
    """Return the path of a conversion.

    Args:
        key: key of the request that it was made for.
        source_sha256: sha256 of the source's file.
    """
    return cache_root() / "converted" / f"{source_sha256}-{key[:16]}.safetensors"


def was_converted(source_sha256: str) -> bool:
    """Return whether there is any conversion of a source's file."""
    return any((cache_root() / "converted").glob(f"{source_sha256}-*.safetensors"))


def find_converted(request: Request, *, report: bool = True) -> tuple[Path, str] | None:
    """Return the path and sha256 of a conversion in the cache; None if it is missing or damaged.

    Args:
        request: the conversion as it was asked for.
        report: whether damage is logged.
    """
    path = _record_path(request)
    if not path.exists():
        return None
    try:
        record = read_json(path, longest=LONGEST_RECORD)
        source_sha256, sha256, key = (record[name] for name in ("source_sha256", "sha256", "key"))
        if not (is_sha256(source_sha256) and is_sha256(sha256) and is_sha256(key)):
            raise ValueError("not a sha256")
        file = converted_path(key, source_sha256)
        if (found := sha256_of(file)) != sha256:
            raise ValueError(f"the sha256 of {file} is {found[:12]}..., not {sha256[:12]}...")
    except FileNotFoundError as error:
        if report:
            log.warning("%s: %s is missing; converted again", request.source, error.filename)
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        if report:
            log.warning("%s: %s is damaged (%s); converted again", request.source, path, one_line(error))
        return None
    return file, found


def record_converted(request: Request, key: str, source_sha256: str, sha256: str) -> None:
    """Record a conversion that was written to ``converted_path``.

    Args:
        request: the conversion as it was asked for.
        key: key of the request that the file was made for.
        source_sha256: sha256 of the source's file.
        sha256: sha256 of the converted file.
    """
    content: dict[str, Any] = {**asdict(request), "key": key, "source_sha256": source_sha256, "sha256": sha256}
    write_json(content, _record_path(request))


def _record_path(request: Request) -> Path:
    return cache_root() / "records" / f"{request.key}.json"


@contextmanager
def locked(key: str, what: str) -> Iterator[None]:
    """Let one process at a time fetch and convert a thing.

    Args:
        key: hash that names the lock.
        what: description of the thing, for the message to those who wait.
    """
    path = cache_root() / "locks" / f"{key}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        log.info("%s: another process fetches it; waiting", what)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()

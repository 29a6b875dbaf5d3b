"""Weights on a server: ``https://HOST/PATH.safetensors#sha256=HEX``, of this zoo or with BatchNorm.

The sha256 is required: it is the name of the file in the cache, and what makes the server's word irrelevant.
"""

from __future__ import annotations

import dataclasses
import http.client
import logging
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub.utils import tqdm

from zoo.convert.checkpoints import read_checkpoint
from zoo.errors import WeightsError, one_line
from zoo.files import atomic_write, sha256_of
from zoo.sources.cache import cache_root, is_sha256, locked, offline
from zoo.sources.conversion import Original, log_licence, open_converted
from zoo.sources.local import is_own_weights
from zoo.weights import ENDINGS, Weights, get_weights

log = logging.getLogger("rescalenet")

MARK = "#sha256="
TIMEOUT = 30.0  # seconds without a byte
LARGEST = 20_000_000_000  # bytes of one file, for servers that state no length
_CHUNK = 1 << 20
_LOCAL = ("127.0.0.1", "localhost")  # these may be read without encryption


def matches(name: str) -> bool:
    """Return whether a name is an address."""
    return name.startswith(("https://", "http://"))


def open_weights(name: str, model: str | None) -> Weights:
    """Return the entry of weights on a server; see ``zoo.weights.Source``."""
    url, sha256 = parse(name)
    path = _path(url, sha256)
    first = not path.is_file()
    if not is_ours(name):
        return open_converted(name, model, lambda: fetch(name))
    entry = dataclasses.replace(get_weights(str(path)), name=name, sha256=sha256)
    if first:
        log_licence(name, entry.meta.get("licence"))
    return entry


def is_ours(name: str) -> bool:
    """Return whether an address has weights of this zoo: a safetensors file is fetched to find out."""
    return _ending(parse(name)[0]) == ".safetensors" and is_own_weights(fetch_file(name))


def fetch(name: str) -> Original:
    """Fetch a checkpoint with BatchNorm.

    Args:
        name: address with its sha256.

    Raises:
        WeightsError: no network, a download that failed, other content than the sha256 states, or not a checkpoint.
    """
    url, sha256 = parse(name)
    return Original(read_checkpoint(fetch_file(name)), sha256, meta={"url": url, "licence": "unknown"})


def parse(name: str) -> tuple[str, str]:
    """Return the address and the sha256 of a name.

    Raises:
        WeightsError: no sha256, another protocol than https, an ending that no reader is for, or characters that do not
            print.
    """
    if not name.isprintable():
        raise WeightsError(f"{name!r}: an address has no line breaks and control characters")
    url, mark, sha256 = name.partition(MARK)
    sha256 = sha256.lower()
    if not mark or not is_sha256(sha256):
        raise WeightsError(f"{name}: the address must end with {MARK} and 64 digits; sha256sum FILE prints them")
    _check_address(url)
    if _ending(url) not in ENDINGS:
        raise WeightsError(f"{name}: the file's name must end in {', '.join(ENDINGS)}")
    return url, sha256


def _check_address(url: str) -> None:
    """Refuse addresses that are read without encryption, except on this machine.

    Raises:
        WeightsError: such an address.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOCAL)
        valid = valid and bool(parts.hostname)
    except ValueError:
        valid = False
    if not valid:
        raise WeightsError(f"{url}: must be https://HOST/PATH (http:// only for this machine)")


def _ending(url: str) -> str:
    return Path(urlsplit(url).path).suffix.lower()


def fetch_file(name: str) -> Path:
    """Return the path of the file of an address in the cache, fetched if it is missing or damaged there.

    Args:
        name: address with its sha256.

    Raises:
        WeightsError: no network, a download that failed, or other content than the sha256 states.
    """
    url, sha256 = parse(name)
    path = _path(url, sha256)
    if _is_whole(path, sha256):
        return path
    if setting := offline():
        raise WeightsError(f"{name}: {path} is missing or damaged and {setting} forbids the download")
    with locked(sha256, url):
        if _is_whole(path, sha256):  # another process has fetched it meanwhile
            return path
        if path.exists():
            log.warning("%s: damaged (its sha256 is another); fetching it again", path)
        atomic_write(path, lambda temporary: _download(url, sha256, temporary))
    return path


def _path(url: str, sha256: str) -> Path:
    return cache_root() / "downloads" / f"{sha256}{_ending(url)}"


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_of(path) == sha256


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections to addresses that would have been accepted in the first place."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str, sha256: str, path: Path) -> None:
    """Write the content of an address to a file, with a progress bar.

    Raises:
        WeightsError: no network, a download that broke off, a wrong length or other content.
    """
    opener = urllib.request.build_opener(_Redirects)
    request = urllib.request.Request(url, headers={"User-Agent": "rescalenet-zoo", "Accept-Encoding": "identity"})
    try:
        with opener.open(request, timeout=TIMEOUT) as answer, path.open("wb") as file:
            length = _stated_length(answer, url)
            with tqdm(total=length, unit="B", unit_scale=True, desc=Path(urlsplit(url).path).name[-40:]) as bar:
                while chunk := answer.read(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
                    if file.tell() > LARGEST:
                        raise WeightsError(f"{url}: more than {LARGEST} bytes; no weights are that large")
                count = file.tell()
    except urllib.error.HTTPError as error:
        answered = one_line(f"{error.code} {error.reason}")
        raise WeightsError(f"{url}: the server answered {answered}; check the address") from None
    except WeightsError:  # is a ValueError too
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError, time-outs, impossible redirections
        raise WeightsError(f"{url}: could not be fetched ({one_line(error)}); check the network") from None
    # the server's length, then the content
    if length is not None and count != length:
        raise WeightsError(f"{url}: broke off after {count} of {length} bytes; try again")
    if (found := sha256_of(path)) != sha256:
        raise WeightsError(f"{url}: sha256 is {found[:12]}..., not {sha256[:12]}...; nothing was kept")


def _stated_length(answer: Any, url: str) -> int | None:
    """Return the length that a server states; None if it states none.

    Raises:
        WeightsError: a length that is no number, or too large.
    """
    text = answer.headers.get("Content-Length")
    if text is None:
        return None
    if not text.isdecimal() or int(text) > LARGEST:
        raise WeightsError(f"{url}: the server states a length of {text[:40]!r} bytes; at most {LARGEST} are read")
    return int(text)

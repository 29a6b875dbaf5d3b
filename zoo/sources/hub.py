"""Repositories of this project's layout on a hub: ``hf-hub:OWNER/NAME`` or ``hf-hub:OWNER/NAME@REVISION``.

A repository has ``model.safetensors`` (a weights file), ``config.json`` (its sha256) and ``README.md`` (the card).
huggingface_hub fetches them into its own cache. It compares lengths only, so the content is compared here: with the
sha256 in ``config.json``, or with the name that the hub gave to the file.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from zoo.errors import WeightsError, ZooError, one_line
from zoo.files import sha256_of
from zoo.jsontext import read_json
from zoo.sources.cache import is_sha256, offline
from zoo.sources.conversion import log_licence
from zoo.weights import Weights, get_weights

log = logging.getLogger("rescalenet")

PREFIX = "hf-hub:"
LIBRARY = "rescalenet-zoo"
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FORMAT = 1  # of config.json
LONGEST_CONFIG = 2**24  # bytes of config.json; names of 20,000 classes take a tenth of it

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,199}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def open_weights(name: str, model: str | None) -> Weights:
    """Return the entry of weights in a repository; see ``zoo.weights.Source``."""
    repository, revision = parse(name)
    config_path = download(name, repository, CONFIG, revision)
    config = read_config(name, config_path)
    # the weights of the same commit, although the branch may have moved meanwhile
    commit = config_path.parent.name
    revision = commit if _COMMIT.fullmatch(commit) else revision
    first = not isinstance(try_to_load_from_cache(repository, WEIGHTS, revision=revision), str)
    path = download_checked(name, repository, WEIGHTS, revision, config["sha256"])
    entry = dataclasses.replace(get_weights(str(path)), name=name, sha256=config["sha256"])
    if first:
        log_licence(name, entry.meta.get("licence"))
    return entry


def parse(name: str) -> tuple[str, str | None]:
    """Return the repository and the revision of a name.

    Raises:
        WeightsError: a name of another form.
    """
    repository, at, revision = name.removeprefix(PREFIX).partition("@")
    valid = check_repository(repository) and (not at or (_REVISION.fullmatch(revision) and ".." not in revision))
    if not valid:
        raise WeightsError(f"{name!r}: must be hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION")
    return repository, revision or None


def check_repository(repository: str) -> bool:
    """Return whether a text has the form OWNER/NAME."""
    return _REPOSITORY.fullmatch(repository) is not None and ".." not in repository


def read_config(name: str, path: Path) -> dict[str, Any]:
    """Return the content of a repository's ``config.json``.

    Raises:
        WeightsError: a repository of another library, or of a later format.
    """
    try:
        content = read_json(path, longest=LONGEST_CONFIG)
    except ZooError as error:
        raise WeightsError(f"{name}: {CONFIG} cannot be read ({one_line(error)})") from None
    if not isinstance(content, dict) or content.get("library_name") != LIBRARY:
        repository = parse(name)[0]
        hint = f"; timm's weights are named timm:{repository[5:]}" if repository.startswith("timm/") else ""
        raise WeightsError(f"{name}: {CONFIG} is not of {LIBRARY}: the repository has no weights of this zoo{hint}")
    if content.get("format") != FORMAT or not is_sha256(content.get("sha256")):
        raise WeightsError(f"{name}: {CONFIG} must have format={FORMAT} and a sha256; update {LIBRARY}")
    return content


def endpoint() -> str | None:
    """Return the hub's address from ``HF_ENDPOINT``; None for huggingface_hub's own."""
    return os.environ.get("HF_ENDPOINT") or None


def download(name: str, repository: str, file: str, revision: str | None, *, force: bool = False) -> Path:
    """Return the path of a file of a repository in huggingface_hub's cache, fetched if it is missing there.

    Args:
        name: name of the weights, for messages.
        repository: OWNER/NAME.
        file: name of the file, never one that a file or server states.
        revision: branch, tag or commit; None for main.
        force: whether it is fetched although it is there.

    Raises:
        WeightsError: no such repository, revision or file, no network, or a download that broke off.
    """
    where = f"{repository}/{file}" + (f" at {revision}" if revision else "")
    setting = offline()
    silent = None if setting else _silence(repository, file, revision)
    try:
        with _quiet():
            path = hf_hub_download(
                repository,
                file,
                revision=revision,
                endpoint=endpoint(),
                local_files_only=setting is not None or silent is not None,
                force_download=force,
                library_name=LIBRARY,
            )
    except Exception as error:  # its HTTP library has errors of its own, and its versions differ in that library
        if setting is not None:
            raise WeightsError(f"{name}: {where} is not in the cache and {setting} forbids the download") from None
        reason = (
            f"no answer from the hub ({silent}), and it is not in the cache; check the network"
            if silent
            else _reason(error, revision)
        )
        raise WeightsError(f"{name}: {where} could not be fetched: {reason}") from None
    if silent is not None:
        log.info("%s: no answer from the hub (%s); %s is taken from the cache", name, silent, file)
    return Path(path)


def _reason(error: BaseException, revision: str | None) -> str:
    """Return why huggingface_hub could not fetch a file, on one line."""
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # it looked for the file in its cache after this one
    if isinstance(error, GatedRepoError):
        return "its owner gives access on request: accept the terms on its page and log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "no such repository, or a private one: check the name, or log in with `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"the repository has no revision {revision!r}"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return "the repository has no such file" if status == 404 else f"the hub answered {status}; try again later"
    return one_line(error)


def _silence(repository: str, file: str, revision: str | None) -> str | None:
    """Return why the hub gives no answer at all; None if it answers, or is not needed for files of a known commit.

    Without this question huggingface_hub tries for half a minute before it reports that there is no network.
    """
    if revision is not None and _COMMIT.fullmatch(revision):
        return None
    try:
        get_hf_file_metadata(hf_hub_url(repository, file, revision=revision, endpoint=endpoint()), endpoint=endpoint())
    except HfHubHTTPError:
        return None
    except Exception as error:  # of its HTTP library
        return one_line(error)
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep huggingface_hub's log to errors: what goes wrong is reported in one line here."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def download_checked(name: str, repository: str, file: str, revision: str | None, sha256: str | None) -> Path:
    """Return the path of a file as ``download`` does, after a check of its content.

    A file with other content is fetched once more, which is logged.

    Args:
        name: name of the weights, for messages.
        repository: OWNER/NAME.
        file: name of the file.
        revision: branch, tag or commit; None for main.
        sha256: sha256 of the file; None for the one by which the hub's cache names large files.

    Raises:
        WeightsError: a file with other content again, or see ``download``.
    """
    path = download(name, repository, file, revision)
    stated = sha256 or path.resolve().name
    if not is_sha256(stated) or sha256_of(path) == stated:
        return path
    if setting := offline():
        raise WeightsError(f"{name}: {path} is damaged (its sha256 is another) and {setting} forbids the download")
    log.warning("%s: %s is damaged (its sha256 is another); fetching it again", name, path)
    path = download(name, repository, file, revision, force=True)
    if (found := sha256_of(path)) != stated:
        raise WeightsError(f"{name}: {file} has sha256 {found[:12]}..., not {stated[:12]}... as its repository states")
    return path

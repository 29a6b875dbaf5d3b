"""Weights as a repository on a hub, with a generated card: what ``hf-hub:OWNER/NAME`` loads."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file
from safetensors.torch import save as serialize

from zoo.arguments import choice, flag, text
from zoo.errors import WeightsError, ZooError, one_line
from zoo.files import sha256_of, write_json, write_text
from zoo.headers import HEADER_KEY, Header, write_header
from zoo.registry import list_models, model_info
from zoo.sources.cache import offline, without_downloads
from zoo.sources.card import write_card
from zoo.sources.hub import CARD, CONFIG, FORMAT, LIBRARY, WEIGHTS, check_repository, endpoint
from zoo.weights import Weights, get_weights, is_weights_name

log = logging.getLogger("rescalenet")

Checkpoint = Literal["last", "best"]
RUN_CONFIG, RUN_LOG = "config.yaml", "log.jsonl"
MOST_RUNS = 20  # that are followed back to the licence of the first one's weights


def push(
    source: str | Path,
    repository: str,
    *,
    private: bool = True,
    checkpoint: Checkpoint = "last",
    licence: str | None = None,
) -> str:
    """Upload weights or a run's folder as a repository that ``hf-hub:OWNER/NAME`` loads.

    Folders of this machine are removed from the config. The licence of the weights that training started from is
    inherited.

    Args:
        source: run's folder, or a name of weights.
        repository: OWNER/NAME; it is created if there is none.
        private: whether the repository is private. An existing public one is then refused.
        checkpoint: weights of the run: ``last``, or ``best`` on the evaluation set, by which they were chosen.
        licence: licence of the weights; None for the inherited one.

    Returns:
        The address of the commit.

    Raises:
        ZooError: no such run, a wrong name, a licence that contradicts the inherited one, or offline mode.
        WeightsError: weights that cannot be read, or a hub that refuses.
    """
    if not check_repository(text(repository, "repository")):
        raise ZooError(f"repository {repository!r}: must be OWNER/NAME")
    choice(checkpoint, "checkpoint", get_args(Checkpoint))
    licence = None if licence is None else text(licence, "licence")
    source = source if isinstance(source, Path) else text(source, "source")
    private = flag(private, "private")
    if setting := offline():
        raise ZooError(f"push: {setting} forbids it; unset it")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build_repository(source, repository, folder, checkpoint=checkpoint, licence=licence)
        files = sorted(folder.iterdir())
        return _upload(repository, files, private=private)


def build_repository(
    source: str | Path,
    repository: str,
    folder: Path,
    *,
    checkpoint: Checkpoint = "last",
    licence: str | None = None,
) -> None:
    """Write the files of a repository into a folder; the arguments are those of ``push``.

    Raises:
        ZooError: no such run, or a licence that contradicts the inherited one.
        WeightsError: weights that cannot be read.
    """
    # the weights, with a licence and without folders of this machine
    run = Path(source) if Path(source).is_dir() else None
    if run is not None and not (run / "checkpoints" / f"{checkpoint}.safetensors").is_file():
        raise ZooError(f"{run}: no run with checkpoints/{checkpoint}.safetensors in it")
    if run is None and not is_weights_name(str(source)):
        raise ZooError(f"{source}: neither the folder of a run nor a name of weights")
    entry = get_weights(str(source if run is None else run / "checkpoints" / f"{checkpoint}.safetensors"))
    start = start_of(entry)
    meta = _without_folders(entry.meta)
    meta["licence"] = _licence(entry, start, licence)
    _write_weights(entry, meta, folder / WEIGHTS)
    # the run's own files
    if run is not None:
        config = yaml.safe_load((run / RUN_CONFIG).read_text(encoding="utf-8"))
        write_text(yaml.safe_dump(_without_folders(config), sort_keys=False), folder / RUN_CONFIG)
        if (run / RUN_LOG).is_file():
            write_text((run / RUN_LOG).read_text(encoding="utf-8"), folder / RUN_LOG)
    # what hf-hub: reads first, and the card
    pushed = get_weights(str(folder / WEIGHTS))
    content = {
        "library_name": LIBRARY,
        "format": FORMAT,
        "model": pushed.config.name,
        "sha256": sha256_of(folder / WEIGHTS),
        "bytes": (folder / WEIGHTS).stat().st_size,
    }
    write_json(content, folder / CONFIG)
    kind = model_info(pushed.config.name)
    write_text(write_card(pushed, repository, kind.task, start.name if start else None), folder / CARD)


def _write_weights(entry: Weights, meta: Mapping[str, Any], path: Path) -> None:
    """Write the entry's tensors as they are stored, with other metadata in the header."""
    entry.load()  # checks the file against its sha256
    text = write_header(Header(entry.config, entry.transform, entry.classes, dict(meta)), path)
    path.write_bytes(serialize(load_file(entry.path), metadata={HEADER_KEY: text, "format": "pt"}))


def _without_folders(value: Any) -> Any:
    """Return a config without the paths of this machine: absolute ones, those in the home folder, the output."""
    if isinstance(value, Mapping):
        kept = {key: _without_folders(inner) for key, inner in value.items() if not _is_folder(inner)}
        return {key: inner for key, inner in kept.items() if key != "output"}
    if isinstance(value, list | tuple):
        return [_without_folders(inner) for inner in value if not _is_folder(inner)]
    return value


def _is_folder(value: Any) -> bool:
    return isinstance(value, str) and re.match(r"/|~|\\\\|[A-Za-z]:[\\/]|file:", value) is not None


def start_of(entry: Weights) -> Weights | None:
    """Return the weights that the training of weights started from; None if it started from none, or if unknown.

    They are looked for on this machine alone: a file may name any address.
    """
    config = entry.meta.get("config")
    section = config.get("model") if isinstance(config, dict) else None
    name = section.get("weights") or section.get("weights_backbone") if isinstance(section, dict) else None
    if not isinstance(name, str):
        return None
    # a tag alone belongs to the net, or to the backbone in a detector's name
    models = [entry.config.name, *(model for model in list_models() if f"_{model}_" in entry.config.name), None]
    for model in models:
        try:
            with without_downloads("a name in a file"):
                return get_weights(name, model=model)
        except ZooError:
            continue
    log.warning(
        "%s: the weights %s that it started from are not here, and what a file names is not fetched; their licence is "
        "unknown: load them once, or state it",
        entry.name,
        name,
    )
    return None


def _licence(entry: Weights, start: Weights | None, given: str | None) -> str:
    """Return the licence of weights: the given, its own, or that of the weights ``start`` that they started from.

    Raises:
        ZooError: the given licence contradicts an inherited one.
    """
    inherited = _inherited(entry, start)
    if inherited is None:
        return given or "unknown"
    if given not in (None, inherited):
        raise ZooError(f"licence {given!r}: the weights inherit {inherited!r}; leave it out")
    return inherited


def _inherited(entry: Weights, start: Weights | None) -> str | None:
    """Return the first licence among weights and those that they started from, one run after another; None if none."""
    current: Weights | None = entry
    for number in range(MOST_RUNS):  # files may name each other in a circle
        if current is None:
            return None
        if (licence := current.meta.get("licence")) not in (None, "unknown"):
            return str(licence)
        current = start if number == 0 else start_of(current)
    return None


def _upload(repository: str, files: list[Path], *, private: bool) -> str:
    """Create the repository if there is none, upload the files in one commit, and return its address.

    Raises:
        ZooError: a public repository although a private one was asked for.
        WeightsError: a hub that refuses or does not answer.
    """
    api = HfApi(endpoint=endpoint(), library_name=LIBRARY)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise ZooError(f"{repository} is public already: push with private=False (--public), or to another name")
        done = api.create_commit(
            repository,
            [CommitOperationAdd(file.name, file) for file in files],
            commit_message="Upload weights",
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = "log in with `hf auth login`" if status in (401, 403) else one_line(error)
        raise WeightsError(f"{repository}: the hub answered {status}: {reason}") from None
    except ZooError:
        raise
    except Exception as error:  # its HTTP library has errors of its own, and its versions differ in that library
        raise WeightsError(f"{repository}: no upload ({one_line(error)}); check the network") from None
    return str(done.commit_url)

"""The cache of converted weights: what is found in it, damage, and who may write at the same time."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch

import zoo
from zoo.sources import cache, conversion
from zoo.sources.conversion import Original, open_converted

TRANSFORM = zoo.InputTransform(16, 16, (0.5,) * 3, (0.3,) * 3)


@pytest.fixture
def source(own_net):
    """A source that counts how often it is fetched."""

    def fetch():
        fetched.append(1)
        meta = {"licence": "mit", "url": "https://host/own"}
        return Original(own_net, "a" * 64, transform=TRANSFORM, classes=("ant", "bee", "cat"), meta=meta)

    fetched = []
    return fetch, fetched


def test_fetched_and_converted_once(source, lines, home):
    fetch, fetched = source
    entry = open_converted("own:net", None, fetch)
    assert (entry.name, entry.classes, entry.transform) == ("own:net", ("ant", "bee", "cat"), TRANSFORM)
    assert entry.config.scheme == "rescale"
    # found again, with the name of the net too
    assert open_converted("own:net", None, fetch) == entry
    assert open_converted("own:net", "rescalenet20_cifar", fetch) == entry
    assert fetched == [1]
    assert lines() == ["own:net: licence: mit", f"own:net: converted, form gained, stored as {entry.path}"]
    assert {path.name for path in home.iterdir()} == {"converted", "locks", "records"}


def test_the_name_of_the_net_first(source, lines):
    fetch, fetched = source
    entry = open_converted("own:net", "rescalenet20_cifar", fetch)
    other = open_converted("own:net", None, fetch)
    assert other.path != entry.path  # another file, so that neither record is of the other's bytes
    assert open_converted("own:net", "rescalenet20_cifar", fetch).config == other.config
    assert fetched == [1, 1]
    assert sum("licence" in line for line in lines()) == 1


def test_a_damaged_conversion_is_made_again(source, lines):
    fetch, fetched = source
    path = open_converted("own:net", None, fetch).path
    content = path.read_bytes()
    for damaged in (content[:-1] + bytes([content[-1] ^ 1]), b"", None):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        entry = open_converted("own:net", None, fetch)
        assert entry.load().keys() == open_converted("own:net", None, fetch).load().keys()
    assert len(fetched) == 4
    assert sum("converted again" in line for line in lines()) == 3


@pytest.mark.parametrize(
    "record",
    ["", "[]", "{}", "\0", '{"source_sha256": "../x", "sha256": "..", "key": "a"}', '{"key": ' * 5000, " " * 2**17],
)
def test_a_damaged_record_is_made_again(source, home, record, lines):
    fetch, fetched = source
    open_converted("own:net", "rescalenet20_cifar", fetch)
    (path,) = (home / "records").iterdir()
    path.write_text(record)
    open_converted("own:net", "rescalenet20_cifar", fetch)
    assert json.loads(path.read_text())["source"] == "own:net"
    assert fetched == [1, 1]
    assert sum("is damaged" in line for line in lines()) == 1


def test_another_converter_converts_again(source, monkeypatch):
    fetch, fetched = source
    old = open_converted("own:net", None, fetch)
    monkeypatch.setattr(conversion, "CONVERTER", conversion.CONVERTER + 1)
    new = open_converted("own:net", None, fetch)
    assert new.path != old.path
    assert new.meta["converter"] == old.meta["converter"] + 1
    assert fetched == [1, 1]


def test_a_conversion_that_fails_leaves_nothing(home):
    def fetch():
        return Original({"a.weight": torch.zeros(1)}, "b" * 64)

    with pytest.raises(zoo.WeightsError, match="not a known BatchNorm checkpoint"):
        open_converted("own:wrong", None, fetch)
    assert [path.name for path in home.iterdir()] == ["locks"]


def test_no_name_becomes_a_path(source, home):
    fetch, _ = source
    open_converted("own:../../../x/\0y", None, fetch)
    for path in home.rglob("*"):
        assert path.is_dir() or cache.is_sha256(path.name[:64]), path


def _open(fetch, barrier, results):
    barrier.wait()
    entry = open_converted("own:net", None, fetch)
    results.put((entry.sha256, os.getpid()))


def test_processes_at_the_same_time_fetch_once(own_net, tmp_path, monkeypatch):
    def fetch():
        with (tmp_path / "fetched").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return Original(own_net, "a" * 64, transform=TRANSFORM)

    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_open, args=(fetch, barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len({sha256 for sha256, _ in found}) == 1
    assert len({pid for _, pid in found}) == 3
    assert len((tmp_path / "fetched").read_text().splitlines()) == 1


def test_what_is_there_is_read_without_a_lock(source, home):
    """A cache that is read-only, shared by a group, has no place for locks."""
    fetch, fetched = source
    entry = open_converted("own:net", None, fetch)
    for path in (home / "locks").iterdir():
        path.unlink()
    (home / "locks").rmdir()
    (home / "locks").write_text("")  # not even root makes a lock here
    assert open_converted("own:net", None, fetch) == entry
    assert fetched == [1]


def test_class_names_that_do_not_fit(own_net):
    def fetch(classes):
        return lambda: Original(own_net, "a" * 64, transform=TRANSFORM, classes=classes)

    with pytest.raises(zoo.WeightsError, match="^own:2: 2 class names for a net with 3 classes"):
        open_converted("own:2", None, fetch(("a", "b")))
    assert open_converted("own:3", None, fetch(("a", "b", "c"))).classes == ("a", "b", "c")
    assert open_converted("own:0", None, fetch(None)).classes == ("0", "1", "2")


def test_the_folder_of_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RESCALENET_HOME", "~/own")
    assert cache.cache_root() == Path.home() / "own"
    monkeypatch.delenv("RESCALENET_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_root() == tmp_path / "rescalenet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_root() == Path.home() / ".cache" / "rescalenet"


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_offline(monkeypatch, value, expected):
    for name in ("RESCALENET_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, value)
        assert (cache.offline() == f"{name}={value}") is expected
        monkeypatch.delenv(name)
    assert cache.offline() is None

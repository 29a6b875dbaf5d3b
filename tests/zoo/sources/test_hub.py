"""Repositories of this zoo's layout on a hub, which also misbehaves."""

import json
import threading

import huggingface_hub.utils._http
import pytest
import torch

import zoo
from zoo.sources import hub as source

NAME = "hf-hub:owner/pets"


@pytest.fixture
def files(own_file):
    """The files of a repository."""
    path, sha256 = own_file
    config = {"library_name": "rescalenet-zoo", "format": 1, "sha256": sha256}
    return {"model.safetensors": path.read_bytes(), "config.json": json.dumps(config).encode(), "README.md": b"# pets"}


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    """huggingface_hub tries again after up to eight seconds."""
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda seconds: None)


def test_weights_of_a_repository(hub, files, own_file, lines):
    commit = hub.add("owner/pets", files)
    entry = zoo.get_weights(NAME)
    assert (entry.name, entry.sha256, entry.classes) == (NAME, own_file[1], ("ant", "bee", "cat"))
    model = zoo.create_model("rescalenet20_cifar", NAME)
    assert torch.equal(model.fc.weight, zoo.create_model("rescalenet20_cifar", str(own_file[0])).fc.weight)
    assert lines() == [f"{NAME}: licence: cc-by-nc-4.0"]  # once
    assert hub.requests.count(f"GET /owner/pets/resolve/{commit}/model.safetensors") == 1
    with pytest.raises(zoo.WeightsError, match="are of rescalenet20_cifar, not of rescalenet18"):
        zoo.create_model("rescalenet18", NAME)


def test_revisions(hub, files):
    old = hub.add("owner/pets", files)
    broken = {**files, "config.json": b"{}"}
    new = hub.add("owner/pets", broken)
    assert zoo.get_weights(f"{NAME}@{old}").name == f"{NAME}@{old}"
    for name in (NAME, f"{NAME}@main", f"{NAME}@{new}"):
        with pytest.raises(zoo.WeightsError, match="config.json is not of rescalenet-zoo"):
            zoo.get_weights(name)
    with pytest.raises(zoo.WeightsError, match="the repository has no revision 'v9'"):
        zoo.get_weights(f"{NAME}@v9")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config.json": b"no"}, r"config.json cannot be read \(not JSON"),
        ({"config.json": b"[" * 100_000}, r"config.json cannot be read \(nested deeper than 32 levels"),
        ({"config.json": b" " * (2**24 + 1)}, r"config.json cannot be read \(more than 16777216 bytes"),
        ({"config.json": b'{"format": 2, "format": 1}'}, r"config.json cannot be read \(key 'format' occurs twice"),
        ({"config.json": "ü".encode("latin1")}, r"config.json cannot be read \(not UTF-8"),
        ({"config.json": b"[]"}, "the repository has no weights of this zoo$"),
        ({"config.json": b'{"library_name": "rescalenet-zoo"}'}, "must have format=1 and a sha256"),
        ({"config.json": b'{"library_name": "rescalenet-zoo", "format": 2}'}, "must have format=1 and a sha256"),
        ({"config.json": None}, "config.json could not be fetched: the repository has no such file"),
        ({"model.safetensors": None}, "model.safetensors at 0+1 could not be fetched: the repository has no such file"),
        ({"model.safetensors": b"other"}, "model.safetensors has sha256 .*, not .* as its repository states"),
    ],
)
def test_repositories_that_are_refused(hub, files, change, message):
    hub.add("owner/pets", {key: value for key, value in {**files, **change}.items() if value is not None})
    with pytest.raises(zoo.WeightsError, match=message) as caught:
        zoo.get_weights(NAME)
    assert "\n" not in str(caught.value)


def test_timms_repositories_have_a_name_of_their_own(hub):
    hub.add("timm/resnet50.a1_in1k", {"config.json": b'{"architecture": "resnet50"}'})
    with pytest.raises(zoo.WeightsError, match="timm's weights are named timm:resnet50.a1_in1k"):
        zoo.get_weights("hf-hub:timm/resnet50.a1_in1k")


@pytest.mark.parametrize(
    ("misbehaviour", "message"),
    [
        ({"length": 10**7}, "could not be fetched: "),
        ({"length": 1000}, "has sha256 .*, not .* as its repository states"),
        ({"body": b"x" * 100}, "has sha256 .*, not .* as its repository states"),
        ({"status": 500}, "could not be fetched: the hub answered 500"),
        ({"status": 403}, "could not be fetched: "),
    ],
    ids=str,
)
def test_a_hub_that_misbehaves_is_one_line(hub, files, misbehaviour, message, capfd):
    hub.add("owner/pets", files)
    hub.misbehave["model.safetensors"] = misbehaviour
    with pytest.raises(zoo.WeightsError, match=message) as caught:
        zoo.get_weights(NAME)
    assert "\n" not in str(caught.value)
    assert "Retrying" not in capfd.readouterr().err
    # the next try is not hindered by it
    hub.misbehave.clear()
    assert zoo.get_weights(NAME).classes == ("ant", "bee", "cat")


def test_a_repository_that_is_not_there(hub):
    with pytest.raises(zoo.WeightsError, match="no such repository, or a private one: check the name, or log in"):
        zoo.get_weights(NAME)


def test_no_network_is_one_line_and_the_cache_is_used(hub, files, monkeypatch, lines, capfd):
    hub.add("owner/pets", files)
    zoo.get_weights(NAME)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert zoo.get_weights(NAME).classes == ("ant", "bee", "cat")
    assert lines()[-1].startswith(f"{NAME}: no answer from the hub (")
    assert lines()[-1].endswith("config.json is taken from the cache")
    count = len(lines())
    with pytest.raises(zoo.WeightsError, match=r"owner/other/config.json could not be fetched: no answer from the hub"):
        zoo.get_weights("hf-hub:owner/other")
    assert len(lines()) == count
    assert "Retrying" not in capfd.readouterr().err


@pytest.mark.parametrize("setting", ["RESCALENET_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline(hub, files, monkeypatch, setting):
    hub.add("owner/pets", files)
    monkeypatch.setenv(setting, "1")
    with pytest.raises(zoo.WeightsError, match=rf"owner/pets/config.json is not in the cache and {setting}=1 forbids"):
        zoo.get_weights(NAME)
    assert hub.requests == []
    monkeypatch.delenv(setting)
    entry = zoo.get_weights(NAME)
    monkeypatch.setenv(setting, "1")
    count = len(hub.requests)
    assert zoo.get_weights(NAME) == entry
    assert len(hub.requests) == count
    # damaged: nothing to repair it with
    entry.path.write_bytes(b"other")
    with pytest.raises(zoo.WeightsError, match=rf"is damaged .* and {setting}=1 forbids the download"):
        zoo.get_weights(NAME)


def test_a_damaged_cache_is_fetched_again(hub, files, lines):
    hub.add("owner/pets", files)
    entry = zoo.get_weights(NAME)
    entry.path.write_bytes(b"other")
    assert zoo.get_weights(NAME).path.read_bytes() == files["model.safetensors"]
    assert sum("is damaged (its sha256 is another); fetching it again" in line for line in lines()) == 1


def test_two_that_ask_at_the_same_time(hub, files):
    hub.add("owner/pets", files)
    hub.misbehave["model.safetensors"] = {"pause": 0.3}
    found = []
    threads = [threading.Thread(target=lambda: found.append(zoo.get_weights(NAME).sha256)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:",
        "hf-hub:pets",
        "hf-hub:a/b/c",
        "hf-hub:../b",
        "hf-hub:a/..",
        "hf-hub:a/b..c",
        "hf-hub:a/b@",
        "hf-hub:a/b@../c",
        "hf-hub:a/b@x y",
        "hf-hub:a/b\n",
        "hf-hub:/etc/passwd",
    ],
)
def test_names_that_are_refused(name):
    assert zoo.is_weights_name(name)
    with pytest.raises(zoo.WeightsError, match="must be hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION"):
        zoo.get_weights(name)


def test_names():
    assert source.parse("hf-hub:a/b@v1.0") == ("a/b", "v1.0")
    assert source.parse("hf-hub:a-1/b_2.c") == ("a-1/b_2.c", None)

"""Weights on a server, which also misbehaves."""

import hashlib
import threading

import pytest
import torch

import zoo
from tests.helpers.server import Answer
from tests.zoo.sources.conftest import far
from zoo.sources import https

NONE = "0" * 64


def put(server, name, content, **answer):
    """Serve a file, and return its name as weights."""
    server.answers[f"/{name}"] = Answer(content, **answer)
    return f"{server.address}/{name}#sha256={hashlib.sha256(content).hexdigest()}"


def test_weights_of_this_zoo_are_loaded_as_they_are(server, own_file, lines, home):
    path, sha256 = own_file
    name = put(server, "any/own.safetensors", path.read_bytes())
    entry = zoo.get_weights(name)
    assert (entry.name, entry.sha256, entry.classes) == (name, sha256, ("ant", "bee", "cat"))
    assert entry.path == home / "downloads" / f"{sha256}.safetensors"
    model = zoo.create_model("rescalenet20_cifar", name)
    assert torch.equal(model.fc.weight, zoo.create_model("rescalenet20_cifar", str(path)).fc.weight)
    assert server.requests == ["GET /any/own.safetensors"]  # once
    assert lines() == [f"{name}: licence: cc-by-nc-4.0"]  # once too
    with pytest.raises(zoo.WeightsError, match="are of rescalenet20_cifar, not of rescalenet18"):
        zoo.create_model("rescalenet18", name)


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_a_batchnorm_checkpoint_is_converted(server, small_resnet, tmp_path, ending, lines):
    net, content, _ = small_resnet
    if ending == "pth":
        torch.save({"state_dict": net.state_dict(), "epoch": 3}, tmp_path / "a.pth")
        content = (tmp_path / "a.pth").read_bytes()
    name = put(server, f"a.{ending}", content)
    model = zoo.create_model("rescalenet18", name).eval()
    x = torch.randn(2, 3, 64, 64)
    assert far(model(x), net(x)) < 3e-6
    meta = zoo.get_weights(name).meta
    assert (meta["source"], meta["source_sha256"]) == (name, name[-64:])
    assert (meta["licence"], meta["form"], meta["eps"]) == ("unknown", "gained", 1e-5)
    assert any("it does not state its input; assumed: ImageNet's" in line for line in lines())
    assert sum("licence unknown" in line for line in lines()) == 1


def test_a_file_that_contains_code_is_not_run(server, tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'run')!r}, 'w')",))

    for ending in ("pth", "pkl"):
        name = put(server, f"a.{ending}", pickle.dumps({"state_dict": Evil()}))
        with pytest.raises(zoo.WeightsError):
            zoo.get_weights(name)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"length": 4000}, "broke off after 1000 of 4000 bytes; try again"),
        ({"length": 500}, "sha256 is .*, not .*; nothing was kept"),
        ({"body": b"y" * 1000}, "sha256 is .*, not .*; nothing was kept"),
        ({"length": -1, "body": b"x" * 999}, "sha256 is .*, not .*; nothing was kept"),
        ({"length": 10**12}, "states a length of '1000000000000' bytes; at most"),
        ({"length": "many"}, "states a length of 'many' bytes; at most"),
        ({"status": 404}, "the server answered 404 Not Found"),
        ({"status": 500}, "the server answered 500 Internal Server Error"),
        ({"pause": 2.0}, "could not be fetched .*timed out"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_server_that_misbehaves_is_one_line_and_leaves_nothing(server, monkeypatch, home, answer, message):
    monkeypatch.setattr(https, "TIMEOUT", 0.3)
    name = put(server, "a.pth", b"x" * 1000)
    for key, value in answer.items():
        setattr(server.answers["/a.pth"], key, value)
    with pytest.raises(zoo.WeightsError, match=message) as caught:
        zoo.get_weights(name)
    assert "\n" not in str(caught.value)
    assert list((home / "downloads").iterdir()) == []
    # the next try is not hindered by it
    put(server, "a.pth", b"x" * 1000)
    assert https.fetch_file(name).read_bytes() == b"x" * 1000


def test_a_server_without_a_length_is_read_to_its_end(server):
    assert https.fetch_file(put(server, "a.pth", b"x" * 1000, length=-1)).read_bytes() == b"x" * 1000


def test_an_endless_answer_is_cut(server, monkeypatch):
    monkeypatch.setattr(https, "LARGEST", 500)
    with pytest.raises(zoo.WeightsError, match="more than 500 bytes"):
        https.fetch_file(put(server, "a.pth", b"x" * 1000, length=-1))


def test_no_network_is_one_line():
    with pytest.raises(
        zoo.WeightsError, match=r"^http://127.0.0.1:9/a.pth: could not be fetched \(.*refused.*\); check"
    ):
        zoo.get_weights(f"http://127.0.0.1:9/a.pth#sha256={NONE}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("https://host/a.pth", "must end with #sha256="),
        ("https://host/a.safetensors", "must end with #sha256="),
        ("https://host/a.pth#sha256=00", "must end with #sha256="),
        (f"https://host/a.pth#sha256={'g' * 64}", "must end with #sha256="),
        (f"http://host/a.pth#sha256={NONE}", "http:// only for this machine"),
        (f"http://127.0.0.1.host/a.pth#sha256={NONE}", "http:// only for this machine"),
        (f"http://127.0.0.1@host/a.pth#sha256={NONE}", "http:// only for this machine"),
        (f"https:///a.pth#sha256={NONE}", "must be https://HOST/PATH"),
        (f"https://[/a.pth#sha256={NONE}", "must be https://HOST/PATH"),
        (f"https://host/a.exe#sha256={NONE}", "must end in .safetensors, .pth, .pt, .pkl"),
        (f"https://host/#sha256={NONE}", "must end in .safetensors"),
        (f"https://host/a\n.pth#sha256={NONE}", r"^'https://host/a\\n\.pth.*': an address has no line breaks"),
    ],
)
def test_addresses_that_are_refused(name, message):
    assert zoo.is_weights_name(name)
    with pytest.raises(zoo.WeightsError, match=message):
        zoo.get_weights(name)


def test_a_redirection_leads_nowhere_that_would_be_refused(server):
    server.answers["/a.pth"] = Answer(status=302, headers={"Location": "http://example.invalid/a.pth"})
    with pytest.raises(zoo.WeightsError, match="http://example.invalid/a.pth: must be https"):
        zoo.get_weights(f"{server.address}/a.pth#sha256={NONE}")
    server.answers["/a.pth"] = Answer(status=302, headers={"Location": "http://[bad"})
    with pytest.raises(zoo.WeightsError, match="a.pth: could not be fetched .Invalid IPv6 URL.; check the network"):
        zoo.get_weights(f"{server.address}/a.pth#sha256={NONE}")
    server.answers["/a.pth"] = Answer(status=302, headers={"Location": "/a.pth"})
    with pytest.raises(zoo.WeightsError, match="the server answered 302 .* infinite loop") as caught:
        zoo.get_weights(f"{server.address}/a.pth#sha256={NONE}")
    assert str(caught.value).isprintable()
    name = put(server, "b.pth", b"x" * 10)
    server.answers["/a.pth"] = Answer(status=302, headers={"Location": f"{server.address}/b.pth"})
    assert https.fetch_file(name.replace("b.pth", "a.pth")).read_bytes() == b"x" * 10


def test_offline(server, monkeypatch):
    name = put(server, "a.pth", b"x" * 10)
    monkeypatch.setenv("RESCALENET_OFFLINE", "1")
    with pytest.raises(zoo.WeightsError, match=r"\.pth is missing or damaged and RESCALENET_OFFLINE=1 forbids"):
        https.fetch_file(name)
    monkeypatch.delenv("RESCALENET_OFFLINE")
    path = https.fetch_file(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert https.fetch_file(name) == path
    assert server.requests == ["GET /a.pth"]


def test_a_damaged_file_is_fetched_again(server, lines):
    name = put(server, "a.pth", b"x" * 10)
    path = https.fetch_file(name)
    path.write_bytes(b"y" * 10)
    assert https.fetch_file(name).read_bytes() == b"x" * 10
    assert lines() == [f"{path}: damaged (its sha256 is another); fetching it again"]


def test_two_that_ask_at_the_same_time_fetch_once(server, lines):
    name = put(server, "a.pth", b"x" * 10, pause=0.5)
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(https.fetch_file(name))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 3
    assert server.requests == ["GET /a.pth"]
    assert sum(line.endswith("another process fetches it; waiting") for line in lines()) == 2


def test_no_name_of_a_server_becomes_a_path(server, home):
    name = put(server, "../../x/..%2f..%2fevil.pth", b"x" * 10)
    assert https.fetch_file(name) == home / "downloads" / f"{name[-64:]}.pth"

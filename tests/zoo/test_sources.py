"""Sources of weights, kinds of input transforms in headers, and files that are written completely or not at all."""

import base64
import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import zoo
from zoo import files, transforms, weights
from zoo.headers import Header, write_header

TRANSFORMS = [
    zoo.InputTransform.imagenet(32, 36),
    zoo.DetectionTransform(100, 200, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "BGR"),
    zoo.VideoTransform(8, None, None, 32, 36, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "squash"),
    zoo.TextTransform("en", "de", base64.b64encode(b"model").decode(), None),
]


def header(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["rescalenet"])


def rewrite(path, entry):
    save_file(load_file(path), path, metadata={"rescalenet": json.dumps(entry), "format": "pt"})


@pytest.fixture(scope="module")
def model():
    return zoo.create_model("rescalenet20_cifar", num_classes=2, width=0.25).eval()


def save(model, path):
    return zoo.save_weights(model, path, transform=TRANSFORMS[0], classes=["a", "b"])


def write(model, path, transform):
    """A file with any transform, also one that is not of the model's input."""
    text = write_header(Header(model.config, transform, ("a", "b"), {}), path)
    save_file(model.state_dict(), path, metadata={"rescalenet": text, "format": "pt"})


# -- sources ----------------------------------------------------------------------------------------


@pytest.fixture
def shelf(model, tmp_path):
    """A source that reads ``shelf:NAME`` from a folder, removed again after the test."""
    save(model, tmp_path / "pets.safetensors")
    asked = []

    def find(name, model):
        asked.append((name, model))
        return zoo.get_weights(str(tmp_path / f"{name.removeprefix('shelf:')}.safetensors"))

    source = zoo.Source("shelf:NAME", lambda name: name.startswith("shelf:"), find)
    zoo.register_source(source)
    yield asked
    weights.SOURCES.remove(source)


def test_a_source_from_outside(shelf, model):
    again = zoo.create_model("rescalenet20_cifar", "shelf:pets").eval()
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(again(x), model(x))
    assert shelf == [("shelf:pets", "rescalenet20_cifar")]
    assert zoo.is_weights_name("shelf:pets")
    with pytest.raises(zoo.WeightsError, match="'shelf:pets' are of rescalenet20_cifar, not of rescalenet18"):
        zoo.create_model("rescalenet18", "shelf:pets")


def test_a_new_source_may_claim_names_that_an_older_one_matches(shelf):
    with pytest.raises(zoo.WeightsError, match=r"none\.safetensors\.safetensors: no such file"):
        zoo.get_weights("shelf:none.safetensors")


def test_a_form_is_registered_once(shelf):
    with pytest.raises(zoo.ZooError, match="'shelf:NAME' is registered already"):
        zoo.register_source(weights.SOURCES[0])


def test_a_removed_source_is_unknown():
    assert not zoo.is_weights_name("shelf:pets")
    with pytest.raises(zoo.WeightsError, match="unknown weights 'shelf:pets'"):
        zoo.get_weights("shelf:pets")


@pytest.mark.parametrize("name", [*zoo.list_weights(), "a/b.safetensors", "rescalenet20_cifar.unknown"])
def test_names_of_weights(name):
    assert zoo.is_weights_name(name)


@pytest.mark.parametrize("name", zoo.list_models())
def test_names_of_models_are_not_names_of_weights(name):
    assert not zoo.is_weights_name(name)


# -- kinds of input transforms ----------------------------------------------------------------------


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: t.kind)
def test_the_header_names_the_kind(transform, model, tmp_path):
    path = tmp_path / "w.safetensors"
    write(model, path, transform)
    entry = header(path)
    assert entry["transform"]["kind"] == transform.kind
    assert zoo.get_weights(str(path)).transform == transform
    # version 0.1.0 wrote no kind
    del entry["transform"]["kind"]
    rewrite(path, entry)
    assert zoo.get_weights(str(path)).transform == transform


def test_the_kind_decides_and_other_fields_are_errors(model, tmp_path):
    path = tmp_path / "w.safetensors"
    write(model, path, TRANSFORMS[2])
    entry = header(path)
    entry["transform"]["kind"] = "detection"
    rewrite(path, entry)
    with pytest.raises(zoo.WeightsError, match=r"transform\.frames: detection transforms have no such key"):
        zoo.get_weights(str(path))
    # without a kind, a video's fields with one renamed are not an image's
    del entry["transform"]["kind"]
    entry["transform"]["rate"] = entry["transform"].pop("fps")
    rewrite(path, entry)
    with pytest.raises(zoo.WeightsError, match="transform: its keys .* are those of no kind"):
        zoo.get_weights(str(path))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("sound", r"unknown kind of transform 'sound' \(known: image, detection, video, text\)"),
        ("text", "source"),
        ([], ""),
    ],
)
def test_a_wrong_kind_is_an_error(kind, message, model, tmp_path):
    path = tmp_path / "w.safetensors"
    save(model, path)
    entry = header(path)
    entry["transform"]["kind"] = kind
    rewrite(path, entry)
    with pytest.raises(zoo.WeightsError, match=f"header entry is not valid.*{message}"):
        zoo.get_weights(str(path))


def test_every_kind_has_a_name():
    assert list(transforms.KINDS) == ["image", "detection", "video", "text"]
    assert {zoo.get_weights(name).transform.kind for name in zoo.list_weights()} == set(transforms.KINDS)


def test_of_is_the_old_name_of_from_vocabularies():
    class Fake:
        model = b"model"

    with pytest.warns(DeprecationWarning, match="from_vocabularies"):
        assert zoo.TextTransform.of(("en", "de"), Fake, Fake) == TRANSFORMS[3]


# -- files ------------------------------------------------------------------------------------------


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: steps.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    replace = os.replace
    monkeypatch.setattr(files.os, "replace", lambda *paths: (steps.append("replace"), replace(*paths)))
    files.write_text("new", tmp_path / "deep" / "a.txt")
    assert (tmp_path / "deep" / "a.txt").read_text() == "new"
    above, temporary, renamed, folder = steps
    assert above == str(tmp_path)  # the name of the new folder
    assert temporary.startswith(f"{tmp_path}/deep/.a.txt.")
    assert (renamed, folder) == ("replace", f"{tmp_path}/deep")


def test_a_disk_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json({"old": 1}, path)

    def fail(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        files.write_json({"new": 1}, path)
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["en", "zh-Hans", "a" * 100, "_1"])
def test_safe_names(name):
    assert files.safe_name(name, "name") == name


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", "a.b", "a\n", "ä", "a" * 101, "/tmp"])
def test_unsafe_names(name):
    with pytest.raises(zoo.ZooError, match=r"^name=.*: must be 1 to 100 letters, digits, - or _$"):
        files.safe_name(name, "name")

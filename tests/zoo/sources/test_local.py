"""Checkpoints of other projects in files of this machine, by their paths."""

import re
import shutil
from pathlib import Path

import pytest
import torch

import zoo
from tests.helpers.reference import LAYOUTS
from tests.zoo.sources.conftest import far
from zoo.files import sha256_of
from zoo.sources import cache, convert


@pytest.fixture
def images():
    return torch.randn(2, 3, 65, 65, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".pt", ".pyth"])
def test_a_checkpoint_is_loaded_by_its_path(tmp_path, small_resnet, images, lines, ending):
    net, content, digest = small_resnet
    path = tmp_path / f"pets{ending}"
    if ending == ".safetensors":
        path.write_bytes(content)
    else:
        torch.save({"state_dict": net.state_dict()}, path)
        digest = sha256_of(path)
    ours = zoo.create_model("rescalenet18", path, width=0.25).eval()
    with torch.no_grad():
        assert far(ours(images), net(images)) < 3e-6
    assert sum("licence unknown" in line for line in lines()) == 1
    # the entry: its name loads it again, its file does not tell the folder
    entry = zoo.get_weights(path)
    assert entry.name == str(path)
    assert (entry.meta["source"], entry.meta["source_sha256"]) == (f"pets{ending}", digest)
    assert str(tmp_path) not in str(entry.meta)
    before = sum("converted, form gained" in line for line in lines())
    again = zoo.create_model(entry.config.name, entry.name, num_classes=7)
    assert again.num_classes == 7
    assert sum("converted, form gained" in line for line in lines()) == before  # from the cache


def test_a_changed_file_is_converted_anew(tmp_path, small_resnet, images):
    net, _, _ = small_resnet
    path = tmp_path / "net.pth"
    torch.save(net.state_dict(), path)
    first = zoo.create_model("rescalenet18", path, width=0.25).eval()
    state = net.state_dict()
    torch.save({**state, "fc.bias": state["fc.bias"] + 1}, path)
    second = zoo.create_model("rescalenet18", path, width=0.25).eval()
    with torch.no_grad():
        torch.testing.assert_close(second(images), first(images) + 1)


def test_what_is_no_checkpoint(tmp_path, own_net):
    with pytest.raises(zoo.WeightsError, match=r"^none\.pth: no such file$"):
        zoo.create_model("rescalenet18", "none.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(zoo.WeightsError, match=re.escape(str(tmp_path / "text.pth"))):
        zoo.get_weights(tmp_path / "text.pth")
    net = zoo.create_model("rescalenet20_cifar", width=0.25)
    torch.save(net.state_dict(), tmp_path / "own.pt")
    with pytest.raises(zoo.WeightsError, match=r"a net of this zoo without norms, .*take the \.safetensors file"):
        zoo.get_weights(tmp_path / "own.pt")


def test_own_weights_are_not_converted(tmp_path, own_net):
    path = tmp_path / "bn.safetensors"
    transform = zoo.InputTransform(16, 16, (0.5,) * 3, (0.3,) * 3)
    zoo.save_weights(own_net, path, transform=transform, classes=["ant", "bee", "cat"])
    assert zoo.get_weights(path).config.scheme == "bn"
    assert not (cache.cache_root() / "converted").exists()


def test_a_checkpoint_of_the_authors_code_needs_the_name_of_the_net(tmp_path):
    state = {key: torch.zeros(shape) for key, shape in LAYOUTS["rescale50"]().items()}
    torch.save(state, tmp_path / "theirs.pth")
    net = zoo.create_model("rescalenet50", tmp_path / "theirs.pth")
    assert net.config.options["first_index"] == 0
    with pytest.raises(zoo.WeightsError, match="give the net's name"):
        zoo.get_weights(tmp_path / "theirs.pth")


def test_no_conversion_into_its_own_source(tmp_path, small_resnet):
    source = tmp_path / "net.safetensors"
    source.write_bytes(small_resnet[1])
    with pytest.raises(zoo.ZooError, match="is the source itself, which would be lost"):
        convert(source, tmp_path / "." / "net.safetensors")
    assert source.read_bytes() == small_resnet[1]
    with pytest.raises(zoo.ZooError, match=r"net\.pth: the name of a weights file ends in \.safetensors"):
        convert("torchvision:none:NONE", tmp_path / "net.pth")  # before the source is looked at
    shutil.copy(source, tmp_path / "copy.safetensors")
    assert convert(source, tmp_path / "copy.safetensors", classes=list("abcde")).classes == tuple("abcde")


def test_paths_are_expanded_wherever_weights_are_named(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETS", str(tmp_path / "nets"))
    monkeypatch.setenv("PETS", "~/pets.safetensors")
    monkeypatch.delenv("NOWHERE", raising=False)
    net = zoo.create_model("rescalenet20_cifar", num_classes=2, width=0.25)
    about = {"transform": zoo.InputTransform.imagenet(32, 36), "classes": ["cat", "dog"]}
    zoo.save_weights(net, "~/pets.safetensors", **about)
    zoo.save_weights(net, "${NETS}/pets.safetensors", **about)
    assert not list((tmp_path / "work").iterdir())
    path = tmp_path / "home/pets.safetensors"
    assert zoo.get_weights("~/pets.safetensors").path == path
    assert zoo.get_weights(Path("$NETS/pets.safetensors")).path == tmp_path / "nets/pets.safetensors"
    assert zoo.is_weights_name("~/pets.safetensors")
    again = zoo.create_model("rescalenet20_cifar", "~/pets.safetensors")
    assert torch.equal(again.fc.weight, net.fc.weight)
    for name, reason in [
        ("$NOWHERE/pets.safetensors", "the environment variable 'NOWHERE' is not set"),
        ("$NOWHERE", "the environment variable 'NOWHERE' is not set"),
        ("~nobody-of-this-name/w.pth", "no user 'nobody-of-this-name'"),
        ("$PETS", "no such file"),  # what a variable has is taken as it is
    ]:
        with pytest.raises(zoo.WeightsError, match=reason):
            zoo.get_weights(name)
    with pytest.raises(zoo.ZooError, match="'NOWHERE' is not set"):
        zoo.save_weights(net, "$NOWHERE/pets.safetensors", **about)
    assert not list((tmp_path / "work").iterdir())

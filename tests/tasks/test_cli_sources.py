"""Commands about weights of others: list --convertible, info, convert, push."""

import json
import sys

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model

import zoo
from tasks.exporting import stem_of_weights
from tests.helpers.commands import call
from tests.helpers.reference import LAYOUTS
from tests.helpers.server import Hub, running, set_endpoint


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("RESCALENET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_TOKEN", "of the tests")
    monkeypatch.setenv("RESCALENET_OFFLINE", "1")


def test_list_convertible(capsys, monkeypatch):
    code, out, _ = call(capsys, monkeypatch, "list", "--convertible", "rescalenet50")
    assert code == 0
    lines = out.splitlines()
    assert "rescalenet50  torchvision:resnet50:IMAGENET1K_V2  acc@1 80.858, acc@5 95.434" in lines
    assert "rescalenet50  timm:resnet50.a1_in1k" in lines
    assert all(line.startswith("rescalenet50  ") for line in lines)
    _, out, _ = call(capsys, monkeypatch, "list", "--convertible", "*rcnn*")
    assert "mask_rcnn_rescalenet50_fpn  torchvision:maskrcnn_resnet50_fpn:COCO_V1  box_map 37.9, mask_map 34.6" in out
    code, _, err = call(capsys, monkeypatch, "list", "--convertible", "--pretrained")
    assert code == 1
    assert "leave --pretrained and --input-kind out" in err


def test_without_timm_its_rows_are_missing(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    code, out, _ = call(capsys, monkeypatch, "list", "--convertible", "rescalenet50")
    assert code == 0
    assert len(out.splitlines()) == 2
    assert "timm" not in out


def test_every_listed_name_is_a_name(capsys, monkeypatch):
    rows = zoo.sources.list_convertible()
    assert len({row.weights for row in rows}) == len(rows) > 100
    assert all(zoo.is_weights_name(row.weights) for row in rows)
    assert {row.model for row in rows} <= set(zoo.list_models())


def test_info_needs_no_download(capsys, monkeypatch):
    code, out, _ = call(capsys, monkeypatch, "info", "torchvision:resnet50:IMAGENET1K_V2")
    assert code == 0
    content = json.loads(out)
    assert content["model"] == "rescalenet50"
    assert content["transform"]["resize"] == 232
    assert content["meta"]["metrics"]["acc@1"] == 80.858
    assert content["meta"]["licence"] == "unknown"
    assert len(content["classes"]) == 1000


def test_convert_the_weights_that_ship(capsys, monkeypatch, tmp_path):
    for form in ("gained", "folded", "balanced"):
        target = tmp_path / f"{form}.safetensors"
        code, out, err = call(capsys, monkeypatch, "convert", "rescalenet20_cifar.cifar10_bn", target, "--form", form)
        assert code == 0, err
        assert out == f"{target}: rescalenet20_cifar, 10 classes\n"
        x = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            expected = zoo.create_model("rescalenet20_cifar", "cifar10_bn").eval()(x)
            found = zoo.create_model("rescalenet20_cifar", str(target)).eval()(x)
        assert float((found - expected).abs().max() / expected.abs().max()) < 3e-6
        entry = zoo.get_weights(str(target))
        assert entry.config.scheme == "rescale"
        assert (entry.meta["source"], entry.meta["form"]) == ("rescalenet20_cifar.cifar10_bn", form)
        assert entry.transform == zoo.get_weights("rescalenet20_cifar.cifar10_bn").transform
        assert entry.meta["metrics"]["top1"] == 87.89
        assert "CIFAR-10" in entry.meta["licence"]


def test_convert_a_local_checkpoint(capsys, monkeypatch, tmp_path, caplog):
    import torchvision

    net = torchvision.models.resnet18(num_classes=2).eval()
    save_file(net.state_dict(), tmp_path / "a.safetensors")
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    target = tmp_path / "out.safetensors"
    arguments = ("--eps", "0.001", "--classes", tmp_path / "names.txt", "--name", "rescalenet18")
    code, _, err = call(capsys, monkeypatch, "convert", tmp_path / "a.safetensors", target, *arguments)
    assert code == 0, err
    entry = zoo.get_weights(str(target))
    assert (entry.classes, entry.meta["eps"], entry.meta["source"]) == (("ant", "bee"), 0.001, "a.safetensors")
    assert entry.transform == zoo.InputTransform.imagenet()
    assert str(tmp_path) not in json.dumps(entry.meta)
    assert "assumed: ImageNet's" in caplog.text
    assert "licence unknown" in caplog.text


def test_a_checkpoint_of_the_authors_code_needs_a_name(capsys, monkeypatch, tmp_path):
    state = {key: torch.zeros(shape) for key, shape in LAYOUTS["rescale50"]().items()}
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    for arguments, message in (
        ((), r"a checkpoint of the authors' code; give the net's name (--name rescalenet50)"),
        (("--name", "rescalenet50", "--eps", "0"), "has no norms: leave form and eps out"),
        (("--name", "rescalenet50", "--form", "folded"), "has no norms: leave form and eps out"),
    ):
        code, _, err = call(capsys, monkeypatch, "convert", tmp_path / "a.pth", tmp_path / "b.safetensors", *arguments)
        assert code == 1
        assert message in err
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("rescalenet20_cifar.cifar10", "scheme 'rescale'; only bn is converted"),
        ("torchvision:resnet18:IMAGENET1K_V1", "RESCALENET_OFFLINE=1 forbids the download"),
        ("timm:resnet18.a1_in1k", "RESCALENET_OFFLINE=1 forbids the download"),
        ("hf-hub:owner/pets", "RESCALENET_OFFLINE=1 forbids the download"),
        ("https://host/a.pth", "must end with #sha256="),
        ("none.pth", "none.pth: no such file, and no name of weights"),
        ("none", "none: no such file, and no name of weights"),
        ("none.safetensors", "none.safetensors: no such file"),
        ("rescalenet50.imagenet", "unknown weights 'rescalenet50.imagenet'"),
    ],
)
def test_sources_that_are_refused_are_one_line(capsys, monkeypatch, tmp_path, source, message):
    code, _, err = call(capsys, monkeypatch, "convert", source, tmp_path / "a.safetensors")
    assert code == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "a.safetensors").exists()


def test_an_option_that_keys_do_not_show(capsys, monkeypatch, tmp_path):
    """The stride of bottlenecks: the option reaches the net; a wrong one is one line."""
    net = get_model("resnet50", num_classes=3)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    convert = ("convert", str(tmp_path / "net.pth"), str(tmp_path / "net.safetensors"))
    code, _, _ = call(capsys, monkeypatch, *convert, "--option", "stride_in_1x1=true")
    assert code == 0
    assert zoo.get_weights(str(tmp_path / "net.safetensors")).config.options["stride_in_1x1"] is True
    code, _, err = call(capsys, monkeypatch, *convert, "--option", "strides=1", "--overwrite")
    assert code == 1
    assert "'strides'" in err


@pytest.mark.parametrize("option", ["form=folded", "classes=all", "name=rescalenet18", "eps=0", "out=x", "source=y"])
def test_an_option_that_is_an_argument(capsys, monkeypatch, tmp_path, option):
    arguments = ("convert", "rescalenet20_cifar.cifar10_bn", tmp_path / "a.safetensors", "--option", option)
    code, _, err = call(capsys, monkeypatch, *arguments)
    assert (code, err.startswith(f"error: --option {option.partition('=')[0]}: ")) == (1, True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "names.txt: no such file"),
        (b"\xe9t\xe9\n", "names.txt: not a text file"),
        (b"\n\n", "names.txt: is empty"),
        (b"a\nb\n", "2 class names for a net with 10 classes"),
    ],
)
def test_class_names_that_do_not_fit(capsys, monkeypatch, tmp_path, content, message):
    if content is not None:
        (tmp_path / "names.txt").write_bytes(content)
    arguments = ("convert", "rescalenet20_cifar.cifar10_bn", tmp_path / "a.safetensors")
    code, _, err = call(capsys, monkeypatch, *arguments, "--classes", tmp_path / "names.txt")
    assert (code, len(err.splitlines())) == (1, 1)
    assert message in err
    assert not (tmp_path / "a.safetensors").exists()


def test_class_names_of_a_detector(capsys, monkeypatch, tmp_path):
    """Names of one's own keep all 90 rows that a detector with COCO's number of classes has."""
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    net = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    names = [f"part {i}" for i in range(90)]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n\n")
    target = tmp_path / "net.safetensors"
    convert = ("convert", tmp_path / "net.pth", target, "--overwrite", "--classes")
    for given, classes in ((tmp_path / "names.txt", names), ("all", [str(i) for i in range(90)])):
        code, _, err = call(capsys, monkeypatch, *convert, given)
        assert code == 0, err
        assert zoo.get_weights(target).classes == tuple(classes)


def test_an_unknown_form(capsys, monkeypatch, tmp_path):
    arguments = ("convert", "rescalenet20_cifar.cifar10_bn", tmp_path / "a.safetensors", "--form", "flat")
    code, _, err = call(capsys, monkeypatch, *arguments)
    assert code == 1
    assert "form='flat': must be one of" in err


def test_names_of_exported_files():
    assert stem_of_weights("runs/a/best.safetensors") == "best"
    assert stem_of_weights("rescalenet20_cifar.cifar10") == "rescalenet20_cifar.cifar10"
    assert stem_of_weights("torchvision:resnet50:IMAGENET1K_V2") == "torchvision_resnet50_IMAGENET1K_V2"
    assert stem_of_weights("hf-hub:owner/pets@v1") == "pets_v1"
    assert stem_of_weights("a/model_final.pkl") == "model_final"
    assert stem_of_weights(f"https://host/a/pets.safetensors#sha256={'a' * 64}") == "pets"


def test_push(capsys, monkeypatch):
    with running(Hub()) as hub:
        set_endpoint(monkeypatch, hub.address)
        monkeypatch.delenv("RESCALENET_OFFLINE")
        code, out, err = call(capsys, monkeypatch, "push", "rescalenet20_cifar.cifar10", "owner/cifar")
        assert code == 0, err
        assert out.splitlines() == [f"{hub.address}/owner/cifar/commit/{1:040x}", "load it as hf-hub:owner/cifar"]
        assert hub.private == {"owner/cifar": True}
        code, _, err = call(capsys, monkeypatch, "push", "rescalenet20_cifar.cifar10", "owner/b", "--public")
        assert hub.private["owner/b"] is False
    code, _, err = call(capsys, monkeypatch, "push", "x", "owner/b", "--checkpoint", "first")
    assert (code, err) == (1, "error: --checkpoint first: must be last or best\n")

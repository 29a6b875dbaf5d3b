"""Weights of timm from a hub of this machine, without timm."""

import json
import sys

import pytest
import timm
import torch
from safetensors.torch import save

import zoo
from tests.zoo.sources.conftest import far, trained
from zoo.sources import tables
from zoo.sources import timm as source

NAME = "timm:resnet18.a1_in1k"
REPOSITORY = "timm/resnet18.a1_in1k"
SMALL = {"conv1.weight": torch.zeros(4, 3, 7, 7)}


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(0)
    return trained(timm.create_model("resnet18", num_classes=1000))


def config_of(name, **changes):
    """timm's ``config.json`` of weights, from its own metadata."""
    stated = timm.models.get_pretrained_cfg(name).to_dict()
    hidden = ("url", "hf_hub_id", "architecture")
    inner = {key: value for key, value in {**stated, **changes}.items() if key not in hidden and value is not None}
    return {"architecture": stated["architecture"], "num_classes": inner["num_classes"], "pretrained_cfg": inner}


def files_of(state, name, **changes):
    return {
        "config.json": json.dumps(config_of(name, **changes)).encode(),
        "model.safetensors": save(state),
        "README.md": b"---\nlicense: bsd-3-clause\n---\n# card\n",
    }


def test_a_net_by_its_tag(hub, resnet18, lines, monkeypatch):
    commit = hub.add(REPOSITORY, files_of(resnet18.state_dict(), "resnet18.a1_in1k"))
    monkeypatch.setitem(sys.modules, "timm", None)  # it need not be installed
    model = zoo.create_model("rescalenet18", weights="timm:a1_in1k").eval()
    x = torch.randn(2, 3, 97, 64)
    assert far(model(x), resnet18(x)) < 3e-6
    entry = zoo.get_weights(NAME)
    assert (entry.name, entry.config.name, entry.classes[0]) == (NAME, "rescalenet18", "tench")
    stated = {key: entry.meta[key] for key in ("source", "licence", "form", "eps", "revision", "url")}
    assert stated == {
        "source": NAME,
        "licence": "apache-2.0",
        "form": "gained",
        "eps": 1e-5,
        "revision": commit,
        "url": "https://huggingface.co/timm/resnet18.a1_in1k",
    }
    assert lines()[0] == f"{NAME}: licence: apache-2.0"
    # no further question to the hub
    count = len(hub.requests)
    zoo.create_model("rescalenet18", NAME)
    assert len(hub.requests) == count


@pytest.mark.parametrize(
    "name", ["resnet18.a1_in1k", "resnet50.tv_in1k", "resnet50d.ra2_in1k", "resnext101_32x8d.tv_in1k"]
)
def test_the_transform_is_timms(name):
    from PIL import Image

    data = timm.data.resolve_data_config({}, pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict())
    expected = timm.data.create_transform(**data)
    config = config_of(name)
    found = source.input_transform(name, {**config["pretrained_cfg"], **config}).build()
    pixels = torch.randint(0, 256, (300, 400, 3), dtype=torch.uint8).numpy()
    difference = found(Image.fromarray(pixels)) - expected(Image.fromarray(pixels))
    assert float(difference.abs().max()) < 2.01 / 255 / 0.224  # PIL rounds between the two directions: two levels


@pytest.mark.parametrize(
    ("licence", "expected"), [("cc-by-nc-4.0", "cc-by-nc-4.0"), (None, "bsd-3-clause"), ("", "bsd-3-clause")]
)
def test_the_licence_is_in_the_metadata_or_in_the_card(hub, licence, expected):
    hub.add(REPOSITORY, files_of(SMALL, "resnet18.a1_in1k", license=licence))
    assert source.describe(NAME)["meta"]["licence"] == expected


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(40))  # 2**40 words


@pytest.mark.parametrize(
    "card",
    [
        *("# card\n", "---\n- a\n---\n", "---\na: [\n---\n", "---\nlicense:\n---\n", "---\nlicense: {a: b}\n---\n"),
        f"---\n{BOMB}license: *a40\n---\n",
    ],
)
def test_an_unknown_licence(hub, card):
    hub.add(REPOSITORY, {**files_of(SMALL, "resnet18.a1_in1k", license=None), "README.md": card.encode()})
    assert source.describe(NAME)["meta"]["licence"] == "unknown"


def test_several_licences(hub):
    hub.add(REPOSITORY, files_of(SMALL, "resnet18.a1_in1k", license=["mit", "cc-by-4.0"]))
    assert source.describe(NAME)["meta"]["licence"] == "mit, cc-by-4.0"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"no", "config.json is not of timm"),
        (b"[]", "config.json is not of timm"),
        (b"[" * 100_000, "config.json is not of timm"),
        (b"{}", "config.json has no valid input transform"),
        (b'{"pretrained_cfg": {"input_size": [3, 224, 224], "crop_pct": 0}}', "no valid input transform"),
        (json.dumps(config_of("resnet18.a1_in1k", crop_mode="border")).encode(), "crop_mode='border'"),
        (b'{"pretrained_cfg": {"input_size": [3, 1e999, 224], "crop_pct": 0.9}}', "numbers must be finite"),
        (b'{"a": 1, "a": 2}', "config.json is not of timm .key 'a' occurs twice"),
        (b" " * (2**24 + 1), "config.json is not of timm .more than 16777216 bytes"),
        (json.dumps(config_of("resnet18.a1_in1k", label_names=5)).encode(), "label_names of type int"),
        (json.dumps(config_of("resnet18.a1_in1k", interpolation="random")).encode(), "interpolation='random'"),
        (json.dumps(config_of("resnet18.a1_in1k", mean="abc")).encode(), "no valid input transform"),
    ],
)
def test_metadata_that_is_refused(hub, config, message):
    hub.add(REPOSITORY, {"config.json": config, "README.md": b""})
    with pytest.raises(zoo.WeightsError, match=message):
        zoo.get_weights(NAME)


def test_a_file_that_is_cut_is_refused(hub):
    files = files_of(SMALL, "resnet18.a1_in1k")
    hub.add(REPOSITORY, {**files, "model.safetensors": files["model.safetensors"][:-1]})
    with pytest.raises(zoo.WeightsError, match="is not a complete safetensors file"):
        zoo.get_weights(NAME)


def test_other_bytes_than_the_hub_states_are_refused(hub):
    """The hub names a large file by its sha256; huggingface_hub compares lengths only."""
    files = files_of(SMALL, "resnet18.a1_in1k")
    hub.add(REPOSITORY, files)
    content = bytearray(files["model.safetensors"])
    content[-1] ^= 1
    hub.misbehave["model.safetensors"] = {"body": bytes(content)}
    with pytest.raises(zoo.WeightsError, match="has sha256 .*, not .* as its repository states"):
        zoo.get_weights(NAME)


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("timm:a1_in1k", None, "the tag alone names no net; see rescalenet list --convertible"),
        ("timm:a1_in1k", "rescalevgg16", "timm has no weights for rescalevgg16"),
        ("timm:seresnet50.a1_in1k", None, r"'seresnet50' is not convertible \(did you mean"),
        ("timm:resnet50.", None, "must be timm:TAG or timm:ARCHITECTURE.TAG"),
        ("timm:resnet50.../x", None, "must be|is not convertible"),
        ("timm:", None, "names no net|must be"),
        ("timm:a/../b", "rescalenet50", "is not convertible"),
        ("timm:a/b", "rescalenet50", "must be timm:TAG or timm:ARCHITECTURE.TAG"),
    ],
)
def test_names_that_are_refused(name, model, message):
    assert zoo.is_weights_name(name)
    with pytest.raises(zoo.WeightsError, match=message):
        zoo.get_weights(name, model=model)


def test_the_list_of_names_needs_timm(monkeypatch):
    assert ("rescalenet50", "resnet50", "a1_in1k") in source.tags()
    assert {ours for ours, *_ in source.tags()} == set(tables.TIMM)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(zoo.ZooError, match=r"pip install .rescalenet-zoo\[timm\]"):
        source.tags()


@pytest.mark.slow
@pytest.mark.parametrize(("ours", "architecture"), [(o, a) for o, row in tables.TIMM.items() for a in row])
def test_every_architecture_of_the_table_is_converted(ours, architecture):
    """On ``meta``, so that no memory is taken."""
    from zoo.convert.layouts import LAYOUTS

    with torch.device("meta"):
        state = timm.create_model(architecture).state_dict()
    layout = next(layout for layout in LAYOUTS if layout.matches(state.keys()))
    assert layout.read(state, ours, {}).config.name == ours


@pytest.mark.parametrize("name", [f"{a}.{t}" for _, a, t in source.tags()])
def test_what_timm_states_fits(name):
    """The eps, the order of classes and the hub's address that the code takes for granted."""
    stated = timm.models.get_pretrained_cfg(name)
    assert stated.hf_hub_id == f"timm/{name}"
    assert stated.num_classes != 1000 or name.endswith("in1k")

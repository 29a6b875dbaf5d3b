"""Nets are planned without memory, compared with the file, and built without a random init that would be lost."""

import dataclasses
import json
import tracemalloc

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import zoo
from tests.helpers.nets import NARROW, narrow, samples
from tests.helpers.weights import TRANSFORM
from zoo import building
from zoo.building import WithoutInit, planned

SIZES = {"dim": 16, "hidden": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 2, "max_length": 20}
TEXTS = {"source_vocabulary": 13, "target_vocabulary": 13}
TEXT_TRANSFORM = zoo.TextTransform("en", "de", "", None)


def rewrite(path, change):
    """Save the file again with its header entry changed."""
    with safe_open(path, framework="pt") as file:
        entry = json.loads(file.metadata()["rescalenet"])
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(entry)
    save_file(state, path, metadata={"rescalenet": json.dumps(entry)})


@pytest.fixture
def watched(monkeypatch):
    """The largest number of values in a tensor that was made on the CPU with random init."""
    largest = []
    normal = torch.Tensor.normal_

    def seen(self, *args, **kwargs):
        if self.device.type != "meta":
            largest.append(self.numel())
        return normal(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "normal_", seen)
    return largest


@pytest.mark.slow
def test_every_net_is_planned_with_its_own_tensors():
    for name in zoo.list_models():
        info = zoo.model_info(name)
        if info.input_kind == "image_lists" and "18" not in name and "20_cifar" not in name:
            continue  # other backbones differ in nothing that the detector adds
        with torch.device("meta"):
            model = zoo.create_model(name)
        assert all(value.is_meta for value in model.state_dict().values())


@pytest.mark.parametrize("scheme", ["rescale", "bn", "gn", "none"])
@pytest.mark.parametrize("kind", NARROW)
def test_loaded_nets_equal_those_that_were_saved(kind, scheme, tmp_path):
    model = narrow(kind, scheme=scheme).eval()
    for parameter in model.parameters():  # zeros and ones would hide an exchange
        nn.init.normal_(parameter, std=0.1)
    path = tmp_path / "w.safetensors"
    transform = zoo.VideoTransform(5, None, None, 32, 32, (0.5,) * 3, (0.5,) * 3) if model.dims == 3 else TRANSFORM
    zoo.save_weights(model, path, transform=transform, classes=list("abcde"))
    again = zoo.create_model(model.config.name, path).eval()
    x = samples(kind, 2, 32)
    assert torch.equal(again(x), model(x))
    for (name, a), b in zip(model.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("scheme", list(zoo.model_info("rescale_transformer_tiny").schemes))
@pytest.mark.parametrize("share", ["all", "none"])
def test_loaded_transformers_equal_those_that_were_saved(scheme, share, tmp_path):
    """Their sinusoids are in no file."""
    model = zoo.create_model("rescale_transformer_tiny", scheme=scheme, share=share, **SIZES, **TEXTS).eval()
    path = tmp_path / "w.safetensors"
    zoo.save_weights(model, path, transform=TEXT_TRANSFORM, classes=())
    again = zoo.create_model("rescale_transformer_tiny", path).eval()
    source, target = torch.randint(4, 13, (2, 7)), torch.randint(4, 13, (2, 5))
    assert torch.equal(again(source, target), model(source, target))
    assert zoo.create_model("rescale_transformer_tiny", path, max_length=40).encoder_embedding.sinusoids.shape[0] == 40


def test_a_new_last_layer_gets_its_random_init(tmp_path):
    path = tmp_path / "w.safetensors"
    zoo.save_weights(narrow("cifar"), path, transform=TRANSFORM, classes=list("abcde"))
    torch.manual_seed(0)
    fresh = zoo.create_model("rescalenet20_cifar", num_classes=7, width=0.5)
    torch.manual_seed(0)
    again = zoo.create_model("rescalenet20_cifar", path, num_classes=7)
    assert torch.equal(again.fc.weight, fresh.fc.weight)  # the same draws as without weights


def test_no_random_numbers_are_drawn_for_a_net_that_is_loaded(tmp_path):
    path = tmp_path / "w.safetensors"
    zoo.save_weights(narrow("cifar"), path, transform=TRANSFORM, classes=list("abcde"))
    before = torch.get_rng_state()
    zoo.create_model("rescalenet20_cifar", path)
    assert torch.equal(torch.get_rng_state(), before)


def test_constants_are_computed_without_init():
    """Only parameters go without random numbers: a buffer of random values keeps them."""
    with WithoutInit():
        buffer = nn.init.normal_(torch.zeros(100))
        parameter = nn.init.normal_(nn.Parameter(torch.zeros(100)))
        part = nn.Parameter(torch.zeros(2, 50))
        nn.init.xavier_uniform_(part.data)
        with torch.no_grad():
            part.chunk(2)[0].normal_()
        ones = nn.init.ones_(nn.Parameter(torch.zeros(3)))
    assert buffer.count_nonzero() == 100
    assert parameter.count_nonzero() == 0
    assert part[0].count_nonzero() == 50  # through .data it is no parameter
    assert ones.sum() == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 10_000.0}, r"has shape .*, the model"),
        ({"width": 1e300}, r"option width=1e\+300: must be below 2\*\*31"),
        ({"width": 1e-300, "c": 1e-320}, "its config builds no net|has shape|alpha"),
        ({"width": "x"}, "option width='x'"),
        ({"shortcut": "conv", "c": 0}, "option c=0"),
    ],
)
def test_options_of_a_stranger_take_no_memory(options, message, tmp_path, watched):
    path = tmp_path / "w.safetensors"
    zoo.save_weights(narrow("cifar"), path, transform=TRANSFORM, classes=list("abcde"))
    rewrite(path, lambda entry: entry["config"]["options"].update(options))
    watched.clear()
    with pytest.raises(zoo.WeightsError, match=message) as caught:
        zoo.create_model("rescalenet20_cifar", path)
    assert str(caught.value).startswith(str(path))
    assert watched == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 10**6, "heads": 1}, "has shape"),
        ({"encoder_layers": 99_999_999}, "asks for more layers than"),
        ({"encoder_layers": 30}, "keys are missing"),
        ({"source_vocabulary": 10**9, "target_vocabulary": 10**9}, "has shape"),
        ({"max_length": 10**8}, r"asks for 1600000000 values beside the file's \(encoder_embedding.sinusoids\)"),
    ],
)
def test_options_of_a_transformer_take_no_memory(options, message, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "MOST_CALLS", 5000)  # reached sooner
    model = zoo.create_model("rescale_transformer_tiny", **SIZES, **TEXTS)
    path = tmp_path / "w.safetensors"
    zoo.save_weights(model, path, transform=TEXT_TRANSFORM, classes=())
    rewrite(path, lambda entry: entry["config"]["options"].update(options))
    tracemalloc.start()
    with pytest.raises(zoo.WeightsError, match=message):
        zoo.create_model("rescale_transformer_tiny", path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_classes_of_a_stranger(tmp_path):
    path = tmp_path / "w.safetensors"
    zoo.save_weights(narrow("cifar"), path, transform=TRANSFORM, classes=list("abcde"))

    def more(entry):
        entry["classes"] = [str(number) for number in range(100_000)]
        entry["config"]["num_classes"] = 100_000

    rewrite(path, more)
    with pytest.raises(zoo.WeightsError, match=r"fc\.weight has shape \(5, 32\), the model \(100000, 32\)"):
        zoo.create_model("rescalenet20_cifar", path, num_classes=2)


def test_numbers_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    zoo.save_weights(narrow("cifar"), path, transform=TRANSFORM, classes=list("abcde"))
    with safe_open(path, framework="pt") as file:
        text = file.metadata()["rescalenet"]
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    state["fc.weight"] = state["fc.weight"].long()
    save_file(state, path, metadata={"rescalenet": text})
    with pytest.raises(zoo.WeightsError, match=r"fc\.weight has type torch.int64, the model torch.float32"):
        zoo.create_model("rescalenet20_cifar", path)


def test_complex_counts_are_refused(tmp_path):
    model, path = narrow("cifar", scheme="bn"), tmp_path / "w.safetensors"
    zoo.save_weights(model, path, transform=TRANSFORM, classes=list("abcde"))
    with safe_open(path, framework="pt") as file:
        text = file.metadata()["rescalenet"]
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    state["stem.norm1.num_batches_tracked"] = torch.tensor(1j)
    save_file(state, path, metadata={"rescalenet": text})
    with pytest.raises(zoo.WeightsError, match="num_batches_tracked has type torch.complex64, the model torch.int64"):
        zoo.create_model("rescalenet20_cifar", path)


def test_errors_of_any_class_name_the_file():
    def broken():
        raise RuntimeError("two\nlines")

    with pytest.raises(zoo.WeightsError, match=r"^w: its config builds no net \(two lines\)$"):
        planned(broken, "w")

    def unknown():
        return zoo.build_model(dataclasses.replace(narrow("cifar").config, scheme="nf2"))

    with pytest.raises(zoo.WeightsError, match="^w: unknown scheme 'nf2'"):
        planned(unknown, "w")


def test_the_bound_of_constants(monkeypatch):
    monkeypatch.setattr(building, "MOST_CONSTANTS", 319)
    with pytest.raises(zoo.WeightsError, match="asks for 320 values beside the file's"):
        planned(lambda: zoo.create_model("rescale_transformer_tiny", **SIZES, **TEXTS), "w")

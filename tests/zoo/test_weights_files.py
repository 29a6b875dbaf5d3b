"""Weights files: what loads, and one clear error for what does not."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import zoo
from tests.helpers.nets import narrow
from tests.helpers.weights import TRANSFORM
from zoo import weights as weight_files


@pytest.fixture
def saved(tmp_path):
    """A narrow CIFAR net with 5 classes and its weights file."""
    model = narrow("cifar").eval()
    path = tmp_path / "net.safetensors"
    zoo.save_weights(model, path, transform=TRANSFORM, classes=list("abcde"))
    return model, path


def test_weights_bring_scheme_options_and_classes(saved):
    model, path = saved
    again = zoo.create_model("rescalenet20_cifar", str(path)).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), model(x))
    assert again.config == model.config
    assert all(m.calibrated for m in again.modules() if isinstance(m, zoo.calibration.HasDataBias))


def test_contradictions_to_the_weights_are_errors(saved):
    _, path = saved
    with pytest.raises(ValueError, match="are of scheme 'rescale', not 'bn'"):
        zoo.create_model("rescalenet20_cifar", str(path), scheme="bn")
    with pytest.raises(ValueError, match=r"have option width=0.5, not 1.0"):
        zoo.create_model("rescalenet20_cifar", str(path), width=1.0)
    with pytest.raises(ValueError, match=r"have option multiplier=True, not False"):
        zoo.create_model("rescalenet20_cifar", str(path), multiplier=False)
    with pytest.raises(ValueError, match="are of rescalenet20_cifar, not of rescalenet32_cifar"):
        zoo.create_model("rescalenet32_cifar", str(path))
    assert zoo.create_model("rescalenet20_cifar", str(path), drop_rate=0.1, width=0.5)  # dropout is free to change


def test_another_number_of_classes_gives_a_new_head(saved, caplog):
    model, path = saved
    with caplog.at_level("INFO", "rescalenet"):
        again = zoo.create_model("rescalenet20_cifar", str(path), num_classes=3)
    assert "new last layer: 3 classes instead of the weights' 5" in caplog.text
    assert again.fc.weight.shape == (3, 32)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.eval().forward_features(x), model.forward_features(x))
    assert zoo.create_model("rescalenet20_cifar", str(path), num_classes=0).eval()(x).shape == (2, 32)


def test_a_fresh_head_bias_is_calibrated_and_supplied_ones_are_kept(tmp_path):
    path = tmp_path / "vgg.safetensors"
    zoo.save_weights(narrow("vgg"), path, transform=TRANSFORM, classes=list("abcde"))
    model = zoo.create_model("rescalevgg16", str(path), num_classes=2)
    report = zoo.calibrate(model, [torch.randn(2, 3, 32, 32)])
    assert report.calibrated == ["fc"]
    assert len(report.supplied) == 14


def test_other_input_channels_adapt_the_stem(saved, caplog):
    model, path = saved
    with caplog.at_level("INFO", "rescalenet"):
        grey = zoo.create_model("rescalenet20_cifar", str(path), in_chans=1).eval()
        six = zoo.create_model("rescalenet20_cifar", str(path), in_chans=6).eval()
    assert "stem adapted: 1 input channels instead of the weights' 3" in caplog.text
    x = torch.randn(2, 1, 32, 32)
    same = model(x.expand(-1, 3, -1, -1))
    torch.testing.assert_close(grey(x), same, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(six(x.expand(-1, 6, -1, -1)), same, rtol=1e-4, atol=1e-5)


def test_frozen_bn_takes_bn_weights_and_equals_them_in_eval(tmp_path):
    model = narrow("basic", scheme="bn")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
    path = tmp_path / "bn.safetensors"
    zoo.save_weights(model, path, transform=TRANSFORM, classes=list("abcde"))
    frozen = zoo.create_model("rescalenet18", str(path), scheme="frozen_bn").train()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(frozen(x), model.eval()(x), rtol=1e-4, atol=1e-5)
    assert not [n for n, _ in frozen.named_parameters() if "norm" in n]
    zoo.save_weights(frozen, tmp_path / "f.safetensors", transform=TRANSFORM, classes=list("abcde"))
    assert torch.equal(zoo.create_model("rescalenet18", str(tmp_path / "f.safetensors")).eval()(x), frozen.eval()(x))


def test_half_precision_weights_load_in_float32(tmp_path):
    model = narrow("cifar")
    path = tmp_path / "half.safetensors"
    zoo.save_weights(model, path, transform=TRANSFORM, classes=list("abcde"), dtype=torch.float16)
    full = tmp_path / "full.safetensors"
    zoo.save_weights(model, full, transform=TRANSFORM, classes=list("abcde"))
    assert path.stat().st_size < 0.7 * full.stat().st_size
    again = zoo.create_model("rescalenet20_cifar", str(path))
    for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a.half().float(), b, rtol=0, atol=0)


def rewrite(path, change):
    """Save the file again with its state and header entry changed."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["rescalenet"])
        state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    change(state, header)
    save_file(state, path, metadata={"rescalenet": json.dumps(header)})


def test_damaged_and_strange_files(saved, tmp_path):
    _, path = saved
    load = lambda p=path: zoo.create_model("rescalenet20_cifar", str(p))  # noqa: E731
    with pytest.raises(zoo.WeightsError, match=r"none.safetensors: no such file"):
        load(tmp_path / "none.safetensors")
    content = path.read_bytes()
    for cut in (0, 7, 500, len(content) - 1):
        (tmp_path / "cut.safetensors").write_bytes(content[:cut])
        with pytest.raises(zoo.WeightsError, match="not a complete safetensors file"):
            load(tmp_path / "cut.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(zoo.WeightsError, match=r"^plain.safetensors: not a known BatchNorm checkpoint: its first key"):
        load(tmp_path / "plain.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "odd.safetensors", metadata={"rescalenet": '{"config": {"nme": 1}}'})
    with pytest.raises(zoo.WeightsError, match="header entry is not valid"):
        load(tmp_path / "odd.safetensors")


def test_keys_and_shapes_that_do_not_fit(saved):
    _, path = saved

    def rename(state, header):
        state["layer1.0.conv1.weigth"] = state.pop("layer1.0.conv1.weight")

    rewrite(path, rename)
    hint = r"1 unexpected keys, the first 'layer1.0.conv1.weigth' \(did you mean layer1.0.conv1.weight\?\)"
    with pytest.raises(zoo.WeightsError, match=hint):
        zoo.create_model("rescalenet20_cifar", str(path))

    def drop(state, header):
        del state["layer1.0.conv1.weigth"]

    rewrite(path, drop)
    with pytest.raises(zoo.WeightsError, match=r"1 keys are missing, the first 'layer1\.0\.conv1\.weight'"):
        zoo.create_model("rescalenet20_cifar", str(path))

    def reshape(state, header):
        state["layer1.0.conv1.weight"] = torch.zeros(8, 8, 1, 1)

    rewrite(path, reshape)
    shapes = re.escape("layer1.0.conv1.weight has shape (8, 8, 1, 1), the model (8, 8, 3, 3)")
    with pytest.raises(zoo.WeightsError, match=shapes):
        zoo.create_model("rescalenet20_cifar", str(path))

    def other_option(state, header):
        header["config"]["options"]["widht"] = 1

    rewrite(path, other_option)
    with pytest.raises(ValueError, match="no option 'widht'"):
        zoo.create_model("rescalenet20_cifar", str(path))

    def future_scheme(state, header):
        header["config"] |= {"options": {}, "scheme": "nf2"}

    rewrite(path, future_scheme)
    with pytest.raises(ValueError, match="unknown scheme 'nf2'"):
        zoo.create_model("rescalenet20_cifar", str(path))

    def wrong_type(state, header):
        header["config"]["num_classes"] = "five"

    rewrite(path, wrong_type)
    with pytest.raises(zoo.WeightsError, match="header entry is not valid .*num_classes"):
        zoo.create_model("rescalenet20_cifar", str(path))


def test_the_index_guards_names_and_hashes(saved, monkeypatch):
    model, path = saved
    index = {"rescalenet20_cifar.tiny": {"file": path.name, "sha256": "0" * 64}}
    monkeypatch.setattr(weight_files, "_index", lambda: index)
    monkeypatch.setattr(weight_files, "weights_dir", lambda: path.parent)
    assert zoo.model_info("rescalenet20_cifar").weights == ("tiny",)
    assert zoo.list_models(pretrained=True) == ["rescalenet20_cifar"]
    with pytest.raises(zoo.WeightsError, match=r"sha256 is .* the index lists 000000000000"):
        zoo.create_model("rescalenet20_cifar", "tiny")
    import hashlib

    index["rescalenet20_cifar.tiny"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    x = torch.randn(1, 3, 32, 32)
    for name in ("tiny", "rescalenet20_cifar.tiny"):
        assert torch.equal(zoo.create_model("rescalenet20_cifar", name).eval()(x), model(x))
    with pytest.raises(zoo.WeightsError, match=r"unknown weights 'tny' \(did you mean rescalenet20_cifar.tiny\?\)"):
        zoo.create_model("rescalenet20_cifar", "tny")
    with pytest.raises(zoo.WeightsError, match="are of rescalenet20_cifar, not of rescalenet18"):
        zoo.create_model("rescalenet18", "rescalenet20_cifar.tiny")


def test_save_weights_refuses_wrong_names_and_leaves_nothing_behind(tmp_path, monkeypatch):
    model = narrow("cifar")
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        zoo.save_weights(model, tmp_path / "a.pt", transform=TRANSFORM, classes=list("abcde"))
    with pytest.raises(ValueError, match="2 class names for a model with 5"):
        zoo.save_weights(model, tmp_path / "a.safetensors", transform=TRANSFORM, classes=["a", "b"])

    def full_disk(path, content):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        zoo.save_weights(model, tmp_path / "a.safetensors", transform=TRANSFORM, classes=list("abcde"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e5m2])
def test_values_that_are_not_finite_are_refused(saved, tmp_path, value, dtype):
    """The net would have no outputs: its logits are NaN, from which no class follows."""
    _, path = saved
    content = path.read_bytes()
    copied = tmp_path / "copied.safetensors"
    copied.write_bytes(content)

    def change(state, header):
        bias = state["fc.bias"].clone()
        bias[-1] = value
        state["fc.bias"] = bias.to(dtype)

    rewrite(copied, change)
    with pytest.raises(zoo.WeightsError, match=r"copied.safetensors: fc.bias has NaN or infinite values"):
        zoo.create_model("rescalenet20_cifar", copied)

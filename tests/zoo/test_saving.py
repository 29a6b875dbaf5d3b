"""What save_weights writes, create_model loads with the same outputs; what it could not load is refused."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import zoo
from tests.helpers.nets import narrow
from tests.helpers.weights import TRANSFORM
from zoo.headers import HEADER_KEY, Header, write_header


def save(model, path, classes="abcde", **more):
    return zoo.save_weights(model, path, transform=TRANSFORM, classes=list(classes), **more)


@pytest.fixture
def path(tmp_path):
    """A path for weights, in a folder that is empty afterwards unless a test has written there."""
    return tmp_path / "w.safetensors"


def refused(model, path, message, **more):
    with pytest.raises(zoo.ZooError, match=message) as caught:
        save(model, path, **more)
    assert len(str(caught.value).splitlines()) == 1
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("count", [3, 0])
def test_a_classifier_that_was_reset_is_saved_as_it_is(path, count):
    model = narrow("cifar").eval()
    model.reset_classifier(count)
    assert model.config.num_classes == count
    save(model, path, "abcde"[:count])
    x = torch.randn(2, 3, 32, 32)
    again = zoo.create_model("rescalenet20_cifar", path).eval()
    assert torch.equal(again(x), model(x))
    assert again.config == model.config


def test_wrappers_are_left_out(path):
    model = narrow("cifar").eval()
    x = torch.randn(2, 3, 32, 32)
    for wrapped in (torch.compile(model), nn.DataParallel(model), nn.DataParallel(torch.compile(model))):
        save(wrapped, path)
        assert torch.equal(zoo.create_model("rescalenet20_cifar", path).eval()(x), model(x))


def test_models_whose_parts_were_replaced_are_refused(path):
    model = narrow("cifar")
    model.fc = nn.Sequential(nn.Dropout(0.1), nn.Linear(32, 5))
    refused(model, path, r"2 unexpected keys, the first 'fc\.1\.bias'.*parts of the model were replaced")
    model = narrow("cifar")
    model.stem.conv1 = nn.Conv2d(1, 8, 3, padding=1)
    refused(model, path, r"stem\.conv1\.weight has shape \(8, 1, 3, 3\), the model \(8, 3, 3, 3\)")
    model = narrow("cifar")
    model.layer1 = torch.compile(model.layer1)
    refused(model, path, r"unexpected keys, the first 'layer1\._orig_mod")
    model = narrow("cifar")
    nn.utils.parametrizations.weight_norm(model.fc)
    refused(model, path, r"unexpected keys, the first 'fc\.parametrizations")


def test_models_that_nothing_could_build_again_are_refused(path):
    features = zoo.create_model("rescalenet20_cifar", width=0.25, features_only=True, out_indices=(1,))
    refused(features, path, "a FeatureExtractor has no config and num_classes.*without features_only")
    refused(features.body, path, "has num_classes=0, its config 10: parts of it were removed", classes="")
    refused(nn.Sequential(narrow("cifar")), path, "a Sequential has no config and num_classes")
    refused(zoo.fold(narrow("cifar").eval()), path, "a folded net has no named form")
    with torch.device("meta"):
        skeleton = narrow("cifar")
    refused(skeleton, path, "is on the meta device and has no values")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (range(5), "class name 0 has type int: must be text"),
        ("abcda", "class name 'a' occurs twice"),
        ("abc", "3 class names for a model with 5"),
        (["a", "b", "c", "d", "e\n"], "classes: 'e.n' has a control character"),
    ],
)
def test_class_names(path, classes, message):
    refused(narrow("cifar"), path, message, classes=classes)


def test_one_text_is_no_list_of_classes(path):
    with pytest.raises(zoo.ZooError, match="classes='abcde': must be a list of names"):
        zoo.save_weights(narrow("cifar"), path, transform=TRANSFORM, classes="abcde")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(path, value):
    model = narrow("cifar")
    model.fc.weight.data[0, 0] = value
    refused(model, path, r"fc\.weight has NaN or infinite values")


def test_overflow_of_half_precision_is_refused(path):
    model = narrow("cifar")
    model.fc.weight.data[0, 0] = -1e6
    refused(
        model,
        path,
        r"fc\.weight has values up to 1e\+06, the largest of torch.float16 is 6.55e\+04",
        dtype=torch.float16,
    )
    for dtype in (torch.int8, torch.complex64, torch.float8_e4m3fn, torch.float8_e8m0fnu):
        refused(model, path, f"dtype={dtype}: must be one of torch.float16, torch.bfloat16", dtype=dtype)
    save(model, path, dtype=torch.bfloat16)
    assert zoo.create_model("rescalenet20_cifar", path).fc.weight[0, 0] == -999424  # the nearest bfloat16


def test_the_header_must_agree_with_the_net(path):
    refused(narrow("cifar", in_chans=1), path, "transform.mean has 3 values for config.in_chans=1")
    refused(narrow("cifar"), path, "meta.top1=nan: numbers must be finite", meta={"top1": math.nan})
    model = narrow("cifar")
    model.config = zoo.ModelConfig("rescalenet20_cifar", "rescale", 5, 3, {"width": 0.25})
    refused(model, path, r"has shape .*, the model")


def test_names_of_weights_may_be_path_objects(path):
    model = narrow("cifar").eval()
    save(model, path)
    assert zoo.is_weights_name(path)
    assert zoo.get_weights(path).name == str(path)
    assert zoo.create_model("rescalenet20_cifar", path).config == model.config
    for name in (True, 3, b"w.safetensors"):
        with pytest.raises(zoo.WeightsError, match="must be a name such as .* or the path of a file"):
            zoo.create_model("rescalenet20_cifar", name)


@pytest.mark.parametrize(
    ("name", "transform", "kind"),
    [
        ("rescalenet20_cifar", zoo.VideoTransform(3, 1.0, None, 32, 32, (0.5,) * 3, (0.3,) * 3), "video"),
        ("rescalenet20_cifar", zoo.DetectionTransform(32, 32, (0.5,) * 3, (0.3,) * 3), "detection"),
        ("rescale_r3d_10", TRANSFORM, "image"),
    ],
)
def test_a_transform_to_another_kind_of_input_is_refused(name, transform, kind, path):
    model = zoo.create_model(name, num_classes=5, width=0.0625)
    message = f"a transform of kind '{kind}', and a net that takes {zoo.model_info(name).input_kind}"
    with pytest.raises(zoo.ZooError, match=message):
        zoo.save_weights(model, path, transform=transform, classes=list("abcde"))
    assert not path.exists()
    # a file of other origin: no model is made, which would end in a traceback at its first input
    text = write_header(Header(model.config, transform, tuple("abcde"), {}), path)
    save_file(model.state_dict(), path, metadata={HEADER_KEY: text})
    with pytest.raises(zoo.WeightsError, match=message):
        zoo.create_model(name, path)

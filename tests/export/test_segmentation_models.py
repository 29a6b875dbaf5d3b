"""The zoo's nets as encoders of segmentation_models_pytorch."""

import numpy as np
import pytest
import torch

import zoo
from zoo.errors import ZooError
from zoo.sources import torchvision as torchvision_source

smp = pytest.importorskip("segmentation_models_pytorch")
import zoo.export.segmentation_models as adapter  # noqa: E402

ARCHITECTURES = sorted(smp.MODEL_ARCHITECTURES_MAPPING)
DILATED = {"deeplabv3", "deeplabv3plus"}
NARROW = {"width": 0.125}
# the kinds of nets, with the number of maps of strides 2, 4, ...
KINDS = {
    "rescalenet18": (NARROW, 5),
    "rescalenet50": (NARROW, 5),
    "rescalenext50_32x4d": ({"width": 0.25}, 5),
    "rescalevgg11": ({"width": 0.0625}, 5),
    "rescalenet20_cifar": ({}, 2),
}


def stored(path, mean=(0.5, 0.4, 0.3), **options):
    torch.manual_seed(0)
    net = zoo.create_model("rescalenet18", num_classes=3, **{**NARROW, **options})
    zoo.calibrate(net, [torch.randn(2, 3, 64, 64)])
    transform = zoo.InputTransform(64, 64, mean, (0.2, 0.3, 0.4), channel_order=options.pop("order", "RGB"))
    zoo.save_weights(net, path, transform=transform, classes=["a", "b", "c"])
    return str(path)


def test_names_and_weights_are_listed():
    names = set(smp.encoders.get_encoder_names())
    assert set(zoo.list_models(input_kind="images")) < names
    settings = smp.encoders.encoders["rescalenet18"]["pretrained_settings"]
    assert {"flowers", "torchvision.IMAGENET1K_V1"} < settings.keys()
    with pytest.raises(ZooError, match=r"no encoder 'rescalenet51' \(did you mean rescalenet50"):
        smp.Unet("rescalenet51", encoder_weights=None)
    with pytest.raises(ZooError, match="rescale_r3d_18 takes clips; smp's encoders take images"):
        adapter.register("rescale_r3d_18")


@pytest.mark.parametrize("name", KINDS)
def test_maps_have_the_strides_that_decoders_take(name):
    options, deepest = KINDS[name]
    x = torch.randn(2, 3, 64, 96)
    for depth in range(1, deepest + 1):
        encoder = smp.encoders.get_encoder(name, depth=depth, **options).eval()
        maps = encoder(x)
        assert maps[0] is x
        assert [tuple(m.shape[2:]) for m in maps] == [(64 >> i, 96 >> i) for i in range(depth + 1)]
        assert [m.shape[1] for m in maps] == encoder.out_channels
        assert encoder.output_stride == min(32, 2**depth)
    assert all(p.requires_grad for p in encoder.parameters())  # no stage is left that no map uses
    with pytest.raises(ZooError, match=f"{name}: depth={deepest + 1}: must be 1 to {deepest}; its maps"):
        smp.encoders.get_encoder(name, depth=deepest + 1, **options)


def test_maps_are_those_of_the_weights(tmp_path):
    weights = stored(tmp_path / "w.safetensors", c=2.0)
    encoder = smp.Unet("rescalenet18", encoder_weights=weights).encoder.eval()
    assert encoder.net.body.config.options["c"] == 2.0
    net = zoo.create_model("rescalenet18", weights).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(encoder(x)[1:], net.forward_levels(x), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_decoders(arch):
    """Every decoder trains and predicts; two need dilated stages, and smp's DPT takes transformers of timm."""
    torch.manual_seed(0)

    def make(**options):
        return smp.create_model(
            arch, "rescalenet18", encoder_weights=None, classes=4, in_channels=2, **NARROW, **options
        )

    if arch in DILATED:
        with pytest.raises(ZooError, match="output_stride=.*must be 32, as stages of the zoo are not dilated"):
            make()
        return
    if arch == "dpt":
        with pytest.raises(ValueError, match="Only Timm encoders are supported for DPT"):
            make()
        return
    if arch == "pan":
        with pytest.raises(ZooError, match="PAN takes encoder_output_stride=32"):
            make()
    model = make(**({"encoder_output_stride": 32} if arch == "pan" else {}))
    height, width = (256, 288) if arch == "pan" else (96, 128)  # PAN pools its last map three times
    x = torch.randn(2, 2, height, width)
    x[..., width // 2 :] += 0.5
    target = torch.zeros(2, height, width, dtype=torch.long)
    target[..., width // 2 :] = 1  # the brighter side
    zoo.calibrate(model.encoder, [x])
    for level in model.encoder(x)[1:]:
        assert float(level.detach().square().mean()) == pytest.approx(1, rel=1e-3)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(model.train()(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.encoder.parameters())
    y = model.predict(x)
    assert y.shape == (2, 4, height, width)
    again = make(**({"encoder_output_stride": 32} if arch == "pan" else {}))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.predict(x), y)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_input_channels_of_weights(tmp_path, channels):
    weights = stored(tmp_path / "w.safetensors")
    model = smp.FPN("rescalenet18", encoder_weights=weights, in_channels=channels).eval()
    assert model.encoder.out_channels[0] == channels
    assert model(torch.randn(1, channels, 64, 64)).shape == (1, 1, 64, 64)
    with pytest.raises(ZooError, match=f"the encoder was made with {channels}; make another"):
        model.encoder.set_in_channels(4)
    with pytest.raises(ZooError, match="stages of the zoo are not dilated"):
        model.encoder.make_dilated(16)


def test_a_saved_model_comes_back(tmp_path):
    weights = stored(tmp_path / "w.safetensors", shortcut="conv")
    model = smp.Unet("rescalenet18", encoder_weights=weights, encoder_depth=3, decoder_channels=(32, 16, 8)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    model.save_pretrained(tmp_path / "saved")
    again = smp.from_pretrained(tmp_path / "saved").eval()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_preprocessing_is_that_of_the_weights(tmp_path, order):
    net = zoo.create_model("rescalenet18", num_classes=3, **NARROW)
    transform = zoo.InputTransform(64, 64, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), channel_order=order)
    zoo.save_weights(net, tmp_path / "w.safetensors", transform=transform, classes=["a", "b", "c"])
    weights = str(tmp_path / "w.safetensors")
    params = smp.encoders.get_preprocessing_params("rescalenet18", weights)
    assert params == {
        "input_space": order,
        "input_range": [0, 1],
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
    }
    image = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    found = smp.encoders.get_preprocessing_fn("rescalenet18", weights)(image)
    pixels = (image if order == "RGB" else image[..., ::-1]) / 255
    np.testing.assert_allclose(found, (pixels - params["mean"]) / params["std"])


@pytest.mark.parametrize("weights", ["imagenet", "torchvision.IMAGENET1K_V2", "rescalenet50.torchvision.IMAGENET1K_V2"])
def test_weights_of_imagenet_have_three_names(weights):
    name = adapter.weights_name("rescalenet50", weights)
    assert name == "torchvision:resnet50:IMAGENET1K_V2"
    transform = torchvision_source.describe(name)["transform"]
    for encoder in (smp.encoders.get_preprocessing_params("rescalenet50", weights),):
        assert (tuple(encoder["mean"]), tuple(encoder["std"])) == (transform.mean, transform.std)
    assert smp.encoders.get_preprocessing_params("rescalenet26", "imagenet")["mean"] == list(transform.mean)  # timm's


def test_weights_that_are_not_there():
    with pytest.raises(ZooError, match="rescalenet20_cifar has no ImageNet weights; give encoder_weights=None, or one"):
        smp.Unet("rescalenet20_cifar")
    with pytest.raises(zoo.WeightsError, match="flowerz"):
        smp.Unet("rescalenet18", encoder_weights="flowerz")
    with pytest.raises(ZooError, match="no option 'widht'"):
        smp.Unet("rescalenet18", encoder_weights=None, widht=2)


def test_other_encoders_are_made_as_before():
    x = torch.randn(1, 3, 64, 64)
    for arch in ("unet", "deeplabv3plus"):
        model = smp.create_model(arch, "resnet18", encoder_weights=None).eval()
        assert type(model.encoder).__name__ == "ResNetEncoder"
        assert model(x).shape == (1, 1, 64, 64)
    with pytest.raises(KeyError, match="Wrong encoder name `resnet19`"):
        smp.Unet("resnet19", encoder_weights=None)


def test_importing_it_again_replaces_nothing_twice():
    before = smp.encoders.get_encoder
    adapter.register("rescalenet18")
    assert smp.encoders.get_encoder is before
    assert before.__wrapped__.__module__ == "segmentation_models_pytorch.encoders"
    assert not hasattr(before.__wrapped__, "of_zoo")

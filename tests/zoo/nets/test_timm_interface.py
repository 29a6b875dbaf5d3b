"""The methods that timm's users expect, on narrow copies of every net for images."""

import copy

import pytest
import torch

import zoo
from tests.helpers.nets import CLIPS, NARROW, narrow, samples
from zoo.errors import ZooError
from zoo.nets.base import feature_indices, pool_globally

DEEP = ("101", "110", "152", "200", "56")  # the same blocks as in other nets, more of them
IMAGES = [
    pytest.param(name, marks=pytest.mark.slow) if any(depth in name for depth in DEEP) else name
    for name in zoo.list_models(input_kind="images")
]


def tiny(name, **options):
    """A copy of a net with a sixteenth of the channels."""
    return zoo.create_model(name, **{"num_classes": 5, "width": 0.0625, **options})


@pytest.mark.parametrize("name", IMAGES)
def test_intermediates_are_the_feature_levels(name):
    model, x = tiny(name).eval(), torch.randn(2, 3, 40, 56)
    with torch.no_grad():
        maps = model.forward_levels(x)
        final, found = model.forward_intermediates(x)
        assert torch.equal(final, model.forward_features(x))
        assert [info["num_chs"] for info in model.feature_info] == [m.shape[1] for m in found]
        for a, b in zip(maps, found, strict=True):
            assert torch.equal(a, b)
        last = len(maps) - 1
        (early,) = model.forward_intermediates(x, [1], intermediates_only=True)
        stopped, _ = model.forward_intermediates(x, (0, -last), stop_early=True)
        assert torch.equal(early, maps[1])
        assert torch.equal(stopped, maps[1])


@pytest.mark.parametrize("name", IMAGES)
def test_pruned_nets_end_at_their_last_level_and_take_a_new_head(name):
    model, x = tiny(name).eval(), torch.randn(2, 3, 40, 56)
    last = len(model.levels) - 1
    whole = copy.deepcopy(model)
    assert whole.prune_intermediate_layers([last], prune_head=False) == [last]
    with torch.no_grad():
        assert torch.equal(whole(x), model(x))
        maps = model.forward_levels(x)
        for level in (0, last - 1, last):
            pruned = copy.deepcopy(model)
            assert pruned.prune_intermediate_layers([level - last - 1]) == [level]
            assert torch.equal(pruned(x), maps[level])
            pruned.reset_classifier(7, "avg")
            features = pruned.forward_head(pruned.forward_features(x), pre_logits=True)
            torch.testing.assert_close(features, maps[level].mean((2, 3)))  # the new head bias is zero
            assert pruned(x).shape == (2, 7)
            assert pruned.head_hidden_size == pruned.num_features == maps[level].shape[1]


@pytest.mark.parametrize("name", IMAGES)
def test_every_parameter_has_a_group_of_layers_in_order(name):
    from timm.models import group_parameters

    model = tiny(name)
    for coarse in (True, False):
        groups = group_parameters(model, model.group_matcher(coarse), reverse=True)
        names = [n for n, _ in model.named_parameters()]
        assert sorted(groups) == sorted(names)
        assert groups[names[0]] == 0
        assert groups["fc.weight"] == max(groups.values())
        order = [groups[n] for n in names if not n.startswith(("fc", "head_bias"))]
        assert order == sorted(order)
    if model.residual:  # stem, blocks, head
        assert len(set(groups.values())) == 2 + sum(len(stage) for stage in model.stages())
    else:  # stem and convolutions, two hidden layers, last layer
        assert len(set(groups.values())) == sum(stage.depth for stage in model.stages()) + 3


@pytest.mark.parametrize("name", IMAGES)
def test_description_in_timms_words(name):
    info = zoo.model_info(name)
    model = tiny(name, in_chans=4)
    cfg = model.default_cfg
    assert cfg["architecture"] == name
    assert cfg["input_size"] == (4, info.input_size, info.input_size)
    assert model.in_chans == 4
    keys = model.state_dict()
    assert keys[f"{cfg['first_conv']}.weight"].shape[1] == 4
    assert f"{cfg['classifier']}.weight" in keys
    size = 3 * info.min_size // 2 + 1
    x = torch.randn(1, 4, size, size)
    positions = size / model.levels[-1].reduction
    assert model.forward_features(x).shape[2] == (int(positions) if info.family == "VGG" else -int(-positions // 1))


def test_description_of_weights():
    """crop_pct gives timm exactly the short side of the transform."""
    from timm.data import resolve_model_data_config

    model = zoo.create_model("rescalenet20_cifar", "cifar10", num_classes=0, in_chans=1)
    transform = zoo.get_weights("rescalenet20_cifar.cifar10").transform
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)  # of the weights
    assert model.pretrained_cfg["num_classes"] == len(model.pretrained_cfg["label_names"]) == 10
    found = resolve_model_data_config(model)
    assert (found["mean"], found["std"]) == (transform.mean, transform.std)


@pytest.mark.parametrize(("size", "resize"), [(224, 232), (224, 236), (176, 232), (288, 321), (32, 32)])
def test_crop_pct_gives_the_short_side(size, resize):
    from timm.data import create_transform

    from zoo.pretrained_cfg import describe

    model = tiny("rescalenet18")
    transform = zoo.InputTransform.imagenet(size, resize)
    cfg = describe(model, input_size=224, in_chans=3, num_classes=5, transform=transform)
    steps = create_transform(cfg["input_size"], crop_pct=cfg["crop_pct"]).transforms
    assert steps[0].size == resize


@pytest.mark.parametrize("kind", NARROW)
def test_pooling(kind):
    model, x = narrow(kind).eval(), samples(kind, 2, 40)
    features = model.forward_features(x)
    bias = model.head_bias
    with torch.no_grad():
        bias.bias.normal_()
    places = tuple(range(2, x.ndim))
    if kind == "vgg":
        with pytest.raises(ZooError, match="global_pool='max': must be one of 'avg', ''"):
            model.reset_classifier(5, "max")
    else:
        # the published order: bias, then pool
        expected = {
            "avg": bias(features).mean(places),
            "max": bias(features).amax(places),
            "avgmax": (bias(features).mean(places) + bias(features).amax(places)) / 2,
        }
        for pool, value in expected.items():
            model.reset_classifier(5, pool)
            torch.testing.assert_close(model.forward_head(features, pre_logits=True), value)
            model.reset_classifier(3)
            assert model.global_pool == pool
            assert model(x).shape == (2, 3)
            assert model.config.options.get("global_pool", "avg") == pool
            assert model.config.num_classes == 3
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), bias(features))
    again = zoo.build_model(model.config).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))
    model.reset_classifier(2)
    assert (model.global_pool, model(x).shape) == ("avg", (2, 2))
    with pytest.raises(ZooError, match="requires 0 classes"):
        model.reset_classifier(2, "")
    with pytest.raises(ZooError, match="num_classes=-1: must be a whole number from 0 to 1000000"):
        model.reset_classifier(-1)
    assert model.get_classifier() is model.fc
    assert model.get_classifier(name_only=True) == "fc"


def test_pools_of_maps():
    x = torch.tensor([[[[0.0, 1.0], [2.0, 9.0]]]])
    found = {kind: pool_globally(x, kind).flatten().tolist() for kind in ("avg", "max", "avgmax")}
    assert found == {"avg": [3.0], "max": [9.0], "avgmax": [6.0]}
    assert pool_globally(x, "") is x


@pytest.mark.parametrize("indices", [(5,), (-6,), (2, 1), (1, 1), (1, -4), (), 0, 6])
def test_wrong_indices(indices):
    with pytest.raises(ZooError, match="must be increasing numbers from 0 to 4"):
        feature_indices(indices, 5)


def test_negative_indices_of_an_extractor():
    model = zoo.create_model("rescalenet18", features_only=True, out_indices=(-4, -1), width=0.125)
    assert (model.out_indices, model.feature_info.reduction()) == ((1, 4), [4, 32])
    assert zoo.create_model("rescalenet18", features_only=True, out_indices=2, width=0.125).out_indices == (3, 4)
    with pytest.raises(ZooError, match="output_fmt='NHWC': must be NCHW"):
        model.body.forward_intermediates(torch.zeros(1, 3, 32, 32), output_fmt="NHWC")


def gradients(model, x):
    model.zero_grad()
    torch.manual_seed(1)  # of dropout
    y = model(x)
    y.square().sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    return y.detach(), grads, {k: v.clone() for k, v in model.named_buffers()}


@pytest.mark.parametrize("options", [{}, {"post_bias": True, "weight_scale": True}, {"scheme": "bn"}])
@pytest.mark.parametrize("kind", NARROW)
def test_checkpointing_changes_no_gradient_and_no_statistics(kind, options):
    """Outputs, gradients and running statistics have equal bits: recomputed blocks draw the same random numbers."""
    random = {} if kind == "vgg" else {"branch_drop_rate": 0.2, "drop_path_rate": 0.4, "branch_noise": 0.1}
    model = narrow(kind, drop_rate=0.2, **random, **options)
    model.train()
    start = copy.deepcopy(model.state_dict())
    x = samples(kind, 2, 40)
    plain = gradients(model, x)
    model.load_state_dict(start)
    model.set_grad_checkpointing()
    again = gradients(model, x)
    assert torch.equal(plain[0], again[0])
    for a, b in zip(plain[1], again[1], strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(value, again[2][key]) for key, value in plain[2].items())


def test_checkpointing_stores_less_and_leaves_calibration_alone():
    def stored(model):
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.randn(2, 3, 64, 64))
        return total

    model, other = narrow("bottleneck"), narrow("bottleneck")
    other.load_state_dict(model.state_dict())
    for net in (model, other):
        for module in net.modules():
            if hasattr(module, "calibrated"):
                module.calibrated = False
    before = stored(model)
    model.set_grad_checkpointing()
    assert stored(model) < 0.6 * before
    batch = torch.randn(4, 3, 64, 64)
    assert zoo.calibrate(model, [batch]) == zoo.calibrate(other, [batch])
    for key, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    model.set_grad_checkpointing(False)
    assert stored(model) == before


def test_an_extractor_checkpoints_its_body():
    model = zoo.create_model("rescalenet18", features_only=True, out_indices=(1, 3), width=0.125)
    model.set_grad_checkpointing()
    assert model.body.grad_checkpointing
    sum(m.mean() for m in model(torch.randn(1, 3, 64, 64))).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("kind", ["basic", "vgg", "r3d"])
@pytest.mark.parametrize("chans", [1, 2, 3, 4, 7])
def test_input_channels_are_adapted_as_timm_does(kind, chans, tmp_path):
    """To equal bits where timm has the case: 2D convolutions."""
    from timm.models import adapt_input_conv

    from zoo.states import adapt_input_channels

    model = narrow(kind)
    weight = next(p for p in model.parameters() if p.ndim >= 4).detach()
    adapted = adapt_input_channels(weight, chans)
    if kind in CLIPS:
        flat = weight.flatten(2)[..., None]  # (O, I, positions, 1)
        assert torch.equal(adapted.flatten(2)[..., None], adapt_input_conv(chans, flat))
    else:
        assert torch.equal(adapted, adapt_input_conv(chans, weight))
    if chans == 1:
        x = torch.randn(2, 1, *weight.shape[2:])
        conv = torch.nn.functional.conv2d if weight.ndim == 4 else torch.nn.functional.conv3d
        torch.testing.assert_close(conv(x, adapted), conv(x.expand(-1, 3, *x.shape[2:]), weight), rtol=1e-4, atol=1e-5)

"""A multiplier for each output channel of a branch: the option ``multiplier="channel"`` of the scheme rescale."""

import pytest
import torch
from torch import nn

import zoo
from tests.helpers import transformers
from tests.helpers.nets import narrow, samples
from zoo.convert.fairseq import to_fairseq
from zoo.errors import ZooError
from zoo.joins import RescaledJoin
from zoo.layers import BiasedConv2d, BiasedLinear

NETS = {
    "cifar": lambda **options: narrow("cifar", **options),
    "r2plus1d": lambda **options: narrow("r2plus1d", **options),
    "text": lambda **options: transformers.make(calibrated=False, **options),
}


def inputs_of(kind):
    return transformers.batch() if kind == "text" else (samples(kind, 2, 24),)


def multipliers(model):
    return {name: p for name, p in model.named_parameters() if name.endswith("multiplier")}


@pytest.mark.parametrize("text", [False, True])
def test_the_join_is_the_formula_at_every_scale(text):
    """scale_out x_k = join(scale_in x_{k-1}), with alpha x + scale m_c F(x)_c."""
    shape = (2, 4, 3) if text else (2, 3, 4, 4)
    x, h = torch.randn(2, *shape, dtype=torch.float64)
    m = torch.tensor([1.7, -0.4, 0.0], dtype=torch.float64)
    for scale_in, scale_out in ((1.0, 1.0), (0.7, 1.3)):
        join = RescaledJoin(0.8, 0.25, True, channels=3).double()
        assert torch.equal(join.multiplier, torch.ones(3))
        last = BiasedLinear(3, 3).double() if text else BiasedConv2d(3, 3, 1, post_bias=True).double()
        with torch.no_grad():
            join.multiplier.copy_(m)
            last.pre_bias.normal_()
            last.bias.normal_()
        expected = 0.8 * x + 0.25 * (m if text else m.view(3, 1, 1)) * last(h)
        join.set_scales(scale_in, scale_out)
        last.input_scale = scale_in
        found = join(scale_in * x, join.product(last, scale_in * h)) / scale_out
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", NETS)
def test_it_starts_as_the_scalar_and_has_its_gradients(kind):
    """Same init, outputs and gradients as with one multiplier a branch, whose gradient is the sum of the channels'."""
    scalar, channel = NETS[kind]().double(), NETS[kind](multiplier="channel").double()
    state = scalar.state_dict()
    for name, parameter in multipliers(channel).items():
        assert parameter.ndim == 1
        assert torch.equal(parameter, torch.ones_like(parameter))
        assert state[name].shape == ()
        state[name] = parameter.detach()
    channel.load_state_dict(state)
    inputs = inputs_of(kind)
    inputs = inputs if kind == "text" else (inputs[0].double(),)
    outputs = [model.eval()(*inputs) for model in (scalar, channel)]
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)
    for y in outputs:
        y.square().sum().backward()
    expected = dict(scalar.named_parameters())
    for name, parameter in channel.named_parameters():
        found = parameter.grad.sum() if name.endswith("multiplier") else parameter.grad
        torch.testing.assert_close(found, expected[name].grad, rtol=1e-8, atol=1e-8, msg=name)


def test_the_init_of_the_weights_is_that_of_the_scalar():
    torch.manual_seed(0)
    scalar = narrow("cifar")
    torch.manual_seed(0)
    channel = narrow("cifar", multiplier="channel")
    for name, value in scalar.state_dict().items():
        if not name.endswith("multiplier"):
            assert torch.equal(value, channel.state_dict()[name]), name


@pytest.mark.parametrize("kind", NETS)
def test_multipliers_have_their_group_and_no_weight_decay(kind):
    model = NETS[kind](multiplier="channel")
    groups = [g for g in zoo.param_groups(model, 0.1, multiplier_lr=0.2) if g["group"] == "multipliers"]
    assert [(g["weight_decay"], g["lr_scale"]) for g in groups] == [(0.0, 0.2)]
    assert sorted(groups[0]["names"]) == sorted(multipliers(model))
    assert multipliers(model).keys() <= model.no_weight_decay()


def test_statistics_are_the_mean_and_the_extremes():
    model = narrow("cifar", multiplier="channel")
    with torch.no_grad():
        model.layer1[0].join.multiplier[:3] = torch.tensor([-1.0, 4.0, 2.0])  # of 8, the others are 1
    row = zoo.branch_statistics(model)[0]
    assert (row["m"], row["m_min"], row["m_max"]) == (1.25, -1.0, 4.0)
    assert "m_min" not in zoo.branch_statistics(narrow("cifar"))[0]
    assert "multiplier=channel" in str(model.layer1[0].join)
    assert "multiplier=True" in str(narrow("cifar").layer1[0].join)
    assert "multiplier=False" in str(narrow("cifar", multiplier=False).layer1[0].join)


@pytest.mark.parametrize("kind", NETS)
def test_the_deployment_form_has_it_in_the_weights(kind):
    model = NETS[kind](multiplier="channel").double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.normal_()
    inputs = inputs_of(kind)
    inputs = inputs if kind == "text" else (inputs[0].double(),)
    folded = zoo.fold(model)
    torch.testing.assert_close(folded(*inputs), model.eval()(*inputs), rtol=1e-9, atol=1e-9)
    assert not multipliers(folded)


def test_weights_keep_it_and_other_values_are_refused(tmp_path):
    model = narrow("cifar", multiplier="channel").eval()
    nn.init.normal_(model.layer2[0].join.multiplier)
    path = tmp_path / "net.safetensors"
    transform = zoo.InputTransform(size=32, resize=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    zoo.save_weights(model, path, transform=transform, classes=list("abcde"))
    again = zoo.create_model("rescalenet20_cifar", str(path)).eval()
    x = samples("cifar", 2, 32)
    assert torch.equal(again(x), model(x))
    assert again.config == model.config
    with pytest.raises(ZooError, match=r"have option multiplier='channel', not True"):
        zoo.create_model("rescalenet20_cifar", str(path), multiplier=True)
    with pytest.raises(ZooError, match=r"have option multiplier=True, not 'channel'"):
        zoo.create_model("rescalenet20_cifar", "cifar10", multiplier="channel")


@pytest.mark.parametrize("value", ["Channel", "scalar", 1, None])
def test_the_message_names_what_is_allowed(value):
    with pytest.raises(ZooError, match="Input should be a valid boolean or Input should be 'channel'"):
        zoo.create_model("rescalenet20_cifar", multiplier=value)


@pytest.mark.parametrize("form", ["gained", "folded", "balanced"])
def test_converted_nets_may_have_it(form):
    net = narrow("basic", scheme="bn").double().eval()
    x = samples("basic", 2, 40, dtype=torch.float64)
    new = zoo.convert.from_batchnorm(net, form=form, multiplier="channel").eval()
    assert new.layer1[0].join.multiplier.ndim == 1
    torch.testing.assert_close(new(x), net(x), rtol=1e-9, atol=1e-9)


def test_the_fairseq_plug_in_gets_it():
    model = transformers.make(multiplier="channel")
    args, state = to_fairseq(model)
    assert args["scheme_options"]["multiplier"] == "channel"
    assert state["net.encoder.0.ffn.join.multiplier"].shape == (32,)

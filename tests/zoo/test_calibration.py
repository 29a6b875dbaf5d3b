"""Calibration: biases from data, for any batches, layers and paths."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zoo
from tests.helpers.transformers import batch, make
from zoo import layers
from zoo.calibration import HasDataBias
from zoo.layers import BiasedLinear, BiasedProjections, FeatureBias
from zoo.text import PAD


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = layers.BiasedConv2d(3, 4, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.second = layers.BiasedLinear(4, 2)

    def forward(self, x):
        return self.second(self.drop(self.first(x).relu()).mean((2, 3)))


def test_calibration_is_exact_over_batches_of_any_size():
    model = TwoLayers().double().train()
    batches = [torch.randn(n, 3, s, s, dtype=torch.float64) + 1 for n, s in [(2, 5), (3, 8), (1, 4)]]
    report = zoo.calibrate(model, batches)
    assert report.calibrated == ["first", "second"]
    assert model.training  # its mode is restored
    assert model.drop.training
    pixels = torch.cat([b.permute(0, 2, 3, 1).reshape(-1, 3) for b in batches])
    torch.testing.assert_close(model.first.pre_bias.data, -pixels.mean(0), rtol=0, atol=1e-14)
    with torch.no_grad():  # the second layer saw the first one calibrated, without dropout
        hidden = torch.cat([model.first(b).relu().mean((2, 3)) for b in batches])
    torch.testing.assert_close(model.second.pre_bias.data, -hidden.mean(0), rtol=0, atol=1e-14)


def test_calibration_does_not_depend_on_how_the_data_is_cut():
    torch.manual_seed(1)
    one, many = (zoo.create_model("rescalenet20_cifar", width=0.5).double() for _ in range(2))
    many.load_state_dict(one.state_dict())
    x = torch.randn(12, 3, 16, 16, dtype=torch.float64)
    zoo.calibrate(one, [x], force=True)
    zoo.calibrate(many, x.split(5), force=True)
    for (name, a), b in zip(one.state_dict().items(), many.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12, msg=name)


def test_calibrated_inputs_have_zero_mean_everywhere():
    model = zoo.create_model("rescalenet20_cifar", width=0.5).double()
    x = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    assert not zoo.calibrate(model, x.split(4)).unreached
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, layers.StemConv2d):

            def record_output(m, args, output, name=name):
                seen[name] = output.mean((0, 2, 3))

            module.register_forward_hook(record_output)
        elif isinstance(module, layers.HasDataBias):

            def record(m, args, name=name):
                x = args[0]
                means = x.mean([d for d in range(x.ndim) if d != m.channel_dim % x.ndim])
                seen[name] = means / m.input_scale + m.data_bias

            module.register_forward_pre_hook(record)
    model.eval()(x)
    assert len(seen) == 22
    for name, mean in seen.items():
        assert mean.abs().max() < 1e-12, name


class Shared(nn.Module):
    """A head that is called on maps of several sizes, as an RPN's is, and a layer called again on its own output."""

    def __init__(self):
        super().__init__()
        self.stem = layers.BiasedConv2d(3, 4, 3, padding=1)
        self.head = layers.BiasedConv2d(4, 4, 3, padding=1)
        self.last = layers.BiasedConv2d(4, 2, 1)
        self.loop = layers.BiasedLinear(2, 2)
        self.end = layers.BiasedLinear(2, 2)
        self.heads, self.lasts, self.loops = [], [], []

    def forward(self, x):
        x = self.stem(x)
        sums = 0
        for size in (8, 4, 2):
            y = nn.functional.adaptive_max_pool2d(x, size)
            self.heads.append(y)
            z = self.head(y).relu()
            self.lasts.append(z)
            sums = sums + self.last(z).mean((2, 3))
        for _ in range(3):
            self.loops.append(sums)
            sums = self.loop(sums)
        return self.end(sums)


def test_layers_that_are_called_several_times_are_set_from_all_calls():
    """Over all maps and batches, the mean of what enters plus the bias is zero; what follows saw the result."""
    torch.manual_seed(0)
    net, batches = Shared(), [torch.rand(2, 3, 8, 8), torch.rand(3, 3, 8, 8)]
    report = zoo.calibrate(net, batches)
    assert report.calibrated == ["stem", "head", "last", "loop", "end"]
    for seen in (net.heads, net.lasts, net.loops):
        seen.clear()
    with torch.no_grad():
        for batch in batches:
            net(batch)
    for seen, layer in ((net.heads, net.head), (net.lasts, net.last)):
        pixels = torch.cat([x.movedim(1, -1).flatten(0, -2) for x in seen])
        assert torch.allclose(pixels.mean(0), -layer.pre_bias, atol=1e-6)
    # a loop's later inputs move with its bias: it was set from those that the bias of zero gave
    first = torch.cat(net.loops[::3])
    w, b = net.loop.weight, net.loop.bias
    inputs = [first, first @ w.T + b, (first @ w.T + b) @ w.T + b]
    assert torch.allclose(torch.cat(inputs).mean(0), -net.loop.pre_bias, atol=1e-6)


def test_calibration_keeps_what_a_checkpoint_supplied(tmp_path):
    model = zoo.create_model("rescalenet20_cifar", width=0.5)
    zoo.calibrate(model, [torch.randn(4, 3, 16, 16)])
    again = zoo.create_model("rescalenet20_cifar", width=0.5)
    again.load_state_dict(model.state_dict())
    report = zoo.calibrate(again, [torch.randn(4, 3, 16, 16) + 3])
    assert (len(report.calibrated), len(report.supplied)) == (0, 22)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    assert len(zoo.calibrate(again, [torch.randn(4, 3, 16, 16) + 3], force=True).calibrated) == 22


def test_calibration_reports_layers_that_the_forward_never_reaches():
    model = TwoLayers()
    model.unused = layers.BiasedLinear(3, 3)
    assert zoo.calibrate(model, [torch.randn(2, 3, 5, 5)]).unreached == ["unused"]


def test_an_error_leaves_the_model_as_it_was():
    model = TwoLayers()
    with pytest.raises(ValueError, match="an input has 4 channels, the layer 3"):
        zoo.calibrate(model, [torch.randn(2, 3, 5, 5), torch.randn(2, 4, 5, 5)])
    with pytest.raises(ValueError, match="first has a mean that is not finite"):
        zoo.calibrate(model, [torch.full((1, 3, 4, 4), torch.nan)])
    with pytest.raises(ValueError, match="at least one"):
        zoo.calibrate(model, [])
    assert model.training
    assert not model.first._forward_pre_hooks


def test_calibration_refuses_batches_that_part_ways():
    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = layers.BiasedLinear(2, 2), layers.BiasedLinear(2, 2)

        def forward(self, x):
            return self.a(x) if x.shape[0] == 1 else self.b(x)

    with pytest.raises(ValueError, match=r"different ways through the net \(a, b\)"):
        zoo.calibrate(Forked(), [torch.zeros(1, 2), torch.zeros(2, 2)], forward=lambda net, x: net(x))


def test_calibration_leaves_padding_out():
    source, target = batch()
    alone = [(source[:1], target[:1])]
    padded = F.pad(source[:1], (0, 30), value=PAD), F.pad(target[:1], (0, 30), value=PAD)
    nets = []
    for pairs in (alone, [padded]):
        model = make(calibrated=False)
        zoo.calibrate(model, pairs, forward=lambda net, pair: net(*pair))
        nets.append(model)
    for (name, a), b in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=name)
    means = {}
    for name, module in nets[0].named_modules():
        if isinstance(module, HasDataBias):
            module.register_forward_pre_hook(
                lambda m, args, name=name: means.__setitem__(name, m.calibration_input(args[0]).mean((0, 1)))
            )
    nets[0](*alone[0])
    for name, module in nets[0].named_modules():
        if isinstance(module, BiasedProjections | BiasedLinear | FeatureBias):
            for part in module.data_bias.view(-1, means[name].numel()):
                torch.testing.assert_close(part, -means[name], rtol=1e-9, atol=1e-9)


def test_a_compiled_net_is_calibrated_without_its_wrapper():
    model = TwoLayers()
    compiled = torch.compile(model, backend="eager")
    report = zoo.calibrate(compiled, [torch.randn(2, 3, 5, 5) + 1])
    assert report.calibrated == ["first", "second"]  # not _orig_mod.first
    assert bool(model.first.pre_bias.any())

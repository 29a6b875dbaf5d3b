"""Calibration against a naive one in float64, in one forward and in replays; ranks, errors, what is restored."""

from __future__ import annotations

import copy
import threading
import weakref
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.calibration import HasDataBias, merge_batches, sum_dtype, with_count
from zoo.layers import BiasedConv2d, BiasedLinear, BiasedProjections, GainedConv, InputGain, StemConv2d
from zoo.text import EOS, PAD


def call(net, batch):
    return net(batch)


def call_pair(net, pair):
    return net(*pair)


def oracle(model, batches, forward=call):
    """Biases and gains by name: for one layer after the other all batches run, and it is set from all its inputs.

    Layers come in the order of their last call. What was set since the first of several calls is set again.
    """
    model = copy.deepcopy(model).eval()
    layers = {name: m for name, m in model.named_modules() if isinstance(m, HasDataBias)}

    def inputs(batches):
        calls = []
        handles = [
            m.register_forward_pre_hook(lambda m, args, name=name: calls.append((name, args[0])))
            for name, m in layers.items()
        ]
        with torch.no_grad():
            for batch in batches:
                forward(model, batch)
        for handle in handles:
            handle.remove()
        return calls

    def set_bias(name):
        layer, seen = layers[name], [x for other, x in inputs(batches) if other == name]
        if isinstance(layer, InputGain):
            layer.gain.copy_(torch.cat([x.flatten() for x in seen]).square().mean().rsqrt())
        else:
            rows = [layer.calibration_input(x).movedim(layer.channel_dim, -1).flatten(0, -2) for x in seen]
            mean = torch.cat(rows).mean(0)
            layer.data_bias.data.copy_(-mean.repeat(layer.data_bias.numel() // len(mean)))

    calls = [name for name, _ in inputs(batches[:1])]
    last = {name: i for i, name in enumerate(calls)}
    order = sorted(last, key=last.__getitem__)
    for i, name in enumerate(order):
        set_bias(name)
        if calls.count(name) > 1:
            for earlier in order[:i]:
                if last[earlier] > calls.index(name):
                    set_bias(earlier)
    return order, {name: layer.data_bias.detach() for name, layer in layers.items()}


def biases(model):
    return {name: m.data_bias.detach().clone() for name, m in model.named_modules() if isinstance(m, HasDataBias)}


def assert_same(ours, expected, tolerance=1e-12):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=tolerance, atol=tolerance, msg=name)


class Chain(nn.Module):
    """A stem, a projection of several parts, and dropout, which calibration turns off."""

    def __init__(self):
        super().__init__()
        self.stem = StemConv2d(3, 4, 3, padding=1)
        self.conv = BiasedConv2d(4, 6, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.parts = BiasedProjections(6, (2, 3))

    def forward(self, x):
        return self.parts(self.drop(self.conv(self.stem(x).relu()).relu().mean((2, 3))))


class Shared(nn.Module):
    """A head on three levels with a layer of one call between its calls, and a layer that reads its own output."""

    def __init__(self):
        super().__init__()
        self.stem = BiasedConv2d(3, 4, 3, padding=1)
        self.head = BiasedConv2d(4, 4, 3, padding=1)
        self.between = BiasedConv2d(4, 4, 1)
        self.last = BiasedConv2d(4, 2, 1)
        self.loop = BiasedLinear(2, 2)
        self.end = BiasedLinear(2, 2)

    def forward(self, x):
        x = self.stem(x)
        sums = 0
        for level in range(3):
            z = self.head(nn.functional.max_pool2d(x, 2**level)).relu()
            if level == 1:
                z = self.between(z)
            sums = sums + self.last(z).mean((2, 3))
        for _ in range(3):
            sums = self.loop(sums).relu()
        return self.end(sums)


class Gained(nn.Module):
    """Two feature levels, each read through a measured gain."""

    def __init__(self):
        super().__init__()
        self.first, self.second = BiasedConv2d(3, 4, 3, padding=1), BiasedConv2d(4, 4, 3, stride=2, padding=1)
        self.laterals = nn.ModuleList([GainedConv(BiasedConv2d(4, 2, 1)), GainedConv(nn.Conv2d(4, 2, 1))])
        self.end = BiasedLinear(2, 2)

    def forward(self, x):
        x = self.first(x).relu()
        y = self.second(x).relu()
        return self.end(self.laterals[0](5 * x).mean((2, 3)) + self.laterals[1](y).mean((2, 3)))


def make(kind):
    if kind == "residual":  # basic blocks, projection shortcuts, rescaled trunk
        return zoo.create_model("rescalenet18", width=0.125, num_classes=5).double()
    if kind == "cifar":
        return zoo.create_model("rescalenet20_cifar", width=0.25, num_classes=5).double()
    return {"chain": Chain, "shared": Shared, "gained": Gained}[kind]().double()


KINDS = ["chain", "shared", "gained", "cifar", "residual"]


def images(*sizes, count=3):
    """A batch for each size, of different numbers of pictures."""
    return [torch.randn(count + i, 3, s, s, dtype=torch.float64) + 0.5 for i, s in enumerate(sizes)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(32,), (32, 32, 32), (32, 48)], ids=["one", "equal", "unequal"])
def test_biases_equal_the_naive_calibration(kind, sizes):
    """One batch; batches that are merged; batches of different sizes, which are replayed."""
    model, batches = make(kind), images(*sizes)
    order, expected = oracle(model, batches)
    report = zoo.calibrate(model, batches)
    assert sorted(report.calibrated) == sorted(order)
    assert not report.unreached
    assert_same(biases(model), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_and_replayed_biases_are_equal(kind):
    merged, batches = make(kind), images(32, 32)
    replayed = copy.deepcopy(merged)
    runs = [0, 0]

    def count(which):
        def forward(net, batch):
            runs[which] += 1
            return net(batch)

        return forward

    one = zoo.calibrate(merged, merge_batches(batches), forward=count(0))
    several = zoo.calibrate(replayed, batches, forward=count(1))
    assert one == several  # also the order
    assert_same(biases(merged), biases(replayed))
    shared = 3 if kind == "shared" else 0  # head, last and loop start the forward again
    assert runs[0] == 2 + shared
    layers_set = len(one.calibrated) + (2 if kind == "shared" else 0)  # one lies between the calls of two others
    assert runs[1] == 2 * (1 + layers_set)


def test_biases_do_not_depend_on_how_the_data_is_split():
    model, x = make("shared"), torch.randn(12, 3, 32, 32, dtype=torch.float64)
    expected = None
    for forward in (None, call):
        for size in (12, 7, 3):
            net = copy.deepcopy(model)
            zoo.calibrate(net, x.split(size), forward=forward)
            expected = expected or biases(net)
            assert_same(biases(net), expected)


@pytest.mark.parametrize("count", [1, 2])
def test_padding_of_a_transformer_is_left_out(count):
    """Padded batches give what each sentence alone gives, one batch in one forward and two in replays."""
    net = zoo.create_model(
        "rescale_transformer_tiny",
        source_vocabulary=30,
        target_vocabulary=30,
        share="decoder",
        dim=16,
        heads=2,
        hidden=24,
    ).double()
    alone = []
    for source, target in [(5, 7), (9, 3), (2, 4), (6, 6)]:
        words = torch.randint(4, 30, (1, source + target))
        end = torch.full((1, 1), EOS)
        alone.append((torch.cat([words[:, :source], end], 1), torch.cat([end, words[:, source:]], 1)))

    def padded(sentences):
        width = max(s.shape[1] for s in sentences) + 2
        return torch.cat([nn.functional.pad(s, (0, width - s.shape[1]), value=PAD) for s in sentences])

    parts = [alone[i::count] for i in range(count)]
    order, expected = oracle(net, alone, call_pair)
    pairs = [tuple(padded(side) for side in zip(*part, strict=True)) for part in parts]
    report = zoo.calibrate(net, pairs, forward=call_pair)
    assert report.calibrated == order
    assert_same(biases(net), expected)


def test_batches_may_call_a_layer_a_different_number_of_times():
    """A layer is set at the last call of each batch, here one call a picture."""

    class PerPicture(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.end = BiasedLinear(3, 2), BiasedLinear(2, 2)

        def forward(self, x):
            return self.end(torch.cat([self.layer(row) for row in x.split(1)]))

    model = PerPicture().double()
    batches = [torch.randn(n, 3, dtype=torch.float64) for n in (2, 3, 1)]
    zoo.calibrate(model, batches, forward=call)
    rows = torch.cat(batches)
    torch.testing.assert_close(model.layer.pre_bias.data, -rows.mean(0))
    hidden = nn.functional.linear(rows - rows.mean(0), model.layer.weight, model.layer.bias)
    torch.testing.assert_close(model.end.pre_bias.data, -hidden.mean(0).detach())


# -- ranks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["shared", "gained"])
@pytest.mark.parametrize("second", [[32], [32, 48]], ids=["one", "replays"])
def test_ranks_reduce_the_same_layers_in_the_same_order(kind, second):
    """Two ranks, one of which may replay where the other does not, get the biases of all data."""
    data = [images(32), images(*second)]
    model = make(kind)
    _, expected = oracle(model, [batch for batches in data for batch in batches])
    nets = [copy.deepcopy(model) for _ in data]
    barrier, posted = threading.Barrier(2, timeout=60), [None, None]
    reports, shapes = [None, None], [[], []]

    def rank(index):
        def reduce(sums):
            assert sums.dtype == torch.float64
            shapes[index].append(tuple(sums.shape))
            posted[index] = sums
            barrier.wait()
            total = posted[0] + posted[1]
            barrier.wait()
            return total

        reports[index] = zoo.calibrate(nets[index], data[index], reduce=reduce)

    ranks = [threading.Thread(target=rank, args=(i,)) for i in range(2)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    assert reports[0] == reports[1]
    assert reports[0] is not None
    assert shapes[0] == shapes[1]
    again = 2 if kind == "shared" else 0  # one lies between the calls of two others
    assert len(shapes[0]) == len(reports[0].calibrated) + again
    for net in nets:
        assert_same(biases(net), expected)


# -- what is kept, reported and restored --------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(32,), (32, 48)], ids=["one", "replays"])
def test_supplied_biases_are_kept_unless_forced(sizes):
    model = make("chain")
    model.unused = BiasedLinear(3, 3).double()
    model.conv.data_bias.data.fill_(0.5)
    model.conv.calibrated = True
    fixed, batches = copy.deepcopy(model), images(*sizes)
    report = zoo.calibrate(model, batches)
    assert (report.calibrated, report.supplied, report.unreached) == (["stem", "parts"], ["conv"], ["unused"])
    assert torch.equal(model.conv.data_bias, fixed.conv.data_bias)
    hidden = torch.cat([model.conv(model.stem(x).relu()).relu().mean((2, 3)) for x in batches])
    torch.testing.assert_close(model.parts.pre_bias.data, -hidden.mean(0).repeat(2).detach(), rtol=0, atol=1e-12)
    assert zoo.calibrate(model, batches).supplied == ["stem", "conv", "parts"]
    _, expected = oracle(fixed, batches)
    assert zoo.calibrate(fixed, batches, force=True).calibrated == ["stem", "conv", "parts"]
    assert_same(biases(fixed), expected)


@pytest.mark.parametrize("sizes", [(32,), (32, 48)], ids=["one", "replays"])
@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_modes_and_hooks_are_restored(sizes, error):
    model = make("chain").train()
    model.conv.eval()
    modes = [m.training for m in model.modules()]
    runs = []

    def forward(net, batch):
        assert not any(m.training for m in net.modules())
        assert not torch.is_grad_enabled()
        runs.append(batch)
        if error and len(runs) > len(sizes):  # after the count of calls
            net.stem(batch)
            raise error
        return net(batch)

    if error:
        with pytest.raises(error):
            zoo.calibrate(model, images(*sizes), forward=forward)
    else:
        zoo.calibrate(model, images(*sizes), forward=forward)
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_net_that_catches_exceptions_does_not_swallow_the_stop():
    class Careful(Chain):
        def forward(self, x):
            try:
                return super().forward(x)
            except Exception:
                return None

    model, batches = Careful().double(), images(32, 48)
    _, expected = oracle(model, batches)
    zoo.calibrate(model, batches)
    assert_same(biases(model), expected)


def test_replays_keep_the_activations_of_one_batch_alive():
    alive = []

    class Watched(Chain):
        def forward(self, x):
            assert not any(reference() is not None for reference in alive)
            hidden = x + 1
            alive.append(weakref.ref(hidden))
            return super().forward(hidden)

    zoo.calibrate(Watched().double(), images(32, 48, 64))
    assert len(alive) == 3 * (1 + 3)


@pytest.mark.parametrize("sizes", [(32,), (32, 48)], ids=["one", "replays"])
def test_calibration_runs_in_the_callers_precision(sizes):
    """Under bfloat16 the biases are those of bfloat16 forwards, not of copies that autocast made of the old biases."""
    model, batches = Chain(), [batch.float() for batch in images(*sizes)]
    fresh = copy.deepcopy(model)

    def forward(net, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return net(batch)

    _, expected = oracle(model, batches, forward)
    with torch.autocast("cpu", torch.bfloat16):
        zoo.calibrate(model, batches)
        output = model.eval()(batches[0])
    assert output.dtype == torch.bfloat16
    assert_same(biases(model), expected, 2e-3)  # bfloat16 rounds to 4e-3; the means are over many values
    zoo.calibrate(fresh, batches)
    assert not torch.equal(fresh.parts.pre_bias, model.parts.pre_bias)


# -- errors -----------------------------------------------------------------------------------------


def test_errors_name_what_is_wrong():
    with pytest.raises(zoo.ZooError, match="calibrate: no batches"):
        zoo.calibrate(Chain(), [])
    layer = nn.Sequential(BiasedConv2d(3, 4, 1))
    for batches in ([torch.zeros(2, 4, 5, 5)], [torch.zeros(2, 3, 5, 5), torch.zeros(2, 4, 5, 5)]):
        with pytest.raises(zoo.ZooError, match="an input has 4 channels, the layer 3"):
            zoo.calibrate(layer, batches)
    nan, infinite = torch.full((1, 3, 4, 4), torch.nan), torch.full((1, 3, 5, 5), torch.inf)
    for batches in ([nan], [torch.zeros(1, 3, 4, 4), infinite]):
        with pytest.raises(zoo.ZooError, match="the input of 0 has a mean that is not finite"):
            zoo.calibrate(layer, batches)
    with pytest.raises(zoo.ZooError, match="zero everywhere"):
        zoo.calibrate(nn.Sequential(InputGain()), [torch.zeros(2, 3)])


def test_batches_that_take_different_ways_are_refused():
    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = BiasedLinear(2, 2), BiasedLinear(2, 2)

        def forward(self, x):
            return {1: self.a, 2: self.b, 3: nn.Identity()}[len(x)](x)

    for sizes, where in [((1, 2), "a, b"), ((1, 3), "a, the end")]:
        batches = [torch.zeros(n, 2) for n in sizes]
        with pytest.raises(zoo.ZooError, match=rf"different ways through the net \({where}\)"):
            zoo.calibrate(Forked(), batches, forward=call)


# -- merging ----------------------------------------------------------------------------------------


class Pair(NamedTuple):
    x: Tensor
    y: object


@pytest.mark.parametrize(
    "batch",
    [
        lambda n: torch.arange(n * 6.0).view(n, 2, 3),
        lambda n: (torch.ones(n, 2), torch.arange(n)),
        lambda n: [torch.ones(n, 2), {"a": torch.zeros(n), "b": (torch.ones(n, 1),)}],
        lambda n: Pair(torch.ones(n, 2), torch.zeros(n, dtype=torch.bool)),
    ],
    ids=["tensor", "tuple", "nest", "named tuple"],
)
def test_merging_concatenates_the_tensors(batch):
    parts = [batch(2), batch(3)]
    (merged,) = merge_batches(iter(parts))
    leaves, structure = torch.utils._pytree.tree_flatten(merged)
    assert type(merged) is type(parts[0])
    assert structure == torch.utils._pytree.tree_flatten(parts[0])[1]
    for leaf, first, second in zip(leaves, *(torch.utils._pytree.tree_leaves(part) for part in parts), strict=True):
        assert leaf.dtype == first.dtype
        assert torch.equal(leaf, torch.cat([first, second]))


@pytest.mark.parametrize(
    "batches",
    [
        [torch.ones(2, 3), torch.ones(2, 4)],
        [torch.ones(2, 3), torch.ones(2, 3, 1)],
        [torch.ones(2, 3), torch.ones(2, 3).double()],
        [torch.ones(()), torch.ones(())],
        [(torch.ones(2), torch.ones(2)), (torch.ones(2),)],
        [(torch.ones(2), torch.ones(2)), [torch.ones(2), torch.ones(2)]],
        [{"a": torch.ones(2)}, {"b": torch.ones(2)}],
        [Pair(torch.ones(2), 2), Pair(torch.ones(2), 2)],
        [Pair(torch.ones(2), None), Pair(torch.ones(2), None)],
        [([torch.ones(3, 8, 8)], torch.ones(1)), ([torch.ones(3, 8, 8)], torch.ones(1))],
        [[], []],
        [],
        [torch.ones(2)],
    ],
    ids=["size", "ndim", "dtype", "scalar", "length", "type", "keys", "number", "none", "pictures", "empty", "0", "1"],
)
def test_batches_that_cannot_be_merged_are_returned_as_they_are(batches):
    merged = merge_batches(batches)
    assert len(merged) == len(batches)
    assert all(a is b for a, b in zip(merged, batches, strict=True))


def test_sums_are_float64_where_the_device_has_it():
    assert sum_dtype(torch.device("cpu")) == sum_dtype(torch.device("cuda")) == torch.float64
    assert sum_dtype(torch.device("mps")) == torch.float32
    total = with_count(torch.tensor([1.5, 2.5]), 2**24 + 1)
    assert total.dtype == torch.float64
    assert total.tolist() == [1.5, 2.5, 2**24 + 1]

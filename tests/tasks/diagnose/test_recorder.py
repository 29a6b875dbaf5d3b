"""What the recorder sees, against plain hooks of this file; and that it leaves no trace in the net."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

import zoo
from tasks.diagnose.measure import as_in_training, diagnose
from tasks.diagnose.moments import Signs, channel_sums
from tasks.diagnose.recorder import Point, Recorder, gather, is_product
from tasks.errors import UserError
from tests.helpers import transformers
from tests.helpers.nets import narrow, samples
from tests.helpers.ranks import on_threads
from zoo.calibration import HasDataBias


def hooked(model, *batches, forward=None):
    """All inputs and outputs of each module, of all batches together, by plain hooks."""
    seen = {}

    def keep(name):
        def hook(module, arguments, output):
            if arguments and isinstance(output, torch.Tensor):
                pairs = seen.setdefault(name, ([], []))
                pairs[0].append(arguments[0].detach().clone())
                pairs[1].append(output.detach().clone())

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules()]
    with torch.no_grad():
        for batch in batches:
            model(batch) if forward is None else forward(model, batch)
    for handle in handles:
        handle.remove()
    return {name: (torch.cat(inputs), torch.cat(outputs)) for name, (inputs, outputs) in seen.items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("scheme", ["gn", "none", "fixup"])
def test_layers_and_activations_are_those_of_plain_hooks(scheme, dtype, tolerance):
    """Both see the same tensors. The sums are float64 in both types, and the formulas of torch are taken in float64."""
    model = narrow("cifar", scheme=scheme).to(dtype).eval()
    if scheme == "fixup":  # whose branches are 0
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    x = samples("cifar", 8, 16, dtype=dtype)
    seen = hooked(copy.deepcopy(model).apply(out_of_place), x)
    found = diagnose(model, [x])
    assert [layer.name for layer in found.layers] == [n for n, m in model.named_modules() if has_row(m)]
    for layer in found.layers:
        output = seen[layer.name][1].double()
        dims = [d for d in range(output.ndim) if d != 1]
        assert layer.channels == output.shape[1]
        assert layer.power == pytest.approx(float(output.square().mean()), rel=tolerance)
        means = output.mean(dims)
        assert layer.mean_power == pytest.approx(float(means.square().mean()), rel=tolerance, abs=1e-25)
        variance = float(output.var(dims, correction=0).mean())
        assert layer.variance == pytest.approx(variance, rel=tolerance)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.ReLU)]
    assert sorted(unit.name for unit in found.activations) == sorted(names)
    for unit in found.activations:
        before = seen[unit.name][0]
        by_channel = before.movedim(1, 0).flatten(1)
        assert unit.function == "relu"
        assert unit.power == pytest.approx(float(before.double().square().mean()), rel=tolerance)
        assert unit.channels == len(by_channel)
        assert unit.positive == int((by_channel > 0).all(1).sum())
        assert unit.negative == int((by_channel <= 0).all(1).sum())
        assert unit.units == before[0].numel()
        assert unit.positive_units == int((before > 0).all(0).sum())
        assert unit.negative_units == int((before <= 0).all(0).sum())
        assert unit.dead == (unit.positive + unit.negative) / unit.channels
    assert sum(unit.positive_units + unit.negative_units for unit in found.activations) > 0


def out_of_place(module):
    """A ReLU that leaves its input to the hook behind it."""
    if isinstance(module, nn.ReLU):
        module.inplace = False


def has_row(module):
    return isinstance(module, nn.Conv2d | nn.Linear | nn.GroupNorm)


def test_planted_dead_channels_are_counted():
    model = nn.Sequential(nn.Conv2d(2, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([-100.0, -100.0, 100.0, 0.0, 0.0]))
    found = diagnose(model, [torch.randn(16, 2, 3, 3)]).activations[0]
    assert (found.negative, found.positive, found.channels) == (2, 1, 5)
    assert (found.units, found.negative_units >= 18, found.positive_units >= 9) == (45, True, True)


class Ways(nn.Module):
    """Activations as functions and methods, of one module several times, and layers that are called twice or never."""

    def __init__(self):
        super().__init__()
        self.first, self.shared, self.never = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.relu, self.inside = nn.ReLU(inplace=True), nn.Sequential(nn.Linear(6, 6), nn.SiLU())
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        h = F.relu(self.first(x))
        h = self.shared(h).relu_()
        h = self.relu(self.relu(self.shared(h)))
        h = F.leaky_relu(F.gelu(self.inside(h)))
        return self.attention(h[None], h[None], h[None])[0]


def test_names_of_activations_and_layers_that_are_never_called():
    model, x = Ways(), torch.randn(10, 4)
    found = diagnose(model, [x])
    assert [(unit.name, unit.function) for unit in found.activations] == [
        ("", "relu"),
        (":2", "relu"),
        ("relu", "relu"),
        ("relu:2", "relu"),
        ("inside.1", "silu"),
        (":3", "gelu"),
        (":4", "leaky_relu"),
    ]
    assert found.unreached == ("never",)  # attention.out_proj is used by the module around it
    assert [layer.name for layer in found.layers] == ["first", "shared", "inside.0", "attention"]
    shared = next(layer for layer in found.layers if layer.name == "shared")
    with torch.no_grad():  # both of its calls count
        once = model.shared(model.first(x).relu())
        both = torch.cat([once, model.shared(once.relu())])
    assert shared.power == pytest.approx(float(both.square().mean()), rel=1e-6)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Conv2d(3, 4, 1), True),
        (nn.Conv3d(3, 4, 3), True),
        (nn.Linear(3, 4), True),
        (nn.Linear(3, 1), True),
        (nn.Conv2d(1, 1, 1), True),
        (weight_norm(nn.Linear(3, 4)), True),
        (weight_norm(nn.Bilinear(3, 4, 2)), True),
        (nn.Embedding(9, 4), True),
        (nn.MultiheadAttention(4, 2), True),
        (nn.GroupNorm(2, 4), False),
        (nn.ReLU(), False),
        (nn.Sequential(nn.Linear(3, 4)), False),
    ],
)
def test_what_is_a_product(module, expected):
    assert is_product(module) is expected


def test_a_scale_of_each_channel_is_no_product():
    scale = nn.Module()
    scale.layer_scale = nn.Parameter(torch.ones(8, 1, 1))
    assert not is_product(scale)


class Scaled(nn.Module):
    """A parametrization with a layer and an activation inside of it."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(3, 3)

    def forward(self, weight):
        return weight + F.relu(self.inside(weight))


def test_layers_whose_weight_is_computed_are_rows_of_their_own():
    """Their weight is no output of a layer."""
    net = nn.Sequential(
        spectral_norm(nn.Conv2d(3, 8, 3, padding=1)),
        nn.ReLU(),
        weight_norm(nn.Conv2d(8, 8, 3, padding=1, groups=8)),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
        orthogonal(nn.Linear(12, 12)),
        nn.ReLU(),
    )
    parametrize.register_parametrization(net[2], "bias", nn.Identity())
    net.append(nn.Conv2d(4, 4, 3))
    parametrize.register_parametrization(net[7], "weight", Scaled())
    net.eval().double()
    x = torch.randn(4, 3, 16, 12, dtype=torch.float64)
    seen, recorder = hooked(copy.deepcopy(net), x), Recorder(net)
    with as_in_training(net), recorder.recording():
        net(x)
    products = {point.name: point for point in recorder.points.values() if point.kind == "product"}
    assert list(products) == ["0", "2", "4", "5", "7"]
    assert recorder.unreached == []
    for name, point in products.items():
        dim = -1 if name == "5" else 1
        torch.testing.assert_close(point.sums, channel_sums(seen[name][1], dim), rtol=1e-10, atol=1e-10)
    kinds = [(point.name, point.kind) for point in recorder.points.values() if point.kind != "product"]
    assert kinds == [("input", "input"), ("1", "activation"), ("3", "activation"), ("6", "activation")]
    float_input = recorder.points["input", "input"].sums.flatten()
    assert float_input.tolist() == pytest.approx([float(x.sum()), float(x.square().sum()), x.numel()])


def test_a_head_with_one_output_has_a_row():
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1))
    found = diagnose(net, [torch.randn(4, 12)])
    assert [(layer.name, layer.channels) for layer in found.layers] == [("0", 8), ("2", 1)]

    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.never = nn.Linear(12, 1), nn.Linear(8, 1)

        def forward(self, x):
            return self.used(x)

    assert diagnose(Unused(), [torch.randn(4, 12)]).unreached == ("never",)


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (nn.PReLU(), "prelu"),
        (nn.PReLU(8), "prelu"),
        (nn.ELU(), "elu"),
        (nn.SELU(inplace=True), "elu"),
        (nn.CELU(), "celu"),
        (nn.RReLU(), "rrelu"),
        (nn.Mish(), "mish"),
        (nn.Hardswish(inplace=True), "hardswish"),
        (nn.Softplus(), "softplus"),
        (nn.ReLU6(), "relu6"),
        (nn.Hardtanh(0.0, 4.0), "relu6"),
        (nn.Hardtanh(inplace=True), "hardtanh"),
    ],
)
def test_activations_whose_inputs_have_a_sign_that_matters(module, function):
    """Of these, only a ReLU and its kin are constant below 0, so ``hardtanh`` is no ReLU where it begins at -1."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), module)
    (found,) = diagnose(net, [torch.randn(4, 3, 12, 10)]).activations
    assert (found.name, found.function, found.channels) == ("1", function, 8)


@pytest.mark.parametrize("way", ["module", "function", "sum"])
def test_what_embeddings_return_is_not_the_input(way):
    """Tokens have no power. Without this, the scale of an embedding would be judged as that of pixels."""

    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places, self.out = nn.Embedding(50, 16), nn.Embedding(9, 16), nn.Linear(16, 4)
            self.weight = nn.Parameter(torch.randn(50, 16))

        def forward(self, tokens):
            if way == "function":
                return self.out(F.embedding(tokens, self.weight))
            x = self.words(tokens)
            return self.out(x + self.places(torch.arange(tokens.shape[1])) if way == "sum" else x)

    assert diagnose(Text(), [torch.randint(50, (3, 9))]).input is None
    vectors = diagnose(nn.Linear(16, 4), [torch.ones(3, 16), torch.ones(3, 5, 16)]).input
    assert (vectors.mean, vectors.std) == (1.0, 0.0)


class Shared(nn.Module):
    """One activation for layers of several sizes, which it is called for a varying number of times."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 6)
        self.relu = nn.ReLU()

    def forward(self, x):
        x = self.relu(self.first(x))
        if x.shape[0] > 4:
            x = self.relu(self.second(x))
        return self.relu(self.third(x))


def test_an_activation_for_layers_of_several_sizes():
    """The values of the first size count, and the place is listed."""
    net, x = Shared().double(), torch.randn(8, 4, dtype=torch.float64)
    recorder = recorder_of(net, x, x[:4], x)
    assert recorder.varied == ["relu:2"]
    points = {point.name: point for point in recorder.points.values() if point.kind == "activation"}
    assert {name: (point.sums.shape[1], point.sums[2, 0].item()) for name, point in points.items()} == {
        "relu": (8, 20),
        "relu:2": (8, 16),
        "relu:3": (6, 16),
    }
    assert points["relu:2"].signs.channels.shape == (2, 8)
    with torch.no_grad():
        expected = channel_sums(net.second(net.first(x).relu()), 1)
    torch.testing.assert_close(points["relu:2"].sums, 2 * expected)
    assert diagnose(net, [x[:4], x]).activations[1].channels == 6


# -- no trace


def stochastic():
    """A net in training with everything that a forward could change: BatchNorm, dropout, stochastic depth, hooks."""
    model = narrow("basic", scheme="bn", drop_rate=0.2, drop_path_rate=0.2)
    model.layer3.eval()  # modes differ from module to module
    for parameter in model.layer1.parameters():
        parameter.requires_grad_(False)
    model.calls = []
    model.layer2.register_forward_hook(lambda module, arguments, output: model.calls.append(output.shape))
    x = samples("basic", 4, 32)
    model(x).square().mean().backward()
    return model, x


def state_of(model):
    """All that a forward or a hook could change, comparable by ==."""
    modules = dict(model.named_modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called", "_backward_hooks")
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "addresses": {name: value.data_ptr() for name, value in model.state_dict().items()},
        "training": {name: module.training for name, module in modules.items()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "grad": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "hooks": {name: [list(getattr(module, hook)) for hook in hooks] for name, module in modules.items()},
        "random": torch.get_rng_state(),
        "keys": {name: sorted(vars(module)) for name, module in modules.items()},
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, dict):
            assert_same(found[key], value)
        elif isinstance(value, torch.Tensor):
            assert torch.equal(found[key], value), key
        else:
            assert found[key] == value, key


def test_a_diagnosis_leaves_no_trace_in_the_net():
    model, x = stochastic()
    before = state_of(model)
    labels = torch.tensor([0, 1, 2, 3])

    def step(net):
        torch.optim.SGD(net.parameters(), 0.1, momentum=0.9).step()

    found = diagnose(model, [x, x], loss=lambda net, batch: F.cross_entropy(net(batch), labels), step=step)
    assert found.sums
    assert_same(state_of(model), before)
    assert len(model.calls) == 1 + 2  # the hooks of the user are called as in any forward, once a batch


def test_outputs_and_random_draws_are_the_same_to_the_bit():
    model, x = stochastic()
    untouched = copy.deepcopy(model)
    torch.manual_seed(1)
    expected = untouched(x)
    torch.manual_seed(1)
    diagnose(model, [x])
    assert torch.equal(model(x), expected)
    assert_same(
        {name: value.clone() for name, value in model.state_dict().items()},
        {name: value.clone() for name, value in untouched.state_dict().items()},
    )


def test_the_forward_that_is_recorded_computes_the_same_bits():
    """Also of nets whose operations write in place, and of Transformers."""
    for scheme in ("rescale", "gn", "nf"):
        model, x = narrow("bottleneck", scheme=scheme).eval(), samples("bottleneck", 2, 32)
        with torch.no_grad():
            expected = model(x)
        recorder = Recorder(model, units=True)
        with as_in_training(model), recorder.recording():
            assert torch.equal(model(x), expected)
    model, (source, target) = transformers.make(), transformers.batch()
    with torch.no_grad():
        expected = model.decode(target, model.encode(source))
    with as_in_training(model), Recorder(model).recording():
        assert torch.equal(model.decode(target, model.encode(source)), expected)


def test_an_error_in_the_forward_leaves_no_hooks():
    model, x = stochastic()
    before = state_of(model)
    with pytest.raises(RuntimeError):
        diagnose(model, [x[:, :2]])
    assert_same(state_of(model), before)
    recorder = Recorder(model)

    def refuse(module, arguments):
        raise ValueError("refused")

    handle = model.layer2.register_forward_pre_hook(refuse)
    with pytest.raises(ValueError, match="refused"), as_in_training(model), recorder.recording():
        model(x)
    handle.remove()
    assert recorder.forwards == 0  # it does not count
    with as_in_training(model), recorder.recording():  # and the next one begins anew
        model(x)
    assert recorder.forwards == 1
    assert {point.kind for point in recorder.points.values()} == {"input", "product", "norm", "activation", "sum"}


def test_batchnorm_takes_the_statistics_of_the_batch():
    """A fresh net has running statistics 0 and 1, with which nothing is normalized."""
    model, x = narrow("cifar", scheme="bn"), samples("cifar", 16, 16)
    model.eval()
    layers = {layer.name: layer for layer in diagnose(model, [x]).layers}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert layers[name].mean_power == pytest.approx(0, abs=1e-10)
            assert layers[name].variance == pytest.approx(1, rel=2e-3)  # its eps is 1e-5 of a variance of 0.01 or more


# -- biases from data


def test_offsets_of_biases_are_those_of_their_inputs():
    """The offset of (x + b): 0 once calibrated, whatever the mean of x was."""
    model, x = narrow("basic").double(), samples("basic", 8, 64, dtype=torch.float64)
    fresh = {layer.name: layer for layer in diagnose(model, [x]).layers}
    seen = hooked(model.eval(), x)
    checked = 0
    for name, module in model.named_modules():
        if name not in fresh or not isinstance(module, HasDataBias):
            continue
        inputs = module.calibration_input(seen[name][0]).detach()
        values = inputs.movedim(module.channel_dim, 0).flatten(1) if inputs.ndim > 1 else None
        if values is None or len(values) != module.data_bias.numel():
            continue
        offset = (values.mean(1) + module.data_bias.detach()).square().mean().sqrt()
        deviation = values.detach().var(1, correction=0).mean().sqrt()
        assert fresh[name].bias_offset == pytest.approx(float(offset / deviation), rel=1e-10), name
        assert fresh[name].bias_norm == 0
        checked += 1
    assert checked > 15
    zoo.calibrate(model, [x])
    after = {layer.name: layer for layer in diagnose(model, [x]).layers}
    for name, layer in after.items():
        if layer.bias_norm > 0 and fresh[name].bias_offset == fresh[name].bias_offset:
            assert layer.bias_offset < 1e-10, name
            norm = torch.linalg.vector_norm(model.get_submodule(name).data_bias.detach())
            assert layer.bias_norm == pytest.approx(float(norm), rel=1e-12)


# -- processes


def recorder_of(model, *batches):
    recorder = Recorder(model, units=True)
    for batch in batches:
        with as_in_training(model), recorder.recording():
            model(batch)
    return recorder


def recorded(model, *batches):
    return list(recorder_of(model, *batches).points.values())


def test_the_sums_of_two_halves_are_those_of_all():
    """What ``gather`` sends of two processes, added up as ``accelerator.reduce`` does."""
    model, x = narrow("basic").double(), samples("basic", 8, 32, dtype=torch.float64)
    sent = []

    def other(flat):
        sent.append(flat)
        return flat

    gather(recorded(model, x[4:]), other)
    points = recorded(model, x[:4])
    gather(points, lambda flat: flat + sent.pop(0))
    whole = recorded(model, x)
    assert [point.name for point in points] == [point.name for point in whole]
    for point, expected in zip(points, whole, strict=True):
        for field in ("sums", "pair", "after", "centred"):
            value, reference = getattr(point, field), getattr(expected, field)
            assert (value is None) == (reference is None)
            if value is not None:
                torch.testing.assert_close(value, reference, rtol=1e-12, atol=1e-10)
        if expected.signs is not None:
            assert torch.equal(point.signs.channels, expected.signs.channels)
            assert torch.equal(point.signs.units, expected.signs.units)


def test_one_transfer_of_all_sums():
    calls = []
    points = [Point("a", "sum", sums=channel_sums(torch.ones(2, 3), 1)), Point("b", "activation")]
    points[1].signs = Signs.of(torch.ones(2, 3), 1)
    gather(points, lambda flat: calls.append(flat.shape) or flat)
    assert calls == [(17,), (9 + 6,)]  # the first, of a fixed size, is whether all processes have the same sums
    gather([], lambda flat: calls.append(flat.shape) or flat)
    assert calls[2:] == [(17,)]  # the others may have some


def gathered(all_points):
    """What gathering returns in processes of which each has its own points; the text of an error."""

    def work(rank, reduce):
        return gather(all_points[rank], reduce)

    results = on_threads(len(all_points), work)
    return [str(result) if isinstance(result, UserError) else result for result in results]


def points_of(*names, channels=3, units=None):
    """A sum of ones for each name, and an activation whose units have a size."""
    points = [Point(name, "sum", sums=channel_sums(torch.ones(2, channels), 1)) for name in names]
    if units is not None:
        x = torch.ones(2, channels, units)
        points.append(Point("relu", "activation", sums=channel_sums(x, 1), signs=Signs.of(x, 1, units=True)))
    return points


@pytest.mark.parametrize(
    "others", [points_of("a", "b"), points_of("b"), points_of("a", channels=4), points_of("a", units=2), []]
)
@pytest.mark.parametrize("count", [2, 5])
def test_processes_that_saw_different_layers_all_raise_the_same_error(others, count):
    """In place of waiting for each other, or adding up the sums of one layer and of another."""
    messages = gathered([*(points_of("a") for _ in range(count - 1)), others])
    assert len(set(messages)) == 1
    assert "the processes saw different layers" in messages[0]
    assert "\n" not in messages[0]


def test_processes_that_saw_the_same_layers_in_another_order():
    first, second = points_of("a", "b"), points_of("b", "a")
    second[0].sums *= 10
    assert gathered([first, second]) == [None, None]
    for points in (first, second):
        by_name = {point.name: point.sums for point in points}
        assert by_name["a"][0].tolist() == [4] * 3
        assert by_name["b"][0].tolist() == [22] * 3


def test_units_of_several_sizes_in_the_processes_are_given_up_in_all():
    """As within one process: their positions do not correspond."""
    all_points = [points_of("a", units=size) for size in (4, 6, 4)]
    all_points[2][1].signs.units = None
    assert gathered(all_points) == [None] * 3
    for points in all_points:
        assert points[1].signs.units is None
        assert points[1].signs.channels.tolist() == [[True] * 3, [False] * 3]
    same = [points_of("a", units=4) for _ in range(2)]
    assert gathered(same) == [None] * 2
    assert all(points[1].signs.units.shape == (2, 3, 4) for points in same)

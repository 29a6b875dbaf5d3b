"""The numbers of a diagnosis: trunk and branch by the formulas, batches and processes, gradients and updates."""

import copy
import json
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

import zoo
from tasks.diagnose.measure import Gradients, _length, as_in_training, diagnose, keeping_norms, relative_changes
from tasks.diagnose.recorder import is_product
from tasks.diagnose.signals import chains
from tasks.diagnose.theory import expected_powers
from tasks.errors import UserError
from tests.helpers import transformers
from tests.helpers.commands import environment
from tests.helpers.detection import calibrated, small
from tests.helpers.nets import narrow, samples
from tests.helpers.ranks import on_threads
from zoo.calibration import HasDataBias
from zoo.method import coefficients
from zoo.modules import evaluating
from zoo.text import PAD
from zoo.trunk import TrunkBlock


def translate(model, pair):
    return model.decode(pair[1], model.encode(pair[0]))


def numbers(rows):
    """All numbers of rows, by name and field."""
    content = {}
    for row in rows:
        for key, value in vars(row).items():
            if isinstance(value, float) and not math.isnan(value):
                content[f"{row.name} {key}"] = value
    return content


def assert_close(found, expected, rel, *, but=()):
    """The same rows. Small numbers that are differences of large ones are compared with the power of their layer."""
    for kind in ("layers", "sums", "activations"):
        left, right = numbers(getattr(found, kind)), numbers(getattr(expected, kind))
        assert left.keys() == right.keys()
        for key, value in right.items():
            if key.rpartition(" ")[2] not in but:
                assert left[key] == pytest.approx(value, rel=rel, abs=rel), key


def values_of(model, names):
    """Two dictionaries that plain hooks fill: the inputs and outputs of modules in the next forward."""
    inputs, outputs = {}, {}

    def keep(name):
        def hook(module, arguments, output):
            inputs[name], outputs[name] = arguments[0].clone(), output.clone()

        return hook

    for name in names:
        model.get_submodule(name).register_forward_hook(keep(name))
    return inputs, outputs


# -- the formulas


@pytest.mark.parametrize("c", [None, 1.0])
def test_trunk_and_branch_are_those_of_the_formulas(c):
    """x_k = alpha_k x_{k-1} + m_k / sqrt(c) F_k (M5), written with the blocks' own outputs and no scale of the trunk.

    The last convolution of a branch returns m_k / sqrt(c) F_k where no scale is applied.
    """
    model = narrow("cifar", c=c).double().eval()
    x = samples("cifar", 4, 32, dtype=torch.float64)
    zoo.calibrate(model, [x])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("multiplier"):
                parameter.fill_(0.5 + torch.rand(()))
    plain = copy.deepcopy(model)
    plain.trunk_scales.unscaled().apply(plain)
    blocks = {name: module for name, module in plain.named_modules() if isinstance(module, TrunkBlock)}
    inputs, outputs = values_of(plain, blocks)
    _, branches = values_of(plain, [f"{name}.conv2" for name in blocks])
    _, shortcuts = values_of(plain, [f"{name}.downsample" for name in blocks if blocks[name].downsample is not None])
    with torch.no_grad():
        plain(x)
    found = {each.name: each for each in diagnose(model, [x]).sums}
    assert list(found) == list(blocks)
    assert len(shortcuts) == 2
    total = len(blocks)
    for k, (name, each) in enumerate(found.items(), 1):
        alpha, _ = coefficients(k, total if c is None else c)
        trunk = shortcuts[f"{name}.downsample"] if f"{name}.downsample" in shortcuts else alpha * inputs[name]
        branch = branches[f"{name}.conv2"]
        x_k = (trunk + branch).relu()
        torch.testing.assert_close(x_k, outputs[name], rtol=1e-12, atol=1e-12)  # the net is what this test takes it for
        assert each.trunk_power == pytest.approx(float(trunk.square().mean()), rel=1e-12)
        assert each.branch_power == pytest.approx(float(branch.square().mean()), rel=1e-12)
        assert each.power == pytest.approx(float(x_k.square().mean()), rel=1e-12)
        cosine = F.cosine_similarity(trunk.flatten(), branch.flatten(), dim=0)
        assert each.cosine == pytest.approx(float(cosine), rel=1e-11)
        u, v = (z - z.mean((0, 2, 3), keepdim=True) for z in (trunk, branch))
        correlation = F.cosine_similarity(u.flatten(), v.flatten(), dim=0)
        assert each.correlation == pytest.approx(float(correlation), rel=1e-11)
        assert each.multiplier == float(blocks[name].join.multiplier.detach())
        assert each.ratio == pytest.approx(each.branch_power / each.trunk_power, rel=1e-15)
        if f"{name}.downsample" in shortcuts:
            assert math.isnan(each.previous)
            assert math.isnan(each.growth)
        else:
            assert each.previous == pytest.approx(float(inputs[name].square().mean()), rel=1e-12)
            assert each.growth == pytest.approx(each.power / each.previous, rel=1e-15)


@pytest.mark.parametrize(
    "options", [{}, {"kind": "bottleneck"}, {"kind": "replicate"}, {"kind": "i3d"}, {"kind": "basic", "c": 2.0}]
)
def test_the_scale_at_which_a_trunk_is_stored_changes_nothing(options):
    """All rows, of layers and activations too. The two nets differ by rounding."""
    options = dict(options)
    kind = options.pop("kind", "cifar")
    model = narrow(kind, **options).double()
    x = samples(kind, 4, 32, dtype=torch.float64)
    zoo.calibrate(model, [x])
    stored = diagnose(model, [x])
    plain = copy.deepcopy(model)
    plain.trunk_scales = model.trunk_scales.unscaled()
    plain.trunk_scales.apply(plain)
    assert any(row.scale_in != 1 for row in model.trunk_scales.rows)
    assert_close(stored, diagnose(plain, [x]), 1e-10, but=("gradient_norm",))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_scale_of_a_transformer_s_trunk_changes_nothing(activation):
    model, batch = transformers.make(activation=activation), transformers.batch()
    stored = diagnose(model, [batch], forward=translate)
    plain = copy.deepcopy(model)
    plain.trunk_scales = model.trunk_scales.unscaled()
    plain.trunk_scales.apply(plain)
    assert_close(stored, diagnose(plain, [batch], forward=translate), 1e-10)


def test_layers_are_the_formulas_values_of_their_hooks():
    """``zoo.Net.nominal`` of what a hook sees."""
    model = narrow("bottleneck").double().eval()
    x = samples("bottleneck", 4, 32, dtype=torch.float64)
    zoo.calibrate(model, [x])
    places = [name for name, m in model.named_modules() if is_product(m) or isinstance(m, HasDataBias)]
    _, seen = values_of(model, places)
    with torch.no_grad():
        model(x)
    layers = diagnose(model, [x]).layers
    assert sorted(layer.name for layer in layers) == sorted(places)
    assert [layer.name for layer in layers if layer.kind == "bias"] == ["head_bias"]
    for layer in layers:
        value = model.nominal(layer.name, seen[layer.name])
        assert layer.power == pytest.approx(float(value.square().mean()), rel=1e-12), layer.name


def test_a_detector_s_backbone_is_scaled_too():
    """The body inside of a detector stores its trunk as it does alone."""
    torch.manual_seed(0)
    model = small()
    _, pairs = calibrated(model, batches=1)
    model.double()
    body = model.backbone.body.body
    assert body.trunk_scales.rows[0].scale_out != 1

    def forward(net, pair):
        net.calibration_pass([image.double() for image in pair[0]], pair[1])

    stored = diagnose(model, pairs, forward=forward)
    plain = copy.deepcopy(model)
    inside = plain.backbone.body.body
    inside.trunk_scales = body.trunk_scales.unscaled()
    inside.trunk_scales.apply(inside)
    expected = diagnose(plain, pairs, forward=forward)
    for found, each in zip(stored.sums, expected.sums, strict=True):
        assert found.power == pytest.approx(each.power, rel=1e-8)
    assert len([each for each in stored.sums if ".layer" in each.name]) == 8
    assert stored.scheme == "rescale"


def test_the_scheme_of_a_net_of_the_zoo_in_a_module_of_a_user():
    """The theory is that of the net inside, and so is the scheme that the report names."""
    model = nn.Sequential(narrow("cifar", width=0.25, scheme="gn"), nn.Linear(5, 2))
    found = diagnose(model, [samples("cifar", 4, 16)])
    assert (found.model, found.scheme) == ("Sequential", "gn")
    assert found.sums[0].expected == pytest.approx(found.sums[0].previous + found.sums[0].branch_power)
    assert [each.name for each in found.sums][:2] == ["0.layer1.0", "0.layer1.1"]
    # and its trunk is divided by the scale at which it is stored
    rescaled, x = narrow("cifar", width=0.25), samples("cifar", 4, 16)
    inside, alone = diagnose(nn.Sequential(rescaled, nn.Linear(5, 2)), [x]), diagnose(rescaled, [x])
    assert [each.power for each in inside.sums] == [each.power for each in alone.sums]


def test_expected_powers():
    assert expected_powers("stays", 3.0, 0.5, 2) == [3.0, 3.0, 3.0]
    assert expected_powers("grows", 3.0, 0.5, 2) == [3.0, 3.5, 4.0]
    assert expected_powers("doubles", 3.0, 0.5, 2) == [3.0, 6.0, 12.0]
    assert expected_powers("doubles", 1.0, 1.0, 2000)[-1] == math.inf


def test_the_theory_begins_at_the_first_sum_of_each_chain():
    x = samples("cifar", 8, 32)
    for scheme, step in (("rescale", 0), ("none", None), ("gn", 1)):
        model = narrow("cifar", scheme=scheme)
        zoo.calibrate(model, [x])
        found = diagnose(model, [x])
        for chain in chains(found.sums):
            first, rest = chain.sums[0], chain.sums[1:]
            if first.identity:
                rest, begun = chain.sums, first.previous
            else:
                begun = first.power
                assert first.expected == first.power
            for number, each in enumerate(rest, 1):
                doubled, grown = begun * 2**number, begun + number * rest[0].branch_power
                expected = doubled if step is None else grown if step else begun
                assert each.expected == pytest.approx(expected, rel=1e-12)


def test_a_plain_net_doubles_and_a_rescaled_one_stays():
    """M1 and M3. Eight channels are few: one draw of the weights differs from the mean over draws by a tenth."""
    found = {}
    for scheme in ("none", "rescale"):
        torch.manual_seed(0)
        model = zoo.create_model("rescalenet110_cifar", scheme=scheme, width=0.5)
        x = samples("cifar", 8, 32)
        zoo.calibrate(model, [x])
        found[scheme] = list(chains(diagnose(model, [x]).sums))
    assert [len(chain.sums) for chain in found["none"]] == [18, 18, 18]
    assert all(1.7 < chain.growth < 2.3 for chain in found["none"])
    assert all(0.98 < chain.growth < 1.02 for chain in found["rescale"])


# -- batches, padding, processes


def test_batches_one_by_one_are_all_samples_at_once():
    for kind in ("basic", "replicate"):
        model = narrow(kind).double()
        x = samples(kind, 32, 16 if kind == "basic" else 8, dtype=torch.float64)
        zoo.calibrate(model, [x])
        one, many = diagnose(model, [x]), diagnose(model, x.split(8))
        assert one.samples == many.samples == 32
        assert_close(many, one, 1e-10)
        for left, right in zip(one.activations, many.activations, strict=True):
            assert vars(left) == {**vars(right), "power": left.power}
        assert (one.input.mean, one.input.std) == pytest.approx((many.input.mean, many.input.std), rel=1e-12)
        assert (one.input.mean, one.input.std) == pytest.approx((float(x.mean()), float(x.std(correction=0))), rel=1e-9)


def test_batches_are_read_one_at_a_time():
    model = narrow("cifar", width=0.25)
    alive = []

    def batches():
        for _ in range(3):
            alive.append(samples("cifar", 2, 16))
            yield alive[-1]

    assert diagnose(model, batches()).samples == 6


def test_images_of_several_sizes_count_by_their_pixels():
    """The mean is over all values. Positions do not correspond, so that no units are counted."""
    model = narrow("cifar", width=0.25).double()
    batches = [samples("cifar", 2, size, dtype=torch.float64) for size in (16, 24)]
    outputs = []
    handle = model.layer1[0].conv1.register_forward_hook(lambda m, args, out: outputs.append(out.flatten().clone()))
    found = diagnose(model, batches)
    handle.remove()
    layer = next(layer for layer in found.layers if layer.name == "layer1.0.conv1")
    values = model.nominal("layer1.0.conv1", torch.cat(outputs))
    assert layer.power == pytest.approx(float(values.square().mean()), rel=1e-12)
    assert all(unit.units == 0 and math.isnan(unit.dead_units) for unit in found.activations)


@pytest.mark.parametrize("scheme", ["rescale", "post_ln", "pre_ln", "none"])
def test_padding_changes_no_number(scheme):
    """Four more positions of padding on both sides. The sentences that are longest have some then, too."""
    model, (source, target) = transformers.make(scheme), transformers.batch()
    padded = tuple(F.pad(x, (0, 4), value=PAD) for x in (source, target))
    found = diagnose(model, [padded], forward=translate)
    assert_close(found, diagnose(model, [(source, target)], forward=translate), 1e-10)


def test_text_of_each_sentence_alone_is_that_of_the_batch():
    """Without padding, as nothing is masked in a batch of one sentence."""
    model, (source, target) = transformers.make(), transformers.batch()
    single = [(s[s != PAD][None], t[t != PAD][None]) for s, t in zip(source, target, strict=True)]
    assert len({s.shape[1] for s, _ in single}) > 1
    found = diagnose(model, single, forward=translate, units=False)
    assert_close(found, diagnose(model, [(source, target)], forward=translate, units=False), 1e-10)


def test_two_processes_are_one():
    """``diagnose`` with ``reduce``, each process on its half, by the sums that another process would have sent."""
    model = narrow("basic").double()
    x = samples("basic", 8, 32, dtype=torch.float64)
    zoo.calibrate(model, [x])
    labels = torch.arange(8) % 5
    data = list(zip(x, labels, strict=True))
    batches = [(torch.stack([a for a, _ in part]), torch.stack([b for _, b in part])) for part in (data[:4], data[4:])]
    settings = {
        "forward": lambda net, batch: net(batch[0]),
        "loss": lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]),
    }
    sent = []
    diagnose(model, batches[1:], **settings, reduce=lambda flat: sent.append(flat) or flat)
    order = iter(sent)
    half = diagnose(model, batches[:1], **settings, reduce=lambda flat: flat + next(order))
    whole = diagnose(model, batches, **settings)
    assert_close(half, whole, 1e-10)
    assert half.loss == pytest.approx(whole.loss, rel=1e-12)
    assert half.samples == whole.samples == 8


TWO = """
import json, math, torch
from tasks.devices import make_accelerator
from tests.tasks.diagnose.test_measure import of_a_rank
accelerator = make_accelerator(timeout_minutes=1)
found = of_a_rank(accelerator.process_index, 2, lambda sums: accelerator.reduce(sums, "sum"))
if accelerator.is_main_process:
    print(json.dumps(found.as_dict()))
accelerator.end_training()
"""


def of_a_rank(rank, count, reduce):
    """The diagnosis of a process on its share of the samples."""
    torch.manual_seed(0)
    model, x = narrow("cifar", width=0.25).double(), samples("cifar", 8, 16, dtype=torch.float64)
    share = x.chunk(count)[rank]
    return diagnose(model, [share], loss=lambda net, batch: net(batch).square().mean(), reduce=reduce)


@pytest.mark.slow
def test_two_processes_of_torchrun_are_one(tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    variables = {**environment(), "PYTHONPATH": ":".join(path for path in sys.path if path)}
    command = [*launch, str(tmp_path / "two.py")]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    two, one = json.loads(done.stdout), of_a_rank(0, 1, None).as_dict()
    assert two["samples"] == one["samples"] == 8
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-12)
    for kind in ("layers", "sums", "activations"):
        for left, right in zip(two[kind], one[kind], strict=True):
            assert left.keys() == right.keys()
            for key, value in right.items():
                if isinstance(value, float):
                    assert left[key] == pytest.approx(value, rel=1e-9, abs=1e-12), (right["name"], key)
                else:
                    assert left[key] == value, (right["name"], key)


# -- gradients and updates


def classified(net, batch):
    return F.cross_entropy(net(batch[0]), batch[1])


def test_gradients_are_those_of_a_plain_backward():
    model = narrow("basic").double().eval()
    x, labels = samples("basic", 6, 32, dtype=torch.float64), torch.arange(6) % 5
    zoo.calibrate(model, [x])
    batches = [(x[:3], labels[:3]), (x[3:], labels[3:])]
    found = diagnose(model, batches, forward=lambda net, batch: net(batch[0]), loss=classified)
    loss = (classified(model, batches[0]) + classified(model, batches[1])) / 2
    loss.backward()
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-12)
    for layer in found.layers:
        module = model.get_submodule(layer.name)
        own = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
        assert layer.gradient_norm == pytest.approx(float(own.norm()), rel=1e-9), layer.name
    assert any(layer.gradient_norm > 0 for layer in found.layers)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_updates_are_those_of_a_step_by_hand(decay):
    """SGD: w' - w = -lr (g + decay w)."""
    model = narrow("cifar", width=0.25).double().eval()
    x, labels = samples("cifar", 6, 16, dtype=torch.float64), torch.arange(6) % 5
    zoo.calibrate(model, [x])

    def step(net):
        assert net is not model
        torch.optim.SGD(net.parameters(), lr=0.05, weight_decay=decay).step()

    settings = {"forward": lambda net, batch: net(batch[0]), "loss": classified, "step": step}
    found = diagnose(model, [(x, labels)], **settings)
    classified(model, (x, labels)).backward()
    for layer in found.products:
        weight = model.get_submodule(layer.name).weight
        update = 0.05 * (weight.grad + decay * weight.detach())
        assert layer.update_ratio == pytest.approx(float(update.norm() / weight.detach().norm()), rel=1e-9)
        assert layer.weight_norm == pytest.approx(float(weight.detach().norm()), rel=1e-12)


def test_weight_gain_of_he_is_the_root_of_two():
    weight = torch.nn.init.kaiming_normal_(torch.empty(512, 64, 3, 3))
    model = nn.Conv2d(64, 512, 3)
    model.weight.data.copy_(weight)
    layer = diagnose(model, [torch.randn(2, 64, 4, 4)]).layers[0]
    gain = float(weight.std(correction=0)) * math.sqrt(64 * 9)
    assert layer.weight_gain == pytest.approx(gain, rel=1e-4)  # of a mean that is nearly 0
    assert layer.weight_gain == pytest.approx(math.sqrt(2), rel=0.01)


def test_frozen_parameters_have_no_gradient():
    model = narrow("basic")
    model.freeze(2)
    batch = (samples("basic", 4, 32), torch.arange(4))
    found = diagnose(model, [batch], forward=lambda net, pair: net(pair[0]), loss=classified)
    frozen = {name for name, module in model.named_modules() if not any(p.requires_grad for p in module.parameters())}
    shown = [layer.name for layer in found.layers if math.isnan(layer.gradient_norm)]
    assert shown
    assert set(shown) == {layer.name for layer in found.layers} & frozen


def test_changes_relative_to_zero_are_unknown():
    before = {"a": torch.zeros(3, 2), "b": torch.ones(3, 2)}
    found = relative_changes(before, {name: value + 1 for name, value in before.items()})
    assert math.isnan(found["a"])
    assert found["b"] == pytest.approx(1)


# -- what a diagnosis requires and returns


def test_errors():
    with pytest.raises(UserError, match="diagnose: no batches; give at least one"):
        diagnose(narrow("cifar"), [])
    with pytest.raises(UserError, match="the forward of ReLU called no layer with weights"):
        diagnose(nn.ReLU(), [torch.randn(2, 3)])


def test_without_a_loss_the_report_states_what_is_missing():
    found = diagnose(narrow("cifar", width=0.25), [samples("cifar", 2, 16)])
    assert math.isnan(found.loss)
    assert found.notes == ("no loss: gradients and updates were not computed",)
    assert all(math.isnan(layer.gradient_norm) for layer in found.layers)


def test_the_numbers_are_json():
    content = diagnose(narrow("cifar", width=0.25), [samples("cifar", 2, 16)], label="small").as_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == json.loads(json.dumps(content))
    assert content["label"] == "small"
    assert content["loss"] is None
    assert content["sums"][0]["growth"] == pytest.approx(content["sums"][0]["power"] / content["sums"][0]["previous"])


@pytest.mark.parametrize("kind", ["own", "torchvision"])
def test_a_mask_head_without_objects_has_no_rows(kind):
    """A fresh detector finds none, and its mask head reads a map of 0 boxes."""
    if kind == "own":
        model, image = small(score_thresh=0.99).eval(), torch.rand(3, 96, 96)
    else:
        body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, padding=1), nn.ReLU())
        body.out_channels = 8
        pools = [MultiScaleRoIAlign(["0"], size, 2) for size in (7, 14)]
        anchors = AnchorGenerator(((16,),), ((1.0,),))
        model = MaskRCNN(
            body,
            5,
            min_size=32,
            max_size=32,
            rpn_anchor_generator=anchors,
            box_roi_pool=pools[0],
            mask_roi_pool=pools[1],
            box_score_thresh=0.99,
        ).eval()
        image = torch.rand(3, 32, 32)
    found = diagnose(model, [[image]])
    assert not model([image])[0]["boxes"].numel()
    assert found.samples == 1
    assert not [layer.name for layer in found.layers if "mask" in layer.name]
    assert [name for name in found.unreached if "mask" in name]
    assert all(math.isfinite(layer.power) for layer in found.layers)


# -- modes, buffers and batches


@pytest.mark.parametrize("training", [True, False])
def test_frozen_norms_keep_their_statistics(training):
    model = narrow("cifar", scheme="bn")
    model.freeze(2)
    model.train(training)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    frozen = [norm for module in model.frozen for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]
    assert 0 < len(frozen) < len(norms)
    with as_in_training(model):
        assert {norm for norm in norms if not norm.training} == set(frozen)
        with keeping_norms(model, evaluating(model)):  # as a loss in evaluation mode
            assert {norm for norm in norms if not norm.training} == set(frozen)
            assert not model.training
    assert {norm.training for norm in norms if norm not in frozen} == {training}


def test_a_norm_that_its_user_has_frozen_stays_so():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    model[1].eval()
    with as_in_training(model):
        assert [model[1].training, model[3].training] == [False, True]


class Positions(nn.Module):
    """A buffer that the forward makes, and one that it replaces, as those of positions."""

    def __init__(self):
        super().__init__()
        self.register_buffer("made", None)
        self.register_buffer("kept", torch.zeros(2))
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        self.made = torch.ones(len(x))
        self.kept = torch.ones(len(x))
        if x.shape[1] != 4:
            raise ValueError("refused")
        return self.linear(x)


def test_buffers_that_the_forward_replaces_are_put_back():
    model = Positions()
    kept = model.kept
    diagnose(model, [torch.randn(8, 4)])
    assert model.made is None
    assert model.kept is kept
    assert kept.tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="refused"):
        diagnose(model, [torch.randn(8, 3)])
    assert model.kept is kept


IMAGE = torch.zeros(3, 8, 8)


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (torch.zeros(5, 3, 8, 8), 5),
        ((torch.zeros(5, 3, 8, 8), torch.zeros(5)), 5),
        ([torch.zeros(5, 3, 8, 8), torch.zeros(5)], 5),  # of torch's default_collate
        ([IMAGE, IMAGE], 2),
        (([IMAGE, IMAGE], [{}, {}]), 2),
        ({"images": torch.zeros(4, 2), "ids": torch.zeros(4)}, 4),
        (torch.tensor(1.0), 1),
    ],
)
def test_samples_of_a_batch(batch, count):
    assert _length(batch) == count


def test_a_net_of_frozen_parameters_has_no_gradients():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3)).requires_grad_(False)
    found = diagnose(model, [samples("cifar", 4, 8)], loss=lambda net, x: net(x).square().mean())
    assert "all parameters are frozen: there are no gradients and no updates" in found.notes
    assert found.loss > 0
    assert all(math.isnan(layer.gradient_norm) for layer in found.layers)


def test_gradients_of_a_scaled_loss_are_those_of_the_loss():
    model, x = narrow("cifar").double(), samples("cifar", 4, 16, dtype=torch.float64)

    def loss(net, batch):
        return net(batch).square().mean()

    plain, scaled = (diagnose(model, [x], loss=loss, loss_scale=scale) for scale in (1.0, 1024.0))
    assert_close(scaled, plain, 1e-12)
    assert scaled.loss == plain.loss


def test_a_parameter_that_one_process_alone_uses():
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)])
    x = torch.randn(4, 2)

    def work(rank, reduce):
        gradients = Gradients(model)
        gradients.add(model[rank](x).sum())
        gradients.finish(reduce)
        return gradients

    for found in on_threads(2, work):
        assert set(found.sums) == {"0.weight", "0.bias", "1.weight", "1.bias"}  # no process has used the last one
        torch.testing.assert_close(found.sums["1.weight"], x.sum(0).expand(2, 2) / 2)


def test_a_process_without_batches_ends_all():
    model = nn.Linear(2, 2)
    errors = on_threads(
        2, lambda rank, reduce: diagnose(copy.deepcopy(model), [torch.ones(3, 2)] * rank, reduce=reduce)
    )
    assert [str(error) for error in errors] == ["diagnose: no batches; give at least one to each process"] * 2


@pytest.mark.parametrize(
    "parametrization", [nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.weight_norm]
)
def test_weights_that_are_computed_from_others(parametrization):
    """The norm is that of the weight in use; gradient and update are those of the parameters behind it."""
    torch.manual_seed(0)
    model = nn.Sequential(parametrization(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 1)).double()
    x = samples("cifar", 4, 8, dtype=torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def step(net):
        torch.optim.SGD(net.parameters(), 0.1).step()

    found = diagnose(model, [x], loss=lambda net, batch: net(batch).square().mean(), step=step)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    conv, head = found.layers
    assert (conv.name, head.name) == ("0", "3")
    assert conv.weight_norm == pytest.approx(float(model[0].weight.detach().norm()), rel=1e-12)
    model(x).square().mean().backward()
    originals = model[0].parametrizations.weight
    gradients = [p.grad for p in (*originals.parameters(recurse=False), model[0].bias)]
    assert conv.gradient_norm == pytest.approx(math.hypot(*(float(g.norm()) for g in gradients)), rel=1e-9)
    main = max(originals.parameters(recurse=False), key=lambda p: p.numel())
    assert conv.update_ratio == pytest.approx(0.1 * float(main.grad.norm() / main.detach().norm()), rel=1e-9)


def test_a_place_with_another_number_of_channels_is_noted():
    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.first, self.second = nn.ReLU(), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return self.act(self.first(x) if self.calls == 1 else self.second(x))

    found = diagnose(Growing(), [samples("cifar", 2, 8)] * 2)
    assert found.notes[0] == "only the first number of channels counts at act"

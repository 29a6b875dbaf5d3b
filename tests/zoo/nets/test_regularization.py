"""Stochastic depth and noise at the end of branches: rates, moments, places, and what they leave alone."""

import copy
from argparse import Namespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import stochastic_depth

import zoo
from tests.helpers import transformers
from tests.helpers.nets import narrow, samples
from zoo.convert.fairseq import from_fairseq, to_fairseq
from zoo.errors import ZooError
from zoo.nets.regularization import BranchEnd, normal_like
from zoo.trunk import TrunkBlock

OPTIONS = {"drop_path_rate": 0.5, "branch_noise": 0.1}
VISION = [(kind, scheme) for kind in ("cifar", "r3d") for scheme in ("rescale", "bn", "gn", "none")]


def blocks_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, TrunkBlock)}


def rates(model):
    return [block.branch_end.drop_path.p for block in blocks_of(model).values()]


# -- the options ----------------------------------------------------------------------------------------


def test_the_rate_grows_linearly_to_the_given_one():
    """Huang et al. 2016: branch k of L is left out with probability k / L times the last one's."""
    assert rates(narrow("cifar", drop_path_rate=0.45)) == pytest.approx([0.05 * k for k in range(1, 10)])
    assert rates(narrow("r3d", drop_path_rate=0.8)) == pytest.approx([0.1 * k for k in range(1, 9)])
    # each stack of a Transformer counts its own branches: 2 encoder layers have 4, 3 decoder layers have 9
    model = transformers.make(drop_path_rate=0.36, calibrated=False)
    encoder = [0.09, 0.18, 0.27, 0.36]
    decoder = [0.04, 0.08, 0.12, 0.16, 0.2, 0.24, 0.28, 0.32, 0.36]
    assert rates(model) == pytest.approx(encoder + decoder)


@pytest.mark.parametrize("options", [{"drop_path_rate": 0.0, "branch_noise": 0.0}, {"drop_path_rate": 0}])
def test_options_that_are_off_add_no_module(options):
    for plain, model in (
        (narrow("cifar"), narrow("cifar", **options)),
        (transformers.make(), transformers.make(**options)),
    ):
        assert str(plain) == str(model)
        assert plain.state_dict().keys() == model.state_dict().keys()
        assert all(block.branch_end is None for block in blocks_of(model).values())


def test_each_option_adds_its_module_and_no_tensor():
    plain = narrow("cifar")
    for option, kept in (("drop_path_rate", "drop_path"), ("branch_noise", "noise")):
        model = narrow("cifar", **{option: 0.2})
        assert [name for name, _ in model.layer1[0].branch_end.named_children()] == [kept]
        assert plain.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("drop_path_rate", 1.0, r"option drop_path_rate=1.0: must be in \[0, 1\)"),
        ("drop_path_rate", -0.1, r"option drop_path_rate=-0.1: must be in \[0, 1\)"),
        ("branch_noise", -0.1, "option branch_noise=-0.1: must be >= 0"),
        ("branch_noise", float("inf"), "option branch_noise=inf"),
    ],
)
@pytest.mark.parametrize("name", ["rescalenet20_cifar", "rescale_r3d_10", "rescale_transformer_tiny"])
def test_values_out_of_range_are_refused(name, option, value, message):
    with pytest.raises(ZooError, match=message):
        zoo.create_model(name, **{option: value})


def test_nets_without_branches_do_not_have_the_options():
    with pytest.raises(ZooError, match="has no option 'drop_path_rate'"):
        zoo.create_model("rescalevgg16", drop_path_rate=0.1)


def test_weights_take_the_options():
    """No weight depends on them, so they may differ from those of the weights; evaluation is the same."""
    plain = zoo.create_model("rescalenet20_cifar", "cifar10").eval()
    model = zoo.create_model("rescalenet20_cifar", "cifar10", **OPTIONS).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain(x), model(x))
    assert model.config.options.items() >= OPTIONS.items()


def test_the_body_of_a_detector_with_weights_takes_the_options():
    """Beside the weights' own options of the body, which may be given again but not changed."""
    name = "mask_rcnn_rescalenet18_fpn"
    plain = zoo.create_model(name, "nuclei").eval()
    model = zoo.create_model(name, "nuclei", body={"width": 0.375, **OPTIONS}).eval()
    assert model.config.options["body"] == {**plain.config.options["body"], **OPTIONS}
    image = torch.rand(1, 3, 64, 96)
    for one, other in zip(plain.backbone(image).values(), model.backbone(image).values(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ZooError, match=r"have option width=0.375, not 0.5; leave it out"):
        zoo.create_model(name, "nuclei", body={"width": 0.5})


def test_fairseq_gets_the_options(tmp_path, caplog):
    """The plug-in's checkpoint has them; fairseq's own Transformer has no such arguments, which is reported."""
    arguments, state = to_fairseq(transformers.make(**OPTIONS))
    torch.save({"args": Namespace(**arguments), "model": state}, tmp_path / "checkpoint.pt")
    again = from_fairseq(tmp_path / "checkpoint.pt")
    assert {key: getattr(again.layout, key) for key in OPTIONS} == OPTIONS
    arguments, _ = to_fairseq(transformers.make("pre_ln", **OPTIONS))
    assert not arguments.keys() & OPTIONS.keys()
    assert "fairseq's transformer has no drop_path_rate, branch_noise, which is left out" in caplog.text


# -- the numbers ----------------------------------------------------------------------------------------


def test_the_mean_is_the_branch_and_the_variance_is_that_of_the_formula():
    """y = keep (F + e) / (1 - p): E y = F, Var y = (F^2 + std^2) / (1 - p) - F^2, to five standard errors."""
    torch.manual_seed(0)
    p, std, count = 0.25, 0.3, 40000
    branch = torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64)
    y = BranchEnd(std, p)(branch.expand(count, 3))
    variance = (branch.square() + std**2) / (1 - p) - branch.square()
    assert ((y.mean(0) - branch).abs() < 5 * (variance / count).sqrt()).all()
    torch.testing.assert_close(y.var(0), variance, rtol=0.05, atol=0)
    # one mask for all values of a sample, noise of its own for each value
    left_out = y == 0
    assert torch.equal(left_out.any(1), left_out.all(1))
    assert left_out[:, 0].double().mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / count) ** 0.5)
    noise = y[~left_out[:, 0]] * (1 - p) - branch
    torch.testing.assert_close(noise.T.cov(), std**2 * torch.eye(3, dtype=torch.float64), rtol=0.05, atol=0.002)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4, 5, 6), (2, 5, 3), (1, 4, 1, 1)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_numbers_are_drawn_in_the_order_of_memory(shape, channels_last):
    x = torch.zeros(shape, dtype=torch.float64)
    if channels_last and len(shape) > 3:
        x = x.to(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)
    torch.manual_seed(0)
    drawn = normal_like(x)
    torch.manual_seed(0)
    in_order = torch.randn(x.numel(), dtype=torch.float64)
    assert torch.equal(drawn.as_strided((x.numel(),), (1,)), in_order)
    assert (drawn.shape, drawn.dtype) == (x.shape, x.dtype)
    assert [n for n, size in zip(drawn.stride(), shape, strict=True) if size > 1] == [
        n for n, size in zip(x.stride(), shape, strict=True) if size > 1
    ]


def noise_seen_at(model, name, block, *inputs):
    """What the noise of one block changes in the sum, in the values of the formulas."""
    seen = []

    def watch(module, arguments, output):
        seen.append(model.nominal(f"{name}.join", output.detach().clone()))

    handle = block.join.register_forward_hook(watch)
    model.eval()(*inputs)
    block.branch_end.train()
    model(*inputs)
    handle.remove()
    return seen[1] - seen[0]


def test_the_noise_has_its_deviation_in_the_values_of_the_formulas():
    """Trunks are stored at scales, and the noise of every scheme is the same number there: absolute, by no weight."""
    torch.manual_seed(0)
    model = narrow("cifar", branch_noise=0.2)
    scales = {row.module: row.scale_out for row in model.trunk_scales.rows}
    assert scales["layer1.0"] < 0.95  # or the test would prove nothing
    x = samples("cifar", 8, 32)
    for name in ("layer1.0", "layer2.0", "layer3.2"):
        noise = noise_seen_at(model, name, model.get_submodule(name), x)
        assert noise.std().item() == pytest.approx(0.2, rel=0.03)
        assert noise.mean().item() == pytest.approx(0, abs=0.01)
    model = transformers.make(branch_noise=0.2)
    assert {row.module: row.scale_out for row in model.trunk_scales.rows}["encoder.1.ffn"] > 1.2
    for name in ("encoder.1.ffn", "decoder.2.cross_attn"):
        noise = noise_seen_at(model, name, model.get_submodule(name), *transformers.batch(20))
        assert noise.std().item() == pytest.approx(0.2, rel=0.05)


class Times(nn.Module):
    """The branch times a factor for each sample."""

    def __init__(self, factors):
        super().__init__()
        self.factors = factors

    def forward(self, branch):
        return branch * self.factors.view(-1, *[1] * (branch.ndim - 1))


def with_torchvisions_masks(model, seed, count):
    """The net in evaluation mode, its branches multiplied by what torchvision's stochastic depth draws."""
    other = copy.deepcopy(model).eval()
    torch.manual_seed(seed)
    for block in blocks_of(other).values():
        ones = torch.ones(count, 1, dtype=torch.float64)
        block.branch_end = Times(stochastic_depth(ones, block.branch_end.drop_path.p, "row").flatten())
    return other


def regularized(model):
    """The net in evaluation mode, except the ends of its branches."""
    model.eval()
    for block in blocks_of(model).values():
        block.branch_end.train()
    return model


@pytest.mark.parametrize(("kind", "scheme"), VISION)
def test_whole_branches_of_samples_are_left_out(kind, scheme):
    """With torchvision's masks for the same seed, in float64 to the bit: identity and projection blocks, any scheme."""
    model = narrow(kind, scheme=scheme, drop_path_rate=0.5).double()
    x = samples(kind, 6, 24, dtype=torch.float64)
    expected = with_torchvisions_masks(model, 3, 6)(x)
    torch.manual_seed(3)
    assert torch.equal(regularized(model)(x), expected)
    assert not torch.equal(model.eval()(x), expected)


@pytest.mark.parametrize("scheme", transformers.SCHEMES)
def test_whole_branches_of_sentences_are_left_out(scheme):
    """As above; the encoder's masks are drawn first."""
    model = transformers.make(scheme, drop_path_rate=0.5)
    inputs = transformers.batch(6)
    expected = with_torchvisions_masks(model, 3, 6)(*inputs)
    torch.manual_seed(3)
    assert torch.equal(regularized(model)(*inputs), expected)
    assert not torch.equal(model.eval()(*inputs), expected)


# -- what they leave alone ------------------------------------------------------------------------------


class Names(TorchDispatchMode):
    """Records the names of operations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_the_noise_costs_two_operations_and_none_in_backward():
    branch = torch.randn(2, 3, 4, 4, requires_grad=True)
    end = BranchEnd(0.1, 0.0)
    with Names() as forward:
        y = end(branch)
    assert [name for name in forward.names if name != "permute"] == ["randn", "add"]
    with torch.autograd.set_multithreading_enabled(False), Names() as backward:
        torch.autograd.grad(y, branch, torch.ones_like(y))
    assert not {"mul", "add", "clone"} & set(backward.names)
    with Names() as evaluation:
        BranchEnd(0.1, 0.5).eval()(branch)
    assert evaluation.names == []


def test_evaluation_and_the_deployment_form_have_none_of_it():
    x, inputs = samples("cifar", 2, 32), transformers.batch()
    for make, arguments in ((lambda **o: narrow("cifar", **o), (x,)), (transformers.make, inputs)):
        plain, model = make(), make(**OPTIONS)
        model.load_state_dict(plain.state_dict())
        before = torch.get_rng_state()
        assert torch.equal(model.eval()(*arguments), plain.eval()(*arguments))
        assert torch.equal(before, torch.get_rng_state())  # nothing was drawn
        folded = zoo.fold(model).train()
        assert [type(m) for m in folded.modules()] == [type(m) for m in zoo.fold(plain).modules()]
        assert torch.equal(folded(*arguments), zoo.fold(plain)(*arguments))


def test_calibration_sees_none_of_it():
    plain = narrow("cifar")
    model = narrow("cifar", **OPTIONS)
    model.load_state_dict(plain.state_dict())
    x = samples("cifar", 4, 32)
    for net in (plain, model):
        for module in net.modules():
            if hasattr(module, "calibrated"):
                module.calibrated = False
        zoo.calibrate(net.train(), [x])
    for key, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])


def test_compilers_and_exporters_take_it_without_a_break():
    """A compiled training step draws the same numbers, and an exported net has the operations of a plain one."""
    model = narrow("cifar", **OPTIONS).train()
    x = samples("cifar", 2, 16)
    outputs = []
    for net in (model, torch.compile(model, backend="eager", fullgraph=True)):
        torch.manual_seed(4)
        outputs.append(net(x))
    torch.testing.assert_close(*outputs)
    graphs = [
        [node.target for node in torch.export.export(net.eval(), (x,)).graph.nodes if node.op == "call_function"]
        for net in (model, narrow("cifar"))
    ]
    assert graphs[0] == graphs[1]

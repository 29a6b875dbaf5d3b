"""Frozen levels of a net, and its parameter groups by level."""

import copy

import pytest
import torch
from torch import nn

import zoo
from tests.helpers.nets import narrow
from zoo.errors import ZooError
from zoo.nets.parameters import parameters_by_level

LEVELS = ["stem", "layer1", "layer2", "layer3", "layer4"]


@pytest.mark.parametrize("scheme", ["rescale", "bn"])
@pytest.mark.parametrize("levels", range(6))
def test_frozen_levels(scheme, levels):
    """No gradients, statistics or dropout in the first levels, also after ``train`` and in a copy; the rest trains."""
    random = {"branch_drop_rate": 0.5, "drop_rate": 0.5, "drop_path_rate": 0.5, "branch_noise": 0.1}
    model = narrow("basic", scheme=scheme, **random)
    model.freeze(levels)
    model.freeze(0)  # changes nothing
    model = copy.deepcopy(model).eval().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(2, 3, 32, 32)
    model(x).square().sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad + 1e-3
    fixed = set(LEVELS[:levels])
    for name, module in model.named_modules():
        if name and (type(module).__name__.startswith(("Dropout", "BatchN", "BranchN", "Stoch")) or name in LEVELS):
            assert module.training == (name.split(".")[0] not in fixed), name
    for key, value in model.state_dict().items():
        if "multiplier" not in key:  # the gradient of some is 0
            assert torch.equal(value, before[key]) == (key.split(".")[0] in fixed), key
    assert all(p.grad is None for name, p in model.named_parameters() if name.split(".")[0] in fixed)
    # frozen levels are a pure function of the input
    if levels:
        first, second = (model.forward_levels(x)[levels - 1] for _ in range(2))
        assert torch.equal(first, second)
        assert not first.requires_grad


def test_too_many_levels_are_refused():
    with pytest.raises(ZooError, match=r"freeze=6: must be 0 to 5, the levels of rescalenet18"):
        zoo.create_model("rescalenet18", width=0.125).freeze(6)
    with pytest.raises(ZooError, match=r"freeze=-1: must be 0 to 5"):
        zoo.create_model("rescalenet18", width=0.125, features_only=True).freeze(-1)


def test_parameters_by_level():
    model = narrow("basic")
    levels = parameters_by_level(model)
    assert list(levels) == [*LEVELS, "head"]
    assert levels["head"] == ["head_bias.bias", "fc.weight", "fc.bias"]
    assert sorted(name for names in levels.values() for name in names) == sorted(n for n, _ in model.named_parameters())
    around = parameters_by_level(nn.Sequential(nn.Linear(2, 2), model))
    assert around["layer2"] == [f"1.{name}" for name in levels["layer2"]]
    assert around["head"] == ["0.weight", "0.bias", *(f"1.{name}" for name in levels["head"])]
    vgg = parameters_by_level(zoo.create_model("rescalevgg16", num_classes=3, width=0.0625))
    assert list(vgg) == ["stage1", "stage2", "stage3", "stage4", "stage5", "head"]  # pooling has no parameters
    assert list(parameters_by_level(nn.Linear(2, 2))) == ["head"]


@pytest.mark.parametrize("name", ["rescalenet18", "rescale_r3d_10"])
def test_rates_by_level(name):
    """The rate of each parameter is that of its kind, times decay**(distance from the head), or the head's factor."""
    model = zoo.create_model(name, num_classes=3, width=0.25)
    groups = zoo.param_groups(model, 0.1, multiplier_lr=0.5, bias_lr=0.25, layer_decay=0.75, head_lr=10.0)
    by_level = {"head": 10.0, "layer4": 0.75, "layer3": 0.75**2, "layer2": 0.75**3, "layer1": 0.75**4, "stem": 0.75**5}
    by_kind = {"weights": 1.0, "others": 1.0, "data_biases": 0.25, "multipliers": 0.5}
    found = {name: group for group in groups for name in group["names"]}
    assert sorted(found) == sorted(name for name, _ in model.named_parameters())
    for name, group in found.items():
        level = name.split(".")[0] if name.split(".")[0] in by_level else "head"
        assert group["lr_scale"] == pytest.approx(by_level[level] * by_kind[group["group"]], rel=1e-12), name
        assert group["weight_decay"] == (0.1 if group["group"] == "weights" else 0.0)
    alone = zoo.param_groups(model, 0.1, head_lr=10.0)
    assert {group["lr_scale"] for group in alone} == {1.0, 10.0}


def test_rates_by_level_require_levels():
    with pytest.raises(ZooError, match=r"layer_decay=0.5, head_lr=1.0: must be 1 for a model without levels"):
        zoo.param_groups(nn.Linear(2, 2), 0.1, layer_decay=0.5)


def test_a_body_without_a_head_decays_from_where_the_head_would_be():
    body = zoo.create_model("rescalenet18", width=0.125, features_only=True)
    groups = zoo.param_groups(body, 0.0, layer_decay=0.5)
    assert {g["lr_scale"] for g in groups for name in g["names"] if ".layer4." in name} == {0.5}


def test_converted_nets_leave_their_fixed_scales_out():
    """The factors of the weights are in no group, until they are trained: then without weight decay."""
    model = zoo.convert.from_batchnorm(narrow("basic", scheme="bn"))
    scales = {name for name, _ in model.named_parameters() if name.endswith("weight_scale")}
    assert scales
    names = {name for group in zoo.param_groups(model, 0.1) for name in group["names"]}
    assert names == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not names & scales
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    found = {name: group for group in zoo.param_groups(model, 0.1, bias_lr=0.5) for name in group["names"]}
    for name in scales:
        post_bias = name.removesuffix("weight_scale") + "bias"
        if name.startswith("stem"):  # whose only bias is the one that data initialise
            continue
        for key in (name, post_bias):
            assert (found[key]["group"], found[key]["weight_decay"], found[key]["lr_scale"]) == ("others", 0.0, 1.0)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_levels_of_a_wrapped_net(wrap):
    """The wrapper of torch.compile has the attributes of the net inside, which is no net with levels by itself."""
    model = narrow("basic")
    sizes = {level: len(names) for level, names in parameters_by_level(model).items()}
    assert {level: len(names) for level, names in parameters_by_level(wrap(model)).items()} == sizes
    plain, wrapped = (zoo.param_groups(net, 0.1, layer_decay=0.5) for net in (model, wrap(model)))
    assert [group["lr_scale"] for group in wrapped] == [group["lr_scale"] for group in plain]
    assert [list(map(id, group["params"])) for group in wrapped] == [list(map(id, group["params"])) for group in plain]

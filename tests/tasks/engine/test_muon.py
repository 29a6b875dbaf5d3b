"""Muon: torch's own, filters as matrices, orthogonal updates, who takes what, and its checkpoints."""

import copy
import io

import pytest
import torch
from torch import nn

import zoo
from tasks.config import AdamWRule, Muon, SGDRule
from tasks.engine import Trainer, make_optimizer
from tasks.engine import muon as ours
from tasks.engine.muon import JoinedOptimizer, orthogonalized
from tasks.engine.optimizer import describe_levels
from tasks.errors import ConfigError
from tasks.spec import make_task
from tests.helpers.detection import small
from tests.helpers.nets import narrow
from tests.helpers.training import config
from tests.helpers.transformers import make
from zoo.nets.parameters import input_parameters, packed_matrices

ADAMW = AdamWRule(lr=0.003, weight_decay=0.05)
SECTION = Muon(lr=0.02, weight_decay=0.1, rest=ADAMW)


def weight(*shape):
    return nn.Parameter(torch.randn(shape))


def steps(optimizer, parameters, count=4, seed=1):
    """Steps with the same random gradients for each call."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        optimizer.step()


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (8, 8), (1, 7)])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_matrices_equal_torchs_muon_to_the_bit(shape, nesterov, adjust):
    own = weight(*shape)
    theirs = nn.Parameter(own.detach().clone())
    settings = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov, "adjust_lr_fn": adjust}
    steps(ours.Muon([own], **settings), [own])
    steps(torch.optim.Muon([theirs], **settings), [theirs])
    assert torch.equal(own, theirs)


@pytest.mark.parametrize("shape", [(6, 2, 3, 3), (40, 2, 1, 1), (6, 2, 3, 3, 3)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_filters_are_the_matrix_of_their_rows(shape, layout):
    """To the bit that of torch's Muon, whatever the layout of weight, gradient and buffer."""
    matrix = weight(shape[0], torch.Size(shape[1:]).numel())
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    memory_format = formats[len(shape)] if layout == "channels_last" else torch.contiguous_format
    filters = nn.Parameter(matrix.detach().reshape(shape).contiguous(memory_format=memory_format))
    theirs, own = torch.optim.Muon([matrix], lr=0.02), ours.Muon([filters], lr=0.02)
    for _ in range(3):
        matrix.grad = torch.randn_like(matrix)
        filters.grad = matrix.grad.reshape(shape).contiguous(memory_format=memory_format)
        theirs.step()
        own.step()
    assert torch.equal(filters.detach().flatten(1), matrix)
    assert filters.is_contiguous(memory_format=memory_format)


def test_packed_matrices_are_orthogonalized_by_themselves():
    """To the rounding of bfloat16: a batch of products may add in another order."""
    packed, whole = weight(12, 3, 2, 2), weight(12, 3, 2, 2)
    parts = [nn.Parameter(part.clone()) for part in packed.detach().chunk(4)]
    packed.grad = whole.grad = torch.randn_like(packed)
    for part, gradient in zip(parts, packed.grad.chunk(4), strict=True):
        part.grad = gradient.clone()
    before = packed.detach().clone(), whole.detach().clone()
    ours.Muon([{"params": [packed], "matrices": 4}], lr=0.5, weight_decay=0).step()
    ours.Muon(parts, lr=0.5, weight_decay=0).step()
    ours.Muon([whole], lr=0.5, weight_decay=0).step()
    torch.testing.assert_close(packed.detach(), torch.cat(parts).detach(), rtol=0, atol=2e-2)
    assert not torch.allclose(packed.detach() - before[0], whole.detach() - before[1], rtol=0, atol=0.1)


def test_matrices_of_one_shape_are_updated_as_each_alone():
    """Also where filters and a linear layer have the same matrix; to the rounding of bfloat16."""
    shapes = [(8, 2, 3, 3), (8, 18), (8, 2, 3, 3), (5, 18), (8, 18)]
    together = [weight(*shape) for shape in shapes]
    alone = [nn.Parameter(parameter.detach().clone()) for parameter in together]
    settings = {"lr": 0.1, "weight_decay": 0.1}
    steps(ours.Muon(together, **settings), together)
    generator = torch.Generator().manual_seed(1)
    optimizers = [ours.Muon([parameter], **settings) for parameter in alone]
    for _ in range(4):
        for parameter, optimizer in zip(alone, optimizers, strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=5e-3)


def test_packed_matrices_of_one_shape_and_other_layouts_keep_their_places():
    """Two weights of two matrices each, and two filters that differ in their layout in memory."""
    packed = [weight(12, 7), weight(12, 7)]
    filters = [weight(6, 4, 3, 3), nn.Parameter(torch.randn(6, 4, 3, 3).contiguous(memory_format=torch.channels_last))]
    alone = [nn.Parameter(parameter.detach().clone()) for parameter in (*packed, *filters)]
    groups = [{"params": packed, "matrices": 2}, {"params": filters}]
    steps(ours.Muon(groups, lr=0.1), (*packed, *filters), count=1)
    for parameter, single in zip((*packed, *filters), alone, strict=True):
        single.grad = parameter.grad
        ours.Muon([{"params": [single], "matrices": 2 if single.ndim == 2 else 1}], lr=0.1).step()
        torch.testing.assert_close(parameter, single, rtol=0, atol=5e-3)


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (3, 16, 40)])
def test_updates_are_nearly_orthogonal(shape):
    """Singular values within the published 0.7 to 1.2, and the singular vectors of the matrix."""
    matrix = torch.randn(shape)
    update = orthogonalized(matrix, 5).float()
    values = torch.linalg.svdvals(update)
    assert values.min() > 0.6
    assert values.max() < 1.25
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    between = u.mT @ update @ v.mT  # diagonal for the same singular vectors
    off_diagonal = between - torch.diag_embed(between.diagonal(dim1=-2, dim2=-1))
    assert off_diagonal.abs().max() < 0.03


def taken(model, section=SECTION):
    """The names of Muon's parameters by their number of matrices, and the groups of the others."""
    optimizer = make_optimizer(model, section)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muon, rest = optimizer.parts
    found = {}
    for group in muon.param_groups:
        found.setdefault(group["matrices"], set()).update(names[id(p)] for p in group["params"])
    others = {names[id(p)]: group for group in rest.param_groups for p in group["params"]}
    assert sorted([*others, *(name for group in found.values() for name in group)]) == sorted(names.values())
    return found, others


def weights(model):
    return {name for name, p in model.named_parameters() if p.ndim > 1}


def test_a_classifier_leaves_its_first_and_last_layer_to_the_other_optimizer():
    model = narrow("basic")
    found, others = taken(model)
    assert found == {1: weights(model) - {"stem.conv1.weight", "fc.weight"}}
    assert others["fc.weight"]["weight_decay"] == others["stem.conv1.weight"]["weight_decay"] == 0.05
    assert others["fc.bias"]["weight_decay"] == 0
    vgg = zoo.create_model("rescalevgg16", num_classes=3, width=0.0625)
    assert taken(vgg)[0] == {1: weights(vgg) - {"stage1.conv1.weight", "fc.weight"}}


def test_grouped_filters():
    model = zoo.create_model("rescalenext50_32x4d", num_classes=3, width=0.25)
    found, _ = taken(model)
    assert found[32] == {name for name in weights(model) if name.endswith("conv2.weight") and "layer" in name}
    assert packed_matrices(model) == dict.fromkeys(found[32], 32)


@pytest.mark.parametrize("share", ["all", "decoder", "none"])
def test_a_transformer_leaves_embeddings_and_the_output_matrix(share):
    model = make(share=share)
    found, others = taken(model)
    ends = {name for name in weights(model) if "embedding" in name or "projection" in name}
    assert len(ends) == {"all": 1, "decoder": 2, "none": 3}[share]
    assert weights(model) & others.keys() == ends
    assert found[3] == {name for name in weights(model) if name.endswith("qkv.weight")}
    assert found[2] == {name for name in weights(model) if name.endswith("key_value.weight")}
    assert input_parameters(model) == {name for name in ends if "embedding" in name}


def test_a_detector_leaves_its_stem_and_predictors():
    model = small()
    _, others = taken(model)
    kept = weights(model) & others.keys()
    assert {name.split(".")[-2] for name in kept} == {
        "conv1",
        "cls_logits",
        "bbox_pred",
        "cls_score",
        "conv5_mask",
        "mask_fcn_logits",
    }
    assert [name for name in kept if "conv1" in name] == ["backbone.body.body.stem.conv1.weight"]


@pytest.mark.parametrize("rest", [ADAMW, SGDRule(lr=0.1, momentum=0.8)])
def test_rates_of_kinds_and_levels(rest):
    section = Muon(lr=0.02, rest=rest, multiplier_lr=0.5, bias_lr=0.25, layer_decay=0.5, head_lr=2.0)
    model = narrow("basic")
    model.freeze(1)
    optimizer = make_optimizer(model, section)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert not [name for name in rates if name.startswith("stem")]
    assert rates["fc.weight"] == rest.lr * 2
    assert rates["head_bias.bias"] == rest.lr * 2 * 0.25
    assert rates["layer4.0.conv1.weight"] == 0.02 * 0.5
    assert rates["layer4.0.conv1.pre_bias"] == rest.lr * 0.5 * 0.25
    assert rates["layer1.0.join.multiplier"] == rest.lr * 0.5**4 * 0.5
    assert type(optimizer.parts[1]) is (torch.optim.AdamW if rest is ADAMW else torch.optim.SGD)
    lines = describe_levels(model, section)
    assert lines[0].endswith("frozen")
    assert lines[-1].endswith(f"peak rate 0.04, without Muon {rest.lr * 2:.4g}")


def test_one_schedule_scales_both_rates(images, tmp_path):
    """The log has Muon's rate."""
    optimizer = SECTION.model_dump()
    schedule = {"name": "multistep", "milestones": [1]}
    trainer = Trainer(make_task(config(images, tmp_path, optimizer=optimizer, schedule=schedule)))
    trainer.at.epoch = 1
    trainer.batches.seek(0, 0)
    trainer._step([next(iter(trainer.loader))])
    assert trainer.lr == pytest.approx(0.002)
    muon, rest = trainer.optimizer.optimizer.parts
    assert {group["lr"] for group in muon.param_groups} == {0.02 * 0.1}
    assert {group["lr"] for group in rest.param_groups} == {0.003 * 0.1}


def test_nothing_hidden_is_trained():
    model = narrow("basic")
    model.freeze(5)
    with pytest.raises(ConfigError, match=r"train.optimizer.name=muon: no matrix or filter .* others, adamw, for all"):
        make_optimizer(model, SECTION)


def test_joined_optimizers_share_their_groups_before_and_after_loading():
    first, second = weight(3, 4), weight(3)
    joined = JoinedOptimizer([ours.Muon([first], lr=0.1), torch.optim.AdamW([second], lr=0.2)])
    steps(joined, [first, second])
    file = io.BytesIO()
    torch.save(joined.state_dict(), file)
    file.seek(0)
    copies = [nn.Parameter(p.detach().clone()) for p in (first, second)]
    again = JoinedOptimizer([ours.Muon([copies[0]], lr=0.3), torch.optim.AdamW([copies[1]], lr=0.3)])
    again.load_state_dict(torch.load(file, weights_only=True))
    for optimizer in (joined, again):
        assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]
        for group in optimizer.param_groups:
            group["lr"] /= 10
    steps(joined, [first, second], seed=2)
    steps(again, copies, seed=2)
    assert torch.equal(first, copies[0])
    assert torch.equal(second, copies[1])
    again.zero_grad()
    assert copies[0].grad is copies[1].grad is None


def test_weights_without_a_gradient_stay():
    own = [weight(3, 4), weight(2, 3)]
    before = copy.deepcopy(own)
    own[0].grad = torch.randn_like(own[0])
    ours.Muon(own, lr=0.1).step()
    assert not torch.equal(own[0], before[0])
    assert torch.equal(own[1], before[1])

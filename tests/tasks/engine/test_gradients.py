"""Changes of the gradients before the update: the papers' formulas, timm's code, and what takes part."""

import copy

import pytest
import torch
from timm.utils.agc import adaptive_clip_grad
from torch import nn

import zoo
from tasks.config import SGD, AdamW, Muon
from tasks.engine import Trainer
from tasks.engine.gradients import GradientChanges, centralize_, clip_units_, dims_of_units
from tasks.engine.optimizer import make_optimizer
from tasks.errors import ConfigError
from tasks.spec import make_task
from tests.helpers.detection import small
from tests.helpers.nets import narrow
from tests.helpers.training import config
from tests.helpers.transformers import make
from zoo.nets.parameters import output_parameters

FORMATS = [torch.contiguous_format, torch.channels_last]


def with_gradients(model, scale=1.0):
    """The model with a random gradient, of a norm that varies, in every parameter."""
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * torch.rand(()) * scale
    return model


def vgg():
    return zoo.create_model("rescalevgg16", num_classes=3, width=0.0625)


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def net():
    """A net whose biases are not 0, in which gradients are near the limits of clipping."""
    model = narrow("basic")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.normal_()
    return with_gradients(model, scale=0.02)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_clipping_of_a_filter_bank_is_equation_3(memory_format):
    """G_i -> lambda max(|W_i|, 1e-3) / |G_i| G_i where that factor is below 1; a filter at 0 counts as 1e-3."""
    weight = torch.randn(6, 3, 2, 2, dtype=torch.float64).to(memory_format=memory_format)
    gradient = torch.randn_like(weight) * torch.tensor([1e-3, 1e-2, 1.0, 10.0, 10.0, 0.0])[:, None, None, None]
    weight[4] = 0.0
    expected = gradient.clone()
    for g, w in zip(expected, weight, strict=True):
        if g.any():
            g *= min(1.0, 0.1 * max(w.norm().item(), 1e-3) / g.norm().item())
    assert (expected != gradient).any(dim=(1, 2, 3)).tolist() == [False, False, True, True, True, False]
    clip_units_(gradient, weight, 0.1, (1, 2, 3))
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)
    assert gradient[4].norm() == pytest.approx(1e-4, rel=1e-12)


def test_clipping_equals_timms():
    """Its function is applied to the weights alone, without the classifier, as its trainer does."""
    model = net()
    theirs = copy.deepcopy(model)
    for own, copied in zip(model.parameters(), theirs.parameters(), strict=True):
        copied.grad = own.grad.clone()
    before = gradients(model)
    adaptive_clip_grad([p for name, p in theirs.named_parameters() if p.ndim > 1 and name != "fc.weight"], 0.02)
    GradientChanges(model, SGD(lr=1, agc=0.02)).change()
    expected = gradients(theirs)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-12, msg=name)
    changed = {name for name, gradient in gradients(model).items() if not torch.equal(gradient, before[name])}
    weights = {name for name, p in model.named_parameters() if p.ndim > 1}
    assert changed <= weights - {"fc.weight"}
    assert len(changed) > 5


@pytest.mark.parametrize("memory_format", FORMATS)
def test_centralization_is_equation_1(memory_format):
    """The gradient of each filter is projected on what is orthogonal to a filter of ones."""
    gradient = torch.randn(6, 3, 2, 2, dtype=torch.float64).to(memory_format=memory_format)
    ones = torch.ones(12, 1, dtype=torch.float64) / 12**0.5
    expected = gradient.flatten(1) @ (torch.eye(12, dtype=torch.float64) - ones @ ones.T)
    centralize_(gradient, (1, 2, 3))
    torch.testing.assert_close(gradient.flatten(1), expected, rtol=1e-12, atol=1e-12)
    assert gradient.sum((1, 2, 3)).abs().max() < 1e-12


def test_centralization_concerns_all_weights():
    model = net()
    before = gradients(model)
    GradientChanges(model, AdamW(lr=1, centralize=True)).change()
    for name, gradient in gradients(model).items():
        if gradient.ndim > 1:
            assert not torch.equal(gradient, before[name]), name
            assert gradient.flatten(1).sum(1).abs().max() < 1e-5, name
        else:
            assert torch.equal(gradient, before[name]), name


def test_the_order_of_the_changes():
    """Centralize, clip by unit, clip as a whole; no other order gives the same here."""
    changes = {"centralize": {"centralize": True}, "agc": {"agc": 0.05}, "clip_norm": {"clip_norm": 0.5}}

    def after(*sections):
        model = copy.deepcopy(start)
        for own, copied in zip(start.parameters(), model.parameters(), strict=True):
            copied.grad = own.grad.clone()
        for section in sections:
            GradientChanges(model, SGD(lr=1, **section)).change()
        return torch.cat([gradient.flatten() for gradient in gradients(model).values()])

    start = net()
    together = after({key: value for section in changes.values() for key, value in section.items()})
    assert torch.equal(together, after(*changes.values()))
    assert together.norm() == pytest.approx(0.5, rel=1e-4)
    for order in (("agc", "centralize", "clip_norm"), ("centralize", "clip_norm", "agc")):
        assert not torch.allclose(together, after(*(changes[name] for name in order)), rtol=1e-3)


def test_units_of_a_transposed_convolution():
    """Its weight is (I, O, ...); centralization of it is that of the convolution whose transpose it is."""
    model = nn.Sequential(nn.ConvTranspose2d(4, 3, 2), nn.Conv2d(3, 2, 3, groups=1), nn.Linear(5, 6))
    assert dims_of_units(model) == {"0.weight": (0, 2, 3), "1.weight": (1, 2, 3), "2.weight": (1,)}
    with_gradients(model)
    GradientChanges(model, SGD(lr=1, centralize=True)).change()
    assert model[0].weight.grad.sum((0, 2, 3)).abs().max() < 1e-5


def test_frozen_and_unused_weights():
    """A weight without a gradient, and one that is not trained though it has a gradient, are left alone."""
    model = net()
    model.stem.requires_grad_(False)
    model.layer1[0].conv1.weight.grad = None
    before = model.stem.conv1.weight.grad.clone()
    GradientChanges(model, SGD(lr=1, centralize=True, agc=1e-6, clip_norm=1e-6)).change()
    assert torch.equal(model.stem.conv1.weight.grad, before)
    assert model.layer1[0].conv1.weight.grad is None


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: narrow("basic"), {"fc.weight", "fc.bias"}),
        (
            lambda: zoo.create_model("rescalevgg16", num_classes=3, width=0.0625),
            {"fc.pre_bias", "fc.weight", "fc.bias"},
        ),
        (lambda: zoo.create_model("rescale_r3d_10", num_classes=0, width=0.125), set()),
        (lambda: nn.Sequential(nn.Linear(2, 2), narrow("basic")), {"1.fc.weight", "1.fc.bias"}),
        (lambda: nn.Linear(2, 2), set()),
        (lambda: make(share="all"), {"encoder_embedding.weight"}),
        (lambda: make(share="decoder"), {"decoder_embedding.weight"}),
        (lambda: make(share="none"), {"projection.weight"}),
    ],
)
def test_the_last_layers_of_nets(model, expected):
    assert output_parameters(model()) == expected


@pytest.mark.parametrize("detector", ["faster", "mask"])
def test_the_last_layers_of_detectors(detector):
    predictors = ["rpn.head.cls_logits", "rpn.head.bbox_pred"]
    predictors += ["roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"]
    if detector == "mask":
        predictors += ["roi_heads.mask_predictor.conv5_mask", "roi_heads.mask_predictor.mask_fcn_logits"]
    assert output_parameters(small(detector=detector)) == {
        f"{p}.{kind}" for p in predictors for kind in ("weight", "bias")
    }


def test_half_precision_has_gradients_without_the_scale(images, tmp_path, half_on_cpu):
    """One step in fp16 with a huge scale of the loss clips as much as one in fp32."""
    moved = {}
    for precision in ("fp32", "fp16"):
        optimizer = {"name": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "agc": 1e-4, "clip_norm": 1e9}
        trainer = Trainer(make_task(config(images, tmp_path / precision, optimizer=optimizer, precision=precision)))
        before = {name: p.detach().clone() for name, p in trainer.bare.named_parameters()}
        trainer.batches.seek(0, 0)
        trainer._step([next(iter(trainer.loader))])
        moved[precision] = {name: (p.detach() - before[name]).norm() for name, p in trainer.bare.named_parameters()}
    for name, distance in moved["fp32"].items():
        if "conv" in name and name.endswith("weight"):
            assert distance > 0
            torch.testing.assert_close(distance, moved["fp16"][name], rtol=1e-2, atol=0, msg=name)


@pytest.mark.parametrize(
    ("make_changes", "section"),
    [(GradientChanges, SGD(lr=0.1, agc=0.01)), (make_optimizer, Muon(lr=0.1, rest={"name": "sgd", "lr": 0.1}))],
)
def test_a_model_whose_last_layers_are_not_known_is_refused(make_changes, section):
    """Adaptive clipping and Muon must leave the last layers alone, so they require a net that names them."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ConfigError, match=r"train.optimizer.(agc|name=muon): Sequential has no net of the zoo"):
        make_changes(model, section)
    make_changes(model, SGD(lr=0.1, centralize=True, clip_norm=1.0))

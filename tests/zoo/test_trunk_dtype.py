"""The trunk of all schemes has one dtype under autocast: that of the stem's convolution, or of the embedding."""

import collections

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import zoo
from tests.helpers.nets import CLIPS, narrow, pairs, samples
from tests.helpers.transformers import SCHEMES, SMALL, batch, make
from zoo.joins import add_trunk
from zoo.trunk import TrunkBlock

NETS = ["basic", "replicate"]
VISION = [pair for kind in NETS for pair in pairs(kind, zoo.model_info(narrow(kind).config.name).schemes)]
REGULARIZED = {"drop_path_rate": 0.2, "branch_noise": 0.1}


def as_on_a_gpu(monkeypatch):
    """Let autocast compute group and layer norms in float32, as it does on CUDA but not on the CPU."""
    for name in ("group_norm", "layer_norm"):
        plain = getattr(torch.nn.functional, name)

        def in_float32(x, *args, plain=plain, **kwargs):
            if not torch.is_autocast_enabled("cpu"):
                return plain(x, *args, **kwargs)
            with torch.autocast("cpu", enabled=False):
                return plain(x.float(), *args, **kwargs)

        monkeypatch.setattr(torch.nn.functional, name, in_float32)


def trunk_dtypes(model, run):
    """Run the model under autocast, and return the dtypes of all trunks and, in training mode, of their gradients."""
    seen, gradients = [], []

    def hook(module, inputs, output):
        seen.append(output.dtype)
        if output.requires_grad:
            output.register_hook(lambda gradient: gradients.append(gradient.dtype))

    blocks = [module for module in model.modules() if isinstance(module, TrunkBlock)]
    handles = [block.register_forward_hook(hook) for block in blocks]
    with torch.autocast("cpu", torch.bfloat16):
        output = run(model)
    for handle in handles:
        handle.remove()
    assert len(seen) == len(blocks)
    if model.training:
        output.float().square().sum().backward()
        assert len(gradients) == len(seen)
    return {*seen, *gradients}


@pytest.mark.parametrize(("kind", "scheme"), VISION)
def test_a_trunk_of_images_or_clips_has_the_dtype_of_the_stem(kind, scheme, monkeypatch):
    as_on_a_gpu(monkeypatch)
    config = narrow(kind, **REGULARIZED).config
    model = zoo.build_model(zoo.ModelConfig(config.name, scheme, 5, 3, config.options))  # frozen_bn requires no weights
    assert trunk_dtypes(model.train(), lambda net: net(samples(kind, 2, 32))) == {torch.bfloat16}
    assert trunk_dtypes(zoo.fold(model), lambda net: net(samples(kind, 2, 32))) == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["bottleneck", "cifar", *(k for k in CLIPS if k != "replicate")])
def test_every_block_type(kind):
    assert trunk_dtypes(narrow(kind).train(), lambda net: net(samples(kind, 2, 32))) == {torch.bfloat16}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_trunk_of_text_has_the_dtype_of_the_embedding(scheme, monkeypatch):
    as_on_a_gpu(monkeypatch)
    model = make(scheme, **REGULARIZED).float()
    assert trunk_dtypes(model.train(), lambda net: net(*batch())) == {torch.float32}
    assert trunk_dtypes(zoo.fold(model), lambda net: net(*batch())) == {torch.float32}


def test_models_in_half_precision_keep_it():
    model = make().bfloat16().train()
    assert trunk_dtypes(model, lambda net: net(*batch())) == {torch.bfloat16}


def test_rounding_does_not_add_up_over_the_layers():
    """Relative error of the encoder's output after 18 layers: 0.0107 with a bfloat16 trunk, 0.0025 with this one."""
    errors = {}
    for scheme in ("rescale", "pre_ln"):
        model = make(scheme, **{**SMALL, "encoder_layers": 18, "dim": 128}).float()
        outputs = []
        model.encoder[-1].register_forward_hook(lambda module, inputs, output, to=outputs: to.append(output.double()))
        for enabled in (False, True):
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                model(*batch())
        exact, rounded = outputs
        errors[scheme] = float((rounded - exact).norm() / exact.norm())
    assert errors["rescale"] < 0.004
    assert errors["rescale"] < errors["pre_ln"] < 0.01


class Operations(TorchDispatchMode):
    """Counts the operations by name."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def test_one_dtype_takes_one_operation_and_no_memory():
    for trunk in (torch.ones(3), torch.ones(3, dtype=torch.float64)):
        branch = torch.ones(3)
        with Operations() as operations:
            total = add_trunk(branch, trunk, 0.5)
        in_place = trunk.dtype == branch.dtype
        assert operations.counts == ({"add_": 1} if in_place else {"add": 1})
        assert (total is branch) == in_place
        assert torch.equal(total, torch.full((3,), 1.5, dtype=trunk.dtype))

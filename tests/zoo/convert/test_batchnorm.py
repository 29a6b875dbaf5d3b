"""``from_batchnorm`` recognises its source, compares a module with what was read, and refuses the rest in one line."""

import pytest
import torch
import torchvision
from torch import nn

import zoo
from tests.helpers.batchnorm import relative_error, train_statistics_
from zoo.convert import convert_batchnorm, from_batchnorm
from zoo.errors import WeightsError, ZooError


class Doubled(torchvision.models.ResNet):
    """A ResNet whose keys and layers are plain, but not its forward."""

    def forward(self, x):
        return super().forward(2 * x)


class Fails(torchvision.models.ResNet):
    def forward(self, x):
        raise RuntimeError("needs a mask\nand more")


class Features(torchvision.models.ResNet):
    def forward(self, x):
        return {"out": super().forward(x)}


def resnet(cls=torchvision.models.ResNet):
    torch.manual_seed(0)
    net = cls(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2], num_classes=4)
    return train_statistics_(net)


def test_a_module_keeps_its_modes_and_eps():
    net = resnet().train()
    net.layer1.eval()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = 1e-3
    before = [module.training for module in net.modules()]
    found = convert_batchnorm(net)
    assert [module.training for module in net.modules()] == before
    assert (found.eps, found.form, found.model.config.name) == (1e-3, "gained", "rescalenet18")
    x = torch.randn(2, 3, 65, 49)
    with torch.no_grad():
        assert relative_error(found.model.eval()(x), net.eval()(x)) < 3e-6


def test_a_state_dict_takes_the_eps_that_is_given():
    net = resnet().double()
    x = torch.randn(2, 3, 65, 49, dtype=torch.float64)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = 0.0
    with torch.no_grad():
        right = net(x)
        assert relative_error(from_batchnorm(net.state_dict(), eps=0.0)(x), right) < 1e-10
        assert relative_error(from_batchnorm(net.state_dict())(x), right) > 1e-7


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Doubled, r"Doubled computes something else than rescalenet18 with its weights: outputs differ by 0\.\d+"),
        (Fails, r"Fails does not run on images of 65 px \(needs a mask and more\), .*give its state_dict"),
        (Features, r"Features does not return logits \(4 classes\)"),
    ],
)
def test_a_forward_of_its_own_is_noticed(cls, message):
    with pytest.raises(WeightsError, match=message) as caught:
        from_batchnorm(resnet(cls))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, r"a checkpoint of type dict: must be a net, or a state dict"),
        ([1], r"a checkpoint of type list"),
        ({"state_dict": {"conv1.weight": 1}}, r"'state_dict' of the checkpoint is a dict, not a tensor"),
        ({"a.weight": torch.ones(2)}, r"not a known BatchNorm checkpoint: its first key is 'a.weight'"),
        (nn.Linear(2, 2), r"not a known BatchNorm checkpoint"),
    ],
)
def test_what_is_not_recognised_is_refused(source, message):
    with pytest.raises(WeightsError, match=message):
        from_batchnorm(source)


def test_nets_of_the_zoo_without_batchnorm_are_refused():
    model = zoo.create_model("rescalenet20_cifar", "cifar10")
    with pytest.raises(ZooError, match=r"a net of scheme 'rescale' has no BatchNorm to convert"):
        from_batchnorm(model)
    with pytest.raises(WeightsError, match=r"a state dict of a net of this zoo without norms"):
        from_batchnorm(model.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.long(), r"whole numbers only"),
        (lambda v: v.to(torch.complex64), r"'conv1\.weight' of the checkpoint is complex: must be real"),
        (lambda v: v.to("meta"), r"its tensors are on the meta device and have no values"),
    ],
)
def test_tensors_that_are_no_real_numbers_are_refused(change, message):
    with pytest.raises(WeightsError, match=message):
        from_batchnorm({key: change(value) for key, value in resnet().state_dict().items()})


def test_a_module_without_values_is_refused():
    with pytest.raises(WeightsError, match=r"on the meta device"):
        from_batchnorm(resnet().to("meta"))


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_wrappers_are_left_out(wrap):
    """Also in a state dict, whose keys all have the wrapper's prefix; and the module inside is checked."""
    net = resnet()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = 1e-3
    x = torch.randn(2, 3, 65, 49)
    with torch.no_grad():
        right = net(x)
        assert relative_error(from_batchnorm(wrap(net)).eval()(x), right) < 3e-6
        assert relative_error(from_batchnorm(wrap(net).state_dict(), eps=1e-3).eval()(x), right) < 3e-6
        inside = nn.ModuleDict({"model": net}).state_dict()  # as Lightning modules and SlowFast's wrapper have it
        assert relative_error(from_batchnorm(inside, eps=1e-3).eval()(x), right) < 3e-6
    with pytest.raises(WeightsError, match=r"Doubled computes something else"):
        from_batchnorm(wrap(resnet(Doubled)))
    ours = zoo.create_model("rescalenet20_cifar", "cifar10_bn")
    assert from_batchnorm(wrap(ours)).config.scheme == "rescale"


def test_a_negative_variance_is_refused():
    net = resnet()
    net.bn1.running_var[3] = -1
    for source in (net, net.state_dict()):
        with pytest.raises(
            ZooError, match=r"stem\.norm1: a running variance plus eps is -1; the checkpoint is damaged"
        ):
            from_batchnorm(source)


def test_wrong_arguments():
    with pytest.raises(WeightsError, match=r"ResNet checkpoint: of a net alone, not of mask_rcnn_rescalenet50_fpn"):
        from_batchnorm(resnet(), "mask_rcnn_rescalenet50_fpn")
    with pytest.raises(ZooError, match=r"eps='x': must be a number from 0 to 1"):
        from_batchnorm(resnet(), eps="x")
    with pytest.raises(ZooError, match=r"name=3: must be the name of a net"):
        from_batchnorm(resnet(), 3)
    with pytest.raises(ZooError, match=r"eps=0\.5: the net given has an eps in each of its norms; leave it out"):
        from_batchnorm(zoo.create_model("rescalenet20_cifar", "cifar10_bn"), eps=0.5)
    with pytest.raises(ZooError, match=r"eps=-1: must be a number from 0 to 1"):
        from_batchnorm(resnet(), eps=-1)
    with pytest.raises(WeightsError, match=r"rescalenet50"):
        from_batchnorm(resnet(), "rescalenet50")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_half_precision_becomes_single(dtype):
    state = {k: value.to(dtype) if value.is_floating_point() else value for k, value in resnet().state_dict().items()}
    model = from_batchnorm(state)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.isfinite(model(torch.randn(1, 3, 65, 65))).all()

"""What is written can be read: after any change of state, weights load with the same outputs, or saving refuses.

Narrow copies of one net of each family change by change; in the slow run all nets of ``list_models``. A refusal is one
line, and leaves nothing behind.
"""

import copy
import io
import pickle
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel

import zoo
from tasks.config import EMA
from tasks.engine.average import WeightAverage
from tests.helpers.detection import SMALL as SMALL_DETECTOR
from tests.helpers.nets import wake_
from zoo.joins import Join
from zoo.modules import without_wrappers

FAMILIES = (
    "rescalenet20_cifar",
    "rescalevgg11",
    "rescale_r3d_10",
    "rescale_transformer_tiny",
    "mask_rcnn_rescalenet20_cifar_fpn",
)
OTHERS = [name for name in zoo.list_models() if name not in FAMILIES]
TEXT = {"dim": 8, "hidden": 8, "heads": 2, "encoder_layers": 1, "decoder_layers": 1}
TEXT |= {"source_vocabulary": 12, "target_vocabulary": 12, "max_length": 16}
DETECTOR = {
    **SMALL_DETECTOR,
    "box_width": 8,
    "fpn_channels": 8,
    "proposals_test": 8,
    "score_thresh": 0.0,
    "min_size": 64,
    "max_size": 64,
}


def narrow(name, **more):
    """A narrow copy in eval mode, with random values in place of the zeros at init."""
    kind = zoo.model_info(name).input_kind
    if kind == "text":
        options = TEXT
    elif kind == "image_lists":
        options = {"num_classes": 3, "body": {"width": 0.0625}, **DETECTOR}
    else:
        options = {"num_classes": 3, "width": 0.0625}
    model = zoo.create_model(name, **{**options, **more})
    wake_(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.1 * torch.randn_like(parameter))
    measure_(model, kind)
    return model.eval()


def measure_(model, kind):
    """Give BatchNorm the statistics of a batch, and maps for detection values up to 1.

    With the statistics of init the values of a deep net are not finite; where a map is large, no box has a size.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if norms and kind != "text":
        rates = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            net = (model.backbone if kind == "image_lists" else model).train()
            net(torch.rand(4, model.config.in_chans, *((3,) if kind == "clips" else ()), 64, 64))
        for norm, rate in zip(norms, rates, strict=True):
            norm.momentum = rate
    if kind == "image_lists":
        with torch.no_grad():
            maps = model.eval().backbone(torch.rand(2, 3, 64, 64))
            for output, found in zip(model.backbone.fpn.outputs, maps.values(), strict=False):
                for parameter in output.parameters():
                    parameter.div_(found.abs().max())


def outputs(model):
    """All outputs of a model on a fixed input of its kind, as one list of tensors in the dtype of the model."""
    kind = zoo.model_info(model.config.name).input_kind
    generator, like = torch.Generator().manual_seed(1), next(model.parameters())
    with torch.no_grad():
        if kind == "text":
            source, target = (torch.randint(4, 12, (2, 5), generator=generator) for _ in range(2))
            return [model(source, target)]
        if kind == "image_lists":
            found = model([torch.rand(3, 64, 64, generator=generator).to(like)])[0]
            assert len(found["scores"]) > 0
            return [found[key] for key in sorted(found)]
        frames = (9,) if kind == "clips" else ()  # some kernels of bfloat16 fail on maps of one frame
        return [model(torch.randn(2, model.in_chans, *frames, 33, 35, generator=generator).to(like))]


def transform_of(model):
    kind, channels = zoo.model_info(model.config.name).input_kind, model.config.in_chans
    mean, std = (0.5,) * channels, (0.3,) * channels
    if kind == "text":
        return zoo.TextTransform("en", "de", "", None)
    if kind == "image_lists":
        return zoo.DetectionTransform(64, 64, zoo.InputTransform.imagenet().mean, zoo.InputTransform.imagenet().std)
    if kind == "clips":
        return zoo.VideoTransform(3, 1.0, None, 32, 32, mean, std)
    return zoo.InputTransform(32, 32, mean, std)


# -- the changes: each returns the model to save, and the model whose outputs the file must have --------------------


def same(model):
    return model, model


def reset(count, pool=None):
    def change(model):
        model.reset_classifier(count, pool)
        return same(model.eval())

    return change


def through_weights(path, **changes):
    """A model that was made of weights with another number of classes or channels."""

    def change(model):
        save(model, path)
        return same(zoo.create_model(model.config.name, path, **changes).eval())

    return change


def pruned(indices, classes):
    def change(model):
        model.prune_intermediate_layers(indices)
        if classes:
            model.reset_classifier(classes, "avg")
        return same(model)

    return change


def averaged(model):
    average = WeightAverage(model, EMA(name="ema", decay=0.5), 1)
    before = copy.deepcopy(model)
    with torch.no_grad():
        for _ in range(2):
            average.after_step()
            for parameter in model.parameters():
                parameter.mul_(1.5)
    kept = average.after_epoch(0).eval()
    assert any(not torch.equal(a, b) for a, b in zip(kept.parameters(), before.parameters(), strict=True))
    return same(kept)


def averaged_by_torch(model):
    average = AveragedModel(model)
    average.update_parameters(model)
    return average, average.module


def data_parallel(model):
    return nn.DataParallel(model), model


def compiled(model):
    return torch.compile(nn.DataParallel(torch.compile(model))), model


def frozen(model):
    net = next(module for module in model.modules() if isinstance(module, zoo.Net))
    net.freeze(1)
    return same(model)


def unfrozen(model):
    return same(frozen(model)[0].requires_grad_(True))


def in_dtype(dtype):
    return lambda model: same(model.to(dtype))


def channels_last(model):
    wide = any(isinstance(module, nn.Conv3d) for module in model.modules())
    saved = copy.deepcopy(model).to(memory_format=torch.channels_last_3d if wide else torch.channels_last)
    return saved, model


def checkpointing(model):
    model.set_grad_checkpointing()
    return same(model)


def trained_a_step(model):
    model.train()
    optimizer = torch.optim.SGD(zoo.param_groups(model, 0.1), lr=0.01)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return same(model.eval())


def in_training_mode(model):
    return copy.deepcopy(model).train(), model


def pickled(model):
    file = io.BytesIO()
    torch.save(pickle.loads(pickle.dumps(model)), file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False), model


def synchronized(model):
    return nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)), model


def with_dropout(model):
    """Another rate, by hand: in evaluation nothing changes."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Identity) and name.endswith("drop"):
            model.set_submodule(name, nn.Dropout(0.5))
    return same(model)


def first(model, kind):
    return next((name, module) for name, module in model.named_modules() if isinstance(module, kind))


def replaced(kind, make):
    """A module replaced by another."""

    def change(model):
        name, module = first(model, kind)
        model.set_submodule(name, make(module))
        return same(model)

    return change


class LowRank(nn.Module):
    """A linear layer with a correction of low rank, as adapters have."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.down = layer, nn.Linear(layer.in_features, 1, bias=False)


class Scaled(nn.Linear):
    """A last layer with the tensors of a linear layer and other outputs."""

    def forward(self, x):
        return 2 * super().forward(x)


def scaled(layer):
    made = Scaled(layer.in_features, layer.out_features, bias=layer.bias is not None)
    made.load_state_dict(layer.state_dict(), strict=False)
    return made


def parametrized(function):
    def change(model):
        function(first(model, nn.Linear)[1])
        return same(model)

    return change


def another_stride(model):
    conv = first(model, nn.Conv2d | nn.Conv3d)[1]
    conv.stride = tuple(step + 1 for step in conv.stride)
    return same(model)


def another_eps(model):
    first(model, nn.modules.batchnorm._BatchNorm)[1].eps = 0.1
    return same(model)


def another_pool(model):
    model.global_pool = ""
    return same(model)


def another_scale(model):
    model.to_features[0].scale = 3.0
    return same(model)


def biased_padding(model):
    layer = first(model, zoo.layers.BiasedConvNd)[1]
    layer.geometry = layer.geometry._replace(biased_padding=True)
    return same(model)


def more_heads(model):
    model.encoder[0].self_attn.heads = 4
    return same(model)


def more_objects(model):
    model.roi_heads.detections_per_img += 1
    return same(model)


def with_records(model):
    """Attributes of a user's own, and those that the forward of a detector sets."""
    outputs(model)
    model.experiment, first(model, nn.Linear)[1].best = "a", 0.5
    return same(model)


class Always(nn.Dropout):
    """Dropout in evaluation too."""

    def forward(self, x):
        return nn.functional.dropout(x, self.p, training=True)


def always_dropping(model):
    name = next(name for name, module in model.named_modules() if isinstance(module, nn.Identity | nn.Dropout))
    model.set_submodule(name, Always(0.5))
    return same(model)


def of_the_same_name(layer):
    made = scaled(layer)
    made.__class__ = type("Linear", (Scaled,), {})
    return made


def tied(model):
    """Two layers with one weight: two in the file."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.Linear)]
    one, other = next((a, b) for i, a in enumerate(layers) for b in layers[:i] if a.weight.shape == b.weight.shape)
    one.weight = other.weight
    return same(model)


def another_join(model):
    name, _ = first(model, Join)
    model.set_submodule(name, zoo.create_model("rescalenet20_cifar", scheme="none", width=0.0625).layer1[0].join)
    return same(model)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def bn(change):
    """The change of the same net with BatchNorm."""
    return lambda model: change(narrow(model.config.name, scheme="bn"))


REPLACED = "parts of the model were replaced, wrapped, removed or changed by hand, so create_model would not build it"
ALL = ("images", "clips", "text", "image_lists")
VISION = ("images", "clips")
LINEAR = ("images", "clips", "text")
# name: kinds of input, change, the message of the refusal or None
CHANGES = {
    "nothing": (ALL, same, None),
    "averaged": (ALL, averaged, None),
    "averaged by torch": (ALL, averaged_by_torch, None),
    "compiled": (ALL, compiled, None),
    "data parallel": (ALL, data_parallel, None),
    "frozen": (ALL, frozen, None),
    "unfrozen": (ALL, unfrozen, None),
    "double": (ALL, in_dtype(torch.float64), None),
    "half": (ALL, in_dtype(torch.float16), None),
    "bfloat16": (ALL, in_dtype(torch.bfloat16), None),
    "channels last": (("images", "clips", "image_lists"), channels_last, None),
    "grad checkpointing": (VISION, checkpointing, None),
    "a step": (ALL, trained_a_step, None),
    "training mode": (ALL, in_training_mode, None),
    "pickled": (ALL, pickled, None),
    "BatchNorm over ranks": (("images", "clips", "image_lists"), bn(synchronized), None),
    "dropout": (ALL, with_dropout, None),
    "reset to 2": (VISION, reset(2), None),
    "reset to 0": (VISION, reset(0), None),
    "maps": (VISION, reset(0, ""), None),
    "level removed": (VISION, pruned([0], 0), "its config 3: parts of it were removed"),
    "level removed, new head": (VISION, pruned([0], 2), REPLACED),
    "folded": (ALL, lambda model: same(zoo.fold(model)), "a folded net has no named form"),
    "head replaced": (LINEAR, replaced(nn.Linear, lambda layer: nn.Sequential(layer, nn.ReLU())), REPLACED),
    "last layer of another class": (LINEAR, replaced(nn.Linear, scaled), REPLACED),
    "adapter": (LINEAR, replaced(nn.Linear, LowRank), REPLACED),
    "last layer of a class of this name": (VISION, replaced(nn.Linear, of_the_same_name), "is a module of tests.zoo"),
    "dropout in evaluation": (ALL, always_dropping, REPLACED),
    "pooling": (VISION, another_pool, "global_pool is '', not 'avg'"),
    "scale": (VISION, another_scale, "to_features.0.scale is 3.0, not "),
    "padding": (VISION, biased_padding, "geometry is Geometry"),
    "heads": (("text",), more_heads, "encoder.0.self_attn.heads is 4, not 2"),
    "objects": (("image_lists",), more_objects, r"roi_heads.detections_per_img is \d+, not"),
    "records": (ALL, with_records, None),
    "one weight in two layers": (ALL, tied, None),
    "activation": (ALL, replaced(nn.ReLU, lambda act: nn.SiLU()), REPLACED),
    "activation left out": (ALL, replaced(nn.ReLU, lambda act: nn.Identity()), REPLACED),
    "join": (("clips", "text"), another_join, REPLACED),
    "stride": (VISION, another_stride, REPLACED),
    "eps": (VISION, bn(another_eps), r"norm1 is BatchNorm\(\d+, eps=0.1\), not BatchNorm"),
    "weight norm": (LINEAR, parametrized(parametrizations.weight_norm), REPLACED),
    "spectral norm": (LINEAR, parametrized(parametrizations.spectral_norm), REPLACED),
    "parametrization": (
        LINEAR,
        parametrized(lambda layer: parametrize.register_parametrization(layer, "weight", Doubled())),
        REPLACED,
    ),
    "pruned weights": (LINEAR, parametrized(partial(prune.random_unstructured, name="weight", amount=0.5)), REPLACED),
    "meta device": (ALL, lambda model: same(copy.deepcopy(model).to("meta")), "is on the meta device and has no val"),
    "wrapped": (ALL, lambda model: same(nn.Sequential(model)), "a Sequential has no config and num_classes"),
}


def save(model, path):
    inner = without_wrappers(model)
    inner = inner[0] if isinstance(inner, nn.Sequential) else inner
    zoo.save_weights(model, path, transform=transform_of(inner), classes=[str(i) for i in range(inner.num_classes)])


def check(model, path, change, message):
    saved, expected = change(model)
    if message is not None:
        with pytest.raises(zoo.ZooError, match=message) as caught:
            save(saved, path)
        assert len(str(caught.value).splitlines()) == 1
        assert list(path.parent.iterdir()) == []
        return
    modes = {module: module.training for module in saved.modules()}
    save(saved, path)
    assert {module: module.training for module in saved.modules()} == modes
    # what the file contains is what the model has, and the net that it makes is of float32
    again = zoo.create_model(expected.config.name, path).eval()
    assert again.config == expected.config
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    state = expected.state_dict()
    assert again.state_dict().keys() == state.keys()
    for key, value in again.state_dict().items():
        assert torch.equal(value, state[key].to(value.dtype)), key
    # the same outputs, in the precision of the model unless that was rounded
    dtype = next(expected.parameters()).dtype
    if dtype == torch.float64:
        expected = copy.deepcopy(expected).float()
    elif zoo.model_info(expected.config.name).input_kind == "image_lists" and dtype != torch.float32:
        expected, dtype = copy.deepcopy(expected).float(), torch.float32  # torchvision's detectors require float32
    again = again if dtype == torch.float64 else again.to(dtype)
    for a, b in zip(outputs(again), outputs(expected.eval()), strict=True):
        assert torch.equal(a, b)


def changes_of(name):
    kind = zoo.model_info(name).input_kind
    return [change for change, (kinds, _, _) in CHANGES.items() if kind in kinds]


def pairs():
    """Families and their changes. Detectors, whose outputs take longest, are in the fast run with a few."""
    for name in FAMILIES:
        for change in changes_of(name):
            quick = change != "compiled" and (name != FAMILIES[-1] or change in ("nothing", "half", "activation"))
            yield pytest.param(name, change, marks=() if quick else pytest.mark.slow)


def check_change(name, change, path):
    _, function, message = CHANGES[change]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about deprecated data parallelism
        check(narrow(name), path, function, message)


@pytest.mark.parametrize(("name", "change"), list(pairs()))
def test_weights_load_with_the_same_outputs_or_are_refused(name, change, tmp_path):
    check_change(name, change, tmp_path / "w.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_every_net_and_change(name, tmp_path):
    for number, change in enumerate(changes_of(name)):
        if change != "compiled":
            (folder := tmp_path / str(number)).mkdir()
            check_change(name, change, folder / "w.safetensors")


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", ["rescalenet20_cifar", "rescalevgg11", "rescale_r3d_10"])
def test_adapted_channels(name, channels, tmp_path):
    change = through_weights(tmp_path / "source.safetensors", in_chans=channels)
    check(narrow(name), tmp_path / "w.safetensors", change, None)


@pytest.mark.parametrize("name", ["rescalenet20_cifar", "mask_rcnn_rescalenet20_cifar_fpn"])
def test_adapted_classes(name, tmp_path):
    check(narrow(name), tmp_path / "w.safetensors", through_weights(tmp_path / "s.safetensors", num_classes=2), None)


def test_inflated_nets(tmp_path):
    def inflated(model):
        return same(zoo.convert.inflate(model, "rescale_i3d_r50").eval())

    model = narrow("rescalenet50")
    model.reset_classifier(2, "max")
    check(model.eval(), tmp_path / "w.safetensors", inflated, None)


def test_feature_extractors_are_refused(tmp_path):
    def features(model):
        return same(zoo.FeatureExtractor(model, (0, 1)))

    path = tmp_path / "w.safetensors"
    model = features(narrow("rescalenet20_cifar"))[0]
    for part, message in ((model, "without features_only"), (model.body, "parts of it were removed")):
        with pytest.raises(zoo.ZooError, match=message):
            zoo.save_weights(part, path, transform=transform_of(model), classes=[])
    assert list(tmp_path.iterdir()) == []


def test_one_process_of_distributed_training(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(narrow("rescalenet20_cifar"))
        (folder := tmp_path / "weights").mkdir()
        check(wrapped, folder / "w.safetensors", lambda model: (model, model.module), None)
    finally:
        torch.distributed.destroy_process_group()

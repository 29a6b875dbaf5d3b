"""Nets in JAX: the same outputs, gradients, training steps and biases from data as in PyTorch, and files both ways."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")
optax = pytest.importorskip("optax")

import jax.numpy as jnp  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402

import zoo  # noqa: E402
from tests.helpers import transformers  # noqa: E402
from tests.helpers.nets import NARROW, narrow, samples  # noqa: E402
from tests.helpers.weights import TRANSFORM  # noqa: E402
from zoo.errors import ExportError, WeightsError  # noqa: E402
from zoo.export import TARGETS  # noqa: E402
from zoo.export.graphs import Deployment, Settings  # noqa: E402
from zoo.export.images import graph_of  # noqa: E402
from zoo.export.jax import rescalenet_flax as flax_net  # noqa: E402
from zoo.export.text import graphs_of, whole_graph  # noqa: E402
from zoo.export.writing import check_graph, export  # noqa: E402
from zoo.registry import skeleton  # noqa: E402

TARGET = TARGETS["jax"]
REGISTERED = [name for kind in ("images", "clips", "text") for name in zoo.list_models(input_kind=kind)]
run = nnx.jit(lambda net, *inputs: net(*inputs))


@pytest.fixture(autouse=True)
def single_precision():
    """litert_torch, which other tests import, turns 64-bit types on for the whole process."""
    with jax.enable_x64(False):
        yield


def to_flax(model):
    """The net in JAX with the parameters of a net in PyTorch."""
    net = flax_net.build(asdict(model.config), flax_net.Init.of(0, zeros=True))
    state, own = model.state_dict(), flax_net.variables(net)
    assert state.keys() == own.keys()
    for name, variable in own.items():
        assert tuple(state[name].shape) == tuple(variable.shape), name
        variable.set_value(jnp.asarray(state[name].numpy()))
    return net


def to_jax(x):
    """A tensor in JAX's layout: channels last; tokens as they are."""
    return jnp.asarray(np.moveaxis(x.numpy(), 1, -1) if x.is_floating_point() else x.numpy().astype(np.int32))


def far(found, expected):
    """The largest difference over the largest expected value."""
    return np.abs(np.asarray(found) - np.asarray(expected)).max() / max(np.abs(np.asarray(expected)).max(), 1e-12)


def woken(model, *calibration):
    """The model with biases from data, and all other vectors and scalars far from what zeros and ones would hide."""
    zoo.calibrate(model, [calibration], forward=lambda net, batch: net(*batch))
    for parameter in model.parameters():
        if parameter.ndim <= 1:
            nn.init.normal_(parameter, 0.5, 0.2)
    return model


def text_net(scheme="rescale", **options):
    sizes = {"source_vocabulary": 40, "target_vocabulary": 40}
    made = zoo.create_model("rescale_transformer_tiny", scheme=scheme, **{**transformers.SMALL, **sizes, **options})
    return woken(made, *transformers.batch())


def outputs(model, net, *inputs):
    """Outputs in PyTorch and in JAX, in evaluation mode, in PyTorch's layout."""
    with torch.no_grad():
        expected = model.eval()(*inputs).numpy()
    net.eval()
    found = np.asarray(run(net, *map(to_jax, inputs)))
    return (found if inputs[0].ndim == 2 else np.moveaxis(found, -1, 1)), expected


@pytest.mark.parametrize("name", REGISTERED)
def test_every_registered_net_has_the_tensors_of_pytorch(name):
    baseline = "pre_ln" if name in zoo.list_models(input_kind="text") else "bn"
    for scheme in ("rescale", baseline):
        config = zoo.registry.ModelConfig(name, scheme, *((0, 0) if baseline == "pre_ln" else (7, 3)), {})
        expected = {key: tuple(value.shape) for key, value in skeleton(config, name).state_dict().items()}
        fields = asdict(config)
        shapes = nnx.eval_shape(lambda fields=fields: flax_net.build(fields, flax_net.Init.of(0, zeros=True)))
        assert {key: tuple(v.shape) for key, v in flax_net.variables(shapes).items()} == expected
    defaults = flax_net.NETS[name][1]
    for key, value in zoo.model_info(name).options.items():
        assert getattr(defaults, key) == value, key
    assert getattr(defaults, "num_classes", 0) == zoo.model_info(name).num_classes


@pytest.mark.parametrize("scheme", ["rescale", "bn"])
@pytest.mark.parametrize("kind", NARROW)
def test_outputs_agree(kind, scheme):
    model = woken(narrow(kind, scheme=scheme), samples(kind, 4, 64))
    found, expected = outputs(model, to_flax(model), samples(kind, 2, 97, 81))
    assert far(found, expected) < 5e-6


CONVERTED = {"weight_scale": True, "biased_padding": True, "post_bias": True}
OPTIONS = [
    ("bottleneck", {"stem": "deep", "shortcut": "conv", "stride_in_1x1": True}),
    ("bottleneck", {"stem": "cifar", "multiplier": "channel", "global_pool": "max", "in_chans": 1}),
    ("bottleneck", {"scheme": "bn", "shortcut": "avgpool", "post_bias": True, "global_pool": "avgmax"}),
    ("basic", {"multiplier": False, "first_index": 0}),
    ("basic", {"c": 3.0, "num_classes": 0}),
    ("basic", {"num_classes": 0, "global_pool": ""}),
    ("basic", CONVERTED),
    ("vgg", {"post_bias": True, "weight_scale": True}),
    ("vgg", {"num_classes": 0}),
    ("vgg", {"num_classes": 0, "global_pool": ""}),
    ("replicate", {**CONVERTED, "shortcut": "conv"}),
    ("i3d", {"scheme": "bn", "shortcut": "avgpool", "temporal_padding": "replicate"}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
def test_outputs_agree_with_every_option(kind, options):
    chans = options.get("in_chans", 3)
    name, width = NARROW[kind]
    made = zoo.create_model(name, **{"num_classes": 5, **width, **options})
    model = woken(made, samples(kind, 4, 64, chans=chans))
    found, expected = outputs(model, to_flax(model), samples(kind, 2, 65, 57, chans=chans))
    assert found.shape == expected.shape
    assert far(found, expected) < 5e-6


TEXT = [
    {},
    {"scheme": "pre_ln"},
    {"activation": "gelu", "share": "none", "target_vocabulary": 43},
    {"multiplier": "channel", "post_bias": True, "encoder_c": 2.0, "decoder_c": 1.0, "share": "decoder"},
    {"multiplier": False},
]


@pytest.mark.parametrize("options", TEXT)
def test_logits_of_padded_sentences_agree(options):
    model = text_net(**options)
    source, target = transformers.batch()
    found, expected = outputs(model, to_flax(model), source, target)
    assert far(found, expected) < 5e-6


def test_feature_maps_agree():
    for kind in ("basic", "vgg", "r3d"):
        model = woken(narrow(kind), samples(kind, 2, 64)).eval()
        net, x = to_flax(model), samples(kind, 1, 64)
        with torch.no_grad():
            expected = model.forward_levels(x)
        found = nnx.jit(lambda net, x: net.feature_maps(x))(net, to_jax(x))
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert far(np.moveaxis(np.asarray(ours), -1, 1), theirs) < 5e-6


# -- training, in double precision, so that only another formula makes a difference ------------------


@pytest.fixture
def double():
    """JAX computes in float64 where the parameters are."""
    with jax.enable_x64(True):
        yield


def loss_of_torch(model, inputs, labels):
    """The mean cross entropy in PyTorch."""
    return nn.functional.cross_entropy(model(*inputs).flatten(0, -2), labels.flatten())


def loss_of_jax(inputs, labels):
    """The mean cross entropy in JAX, as a function of the net."""
    expected, arrays = jnp.asarray(labels.numpy()), [to_jax(x) for x in inputs]
    return lambda net: optax.softmax_cross_entropy_with_integer_labels(net(*arrays), expected).mean()


def case(kind, scheme):
    """A model in training mode without dropout and in double precision, inputs and labels."""
    if kind == "text":
        model, inputs = text_net(scheme).train().double(), transformers.batch()
        return model, inputs, torch.randint(4, 40, inputs[1].shape)
    options = {"weight_scale": True, "multiplier": "channel"} if kind == "basic" and scheme == "rescale" else {}
    model = woken(narrow(kind, scheme=scheme, **options), samples(kind, 4, 64)).train().double()
    return model, (samples(kind, 4, 64).double(),), torch.tensor([0, 1, 2, 3])


CASES = [(kind, "rescale") for kind in (*NARROW, "text")]
CASES += [("bottleneck", "bn"), ("r3d", "bn"), ("vgg", "bn"), ("text", "pre_ln")]


@pytest.mark.parametrize(("kind", "scheme"), CASES)
def test_gradients_of_all_parameters_agree(kind, scheme, double):
    model, inputs, labels = case(kind, scheme)
    net = to_flax(model)
    loss = loss_of_torch(model, inputs, labels)
    loss.backward()
    value, gradients = nnx.jit(nnx.value_and_grad(loss_of_jax(inputs, labels)))(net)
    assert far(value, loss.item()) < 1e-12
    found = {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(gradients)}
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert found.keys() == trained.keys()
    largest = max(float(parameter.grad.abs().max()) for parameter in trained.values())
    for name, parameter in trained.items():
        assert found[name].dtype == jnp.float64
        difference, scale = np.abs(found[name] - parameter.grad.numpy()).max(), float(parameter.grad.abs().max())
        # BatchNorm makes the gradients of some parameters in front of it zero
        assert difference <= max(1e-9 * scale, 1e-13 * largest), name


def rule(net, rate, decay):
    """SGD of the recipes in optax."""

    def sgd(factor=1.0, decay=0.0):
        return optax.chain(optax.add_decayed_weights(decay), optax.sgd(factor * rate, 0.9, nesterov=True))

    rules = {"weights": sgd(decay=decay), "others": sgd(), "data_biases": sgd(0.3), "multipliers": sgd(0.2)}
    return optax.partition(rules, flax_net.parameter_groups(net))


@pytest.mark.parametrize(("kind", "scheme"), [("cifar", "rescale"), ("cifar", "bn"), ("text", "rescale")])
def test_training_steps_make_the_same_parameters(kind, scheme, double):
    model, inputs, labels = case(kind, scheme)
    net, before = to_flax(model), {key: value.clone() for key, value in model.state_dict().items()}
    groups = zoo.param_groups(model, 0.01, multiplier_lr=0.2, bias_lr=0.3)
    theirs = flax_net.parameter_groups(net)(nnx.as_pure(nnx.state(net, nnx.Param)))
    assert {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.State(theirs))} == {
        name: group["group"] for group in groups for name in group["names"]
    }
    groups = [{"params": g["params"], "weight_decay": g["weight_decay"], "lr": 0.05 * g["lr_scale"]} for g in groups]
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    other = nnx.Optimizer(net, rule(net, 0.05, 0.01), wrt=nnx.Param)

    @nnx.jit
    def step(net, other):
        other.update(net, nnx.grad(loss_of_jax(inputs, labels))(net))

    for _ in range(3):
        optimizer.zero_grad()
        loss_of_torch(model, inputs, labels).backward()
        optimizer.step()
        step(net, other)
    for name, value in flax_net.variables(net).items():
        expected = model.state_dict()[name]
        assert not torch.equal(expected, before[name]), name
        assert far(value[...], expected) < 1e-9, name


def test_frozen_parameters_are_no_parameters_of_the_optimizer():
    model = narrow("basic", weight_scale=True)
    net = to_flax(model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen
    constants = {name for name, v in flax_net.variables(net).items() if type(v) is flax_net.Constant}
    assert constants == frozen


@pytest.mark.parametrize("kind", [*NARROW, "text"])
def test_biases_from_data_agree(kind):
    if kind == "text":
        model = transformers.make(calibrated=False).float()
        inputs = transformers.batch()
    else:
        model, inputs = narrow(kind, drop_rate=0.0), (samples(kind, 6, 64) + 1,)
    net = to_flax(model)
    zoo.calibrate(model, [inputs], forward=lambda net, batch: net(*batch))
    flax_net.calibrate(net, *map(to_jax, inputs))
    found = flax_net.variables(net)
    biases = [name for name, variable in found.items() if type(variable) is flax_net.DataBias]
    state = model.state_dict()
    assert len(biases) == len([m for m in model.modules() if isinstance(m, zoo.calibration.HasDataBias)])
    for name, variable in found.items():
        tolerance = 1e-4 * float(state[name].abs().max()) + 1e-6
        assert np.abs(np.asarray(variable[...]) - state[name].numpy()).max() <= tolerance, name
    before = {name: np.asarray(found[name][...]) for name in biases}
    assert all(np.abs(value).max() > 0 for value in before.values())
    run(net, *map(to_jax, inputs))  # a forward after it changes nothing
    assert all(np.array_equal(before[name], found[name][...]) for name in biases)


@pytest.mark.parametrize(
    ("name", "scheme", "options"),
    [
        ("rescalenet26", "rescale", {"num_classes": 50, "projection_gain": 2.0}),
        ("rescalenext50_32x4d", "bn", {"num_classes": 50, "width": 0.5}),
        ("rescale_r2plus1d_18", "rescale", {"num_classes": 50, "width": 0.5}),
        ("rescalevgg11", "rescale", {"num_classes": 50, "width": 0.25}),
        ("rescale_transformer_tiny", "rescale", {"source_vocabulary": 500, "target_vocabulary": 500}),
        ("rescale_transformer_tiny", "pre_ln", {"source_vocabulary": 500, "target_vocabulary": 500, "share": "none"}),
    ],
)
def test_new_nets_have_the_initial_values_of_pytorch(name, scheme, options):
    net, header = flax_net.create(name, scheme, seed=1, **options)
    model = zoo.create_model(name, scheme=scheme, **options)
    assert header["config"]["name"] == name
    for key, value in flax_net.variables(net).items():
        expected, found = model.state_dict()[key].float(), np.asarray(value[...], np.float32)
        assert found.shape == tuple(expected.shape)
        if expected.numel() > 2000 and expected.ndim > 1:
            assert abs(found.std() / float(expected.std()) - 1) < 6 / expected.numel() ** 0.5, key
            kurtosis = [float((x**4).mean() / (x**2).mean() ** 2) for x in (found, expected.numpy())]
            assert abs(kurtosis[0] - kurtosis[1]) < 60 / expected.numel() ** 0.5, key  # 3 of normal, 1.8 of uniform
        elif expected.ndim <= 1 and key != "fc.bias":
            assert np.array_equal(found, expected.numpy()), key


def test_dropout_and_noise_act_in_training_only():
    options = {"drop_rate": 0.5, "branch_drop_rate": 0.5, "drop_path_rate": 0.9, "branch_noise": 0.1}
    net = to_flax(woken(narrow("r3d", **options), samples("r3d", 4, 32)))
    assert net.drop.rate == net.layer4[0].drop.rate == 0.5
    assert net.layer2[0].drop is None
    block, x = net.layer4[1], jnp.ones((2, 1, 2, 2, 64))
    block.eval()
    assert np.array_equal(run(block, x), run(block, x))
    block.train()
    assert not np.allclose(run(block, x), run(block, x))
    # the last of eight branches is left out of a sample with probability 0.9, and divided by 0.1 in the others
    join = net.layer4[1].join
    assert join.drop_path.rate == pytest.approx(0.9)
    assert net.layer1[0].join.drop_path.rate == pytest.approx(0.9 / 8)
    join.noise.eval()
    branch = jnp.ones((4000, 1, 1, 2, 3))
    kept = np.asarray(join(0 * branch, branch)) / float(join.multiplier[...]) / join.weight
    assert set(np.round(kept, 3).flat) == {0.0, 10.0}
    assert (kept == kept[:, :1, :1, :1, :1]).all()
    assert abs((kept[:, 0, 0, 0, 0] > 0).mean() - 0.1) < 0.02
    # the noise has its deviation in the values of the formulas
    join.noise.train()
    noise = np.asarray(join.noise(jnp.zeros((100, 100))))
    assert abs(noise.std() - 0.1) < 0.005


# -- files -------------------------------------------------------------------------------------------


def saved(tmp_path, kind="cifar", **options):
    """A weights file of a narrow net, and the net."""
    model = woken(narrow(kind, **options), samples(kind, 4, 64)).eval()
    path = tmp_path / "net.safetensors"
    zoo.save_weights(model, path, transform=TRANSFORM, classes=list("abcde"), meta={"data": "noise"})
    return model, path


@pytest.mark.parametrize("scheme", ["rescale", "bn"])
def test_files_go_both_ways_without_a_change(tmp_path, scheme):
    model, path = saved(tmp_path, scheme=scheme)
    net, header = flax_net.load(path)
    assert header["classes"] == list("abcde")
    flax_net.save(net, header, tmp_path / "again.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.safetensors", "net.safetensors"]
    entry, own = zoo.get_weights(tmp_path / "again.safetensors"), zoo.get_weights(path)
    assert (entry.config, entry.transform, entry.classes, entry.meta) == (
        own.config,
        own.transform,
        own.classes,
        own.meta,
    )
    again = zoo.create_model("rescalenet20_cifar", tmp_path / "again.safetensors")
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
        assert again.state_dict()[key].dtype == value.dtype


@pytest.mark.parametrize("name", [name for name in zoo.list_weights() if "rcnn" not in name])
def test_the_weights_that_ship_agree(name):
    entry = zoo.get_weights(name)
    model = zoo.create_model(entry.config.name, weights=name).eval()
    net, _ = flax_net.load(entry.path)
    if entry.config.in_chans == 0:
        source, target = transformers.batch()
        inputs = (source, target)
    else:
        inputs = (torch.randn(2, 3, *((6,) if model.dims == 3 else ()), 64, 48),)
    found, expected = outputs(model, net, *inputs)
    assert far(found, expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_files_in_other_precisions_load(tmp_path, dtype):
    model, _ = saved(tmp_path)
    other = tmp_path / "other.safetensors"
    zoo.save_weights(model, other, transform=TRANSFORM, classes=list("abcde"), dtype=dtype)
    net, _ = flax_net.load(other)
    expected = zoo.create_model("rescalenet20_cifar", other).state_dict()
    for key, value in flax_net.variables(net).items():
        assert np.array_equal(value[...], expected[key].numpy()), key


def test_a_net_gets_a_last_layer_for_other_classes(tmp_path):
    model, path = saved(tmp_path)
    net, header = flax_net.load(path, classes=["cat", "dog"], drop_rate=0.25)
    assert net.drop.rate == 0.25
    assert net.fc.weight.shape == (2, model.num_features)
    assert np.asarray(net.fc.weight[...]).std() > 0
    flax_net.save(net, header, tmp_path / "pets.safetensors")
    pets = zoo.create_model("rescalenet20_cifar", tmp_path / "pets.safetensors")
    assert zoo.get_weights(tmp_path / "pets.safetensors").classes == ("cat", "dog")
    x = samples("cifar", 2, 32)
    with torch.no_grad():
        assert torch.equal(pets.eval().forward_features(x), model.forward_features(x))


def test_strange_files_have_one_line(tmp_path):
    _, path = saved(tmp_path)
    state = load_file(path)
    plain = tmp_path / "plain.safetensors"
    save_file(state, plain)
    with pytest.raises(ValueError, match="plain.safetensors: its header has no 'rescalenet' entry"):
        flax_net.load(plain)
    header = flax_net.read_header(path)
    metadata = {"rescalenet": json.dumps(header)}
    save_file({key: value for key, value in state.items() if key != "fc.bias"}, plain, metadata)
    with pytest.raises(ValueError, match="fc.bias is missing"):
        flax_net.load(plain)
    save_file({**state, "fc.bias": torch.zeros(3)}, plain, metadata)
    with pytest.raises(ValueError, match=r"fc.bias has shape \(3,\), the net \(5,\)"):
        flax_net.load(plain)
    for key, value, message in (
        ("name", "resnet", "unknown net 'resnet'"),
        ("scheme", "gn", "scheme 'gn': this file has rescale and bn"),
        ("options", {"widht": 1}, "unknown option 'widht'"),
    ):
        changed = {**header, "config": {**header["config"], key: value}}
        save_file(state, plain, {"rescalenet": json.dumps(changed)})
        with pytest.raises(ValueError, match=message):
            flax_net.load(plain)


# -- the export --------------------------------------------------------------------------------------


def exported(tmp_path, settings=None):
    """An export of a weights file, with its graph and net."""
    model, path = saved(tmp_path)
    inputs = [samples("cifar", 1, 32), samples("cifar", 1, 32), samples("cifar", 3, 49, 41)]
    graph = graph_of(model, inputs, "noise", folded=False)
    deployment = Deployment("images", (graph,), {}, weights=zoo.get_weights(path))
    return export(deployment, TARGET, tmp_path / "out", settings), graph, model


def test_an_export_is_a_weights_file_with_its_source(tmp_path):
    done, _, model = exported(tmp_path)
    assert done.worst < 1e-5
    names = {"model.safetensors", "rescalenet_flax.py", "train.py", "manifest.json"}
    assert {path.name for path in done.folder.iterdir()} == names
    again = zoo.create_model("rescalenet20_cifar", done.folder / "model.safetensors")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    assert zoo.get_weights(done.folder / "model.safetensors").meta == {"data": "noise"}
    axes = json.loads((done.folder / "manifest.json").read_text())["graphs"][0]["inputs"][0]["axes"]
    assert axes == ["batch", "height", "width", 3]


def test_an_export_in_half_precision(tmp_path):
    done, *_ = exported(tmp_path, Settings(half=True))
    values = load_file(done.folder / "model.safetensors")
    assert {value.dtype for value in values.values()} == {torch.float16}
    assert 1e-6 < done.worst < 1e-2


def test_a_changed_file_is_noticed(tmp_path):
    done, graph, _ = exported(tmp_path)
    path = done.folder / "model.safetensors"
    state, metadata = load_file(path), {"rescalenet": json.dumps(flax_net.read_header(path))}
    state["layer2.0.conv1.pre_bias"] += 0.01
    save_file(state, path, metadata)
    functions = TARGET.functions()
    with pytest.raises(ExportError, match="outputs differ"):
        check_graph(graph, TARGET, done.folder, Settings())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ExportError, match="cannot be read in JAX"):
        functions.load(graph, done.folder)


def test_a_net_without_weights_has_no_transform(tmp_path):
    model = woken(narrow("r3d"), samples("r3d", 2, 64)).eval()
    inputs = [samples("r3d", 1, 64), samples("r3d", 2, 49)]
    deployment = Deployment("clips", (graph_of(model, inputs, "noise", folded=False),), {})
    done = export(deployment, TARGET, tmp_path / "out")
    with pytest.raises(WeightsError, match="transform"):
        zoo.get_weights(done.folder / "model.safetensors")
    net, header = flax_net.load(done.folder / "model.safetensors")
    assert header["transform"] is None
    with pytest.raises(ValueError, match="no 'transform'"):
        flax_net.standardised(np.zeros((1, 2, 8, 8, 3), np.uint8), header)
    found, expected = outputs(model, net, inputs[1])
    assert far(found, expected) < 5e-6


REFUSED = {
    "gn": "export to jax: scheme 'gn': this file has rescale and bn",
    "nf": "export to jax: scheme 'nf': this file has rescale and bn",
}


@pytest.mark.parametrize("scheme", REFUSED)
def test_other_schemes_are_refused(scheme, tmp_path):
    model = narrow("basic", scheme=scheme).eval()
    graph = graph_of(model, [samples("basic", 1, 32)], "noise", folded=False)
    with pytest.raises(ExportError, match=REFUSED[scheme]):
        export(Deployment("images", (graph,), {}), TARGET, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parts_of_nets_are_refused(tmp_path):
    body = zoo.create_model("rescalenet18", features_only=True, width=0.125).eval()
    graph = graph_of(body, [samples("basic", 1, 32)], "noise", folded=False)
    with pytest.raises(ExportError, match=r"takes whole nets, not FeatureExtractor; in JAX, net.feature_maps"):
        export(Deployment("images", (graph,), {}), TARGET, tmp_path / "out")
    net = narrow("basic").eval()
    graph = graph_of(net, [samples("basic", 1, 32)], "noise", folded=False, softmax=True)
    with pytest.raises(ExportError, match="export to jax: its classes have no softmax"):
        export(Deployment("images", (graph,), {}), TARGET, tmp_path / "out")
    net.truncate(2)
    graph = graph_of(net, [samples("basic", 1, 32)], "noise", folded=False)
    with pytest.raises(ExportError, match=r"model.safetensors: cannot be read in JAX: .* fc.bias is missing"):
        export(Deployment("images", (graph,), {}), TARGET, tmp_path / "out")
    graphs = graphs_of(text_net().eval(), [transformers.batch()[0][:1]], "tokens", folded=False)
    with pytest.raises(ExportError, match="encoder: takes the graph of the whole net"):
        export(Deployment("text", graphs, {}), TARGET, tmp_path / "out")


def test_float32_is_float32():
    """JAX may multiply in less precision on a GPU or TPU: the comparison asks for the highest."""
    seen = []

    class Recorder(nnx.Module):
        def __init__(self):
            self.weight = nnx.Param(jnp.ones((2, 2)))

        def __call__(self, x):
            seen.append(jax.config.jax_default_matmul_precision)
            return x.mean((1, 2, 3), keepdims=True)[:, 0, 0]

    functions = TARGET.functions()
    model = narrow("cifar").eval()
    graph = graph_of(model, [samples("cifar", 1, 32)], "noise", folded=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functions.rescalenet_flax, "load", lambda path: (Recorder(), {}))
        functions.load(graph, Path("nowhere"))((np.zeros((1, 3, 8, 8), np.float32),))
    assert seen == ["highest"]


def test_the_missing_package_is_named_with_its_extra(monkeypatch):
    for name in [name for name in sys.modules if name == "zoo.export.jax" or name.startswith("zoo.export.jax.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optax", None)
    with pytest.raises(ExportError, match=r"export to jax needs optax: pip install 'rescalenet-zoo\[jax\]'"):
        TARGET.functions()


ALONE = """
import runpy, sys
for name in ("torch", "zoo", "tasks"):
    sys.modules[name] = None
sys.argv = ["train.py", "data.npz"]
sys.path.insert(0, ".")
import rescalenet_flax, numpy as np
net, header = rescalenet_flax.load("model.safetensors")
net.eval()
inputs = np.load("inputs.npz")
np.save("found.npy", net(*(inputs[key] for key in sorted(inputs))))
runpy.run_path("train.py", run_name="__main__")
"""


def train_alone(folder, inputs, **arrays):
    """Run an export's own files in a process without PyTorch and without this package: predict, then train.

    The result is the outputs, and the mean loss of each epoch.
    """
    np.savez(folder / "inputs.npz", *map(to_jax, inputs))
    np.savez(folder / "data.npz", **arrays)
    env = {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ALONE]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "found.npy"), [float(line.rpartition(" ")[2]) for line in done.stdout.splitlines()]


def test_the_folder_trains_without_pytorch_and_without_this_package(tmp_path):
    done, graph, model = exported(tmp_path)
    labels = np.arange(256) % 5
    images = (labels * 50)[:, None, None, None] + np.zeros((1, 8, 8, 3))
    found, trained = train_alone(done.folder, graph.samples[1], images=images.astype(np.uint8), labels=labels)
    with torch.no_grad():
        assert far(found, model(*graph.samples[1])) < 1e-5
    assert len(trained) == 10
    assert trained[-1] < 0.8 * trained[0]
    again = zoo.create_model("rescalenet20_cifar", done.folder / "trained.safetensors").eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (TRANSFORM.mean, TRANSFORM.std))
    inputs = (torch.from_numpy(images[:5]).permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.no_grad():
        loss = nn.functional.cross_entropy(again(inputs), torch.arange(5))
    assert float(loss) == pytest.approx(trained[-1], abs=0.1)


def test_a_translation_net_trains_there_too(tmp_path):
    model = text_net(encoder_layers=1, decoder_layers=1).eval()
    source, target = transformers.batch()
    pairs = [(source[:1], target[:1]), (source, target), (source[:2, :5], target[:2, :4])]
    graph = whole_graph(model, pairs, "tokens")
    done = export(Deployment("text", (graph,), {}), TARGET, tmp_path / "out")
    assert done.worst < 1e-5
    data = {"source": source.repeat(32, 1).numpy(), "target": target.repeat(32, 1).numpy()}
    found, trained = train_alone(done.folder, (source, target), **data)
    axes = json.loads((done.folder / "manifest.json").read_text())["graphs"][0]["outputs"][0]["axes"]
    assert axes == ["batch", "target", 40]
    with torch.no_grad():
        assert far(found, model(source, target)) < 1e-5
    assert trained[-1] < trained[0]

"""docs/method.md: its numbers and formulas, computed again."""

import itertools
import math
import re

import pytest
import torch
import torch.nn.functional as F

import zoo
from tests.helpers.nets import natural_images
from tests.helpers.paths import ROOT
from zoo import coefficients

PAGE = (ROOT / "docs" / "method.md").read_text()


def row(label: str) -> list[float]:
    """The numbers of the table row whose first cell begins with ``label``; empty cells left out."""
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {label}")]
    return [float(cell.strip("% ")) for cell in re.split(r"[|,]", line.split("|", 2)[2]) if cell.strip()]


def scales(alphas: list[float]) -> list[float]:
    """M10: s_0, ..., s_L of a stage whose blocks have these alphas."""
    s = [1.0]
    for alpha in reversed(alphas):
        s.insert(0, alpha * s[0])
    return s


def test_equations_are_numbered_in_order_and_every_reference_has_one():
    tags = [int(n) for n in re.findall(r"\\tag\{M(\d+)\}", PAGE)]
    assert tags == list(range(1, len(tags) + 1))
    assert {int(n) for n in re.findall(r"\bM(\d+)\b", PAGE)} == set(tags)


def test_links_exist():
    for name in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / name).exists(), name


def test_worked_example_of_the_trunk_scale():
    c = 2.0
    assert row("$k$") == [0, 1, 2]
    alphas, betas = zip(*(coefficients(k, c) for k in (1, 2)), strict=True)
    s = scales(list(alphas))
    assert row(r"$\alpha_k$") == [round(a, 4) for a in alphas]
    assert row(r"$\beta_k$") == [round(b, 4) for b in betas]
    assert row("$f_k$") == [round(((k + c) / c) ** (-1 / 4), 4) for k in (1, 2)]
    assert row("trunk scale") == [round(x, 4) for x in s]
    assert row("factor on the last weight") == [round(s[k] / s[k - 1] / math.sqrt(c), 4) for k in (1, 2)]


def test_worked_example_in_one_channel():
    c, b = 2.0, -1.0
    alphas = [coefficients(k, c)[0] for k in (1, 2)]
    s = scales(alphas)
    x, stored = [2.0], [2.0 * s[0]]
    branches, stored_branches = [], []
    for k in (1, 2):
        branches.append(max(x[-1] + b, 0))
        x.append(alphas[k - 1] * x[-1] + branches[-1] / math.sqrt(c))  # M5
        stored_branches.append(max(stored[-1] + s[k - 1] * b, 0))
        stored.append(stored[-1] + s[k] / s[k - 1] / math.sqrt(c) * stored_branches[-1])  # M11
    assert stored == pytest.approx([s[k] * x[k] for k in range(3)], rel=1e-14)
    assert row("$F_k(x_{k-1})$") == [round(v, 4) for v in branches]
    assert row("$x_k$ by M5") == [round(v, 4) for v in x]
    assert row("bias as used") == [round(s[k] * b, 4) for k in (0, 1)]
    assert row(r"$\hat F_k") == [round(v, 4) for v in stored_branches]
    assert row(r"$\hat x_k$ by M11") == [round(v, 4) for v in stored]


def test_hooks_see_the_trunk_at_the_scales_of_the_page():
    """ResNet-18's first stage has two blocks with identity shortcuts: M5 written out on its parameters."""
    model = zoo.create_model("rescalenet18", num_classes=3, width=0.125, c=2.0).double().eval()
    images = natural_images(2, 64).double()
    zoo.calibrate(model, [images])
    s = scales([coefficients(k, 2.0)[0] for k in (1, 2)])
    seen = {}
    for name in ("layer1.0", "layer1.1"):
        model.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        x = F.max_pool2d(model.forward_levels(images, (0,))[0], 3, 2, 1)
        model(images)
        for k in (1, 2):
            block = f"layer1.{k - 1}"
            h = x
            for conv in ("conv1", "conv2"):
                shifted = h + parameters[f"{block}.{conv}.pre_bias"].view(-1, 1, 1)
                h = F.conv2d(shifted, parameters[f"{block}.{conv}.weight"], padding=1)
                h = h.relu() if conv == "conv1" else h
            m = parameters[f"{block}.join.multiplier"]
            x = (coefficients(k, 2.0)[0] * x + m / math.sqrt(2) * h).relu()
            torch.testing.assert_close(seen[block], s[k] * x, rtol=1e-10, atol=1e-12)
            assert row("trunk scale")[k] == round(s[k], 4)


@pytest.mark.parametrize("c", [1.0, 2.0, 16.0])
def test_all_branches_have_the_same_weight(c):
    """M3, M4 and M6."""
    count = 16
    pairs = {k: coefficients(k, c) for k in range(1, count + 1)}
    for k, (alpha, beta) in pairs.items():
        assert alpha**2 + beta**2 == pytest.approx(1, rel=1e-14)
        weight = beta * math.prod(pairs[i][0] for i in range(k + 1, count + 1))
        assert weight == pytest.approx(1 / math.sqrt(count + c), rel=1e-13)
        for n in (2, 3, 4):
            assert ((k + c) / c) ** (-1 / (2 * n) * n) / math.sqrt(c) == pytest.approx(beta, rel=1e-13)
        assert 1 / math.prod(pairs[i][0] for i in range(1, k + 1)) == pytest.approx(math.sqrt((k + c) / c))  # M14
    assert math.prod(alpha for alpha, _ in pairs.values()) == pytest.approx(math.sqrt(c / (count + c)), rel=1e-13)


def test_standard_deviations_of_the_transformer():
    """The init table, on the last branches of each stack, where f_k is smallest."""
    d, hidden = 256, 512
    sizes = {"source_vocabulary": 64, "target_vocabulary": 64, "encoder_layers": 2, "decoder_layers": 2}
    model = zoo.create_model("rescale_transformer_tiny", dim=d, hidden=hidden, **sizes)
    state = model.state_dict()
    for name, k, c in [("encoder.1", 3, 4), ("decoder.1", 4, 6)]:
        f = ((k + c) / c) ** -0.25
        query, key, value = state[f"{name}.self_attn.qkv.weight"].chunk(3)
        for weight, std in [(query, d**-0.5), (key, d**-0.5), (value, f * d**-0.5)]:
            assert float(weight.std()) == pytest.approx(std, rel=0.02)
        assert float(state[f"{name}.self_attn.out.weight"].std()) == pytest.approx(f * d**-0.5, rel=0.02)
        last = k + (1 if name.startswith("encoder") else 2)
        f = ((last + c) / c) ** -0.25
        assert float(state[f"{name}.ffn.hidden.weight"].std()) == pytest.approx(f * math.sqrt(2 / d), rel=0.02)
        assert float(state[f"{name}.ffn.shrink.weight"].std()) == pytest.approx(f * hidden**-0.5, rel=0.02)


def test_a_batchnorm_net_in_the_form_of_m13():
    bn = zoo.create_model("rescalenet18", scheme="bn", num_classes=3, width=0.125).double().eval()
    options = {"num_classes": 3, "width": 0.125, "shortcut": "conv", "post_bias": True}
    rescale = zoo.create_model("rescalenet18", **options).double().eval()
    for name, tensor in [*bn.named_parameters(), *bn.named_buffers()]:
        if "norm" in name and tensor.is_floating_point():
            torch.nn.init.uniform_(tensor, 0.5, 1.5)
    old, new = bn.state_dict(), rescale.state_dict()
    for name in new:  # biases before products, head's included
        if name.endswith("pre_bias") or name == "head_bias.bias":
            new[name].zero_()
    new["fc.weight"], new["fc.bias"] = old["fc.weight"], old["fc.bias"]

    def convert(conv: str, weight_scale: float, bias_scale: float) -> None:
        norm = conv.replace("conv", "norm")
        factor = old[f"{norm}.weight"] / (old[f"{norm}.running_var"] + 1e-5).sqrt()
        bias = old[f"{norm}.bias"] - old[f"{norm}.running_mean"] * factor
        new[f"{conv}.weight"] = weight_scale * factor.view(-1, 1, 1, 1) * old[f"{conv}.weight"]
        new[f"{conv}.bias"] = bias_scale * bias

    blocks = [f"layer{stage}.{i}" for stage in (1, 2, 3, 4) for i in (0, 1)]
    c = float(len(blocks))
    alphas = {block: coefficients(k, c)[0] for k, block in enumerate(blocks, 1)}
    t = 1.0
    for block in reversed(blocks):  # t is that of the block's output
        alpha, projection = alphas[block], f"{block}.downsample.conv"
        before = 1.0 if f"{projection}.weight" in new else t / alpha
        convert(f"{block}.conv1", 1 / before, 1.0)
        convert(f"{block}.conv2", math.sqrt(c) * t, math.sqrt(c) * t)
        if f"{projection}.weight" in new:
            convert(projection, t / alpha, t / alpha)
        t = before
    convert("stem.conv1", t, t)
    rescale.load_state_dict(new)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(rescale(images), bn(images), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scheme", ["none", "rescale"])
def test_measured_signal_at_init(scheme):
    """The table of the first section. Another machine rounds otherwise, so 5 % and two channels in a hundred."""
    torch.manual_seed(0)
    images = natural_images(8, 128)
    torch.manual_seed(0)
    model = zoo.create_model("rescalenet50", scheme=scheme).eval()
    if scheme == "rescale":
        zoo.calibrate(model, [images])
    power: dict[str, float] = {}
    dead: list[float] = []

    def fixed_sign(_: object, __: object, z: torch.Tensor) -> None:
        share = (z > 0).transpose(0, 1).flatten(1).double().mean(1)
        dead.append(float(((share == 0) | (share == 1)).double().mean()))

    for name, module in model.named_modules():
        if re.fullmatch(r"layer\d\.\d+\.conv[12]", name):
            module.register_forward_hook(fixed_sign)
        if re.fullmatch(r"layer\d\.\d+", name):
            module.register_forward_hook(lambda _, __, x, name=name: power.update({name: float(x.square().mean())}))
    with torch.no_grad():
        model(images)
    growth, last, mean_dead, worst_dead = row(f"`{scheme}`")
    blocks = list(power)
    for k, block in enumerate(blocks, 1):  # hooks of rescale see s_k x_k
        stage = [i for i, other in enumerate(blocks, 1) if other[:6] == block[:6]]
        if scheme == "rescale":
            power[block] /= scales([coefficients(i, 16.0)[0] for i in stage if i > k])[0] ** 2
    ratios = [power[b] / power[a] for a, b in itertools.pairwise(blocks) if a[:6] == b[:6]]
    assert sum(ratios) / len(ratios) == pytest.approx(growth, rel=0.05)
    assert power[blocks[-1]] == pytest.approx(last, rel=0.05)
    assert sum(dead) / len(dead) == pytest.approx(mean_dead / 100, abs=0.02)
    assert max(dead) == pytest.approx(worst_dead / 100, abs=0.02)


def test_the_class_activation_map_runs():
    pytest.importorskip("captum", reason="needs captum, which is not installed")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    scope: dict[str, object] = {}
    exec(compile(code, "method.md", "exec"), scope)
    assert scope["cam"].shape == (2, 1, 8, 8)
    (row,) = [row for row in scope["model"].trunk_scales.rows if row.module == "layer2.0"]
    torch.testing.assert_close(scope["features"] * row.scale_out, scope["seen"]["stored"])

"""Sums over activations: compared with torch's own mean, var, corrcoef and cosine_similarity in float64.

Both sides add up float64 numbers, in another order: they agree to 1e-12, relative to the largest of each statistic.
"""

import pytest
import torch

from tasks.diagnose import moments
from tasks.diagnose.moments import ChannelStatistics, PairStatistics, Positions, Signs, channel_sums, pair_sums


def activations(*shape, dtype=torch.float64):
    """Activations with a mean and a scale of each channel (dimension 1)."""
    channel = torch.arange(1.0, shape[1] + 1).view(-1, *[1] * (len(shape) - 2))
    return (torch.randn(shape) * channel + channel / 2).to(dtype)


def by_channel(x, dim):
    """(C, values)."""
    return x.movedim(dim, 0).flatten(1)


@pytest.mark.parametrize(("shape", "dim"), [((7, 5), 1), ((7, 5, 3, 4), 1), ((7, 5, 3, 4, 2), 1), ((7, 3, 5), -1)])
def test_channel_statistics_are_those_of_torch(shape, dim):
    x = activations(*shape).movedim(1, dim) if len(shape) > 3 else activations(*shape)
    values = by_channel(x, dim)
    found = ChannelStatistics.of(channel_sums(x, dim))
    torch.testing.assert_close(found.mean, values.mean(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.variance, values.var(1, correction=0), rtol=1e-12, atol=1e-12)
    assert found.power == pytest.approx(float((x * x).mean()), rel=1e-12)
    assert found.mean_power == pytest.approx(float(values.mean(1).square().mean()), rel=1e-12)
    assert found.mean_variance == pytest.approx(float(values.var(1, correction=0).mean()), rel=1e-12)
    # E[x^2] is the mean over channels of mean^2 + variance
    assert found.power == pytest.approx(found.mean_power + found.mean_variance, rel=1e-12)


def test_a_scale_divides_the_values():
    x = activations(4, 3, 5, 5)
    found, expected = ChannelStatistics.of(channel_sums(x, 1), 0.7), ChannelStatistics.of(channel_sums(x / 0.7, 1))
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.variance, expected.variance, rtol=1e-12, atol=0)
    assert found.power == pytest.approx(expected.power, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_of_short_types_are_of_float64(dtype):
    """2^12 + 2^-12, squared, has more digits than float32."""
    x = torch.tensor([4096.0, 2.0**-12], dtype=dtype).view(2, 1)
    assert channel_sums(x, 1).flatten().tolist() == [4096 + 2**-12, 2**24 + 2**-24, 2]
    x = activations(6, 4, 5, 5, dtype=dtype)
    torch.testing.assert_close(channel_sums(x, 1), channel_sums(x.double(), 1), rtol=0, atol=0)


def test_pair_statistics_are_those_of_torch():
    x, noise = activations(6, 4, 5, 5), activations(6, 4, 5, 5)
    y = noise - 0.6 * x
    found = PairStatistics.of(pair_sums(x, y, 1))
    assert found.power_x == pytest.approx(float(x.square().mean()), rel=1e-12)
    assert found.power_y == pytest.approx(float(y.square().mean()), rel=1e-12)
    cosine = torch.cosine_similarity(x.flatten(), y.flatten(), dim=0)
    assert found.cosine == pytest.approx(float(cosine), rel=1e-12)
    centred = [z - z.mean((0, 2, 3), keepdim=True) for z in (x, y)]
    correlation = torch.corrcoef(torch.stack([z.flatten() for z in centred]))[0, 1]
    assert found.correlation == pytest.approx(float(correlation), rel=1e-12)
    # E[(x + y)^2] follows from the powers and the cosine
    total = found.power_x + found.power_y + 2 * found.cosine * (found.power_x * found.power_y) ** 0.5
    assert float((x + y).square().mean()) == pytest.approx(total, rel=1e-12)


def test_pairs_that_are_the_same_opposite_or_zero():
    x = activations(3, 2, 4, 4)
    same, opposite = PairStatistics.of(pair_sums(x, 3 * x, 1)), PairStatistics.of(pair_sums(x, -x, 1))
    assert (same.cosine, same.correlation) == pytest.approx((1, 1), rel=1e-12)
    assert (opposite.cosine, opposite.correlation) == pytest.approx((-1, -1), rel=1e-12)
    zero = PairStatistics.of(pair_sums(x, torch.zeros_like(x), 1))
    assert zero.power_y == 0
    assert torch.tensor([zero.cosine, zero.correlation]).isnan().all()


def test_masked_positions_do_not_count():
    x, y = torch.randn(4, 6, 3, dtype=torch.float64), torch.randn(4, 6, 3, dtype=torch.float64)
    keep = torch.rand(4, 6) > 0.4
    mask = Positions(keep).of(x)
    assert mask is not None
    expected = channel_sums(x[keep], 1)
    torch.testing.assert_close(channel_sums(x, -1, mask), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pair_sums(x, y, -1, mask), pair_sums(x[keep], y[keep], 1), rtol=1e-12, atol=1e-12)
    # the heads (B, H, T, D) and the sentence's other side (B, S, d) do not have the shape of the mask
    assert Positions(keep).of(torch.zeros(4, 2, 6, 3)) is None
    assert Positions(keep).of(torch.zeros(4, 5, 3)) is None


@pytest.mark.parametrize("dim", [1, -1])
def test_pieces_and_batches_give_the_sums_of_all(monkeypatch, dim):
    x, y = activations(9, 4, 6), activations(9, 4, 6)
    whole, pair = channel_sums(x, dim), pair_sums(x, y, dim)
    parts = sum(channel_sums(part, dim) for part in x.split(4))
    monkeypatch.setattr(moments, "_PIECE_CPU", 50)  # two samples at a time
    for found, expected in ((channel_sums(x, dim), whole), (parts, whole), (pair_sums(x, y, dim), pair)):
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-12)


def test_no_samples_have_sums_of_zero():
    empty = torch.zeros(0, 5, 3, 3)
    assert channel_sums(empty, 1).tolist() == torch.zeros(3, 5).tolist()
    assert pair_sums(empty, empty, 1).tolist() == torch.zeros(6, 5).tolist()
    signs = Signs.of(empty, 1, units=True)
    assert not signs.channels.any()
    signs.add(Signs.of(torch.ones(2, 5, 3, 3), 1, units=True))
    assert signs.units is not None
    assert signs.units[0].all()
    assert not signs.units[1].any()


def planted():
    """(N, C, H, W) with channel 0 positive, 1 negative, 2 zero, 3 of both signs in different units."""
    x = torch.randn(5, 4, 2, 3)
    x[:, 0], x[:, 1], x[:, 2] = x[:, 0].abs() + 0.1, -x[:, 1].abs() - 0.1, 0.0
    x[:, 3, 0], x[:, 3, 1] = 1.0, -1.0
    x[2, 3, 1, 2] = 1.0  # one unit of both signs
    return x


def test_signs_of_channels_and_units():
    """A value of 0 is not positive: a ReLU's gradient is 0 there."""
    x = planted()
    signs = Signs.of(x, 1, units=True)
    assert signs.channels[0].tolist() == [True, False, False, True]  # positive somewhere
    assert signs.channels[1].tolist() == [False, True, True, True]  # not positive somewhere
    assert signs.units is not None
    torch.testing.assert_close(signs.units[0], (x > 0).any(0))
    torch.testing.assert_close(signs.units[1], (x <= 0).any(0))
    always = ~signs.units[1]
    assert int(always[3].sum()) == 3
    assert Signs.of(x, 1).units is None


@pytest.mark.parametrize("samples", [1, 3, 70])
def test_signs_take_the_same_operations_for_any_number_of_samples(samples):
    """And give the same in any order of the memory."""
    x = torch.randn(samples, 4, 3, 5)
    expected = torch.stack([(x > 0).any(0), (x <= 0).any(0)])
    for same in (x, x.contiguous(memory_format=torch.channels_last), x.permute(3, 1, 0, 2).clone().permute(2, 1, 3, 0)):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            signs = Signs.of(same, 1, units=True)
        assert signs.units is not None
        torch.testing.assert_close(signs.units, expected)
        extremes = [event for event in profile.events() if "max" in event.name or "min" in event.name]
        assert len(extremes) == 2


@pytest.mark.parametrize("shape", [(6, 4), (6, 3, 4)])
def test_signs_of_linear_layers(shape):
    x = torch.randn(shape) + torch.tensor([9.0, -9.0, 0.0, 0.0])
    signs = Signs.of(x, -1, units=True)
    flat = x.flatten(0, -2)
    assert signs.channels.tolist() == [(flat > 0).any(0).tolist(), (flat <= 0).any(0).tolist()]
    assert signs.units is not None
    assert signs.units.shape == (2, 4, *shape[1:-1])
    torch.testing.assert_close(signs.units[0], (x > 0).any(0).movedim(-1, 0))


def test_signs_of_batches_are_those_of_all():
    x = planted()
    whole, first = Signs.of(x, 1, units=True), Signs.of(x[:2], 1, units=True)
    first.add(Signs.of(x[2:], 1, units=True))
    assert first.units is not None
    torch.testing.assert_close(first.channels, whole.channels)
    torch.testing.assert_close(first.units, whole.units)
    first.add(Signs.of(x[:, :, :, :2], 1, units=True))  # of another size: positions do not correspond
    assert first.units is None
    torch.testing.assert_close(first.channels, whole.channels)


def test_signs_of_masked_positions():
    x = torch.full((2, 3, 2), -1.0)
    keep = torch.tensor([[True, True, False], [True, False, False]])
    x[0, 2, 0] = x[1, 1, 0] = 1.0  # in padding
    x[0, 1, 1] = 1.0
    signs = Signs.of(x, -1, Positions(keep).of(x), units=True)
    assert signs.channels.tolist() == [[False, True], [True, True]]
    assert signs.units is None

"""Noise of a stated spectrum, pictures and sentences as a diagnosis reads them."""

import math

import pytest
import torch

import zoo
from tasks.diagnose.inputs import check_spectrum, expected_power, noise, noise_inputs, picture_inputs, sentence_inputs
from tasks.errors import DataError, UserError
from tests.helpers import transformers
from tests.helpers.classification import picture
from tests.helpers.detection import small
from tests.helpers.nets import narrow
from zoo.text import EOS, PAD, UNK


def drawn(shape, spectrum, seed=0):
    return noise(shape, spectrum, torch.Generator().manual_seed(seed))


def frequencies(shape, dims):
    """Cycles per pixel, (...)."""
    axes = torch.meshgrid(*(torch.fft.fftfreq(shape[d], dtype=torch.float64) for d in dims), indexing="ij")
    return torch.stack(axes).square().sum(0).sqrt()


def slope(x, dims):
    """The slope of log amplitude over log frequency: a fit to the mean power of all samples at each frequency."""
    power = torch.fft.fftn(x.double(), dim=dims).abs().square().mean((0, 1)).flatten()[1:]
    u, v = frequencies(x.shape, dims).flatten()[1:].log(), power.sqrt().log()
    return float(((u - u.mean()) * (v - v.mean())).sum() / (u - u.mean()).square().sum())


@pytest.mark.parametrize("shape", [(8, 3, 64, 64), (4, 3, 8, 32, 32), (16, 1, 48, 40)])
@pytest.mark.parametrize("spectrum", ["white", "pink"])
def test_mean_and_deviation(shape, spectrum):
    """Of pink noise exactly, to the rounding of float32; of white noise as the drawn sample has them: 5 sigma."""
    x = drawn(shape, spectrum)
    assert x.shape == shape
    assert x.dtype == torch.float32
    tolerance = 1e-5 if spectrum == "pink" else 5 / math.sqrt(x.numel())
    assert float(x.mean()) == pytest.approx(0, abs=tolerance)
    assert float(x.std()) == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize(("spectrum", "expected"), [("white", 0.0), ("pink", -1.0)])
@pytest.mark.parametrize(("shape", "dims"), [((16, 3, 64, 64), (2, 3)), ((4, 3, 32, 32, 32), (2, 3, 4))])
def test_slope_of_the_spectrum(spectrum, expected, shape, dims):
    """Amplitude 1 or 1/f.

    The logarithm of a mean of 12 or more powers has a standard deviation of 0.15 or less, and there are 4096
    frequencies or more, over a range of a deviation of 0.4: the slope has an error of about 0.15 / 0.4 / 64 = 0.006.
    """
    assert slope(drawn(shape, spectrum), dims) == pytest.approx(expected, abs=0.02)


def test_pink_noise_of_images_that_are_not_square():
    """The frequency is that of the pixels in both directions, as in a cut of a photograph."""
    x = drawn((64, 3, 64, 32), "pink")
    power = torch.fft.fftn(x.double(), dim=(2, 3)).abs().square().mean((0, 1))
    assert float(power[4, 0] / power[0, 2]) == pytest.approx(1, rel=0.3)  # both 1/16 of a cycle per pixel
    assert float(power[4, 0] / power[8, 0]) == pytest.approx(4, rel=0.4)


def test_neighbouring_pixels_of_pink_noise_are_alike():
    """The correlation is the inverse transform of the power; it is the mean over 48 channels."""
    weights = frequencies((32, 32), (0, 1)).square().reciprocal()
    weights[0, 0] = 0
    cosine = torch.cos(2 * math.pi * torch.fft.fftfreq(32, dtype=torch.float64))
    alike = float((weights * cosine).sum() / weights.sum())
    assert alike > 0.6
    for spectrum, expected in (("white", 0), ("pink", alike)):
        x = drawn((16, 3, 32, 32), spectrum)
        found = float((x * x.roll(1, -1)).mean() / x.square().mean())
        assert found == pytest.approx(expected, abs=0.03)


def test_noise_is_seeded():
    for spectrum in ("white", "pink"):
        assert torch.equal(drawn((2, 3, 8, 8), spectrum), drawn((2, 3, 8, 8), spectrum))
        assert not torch.equal(drawn((2, 3, 8, 8), spectrum), drawn((2, 3, 8, 8), spectrum, seed=1))
    state = torch.get_rng_state()
    drawn((2, 3, 8, 8), "pink")
    assert torch.equal(torch.get_rng_state(), state)


def test_spectra_by_name():
    assert check_spectrum("white") == "white"
    with pytest.raises(UserError, match="--noise brown: must be pink or white"):
        check_spectrum("brown")


# -- batches of noise for nets of each kind


def inputs_of(model, name, **settings):
    return noise_inputs(model, zoo.model_info(name), "pink", **{"count": 2, "batch_size": 3, "size": None, **settings})


def test_images_and_clips():
    model = narrow("cifar", in_chans=1)
    found = inputs_of(model, "rescalenet20_cifar")
    assert [batch[0].shape for batch in found.batches] == [(3, 1, 32, 32)] * 2
    assert found.source == "6 samples of pink noise, 32x32, random labels"
    assert found.loss is not None
    assert float(found.loss(model.eval(), next(iter(found.batches))).detach()) > 0
    assert {int(label) for _, labels in found.batches for label in labels} <= set(range(5))
    assert torch.equal(found.forward(model, next(iter(found.batches))), model(next(iter(found.batches))[0]))
    again = inputs_of(model, "rescalenet20_cifar")
    assert all(
        torch.equal(a, b) for pair in zip(found.batches, again.batches, strict=True) for a, b in zip(*pair, strict=True)
    )
    other = inputs_of(model, "rescalenet20_cifar", seed=1)
    assert not torch.equal(next(iter(found.batches))[0], next(iter(other.batches))[0])
    clips = inputs_of(narrow("r3d"), "rescale_r3d_18", size=16)
    assert next(iter(clips.batches))[0].shape == (3, 3, zoo.model_info("rescale_r3d_18").frames or 8, 16, 16)
    with pytest.raises(UserError, match="--size 4: must be >= 8 for rescalenet20_cifar"):
        inputs_of(model, "rescalenet20_cifar", size=4)


def test_random_sentences():
    model = transformers.make().float()
    found = inputs_of(model, "rescale_transformer_tiny", size=7)
    source, target, labels = next(iter(found.batches))
    assert source.shape == target.shape == labels.shape == (3, 7)
    assert (source[:, -1] == EOS).all()
    assert (target[:, 0] == EOS).all()
    assert torch.equal(target[:, 1:], labels[:, :-1])  # shifted by one
    assert source[:, :-1].min() > UNK
    assert source.max() < transformers.VOCABULARY
    assert found.loss is not None
    # the mean over tokens: near log(vocabulary) of a fresh net, whose distribution is not far from uniform
    loss = float(found.loss(model, next(iter(found.batches))).detach())
    assert 0.5 * math.log(transformers.VOCABULARY) < loss < 3 * math.log(transformers.VOCABULARY)


def test_noise_for_detectors_is_pixels():
    """A detector standardises pixels in 0..1 by itself."""
    model = small()
    found = inputs_of(model, "mask_rcnn_rescalenet18_fpn", size=64)
    assert [image.shape for image in next(iter(found.batches))] == [(3, 64, 64)] * 3
    pixels = torch.stack(next(iter(found.batches)))
    assert (float(pixels.min()), float(pixels.max())) == (0, 1)  # cut where the noise is far out
    assert float(pixels.mean()) == pytest.approx(0.45, abs=0.02)
    assert found.loss is None


# -- data of the user


def test_pictures_are_read_as_the_net_takes_them(tmp_path):
    for number in range(5):
        picture(tmp_path / f"{number}.png", (40, 30), seed=number)
    transform = zoo.InputTransform(16, 18, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    found = picture_inputs(transform, tmp_path, channels=3, count=2, batch_size=2)
    assert [batch.shape for batch in found.batches] == [(2, 3, 16, 16)] * 2
    assert found.source == f"4 pictures of {tmp_path.name}"
    assert found.loss is None
    everything = picture_inputs(transform, tmp_path, channels=3, count=None, batch_size=2)
    assert [len(batch) for batch in everything.batches] == [2, 2, 1]
    assert torch.equal(next(iter(everything.batches)), next(iter(found.batches)))
    with pytest.raises(UserError):
        picture_inputs(transform, tmp_path / "absent", channels=3, count=1, batch_size=2)


def test_sentences_are_copied_by_the_decoder(tmp_path):
    class Coder:
        def encode(self, lines):
            return [[ord(character) for character in line] for line in lines]

        @property
        def target(self):
            return self

    class Transform:
        def build(self):
            return Coder()

    path = tmp_path / "text.txt"
    path.write_text("abc\n\nzyxwvuts\nq\n", encoding="utf-8")
    found = sentence_inputs(Transform(), path, count=None, batch_size=2, longest=6)
    (source, target), (last, _) = found.batches
    assert source.tolist() == [[97, 98, 99, EOS, PAD, PAD], [122, 121, 120, 119, 118, EOS]]  # cut to 6 tokens
    assert target.tolist() == [[EOS, 97, 98, 99, PAD, PAD], [EOS, 122, 121, 120, 119, 118]]
    assert last.tolist() == [[113, EOS]]
    assert found.source == "3 sentences of text.txt, copied by the decoder"
    path.write_text("\n \n", encoding="utf-8")
    with pytest.raises(DataError, match="text.txt: no sentences"):
        sentence_inputs(Transform(), path, count=None, batch_size=2, longest=6)


def test_expected_power_of_standardised_photographs():
    """E[((p - mean) / std)^2] of pixels with mean 0.45 and standard deviation 0.25, a mean over channels."""
    transform = zoo.InputTransform(16, 16, (0.45, 0.45, 0.2), (0.25, 0.5, 0.25))
    assert expected_power(transform) == pytest.approx((1 + 0.25 + 2) / 3)
    pixels = 0.45 + 0.25 * torch.randn(100_000, 3)
    inputs = (pixels - torch.tensor(transform.mean)) / torch.tensor(transform.std)
    assert float(inputs.square().mean()) == pytest.approx(expected_power(transform), rel=0.02)
    assert expected_power(None) == 1.0
    assert expected_power(zoo.InputTransform.imagenet(224, 256)) == pytest.approx(1.2, abs=0.1)

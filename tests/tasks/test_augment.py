"""Augmentations of images and clips, against torchvision called directly and against the papers' formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import zoo
from tasks.augment import (
    AugMix,
    AutoAugment,
    Erasing,
    Flip,
    Mixing,
    RandAugment,
    TrivialAugment,
    distortions,
    make_mixing,
)
from tasks.classification.config import Augment
from tasks.classification.data import PaddedCrop, Resize, train_transform
from tasks.engine import seed_from
from tasks.spec import make_task
from tasks.video.config import Augment as VideoAugment
from tasks.video.transforms import train_transform as train_transform_of_clips
from tests.helpers.training import EVERYTHING, config

MEAN, STD = (0.2, 0.4, 0.6), (0.1, 0.12, 0.15)
IMAGES = zoo.InputTransform(16, 16, MEAN, STD)
CLIPS = zoo.VideoTransform(4, None, None, 16, 16, MEAN, STD)
FILL = [51.0, 102.0, 153.0]  # 255 times the mean
BILINEAR, NEAREST = v2.InterpolationMode.BILINEAR, v2.InterpolationMode.NEAREST
SECTIONS = [RandAugment(), RandAugment(ops=3, magnitude=30), TrivialAugment(), AutoAugment(policy="svhn"), AugMix()]


def theirs(section, **settings):
    """The policy as torchvision's documentation makes it."""
    return {
        "rand": lambda: v2.RandAugment(num_ops=section.ops, magnitude=section.magnitude, **settings),
        "trivial": lambda: v2.TrivialAugmentWide(**settings),
        "auto": lambda: v2.AutoAugment(policy=v2.AutoAugmentPolicy.SVHN, **settings),
        "augmix": lambda: v2.AugMix(severity=3, mixture_width=3, chain_depth=-1, alpha=1.0, **settings),
    }[section.name]()


def pairs(ours, reference, x, count=12):
    """The outputs of both transforms for each of some seeds."""
    for seed in range(count):
        outputs = []
        for transform in (ours, reference):
            torch.manual_seed(seed)
            outputs.append(transform(x.clone()))
        yield outputs


def image(height=16, width=16):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


# -- samples ----------------------------------------------------------------------------------------


def test_what_is_off_adds_no_transform():
    crop = {"name": "pad"}
    steps = train_transform(Augment(crop=crop), IMAGES).transforms
    assert [type(step) for step in steps] == [Resize, PaddedCrop, Flip]
    assert len(train_transform(Augment(crop=crop, flip=0.0), IMAGES).transforms) == 2
    assert distortions(VideoAugment(), CLIPS) == []
    assert make_mixing(Augment(), 3, batch_size=1, ranks=1) is None


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("size", [(12, 12), (12, 17), (20, 12)])
def test_padding_and_crop_in_one_are_torchvisions(size, padding):
    seen = set()
    for ours, reference in pairs(PaddedCrop(12, padding), v2.RandomCrop(12, padding=padding or None), image(*size), 40):
        assert torch.equal(ours, reference)
        seen.add(tuple(ours.flatten().tolist()))
    assert len(seen) > 3 or (size == (12, 12) and padding == 0)


@pytest.mark.parametrize("size", [(12, 12), (12, 17), (20, 12), (9, 8), (24, 30)])
@pytest.mark.parametrize("interpolation", [BILINEAR, NEAREST])
def test_resize_and_flip_are_torchvisions(size, interpolation):
    x = image(*size)
    assert torch.equal(Resize(12, interpolation)(x), v2.Resize(12, interpolation)(x))
    flipped = [not torch.equal(ours, x) for ours, _ in pairs(Flip(0.3), v2.RandomHorizontalFlip(0.3), x, 40)]
    assert flipped == [not torch.equal(right, x) for _, right in pairs(Flip(0.3), v2.RandomHorizontalFlip(0.3), x, 40)]
    assert 4 < sum(flipped) < 20
    assert torch.equal(Flip(1.0)(x), x.flip(-1))


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_policies_are_torchvisions_after_crop_and_flip(section):
    augment = Augment(crop={"name": "pad", "padding": 2}, auto_augment=section, erasing={"probability": 0.7})
    reference = v2.Compose(
        [
            v2.RandomCrop(16, padding=2),
            v2.RandomHorizontalFlip(0.5),
            theirs(section, interpolation=BILINEAR, fill=FILL),
            v2.RandomErasing(0.7, value=FILL),
        ]
    )
    x, changed = image(), 0
    for ours, right in pairs(train_transform(augment, IMAGES), reference, x):
        assert ours.dtype == torch.uint8
        assert torch.equal(ours, right)
        changed += not torch.equal(ours, x)
    assert changed > 8


@pytest.mark.parametrize(
    ("interpolation", "used"),
    [("nearest", NEAREST), ("nearest-exact", NEAREST), ("bilinear", BILINEAR), ("bicubic", BILINEAR)],
)
def test_the_interpolation_is_the_inputs_where_torchvision_has_it(interpolation, used):
    transform = zoo.InputTransform(16, 16, MEAN, STD, interpolation, "BGR")
    (ours,) = distortions(Augment(auto_augment={"name": "trivial"}), transform)
    # the statistics are in the order of the net's channels, BGR, the pixels are RGB
    reference = v2.TrivialAugmentWide(interpolation=used, fill=FILL[::-1])
    assert all(torch.equal(a, b) for a, b in pairs(ours, reference, image(), 20))


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_what_is_erased_is_zero_for_the_net(images, tmp_path, order):
    """Up to the rounding to uint8, which is half of 1/255 on the 0..1 scale."""
    task = make_task(config(images, tmp_path, data={"mean": MEAN, "std": STD}))
    task.transform = zoo.InputTransform(16, 16, MEAN, STD, channel_order=order)
    (erase,) = distortions(Augment(erasing={"probability": 1.0, "scale": [0.2, 0.4]}), task.transform)
    x = torch.full((3, 16, 16), 255, dtype=torch.uint8)
    standardised = task.inputs((erase(x)[None],), torch.float32)[0]  # (3, 16, 16)
    erased = (standardised < 1).all(0)
    assert 0.1 < erased.float().mean() < 0.5
    assert standardised[:, erased].abs().max() < 0.5 / 255 / min(STD) + 1e-6
    assert torch.equal(x, torch.full_like(x, 255))  # a kept image is not changed


def test_noise_has_the_statistics_of_the_data():
    """Mean 0 and std 1 after the standardisation, as torchvision draws it; 800 pixels and more a channel."""
    section = Erasing(probability=1.0, scale=(0.5, 0.5), ratio=(1.0, 1.0), value="random")
    transform = zoo.InputTransform(64, 64, (0.4, 0.5, 0.6), STD)
    (erase,) = distortions(Augment(erasing=section), transform)
    x = torch.zeros(3, 64, 64, dtype=torch.uint8)
    torch.manual_seed(5)
    pixels = erase(x)
    noise = pixels[:, (pixels > 0).any(0)].float() / 255  # (3, N)
    assert noise.shape[1] == 45 * 45
    standardised = (noise - torch.tensor(transform.mean)[:, None]) / torch.tensor(STD)[:, None]
    assert standardised.mean(1).abs().max() < 0.1  # 4 standard errors of 1 / sqrt(2025)
    assert (standardised.std(1) - 1).abs().max() < 0.08


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_all_frames_of_a_clip_get_the_same(section):
    """A clip of equal frames is augmented as its frame alone."""
    settings = {"auto_augment": section, "erasing": {"probability": 0.8, "value": "random"}}
    ours = v2.Compose(distortions(VideoAugment(**settings), CLIPS))
    alone = v2.Compose(distortions(Augment(**settings), IMAGES))
    still = image()
    for seed in range(10):
        torch.manual_seed(seed)
        clip = ours(still.expand(4, -1, -1, -1))
        torch.manual_seed(seed)
        assert type(clip) is torch.Tensor
        assert torch.equal(clip, alone(still).expand(4, -1, -1, -1))


def test_clips_are_distorted_after_crop_and_colour():
    steps = train_transform_of_clips(VideoAugment(colour=0.4, auto_augment={"name": "trivial"}, erasing={}), CLIPS)
    names = [type(step).__name__ for step in steps.transforms if isinstance(step, torch.nn.Module)]
    assert names[-4:] == ["ColorJitter", "TrivialAugmentWide", "ToPureTensor", "RandomErasing"]
    assert steps(torch.randint(0, 256, (4, 3, 20, 30), dtype=torch.uint8)).shape == (4, 3, 16, 16)


def everything(images, output, **train):
    return make_task(
        config(images, output, data={"augment": {"crop": {"name": "pad", "padding": 2}, **EVERYTHING}}, **train)
    )


def test_samples_are_a_function_of_seed_draw_and_index(images, tmp_path):
    """With 0 and 2 workers; a copy is the sample that a run without copies has in the epoch of that number."""
    data = everything(images, tmp_path).train_set()
    keys = list(everything(images, tmp_path).batches(8, 0))
    alone, workers = ([batch[0] for batch in DataLoader(data, batch_sampler=keys, num_workers=n)] for n in (0, 2))
    assert all(torch.equal(a, b) for a, b in zip(alone, workers, strict=True))
    (draw, index), (other, same) = keys[0][0], keys[0][4]
    assert (draw, other, index) == (0, 1, same)
    assert not torch.equal(alone[0][0], alone[0][4])
    torch.manual_seed(seed_from(0, 1, index))
    assert torch.equal(alone[0][4], data.transform(data.pixels[index]))
    assert torch.equal(alone[0][4], data[1, index][0])


# -- batches ----------------------------------------------------------------------------------------


def batch(shape=(6, 3, 8, 8), classes=4):
    x = torch.randn(*shape).contiguous(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)
    return x, torch.tensor([0, 1, 2, 3, 0, 1]), classes


@pytest.mark.parametrize("shape", [(6, 3, 8, 8), (6, 3, 2, 8, 8)])
def test_mixup_is_its_formula(shape):
    """x = lam x_i + (1 - lam) x_j, and the same for the labels, with lam ~ Beta(alpha, alpha)."""
    x, labels, classes = batch(shape)
    torch.manual_seed(3)
    lam = torch.distributions.Beta(torch.tensor([0.4]), torch.tensor([0.4])).sample().item()
    torch.manual_seed(3)
    mixed, targets = Mixing(0.4, 0.0, classes)(x, labels)
    torch.testing.assert_close(mixed, lam * x + (1 - lam) * x.roll(1, 0))
    one_hot = F.one_hot(labels, classes).float()
    torch.testing.assert_close(targets, lam * one_hot + (1 - lam) * one_hot.roll(1, 0))
    torch.testing.assert_close(targets.sum(1), torch.ones(6))
    assert type(mixed) is torch.Tensor
    assert mixed.stride() == x.stride()


@pytest.mark.parametrize("shape", [(6, 3, 8, 8), (6, 3, 2, 8, 8)])
def test_cutmix_is_its_formula(shape):
    """One rectangle comes from the other sample, in all frames, and the labels are mixed by its share of the area."""
    x, labels, classes = batch(shape)
    one_hot = F.one_hot(labels, classes).float()
    mixing, shares = Mixing(0.0, 1.0, classes), set()
    for _ in range(10):
        mixed, targets = mixing(x, labels)
        other = (mixed == x.roll(1, 0)).reshape(6, -1, 8, 8).all(1)  # (N, H, W)
        own = (mixed == x).reshape(6, -1, 8, 8).all(1)
        assert (own ^ other).all()
        assert torch.equal(other, other[:1].expand_as(other))
        rows, columns = other[0].any(1), other[0].any(0)
        assert torch.equal(other[0], rows[:, None] & columns)
        lam = own[0].float().mean()
        torch.testing.assert_close(targets, lam * one_hot + (1 - lam) * one_hot.roll(1, 0))
        torch.testing.assert_close(targets.sum(1), torch.ones(6))
        assert mixed.stride() == x.stride()
        shares.add(lam.item())
    assert len(shares) > 3


@pytest.mark.parametrize("shape", [(6, 3, 8, 8), (6, 3, 2, 8, 8)])
def test_the_memory_layout_is_restored(shape, monkeypatch):
    """On a GPU mixup returns an ordinary layout, because torch.roll does."""
    x, labels, classes = batch(shape)
    mixing = Mixing(0.4, 0.0, classes)
    transform = mixing.transform

    def as_on_a_gpu(x, labels):
        mixed, targets = transform(x, labels)
        return mixed.contiguous(), targets

    torch.manual_seed(3)
    expected, _ = mixing(x, labels)
    monkeypatch.setattr(mixing, "transform", as_on_a_gpu)
    torch.manual_seed(3)
    mixed, _ = mixing(x, labels)
    assert mixed.stride() == x.stride() != x.contiguous().stride()
    assert torch.equal(mixed, expected)


def test_of_both_one_is_drawn_with_probability_a_half():
    x, labels, classes = batch()
    mixing = Mixing(1.0, 1.0, classes)
    reference = v2.RandomChoice([v2.MixUp(alpha=1.0, num_classes=4), v2.CutMix(alpha=1.0, num_classes=4)])
    cut = 0
    for seed in range(200):
        torch.manual_seed(seed)
        mixed, targets = mixing(x, labels)
        torch.manual_seed(seed)
        right, right_targets = reference(x, labels)
        assert torch.equal(mixed, right)
        assert torch.equal(targets, right_targets)
        cut += ((mixed == x) | (mixed == x.roll(1, 0))).all().item()
    assert 70 <= cut <= 130  # 4 standard deviations


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_the_loss_smooths_mixed_labels(images, tmp_path, name, precision):
    """Cross entropy with the targets (1 - s) t + s / K (Szegedy et al. 2016)."""
    dtype = {"fp32": torch.float32, "fp64": torch.float64}[precision]
    run = config(images, tmp_path, data={"augment": {"crop": {"name": "pad"}, name: 0.8}}, precision=precision)
    task = make_task(run.model_copy(update={"label_smoothing": 0.1}))
    model = task.build_model().to(dtype)
    data = task.train_set()
    samples = task.collate([data[0, index] for index in (0, 17, 34, 5)])
    torch.manual_seed(1)
    loss = task.losses(model, samples, dtype)["loss"]
    torch.manual_seed(1)
    x, targets = task.mixing(task.inputs(samples, dtype), samples[1])
    smooth = 0.9 * targets.double() + 0.1 / 3
    right = -(smooth * model(x).double().log_softmax(1)).sum(1).mean()
    assert loss.item() == pytest.approx(right.item(), rel=1e-6)
    assert loss.dtype == dtype

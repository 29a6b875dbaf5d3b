"""Data of the classification task: folders, CIFAR, held-out images, augmentation."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import zoo
from tasks.classification.config import DataSection
from tasks.classification.data import TrainSet, eval_transform, folder_images, load_images
from tasks.errors import DataError
from tasks.images import read_image
from tasks.spec import make_task
from tests.helpers.classification import picture
from tests.helpers.training import config


def test_augmentation_is_a_function_of_epoch_and_index(images, tmp_path):
    data = make_task(config(images, tmp_path)).train_set()
    state = torch.get_rng_state()
    first = {key: data[key][0] for key in [(0, 1), (0, 2), (1, 1)]}
    assert torch.equal(torch.get_rng_state(), state)  # the run's own randomness is not touched
    torch.manual_seed(99)
    for key in reversed(first):
        assert torch.equal(data[key][0], first[key])
    assert not torch.equal(first[0, 1], first[1, 1])


TRANSFORM = zoo.InputTransform.imagenet(16, 16)


def section(root, **extra):
    return DataSection(root=str(root), size=16, resize=16, **extra)


def test_folders(tree):
    train, val = load_images(section(tree))
    assert train.classes == ("ant", "bee")
    assert train.labels == [0] * 4 + [1] * 4
    assert train.names[4] == "bee/0.png"
    assert len(val) == 4
    assert np.asarray(val.read(3)).shape == (16, 20, 3)


def test_folder_mistakes(tree, tmp_path):
    with pytest.raises(DataError, match=r"/nowhere: no such folder; it must contain one folder of images"):
        folder_images(tmp_path / "nowhere")
    (tmp_path / "flat").mkdir()
    with pytest.raises(DataError, match="flat"):
        folder_images(tmp_path / "flat")
    (tmp_path / "train" / "cow").mkdir()
    with pytest.raises(DataError, match="cow"):
        folder_images(tmp_path / "train")
    picture(tmp_path / "train" / "cow" / "0.png")
    with pytest.raises(DataError, match="train and val have different classes, e.g. 'cow'"):
        load_images(section(tree))


def test_holdout_splits_train_by_a_list(tree):
    listed = tree / "held.txt"
    listed.write_text("ant/1.png\nbee/3.png\n")
    train, val = load_images(section(tree, holdout=str(listed), split="holdout"))
    assert val.names == ["ant/1.png", "bee/3.png"]
    assert val.labels == [0, 1]
    assert sorted([*train.names, *val.names]) == sorted(load_images(section(tree))[0].names)
    assert np.array_equal(np.asarray(val.read(1)), np.asarray(read_image(tree / "train/bee/3.png")))
    listed.write_text("ant/9.png\n")
    with pytest.raises(DataError, match=r"held.txt: 1 names are not in the training set, e.g. 'ant/9.png'"):
        load_images(section(tree, holdout=str(listed), split="holdout"))
    with pytest.raises(DataError, match=r"data.split=holdout needs data.holdout"):
        load_images(section(tree, split="holdout"))


def test_cifar_without_files_or_network(tmp_path, monkeypatch):
    from torchvision import datasets

    def offline(*args, **kwargs):
        raise RuntimeError("no network")

    monkeypatch.setattr(datasets.cifar, "download_and_extract_archive", offline)
    with pytest.raises(DataError, match=r"cifar10 is missing and cannot be downloaded \(no network\)"):
        load_images(DataSection(source="cifar10", root=str(tmp_path)))


def test_cifar_in_torchvisions_layout(tmp_path, monkeypatch):
    """Pickled batches as torchvision stores them; only its download check is left out."""
    import pickle

    from torchvision import datasets

    random = np.random.RandomState(0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        data = {"data": random.randint(0, 256, (3, 3072)).astype(np.uint8), "labels": [0, 1, 9]}
        (folder / name).write_bytes(pickle.dumps(data))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"c{i}" for i in range(10)]}))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *a: True)
    train, val = load_images(DataSection(source="cifar10", root=str(tmp_path)))
    assert (len(train), len(val)) == (15, 3)
    assert len(train.classes) == 10
    assert train.read(0).size == (32, 32)


@pytest.mark.parametrize(
    "augment",
    [
        {"crop": {"name": "pad", "padding": 3}},
        {"crop": {"name": "random_resized", "scale": (0.3, 1.0)}, "flip": 0.0},
        {"crop": {"name": "centre"}, "flip": 1.0},
    ],
)
@pytest.mark.parametrize("cache", [False, True])
def test_training_images(tree, augment, cache):
    images, _ = load_images(section(tree))
    data = TrainSet(images, section(tree, augment=augment, cache=cache), TRANSFORM, seed=3)
    image, label = data[0, 5]
    assert image.shape == (3, 16, 16)
    assert image.dtype == torch.uint8
    assert label == 1
    again = TrainSet(images, section(tree, augment=augment, cache=not cache), TRANSFORM, seed=3)
    assert torch.equal(again[0, 5][0], image)


def test_workers_and_the_main_process_read_the_same(tree):
    images, _ = load_images(section(tree))
    data = TrainSet(images, section(tree), TRANSFORM, seed=0)
    keys = [[(1, i), (2, i)] for i in range(8)]
    alone = [batch[0] for batch in DataLoader(data, batch_sampler=keys)]
    workers = [batch[0] for batch in DataLoader(data, batch_sampler=keys, num_workers=2)]
    assert all(torch.equal(a, b) for a, b in zip(alone, workers, strict=True))


def test_an_unreadable_training_image_stops_with_one_line(tree):
    (tree / "train/ant/0.png").write_text("broken")
    data = TrainSet(load_images(section(tree))[0], section(tree), TRANSFORM, seed=0)
    from tasks.cli import _last_line

    with pytest.raises(DataError) as caught:
        list(DataLoader(data, batch_sampler=[[(0, 0)]], num_workers=1))
    line = _last_line(caught.value)
    assert "\n" not in line
    assert line.endswith("remove or replace it")
    assert "ant/0.png: cannot be decoded" in line


def test_training_and_deployment_see_the_same_image(tree):
    """uint8 transforms then standardising on the device, as in training, equal ``weights.transforms()``."""
    data = TRANSFORM
    transform = TRANSFORM.build()
    image = read_image(tree / "val/ant/0.png")
    from torchvision.transforms import v2

    mean, std = (torch.tensor(v)[:, None, None] for v in (data.mean, data.std))
    ours = (eval_transform(data)(v2.functional.pil_to_tensor(image)).float() / 255 - mean) / std
    torch.testing.assert_close(ours, transform(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("keep", [None, [0, 5]])
def test_a_data_set_can_be_pickled(tree, keep):
    """Data loading processes that do not fork get it so."""
    images, _ = load_images(section(tree))
    data = TrainSet(images if keep is None else images.subset(keep), section(tree), TRANSFORM, seed=0)
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again[0, 1][0], data[0, 1][0])

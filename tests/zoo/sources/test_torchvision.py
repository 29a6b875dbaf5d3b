"""Weights of torchvision: its own download, its metadata, and the cache of what was converted."""

import hashlib
import multiprocessing

import pytest
import torch
import torchvision
from torchvision.models import ResNet18_Weights, get_model, get_model_weights

import zoo
from tests.helpers.published import publish
from tests.helpers.server import Answer
from tests.zoo.sources.conftest import far, trained
from zoo.sources import tables
from zoo.sources import torchvision as source

NAME = "torchvision:resnet18:IMAGENET1K_V1"


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(0)
    return trained(get_model("resnet18"))


@pytest.fixture
def published(resnet18, tmp_path, monkeypatch):
    """A file of random weights of ResNet-18."""
    return publish(resnet18, ResNet18_Weights.IMAGENET1K_V1, tmp_path, monkeypatch)


def set_url(monkeypatch, url):
    monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", url)


def test_a_net_by_its_tag(published, resnet18, lines, home):
    model = zoo.create_model("rescalenet18", weights="torchvision:IMAGENET1K_V1").eval()
    x = torch.randn(2, 3, 97, 64)
    assert far(model(x), resnet18(x)) < 3e-6
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    # the entry has what torchvision states, and where it comes from
    entry = zoo.get_weights(NAME)
    assert entry.name == NAME
    assert entry.transform == zoo.InputTransform.imagenet(224, 256)
    assert entry.classes[:2] == ("tench", "goldfish")
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    stated = {key: entry.meta[key] for key in ("source", "source_sha256", "licence", "form", "eps", "data")}
    assert stated == {
        "source": NAME,
        "source_sha256": digest,
        "licence": "unknown",
        "form": "gained",
        "eps": 1e-5,
        "data": "ImageNet-1K",
    }
    assert entry.meta["metrics"] == {"acc@1": 69.758, "acc@5": 89.078}
    assert entry.meta["url"].endswith(published.name)
    # the licence is shown once
    assert entry.path.parent == home / "converted"
    assert entry.path.name.startswith(digest)
    assert [line.partition(": ")[2].partition(":")[0] for line in lines()] == [
        "licence unknown",
        "converted, form gained, stored as " + str(entry.path),
    ]
    # the source is not needed any more
    published.unlink()
    assert zoo.create_model("rescalenet18", NAME).config == model.config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "builder", "tag", "size"),
    [
        ("rescalenet50", "resnet50", "IMAGENET1K_V2", (3, 64, 97)),
        ("rescalenext50_32x4d", "resnext50_32x4d", "IMAGENET1K_V1", (3, 64, 97)),
        ("rescalenext101_64x4d", "resnext101_64x4d", "IMAGENET1K_V1", (3, 64, 64)),
        ("rescale_wide_resnet50_2", "wide_resnet50_2", "IMAGENET1K_V2", (3, 64, 64)),
        ("rescale_r3d_18", "r3d_18", "KINETICS400_V1", (3, 8, 56, 56)),
        ("rescale_mc3_18", "mc3_18", "KINETICS400_V1", (3, 8, 56, 56)),
        ("rescale_r2plus1d_18", "r2plus1d_18", "KINETICS400_V1", (3, 8, 56, 56)),
    ],
)
def test_other_nets_by_their_tags(ours, builder, tag, size, tmp_path, monkeypatch):
    torch.manual_seed(0)
    net = trained(get_model(builder))
    publish(net, get_model_weights(builder)[tag], tmp_path, monkeypatch)
    model = zoo.create_model(ours, weights=f"torchvision:{tag}").eval()
    x = torch.randn(2, *size)
    assert far(model(x), net(x)) < 3e-6
    entry = zoo.get_weights(f"torchvision:{builder}:{tag}")
    assert entry.transform == source.describe(entry.name)["transform"]
    assert len(entry.classes) == model.num_classes


@pytest.mark.slow
@pytest.mark.parametrize(("ours", "builder", "tag"), [row for row in source.tags() if "rcnn" in row[0]])
def test_detectors_by_their_tags(ours, builder, tag, tmp_path, monkeypatch):
    """The classes are COCO's 80, without torchvision's background and rows that no object has."""
    torch.manual_seed(0)
    net = get_model(builder, weights=None, weights_backbone=None)
    publish(net, get_model_weights(builder)[tag], tmp_path, monkeypatch)
    first = builder == tables.TORCHVISION[ours][0]
    model = zoo.create_model(ours, weights=f"torchvision:{tag}" if first else f"torchvision:{builder}:{tag}").eval()
    entry = zoo.get_weights(f"torchvision:{builder}:{tag}")
    assert (model.config.num_classes, len(entry.classes)) == (80, 80)
    assert (entry.classes[0], entry.classes[-1]) == ("person", "toothbrush")
    assert entry.transform == source.describe(entry.name)["transform"]
    assert entry.meta["eps"] == tables.TORCHVISION_EPS.get((builder, tag), 1e-5)


@pytest.mark.slow
def test_new_classes_and_features(published):
    assert zoo.create_model("rescalenet18", "torchvision:IMAGENET1K_V1", num_classes=3).fc.out_features == 3
    features = zoo.create_model("rescalenet18", "torchvision:IMAGENET1K_V1", features_only=True)
    assert len(features(torch.zeros(1, 3, 64, 64))) > 3


def test_a_file_with_another_hash_than_its_name_is_refused(published):
    """torch.hub does not look at the hash of a file that it finds."""
    published.write_bytes(published.read_bytes() + b"\0")
    with pytest.raises(zoo.WeightsError, match=r"sha256 .*begins with .*, not as its name states; delete the file"):
        zoo.get_weights(NAME)
    assert published.exists()


def test_offline(monkeypatch):
    monkeypatch.setenv("RESCALENET_OFFLINE", "1")
    with pytest.raises(zoo.WeightsError, match=r"resnet18-\w+\.pth is missing and RESCALENET_OFFLINE=1 forbids"):
        zoo.get_weights(NAME)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "Connection refused"),
        (Answer(status=404), "404"),
        (Answer(b"x" * 100), "invalid hash value"),
        (Answer(b"x" * 100, length=200), "invalid hash value"),
    ],
    ids=["no network", "404", "other content", "broken off"],
)
def test_downloads_that_fail_are_one_line(server, monkeypatch, tmp_path, answer, message, capfd):
    address = server.address if answer else "http://127.0.0.1:9"
    set_url(monkeypatch, f"{address}/resnet18-0123abcd.pth")
    server.answers["/resnet18-0123abcd.pth"] = answer
    with pytest.raises(zoo.WeightsError, match=f"could not be fetched or read .*{message}.*; try again") as caught:
        zoo.get_weights(NAME)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "torch/hub/checkpoints").iterdir()) == []
    assert capfd.readouterr().out == ""  # torchvision's "Downloading" goes to standard error


@pytest.mark.slow
def test_a_download(published, server, monkeypatch):
    content = published.read_bytes()
    published.unlink()
    server.answers[f"/{published.name}"] = Answer(content)
    set_url(monkeypatch, f"{server.address}/{published.name}")
    assert zoo.get_weights(NAME).meta["source_sha256"] == hashlib.sha256(content).hexdigest()
    assert server.requests == [f"GET /{published.name}"]


def _load(barrier, results):
    barrier.wait()
    results.put(zoo.get_weights(NAME).sha256)


@pytest.mark.slow
def test_two_processes_convert_once(published, home):
    """Processes that are forked keep the changed address."""
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_load, args=(barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = {results.get(timeout=120) for _ in processes}
    for process in processes:
        process.join()
    assert len(found) == 1
    assert len(list((home / "converted").iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("torchvision:", None, "must be torchvision:TAG or torchvision:BUILDER:TAG"),
        ("torchvision:a:b:c", None, "must be torchvision:TAG or torchvision:BUILDER:TAG"),
        ("torchvision:IMAGENET1K_V1", None, "the tag alone names no net; see rescalenet list --convertible"),
        ("torchvision:IMAGENET1K_V1", "rescalenet20_cifar", "torchvision has no weights for rescalenet20_cifar"),
        ("torchvision:IMAGENET1K_V3", "rescalenet50", r"no weights 'IMAGENET1K_V3' of resnet50 \(did you mean"),
        ("torchvision:resnet51:IMAGENET1K_V1", None, r"'resnet51' is not convertible \(did you mean .*resnet50"),
        ("torchvision:densenet121:IMAGENET1K_V1", None, "'densenet121' is not convertible"),
        ("torchvision:vgg16:IMAGENET1K_FEATURES", None, "no valid classifier; take IMAGENET1K_V1"),
        ("torchvision:resnet18:DEFAULT", None, None),
        ("torchvision:../x:IMAGENET1K_V1", None, "not convertible"),
    ],
)
def test_names(name, model, message):
    assert zoo.is_weights_name(name)
    if message is None:
        assert source.resolve(name, model) == ("resnet18", "IMAGENET1K_V1")
        return
    with pytest.raises(zoo.WeightsError, match=message):
        zoo.get_weights(name, model=model)


def test_weights_of_another_net_are_refused_before_a_download(server):
    with pytest.raises(zoo.WeightsError, match="are of rescalenet18, not of rescalenet50"):
        zoo.create_model("rescalenet50", NAME)


def test_every_row_of_the_table_is_torchvisions():
    for row in tables.TORCHVISION.values():
        for builder in row:
            assert get_model_weights(builder)
    assert {tag for *_, tag in source.tags()} == {"IMAGENET1K_V1", "IMAGENET1K_V2", "KINETICS400_V1", "COCO_V1"}


@pytest.mark.parametrize(("ours", "builder", "tag"), source.tags())
def test_metadata(ours, builder, tag):
    stated = source.describe(f"torchvision:{builder}:{tag}")
    assert (stated["model"], stated["meta"]["licence"]) == (ours, "unknown")
    assert stated["meta"]["metrics"]
    # the transform gives what torchvision's gives
    image = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8)
    preset = get_model_weights(builder)[tag].transforms()
    if isinstance(stated["transform"], zoo.InputTransform):
        difference = stated["transform"].build()(image) - preset(image)
        assert float(difference.abs().max()) < 1.01 / 255 / 0.224  # the resize rounds at another place: one level


def test_the_transform_of_videos():
    """torchvision squeezes a video into 128 x 171 pixels; the short side of 128 pixels is the same for 4:3."""
    transform = source.describe("torchvision:r3d_18:KINETICS400_V1")["transform"]
    preset = get_model_weights("r3d_18")["KINETICS400_V1"].transforms()
    assert (transform.size, transform.resize) == (112, 128)
    assert (list(transform.mean), list(transform.std)) == (preset.mean, preset.std)
    assert "`clip_len=16`" in get_model_weights("r3d_18")["KINETICS400_V1"].meta["_docs"]
    assert "`frame_rate=15`" in get_model_weights("r3d_18")["KINETICS400_V1"].meta["_docs"]
    assert (transform.frames, transform.interval, transform.fps) == (16, 1, 15)


@pytest.mark.slow
@pytest.mark.parametrize(("builder", "tag"), [(b, t) for _, b, t in source.tags() if "rcnn" in b])
def test_the_eps_and_input_of_detectors_are_torchvisions(builder, tag, monkeypatch):
    """The builder itself, given a state dict, shows which eps it sets."""
    entry = get_model_weights(builder)[tag]
    fresh = get_model(builder, weights=None, weights_backbone=None).state_dict()
    monkeypatch.setattr(type(entry), "get_state_dict", lambda self, **_: fresh)
    net = get_model(builder, weights=entry)
    norms = (torch.nn.BatchNorm2d, torchvision.ops.FrozenBatchNorm2d)
    eps = {module.eps for module in net.modules() if isinstance(module, norms)}
    assert eps == {tables.TORCHVISION_EPS.get((builder, tag), tables.DEFAULT_EPS)}
    transform = source.describe(f"torchvision:{builder}:{tag}")["transform"]
    assert (net.transform.min_size, net.transform.max_size) == ((transform.min_size,), transform.max_size)
    assert (tuple(net.transform.image_mean), tuple(net.transform.image_std)) == (transform.mean, transform.std)


def test_image_weights_in_full_may_be_for_a_net_of_clips():
    """Which inflates them; a net of another kind or size is refused before anything is fetched."""
    name = "torchvision:resnet50:IMAGENET1K_V2"
    assert source.resolve(name, "rescale_i3d_r50") == ("resnet50", "IMAGENET1K_V2")
    for other in ("rescalenet101", "mask_rcnn_rescalenet50_fpn", "rescale_transformer_base"):
        with pytest.raises(zoo.WeightsError, match=f"are of rescalenet50, not of {other}"):
            source.resolve(name, other)

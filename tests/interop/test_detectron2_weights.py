"""Weights between the zoo and detectron2: checkpoints, MODEL.WEIGHTS, predictor, trainer, and the way back."""

import json
import logging

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

import zoo
from tasks.detection.detector import create_detector
from tests.helpers.adapter import CONFIGS, config, objects, sample
from tests.helpers.coco import Builder
from tests.helpers.detection import calibrated, sharpened
from zoo.convert import from_detectron2
from zoo.convert.checkpoints import read_checkpoint
from zoo.export.detectron2 import ZooBackbone, pixel_settings
from zoo.export.detectron2_registration import add_config, calibrate

MEAN, STD = zoo.transforms.IMAGENET_MEAN, (0.5, 0.4, 0.3)
NARROW = {"width": 0.125}


def write_net(path, scheme="rescale", mean=MEAN, order="RGB", name="rescalenet18", **options):
    torch.manual_seed(0)
    net = zoo.create_model(name, scheme=scheme, num_classes=2, **{**NARROW, **options})
    zoo.calibrate(net, [torch.randn(2, 3, 64, 64)])
    transform = zoo.InputTransform(64, 64, mean, STD, channel_order=order)
    zoo.save_weights(net, path, transform=transform, classes=["a", "b"])
    return str(path)


def write_detector(path, classes=3, **options):
    """A detector of the zoo that finds things, of the sizes of the config; images are not resized."""
    torch.manual_seed(0)
    settings = {"min_size": 64, "max_size": 96, "body": NARROW, "fpn_channels": 32, "box_width": 64}
    settings |= {"mask_convs": (32,) * 4, "mask_width": 32, "proposals_test": 200, "proposals_train": 200}
    settings |= {"mean": MEAN, "std": STD, "conventions": "detectron2", **options}
    model = create_detector("mask_rcnn_rescalenet18_fpn", num_classes=classes, **settings)
    calibrated(model)
    sharpened(model).eval()
    names = [f"class {i}" for i in range(classes)]
    zoo.save_weights(model, path, transform=model.input, classes=names)
    return model, str(path)


def features(cfg, image, checkpoint=None):
    """The levels of a model's backbone for an image; detectron2 loads the checkpoint, or MODEL.WEIGHTS."""
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(checkpoint or cfg.MODEL.WEIGHTS)
    with torch.no_grad():
        return model.backbone.bottom_up(model.preprocess_image([sample(image)]).tensor)


def own_features(weights, image):
    entry = zoo.get_weights(weights)
    net = zoo.create_model(entry.config.name, weights, features_only=True, out_indices=(1, 2, 3, 4)).eval()
    x = torch.from_numpy(image.copy()).permute(2, 0, 1) / 255
    x = x.flip(0) if entry.transform.channel_order == "BGR" else x
    mean, std = (torch.tensor(values)[:, None, None] for values in (entry.transform.mean, entry.transform.std))
    with torch.no_grad():
        return net(((x - mean) / std)[None])


def assert_same(found, expected):
    for a, b in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))  # means are rounded to 1e-4/255


def settings(weights, **changes):
    """A config with the pixel settings of weights, or with a std of 1."""
    pixels = pixel_settings(zoo.get_weights(weights).transform, "BGR")
    return config(MODEL__PIXEL_MEAN=pixels["PIXEL_MEAN"], MODEL__PIXEL_STD=pixels["PIXEL_STD"], **changes)


# -- checkpoints of detectron2 ---------------------------------------------------------------------------


@pytest.mark.parametrize("unit_std", [True, False])
@pytest.mark.parametrize(("order", "mean"), [("RGB", MEAN), ("BGR", MEAN[::-1]), ("RGB", (0.3, 0.5, 0.7))])
def test_a_checkpoint_has_the_input_of_its_weights(tmp_path, image, order, mean, unit_std):
    """It is loaded where the zoo's file is not: the scale and the order of the channels come from the checkpoint."""
    weights = write_net(tmp_path / "net.safetensors", mean=mean, order=order)
    changes = {"MODEL__PIXEL_STD": [1.0, 1.0, 1.0]} if unit_std else {}
    cfg = settings(weights, MODEL__ZOO__WEIGHTS=weights)
    expected = own_features(weights, image)
    DetectionCheckpointer(build_model(cfg), save_dir=str(tmp_path)).save("model_final")
    (tmp_path / "net.safetensors").rename(tmp_path / "away.safetensors")
    away = settings(str(tmp_path / "away.safetensors"))
    away.merge_from_list([item for key, value in changes.items() for item in (key.replace("__", "."), value)])
    assert_same(features(away, image, str(tmp_path / "model_final.pth")), expected)
    # the file that is away is named, with the remedy
    with pytest.raises(zoo.WeightsError, match="MODEL.ZOO.WEIGHTS: .*net.safetensors: no such file.*leave it empty"):
        build_model(cfg)


def test_a_checkpoint_of_another_net_is_refused(tmp_path, image):
    """Tensors of the same shapes may mean another net."""
    weights = write_net(tmp_path / "net.safetensors", name="rescalenet50", stride_in_1x1=True, c=2.0)
    changes = {"MODEL__ZOO__NAME": "rescalenet50"}
    cfg = settings(weights, MODEL__ZOO__WEIGHTS=weights, **changes)
    DetectionCheckpointer(build_model(cfg), save_dir=str(tmp_path)).save("model_final")
    path = str(tmp_path / "model_final.pth")
    for other, message in (
        (
            {},
            r"WEIGHTS=.*model_final.pth: .* c=2.0 \(.*None\), stride_in_1x1=True \(the model has False\).*OPTIONS",
        ),
        ({"MODEL__ZOO__SCHEME": "bn"}, "scheme 'rescale', the model 'bn': set MODEL.ZOO.SCHEME"),
        ({"MODEL__ZOO__NAME": "rescalenet101"}, "backbone rescalenet50, the config MODEL.ZOO.NAME='rescalenet101'"),
    ):
        with pytest.raises(zoo.ZooError, match=message):
            features(settings(weights, **{**changes, **other}), image, path)
    # the options are set, or come from the checkpoint in MODEL.WEIGHTS
    assert_same(features(settings(weights, MODEL__WEIGHTS=path, **changes), image), own_features(weights, image))
    right = settings(weights, **changes)
    right.MODEL.ZOO.OPTIONS.stride_in_1x1, right.MODEL.ZOO.OPTIONS.c = True, 2.0
    assert_same(features(right, image, path), own_features(weights, image))
    # of another mean, which cannot be corrected at borders
    right.MODEL.PIXEL_MEAN = [100.0, 100.0, 100.0]
    model = ZooBackbone("rescalenet50", weights=weights)
    state = {f"backbone.bottom_up.{key}": value for key, value in model.state_dict().items()}
    torch.save({"model": state}, tmp_path / "c.pth")
    right = config(MODEL__ZOO__NAME="rescalenet50")
    right.MODEL.ZOO.OPTIONS.stride_in_1x1, right.MODEL.ZOO.OPTIONS.c = True, 2.0
    right.INPUT.FORMAT, right.MODEL.PIXEL_MEAN = "RGB", [100.0, 110.0, 120.0]
    with pytest.raises(zoo.ZooError, match="PIXEL_MEAN"):
        features(right, image, str(tmp_path / "c.pth"))
    # a damaged description
    state["backbone.bottom_up.zoo_description"] = torch.full((4096,), 300.0)
    torch.save({"model": state}, tmp_path / "c.pth")
    with pytest.raises(zoo.WeightsError, match="c.pth: .*zoo_description is no text"):
        features(settings(weights, **changes), image, str(tmp_path / "c.pth"))


def test_a_checkpoint_of_version_0_1_is_loaded_with_a_warning(tmp_path, image, caplog):
    weights = write_net(tmp_path / "net.safetensors")
    cfg = settings(weights, MODEL__ZOO__WEIGHTS=weights)
    state = build_model(cfg).state_dict()
    del state["backbone.bottom_up.zoo_description"]
    torch.save({"model": state}, tmp_path / "old.pth")
    assert_same(features(cfg, image, str(tmp_path / "old.pth")), own_features(weights, image))
    assert "does not state the input that its backbone expects" in caplog.text


def test_a_moving_average_of_the_state_keeps_the_description(tmp_path):
    backbone = ZooBackbone("rescalenet18", options=NARROW)
    averaged = torch.optim.swa_utils.AveragedModel(backbone, avg_fn=lambda a, b, n: 0.9 * a + 0.1 * b, use_buffers=True)
    for _ in range(50):
        averaged.update_parameters(backbone)
    backbone.half().load_state_dict(averaged.module.half().state_dict())


# -- MODEL.WEIGHTS ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["MODEL__WEIGHTS", "MODEL__ZOO__WEIGHTS"])
def test_weights_of_the_zoo_are_loaded(tmp_path, image, key):
    """Of a net and of a detector, with their options and their input."""
    net = write_net(tmp_path / "net.safetensors", c=2.0)
    _, detector = write_detector(tmp_path / "detector.safetensors")
    for weights in (net, detector):
        cfg = settings(weights, **{key: weights})
        del cfg.MODEL.ZOO.OPTIONS["width"]
        if weights == net:
            expected = own_features(net, image)
        else:
            model = zoo.create_model("mask_rcnn_rescalenet18_fpn", weights).eval()
            with torch.no_grad():
                x = model.transform([torch.from_numpy(image.copy()).permute(2, 0, 1) / 255])[0].tensors
                expected = model.backbone.body(x)
        assert_same(features(cfg, image), expected)


@pytest.mark.parametrize("weights", ["rescalenet18.flowers", "flowers", "mask_rcnn_rescalenet18_fpn.nuclei"])
def test_names_of_the_zoo_in_model_weights(image, caplog, weights):
    name = weights if "." in weights else f"rescalenet18.{weights}"
    cfg = settings(name, MODEL__WEIGHTS=weights)
    del cfg.MODEL.ZOO.OPTIONS["width"]
    found = features(cfg, image)
    assert list(found) == ["res2", "res3", "res4", "res5"]
    if "rcnn" in weights:
        assert "its pyramid is another than the model's, so that the backbone alone was loaded" in caplog.text
    else:
        assert_same(found, own_features(name, image))


def test_other_files_are_refused_by_name(tmp_path, caplog):
    """Nothing trains on from a backbone that was not loaded, or only in parts."""
    model = build_model(config())
    theirs = zoo.create_model("rescalenet18", scheme="bn", num_classes=0, **NARROW).state_dict()
    full = {key: value.clone() for key, value in model.state_dict().items()}
    heads = {key: value for key, value in full.items() if "bottom_up" not in key}
    part = {key: value for key, value in full.items() if "layer4" not in key}
    for state, count in ((theirs, 48), (heads, 48), (part, 12)):
        torch.save(state, tmp_path / "other.pth")
        with pytest.raises(zoo.WeightsError, match=rf"WEIGHTS=.*other.pth: {count} of the 48 .*rescalenet convert"):
            DetectionCheckpointer(build_model(config())).load(str(tmp_path / "other.pth"))
    # the heads of a detector whose converted backbone was given apart
    net = write_net(tmp_path / "net.safetensors")
    torch.save(heads, tmp_path / "heads.pth")
    DetectionCheckpointer(build_model(settings(net, MODEL__ZOO__WEIGHTS=net))).load(str(tmp_path / "heads.pth"))
    assert "no tensors of the backbone rescalenet18, which keeps those of MODEL.ZOO.WEIGHTS" in caplog.text
    # weights of another net or kind
    other = write_net(tmp_path / "other.safetensors", name="rescalenet34")
    with pytest.raises(zoo.ZooError, match="safetensors are of rescalenet34, not of rescalenet18.*MODEL.ZOO.NAME"):
        build_model(settings(other, MODEL__WEIGHTS=other))
    with pytest.raises(zoo.ZooError, match="take text, not images"):
        build_model(config(MODEL__ZOO__WEIGHTS="rescale_transformer_tiny.multi30k_en_de"))
    with pytest.raises(zoo.WeightsError, match="MODEL.WEIGHTS: .*none.safetensors: no such file"):
        build_model(config(MODEL__WEIGHTS=str(tmp_path / "none.safetensors")))


def test_models_without_our_backbone_load_as_before(tmp_path):
    weights = write_net(tmp_path / "net.safetensors")
    model = torch.nn.Linear(2, 3)
    torch.save({"model": model.state_dict()}, tmp_path / "linear.pth")
    again = torch.nn.Linear(2, 3)
    DetectionCheckpointer(again).load(str(tmp_path / "linear.pth"))
    assert torch.equal(again.weight, model.weight)
    with pytest.raises(zoo.ZooError, match="net.safetensors: weights of the RescaleNet zoo, but the model has no back"):
        DetectionCheckpointer(again).load(weights)


# -- a whole detector in both ----------------------------------------------------------------------------


def predictor(weights, **changes):
    cfg = settings(weights, MODEL__WEIGHTS=weights, **changes)
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 200
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 96
    cfg.DATASETS.TEST = ()
    return DefaultPredictor(cfg)


def assert_same_objects(found, expected):
    """detectron2's objects and ours, at equal net inputs (tests/interop/test_detectron2_detectors.py)."""
    assert len(found) > 10
    assert torch.equal(found.pred_classes + 1, expected["labels"])
    torch.testing.assert_close(found.pred_boxes.tensor, expected["boxes"], rtol=0, atol=1e-2)
    torch.testing.assert_close(found.scores, expected["scores"], rtol=0, atol=1e-4)
    decided = (expected["masks"][:, 0] - 0.5).abs() > 1e-2
    assert torch.equal((expected["masks"][:, 0] > 0.5)[decided], found.pred_masks[decided])


def detections(model, image):
    with torch.no_grad():
        return model([torch.from_numpy(image.copy()).permute(2, 0, 1) / 255])[0]


@pytest.mark.parametrize("rpn_convs", [1, 2])
def test_the_predictor_finds_what_our_detector_finds(tmp_path, image, caplog, rpn_convs):
    model, weights = write_detector(tmp_path / "detector.safetensors", rpn_convs=rpn_convs)
    changes = {"MODEL__RPN__CONV_DIMS": [-1] * rpn_convs}
    found = predictor(weights, **changes)(image[..., ::-1])["instances"]
    assert_same_objects(found, detections(model, image))
    names = ", ".join(map(repr, zoo.get_weights(weights).classes))
    assert f"its classes are {names}; the data set must list the same in this order" in caplog.text


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"conventions": "torchvision"}, {}, "its heads were not: it was trained with torchvision's anchors"),
        ({"anchor_scale": 4.0}, {}, "its heads were not: its anchors are others"),
        ({"box_width": 32}, {}, "its heads were not: roi_heads.box_head.fc1.weight is not in the model"),
        ({"classes": 4}, {}, "its last layers are for 4 classes and were not loaded"),
        ({"fpn_channels": 16}, {}, "the backbone alone was loaded"),
    ],
)
def test_heads_that_differ_stay_out(tmp_path, image, caplog, options, changes, message):
    model, weights = write_detector(tmp_path / "detector.safetensors", **options)
    made = predictor(weights, **changes).model
    assert message in caplog.text
    first = "backbone.bottom_up.body.body.stem.conv1.weight"
    assert torch.equal(made.state_dict()[first], model.backbone.body.body.stem.conv1.weight)
    taken = torch.equal(made.state_dict()["backbone.fpn_output3.bias"], model.backbone.fpn.outputs[1].bias)
    assert taken == ("alone" not in message)


def test_the_way_back_of_a_whole_detector(tmp_path, image):
    """detectron2 trains a few steps; its objects are found by the detector that its checkpoint becomes."""
    _, weights = write_detector(tmp_path / "detector.safetensors")
    model = predictor(weights).model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for _ in range(2):
        with EventStorage():
            sum(model([sample(image, objects((64, 96)))]).values()).backward()
        optimizer.step()
    DetectionCheckpointer(model, save_dir=str(tmp_path), optimizer=optimizer).save("model_final", iteration=2)
    path = tmp_path / "model_final.pth"
    theirs = predictor(weights)
    DetectionCheckpointer(theirs.model).load(str(path))
    expected = theirs(image[..., ::-1])["instances"]
    name = "mask_rcnn_rescalenet18_fpn"
    sizes = {"min_size": 64, "max_size": 96, "proposals_test": 200, "proposals_train": 200}
    ours = from_detectron2(path, name, **sizes)
    assert_same_objects(expected, detections(ours, image))
    # through a file
    zoo.sources.convert(path, tmp_path / "back.safetensors", name=name, classes=["a", "b", "c"], **sizes)
    entry = zoo.get_weights(tmp_path / "back.safetensors")
    assert entry.classes == ("a", "b", "c")
    assert entry.transform.std == STD
    assert_same_objects(expected, detections(zoo.create_model(name, tmp_path / "back.safetensors").eval(), image))


# -- the backbone back -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["rescale", "bn", "gn"])
def test_the_way_back_of_a_backbone(tmp_path, image, scheme):
    weights = write_net(tmp_path / "net.safetensors", scheme=scheme, order="BGR", mean=MEAN[::-1])
    cfg = settings(weights, MODEL__WEIGHTS=weights)
    model = build_model(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    DetectionCheckpointer(model, save_dir=str(tmp_path)).save("model_final")
    path = tmp_path / "model_final.pth"
    with torch.no_grad():
        expected = model.eval().backbone.bottom_up(model.preprocess_image([sample(image)]).tensor)
    out = tmp_path / "back.safetensors"
    entry = zoo.sources.convert(path, out)
    assert entry.config.scheme == scheme
    assert_same(expected, own_features(str(out), image))
    assert_same(expected, own_features(str(path), image)) if scheme == "rescale" else None
    # a classifier, and a detector, on it
    zoo.create_model("rescalenet18", out, num_classes=5)
    detector = zoo.create_model("mask_rcnn_rescalenet18_fpn", weights_backbone=out)
    assert detector.input.std == STD
    assert detector.input.channel_order == "BGR"


def test_what_does_not_come_back_is_refused(tmp_path):
    weights = write_net(tmp_path / "net.safetensors")
    backbone = ZooBackbone("rescalenet18", weights=weights, out_features=["res2", "res4"])
    with pytest.raises(zoo.WeightsError, match="up to layer3 alone; .*MODEL.ZOO.OUT_FEATURES"):
        from_detectron2(dict(backbone.state_dict()))
    state = dict(build_model(settings(weights, MODEL__WEIGHTS=weights)).state_dict())
    for name, message in (
        ("rescalenet34", "its backbone is rescalenet18, not rescalenet34"),
        ("mask_rcnn_rescalenet34_fpn", "its backbone is rescalenet18, not rescalenet34"),
        ("faster_rcnn_rescalenet18_fpn", "it is a mask R-CNN, which faster"),
    ):
        with pytest.raises(zoo.WeightsError, match=message):
            from_detectron2(state, name)
    with pytest.raises(zoo.WeightsError, match="leave c out"):
        from_detectron2(state, c=2.0)
    del state["backbone.bottom_up.zoo_description"]
    with pytest.raises(zoo.WeightsError, match="0 backbones of the zoo"):
        from_detectron2(state)


# -- RetinaNet -------------------------------------------------------------------------------------------


def retinanet(**changes):
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_config(cfg)
    cfg.merge_from_file(str(CONFIGS / "retinanet_rescalenet50_fpn.yaml"))
    cfg.MODEL.DEVICE, cfg.MODEL.ZOO.NAME, cfg.MODEL.ZOO.OPTIONS.width = "cpu", "rescalenet18", 0.125
    cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.RETINANET.NUM_CONVS = 32, 3, 1
    cfg.merge_from_list([item for pair in changes.items() for item in (pair[0].replace("__", "."), pair[1])])
    return cfg


@pytest.mark.parametrize("scheme", ["rescale", "bn"])
def test_retinanet_trains_on_its_pyramid(image, scheme):
    torch.manual_seed(0)
    model = build_model(retinanet(MODEL__ZOO__SCHEME=scheme))
    shapes = {name: (shape.channels, shape.stride) for name, shape in model.backbone.output_shape().items()}
    assert shapes == {f"p{level}": (32, 2**level) for level in range(3, 8)}
    batch = [sample(image, objects((64, 96)))] * 2
    report = calibrate(model, [batch])
    assert not report.unreached
    # the level below P6 enters it with power 1
    with torch.no_grad():
        level = model.eval().backbone.bottom_up(model.preprocess_image(batch).tensor)["res5"]
    if scheme == "rescale":
        gain = model.backbone.top_block.p6.gain.gain
        assert float((gain * level).square().mean()) == pytest.approx(1, rel=1e-4)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    totals = []
    for _ in range(8):
        with EventStorage():
            total = sum(model(batch).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.9 * totals[0]
    assert all(p.grad is not None for p in model.backbone.parameters())
    with torch.no_grad():
        assert torch.isfinite(model.eval()([sample(image)])[0]["instances"].scores).all()


def test_retinanet_has_detectron2s_layers():
    """The names and shapes of the pyramid are those of detectron2's own, but for the gains."""
    theirs = retinanet(MODEL__BACKBONE__NAME="build_retinanet_resnet_fpn_backbone")
    theirs.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    theirs.MODEL.RESNETS.RES2_OUT_CHANNELS = 32
    theirs.MODEL.ZOO.NAME = "rescalenet50"
    wanted = {k: v.shape for k, v in build_model(theirs).backbone.state_dict().items() if "bottom_up" not in k}
    model = build_model(retinanet(MODEL__ZOO__NAME="rescalenet50", MODEL__ZOO__SCHEME="bn"))
    assert {k: v.shape for k, v in model.backbone.state_dict().items() if "bottom_up" not in k} == wanted


# -- the trainer -----------------------------------------------------------------------------------------


class Trainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR, use_fast_impl=False)


@pytest.fixture
def trained(tmp_path, request):
    """A config for two iterations on three pictures, with evaluation."""
    builder = Builder(tmp_path / "coco")
    (builder.root / "instances.json").write_text(json.dumps(builder.content))
    name = f"few_{tmp_path.name}"
    register_coco_instances(name, {}, str(builder.root / "instances.json"), str(builder.root / "images"))
    cfg = config(MODEL__ROI_HEADS__NUM_CLASSES=2, OUTPUT_DIR=str(tmp_path / "out"))
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.BASE_LR = 2, 2, [], 1e-3
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.DATALOADER.NUM_WORKERS = (64,), 64, 0
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
    (tmp_path / "out").mkdir()
    return cfg


def run(cfg, resume=False, prepare=None):
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    if prepare:
        prepare(trainer)
    trainer.train()
    return trainer


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "rescalenet"]


def test_training_from_scratch_warns_once(trained, caplog):
    """detectron2 freezes the stem by default, and nobody calls ``calibrate``."""
    trained.MODEL.BACKBONE.FREEZE_AT = 2
    with caplog.at_level(logging.WARNING, "rescalenet"):
        run(trained)
    frozen, bare = warnings_of(caplog)
    assert "FREEZE_AT=2: the first levels of rescalenet18 are frozen with random weights" in frozen
    assert "biases and gains from data in rescalenet18 and its pyramid are not calibrated" in bare


def test_training_evaluates_and_goes_on(trained, caplog, tmp_path, image):
    """Calibrated by the line of the warning; a run that goes on, and one from its checkpoint, warn of nothing."""
    trainer = run(trained, prepare=lambda t: calibrate(t.model, [next(iter(t.build_train_loader(trained)))]))
    assert set(trainer._last_eval_results) == {"bbox", "segm"}
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    # it goes on
    trained.SOLVER.MAX_ITER = 3
    again = Trainer(trained)
    again.resume_or_load(resume=True)
    assert again.start_iter == 2
    for key, value in again.model.state_dict().items():
        assert torch.equal(value, before[key]), key
    again.train()
    # another run from its checkpoint, with a frozen stem that has weights
    trained.MODEL.WEIGHTS = str(tmp_path / "out" / "model_final.pth")
    trained.MODEL.BACKBONE.FREEZE_AT, trained.OUTPUT_DIR = 2, str(tmp_path / "next")
    run(trained)
    assert not warnings_of(caplog)
    # and its backbone in the zoo
    net = from_detectron2(tmp_path / "out" / "model_final.pth")
    state = read_checkpoint(tmp_path / "out" / "model_final.pth")
    assert torch.equal(net.stem.conv1.weight, state["backbone.bottom_up.body.body.stem.conv1.weight"])


def test_training_on_weights_of_the_zoo(trained, caplog, tmp_path):
    """The pyramid is fresh, and its gains are measured; the backbone's biases are the weights'."""
    weights = write_net(tmp_path / "net.safetensors")
    pixels = pixel_settings(zoo.get_weights(weights).transform, "BGR")
    trained.MODEL.WEIGHTS = weights
    trained.MODEL.PIXEL_MEAN, trained.MODEL.PIXEL_STD = pixels["PIXEL_MEAN"], pixels["PIXEL_STD"]
    trained.MODEL.BACKBONE.FREEZE_AT = 2
    reports = []
    run(trained, prepare=lambda t: reports.append(calibrate(t.model, [next(iter(t.build_train_loader(trained)))])))
    assert [name.split(".")[0] for name in reports[0].calibrated] == [f"fpn_lateral{i}" for i in (5, 4, 3, 2)]
    assert reports[0].supplied
    assert not warnings_of(caplog)

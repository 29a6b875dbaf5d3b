"""Prediction of the classification task."""

import json

import pytest
from PIL import Image

import zoo
from tasks.classification.predict import FILES, classify_images
from tasks.errors import DataError
from tasks.images import find_images, read_image
from tasks.outputs import OutputFolder
from tests.helpers.classification import picture
from tests.helpers.nets import narrow
from tests.helpers.tasks import predict_all


def test_predict_files_and_folders(tree, weights, tmp_path, capsys):
    model = zoo.create_model("rescalenet20_cifar", weights.name)
    (tree / "val/bee/x.jpg").write_text("broken")
    files = find_images([str(tree / "val"), str(tree / "train/ant/0.png")])
    assert len(files) == 6
    predictions, failed = predict_all(
        classify_images,
        model,
        weights,
        files,
        top=2,
        batch_size=2,
        out=OutputFolder(tmp_path / "out", FILES, files),
    )
    assert [p.file for p in predictions] == [str(f) for f in files if f.name != "x.jpg"]
    assert list(failed) == [str(tree / "val/bee/x.jpg")]
    assert "1 of 6 files could not be read" in capsys.readouterr().err
    logits = model.eval()(weights.transforms()(read_image(files[-1]))[None])
    scores, order = logits.softmax(1)[0].topk(2)
    assert predictions[-1].classes == [weights.classes[i] for i in order]
    assert predictions[-1].scores == pytest.approx(scores.tolist(), rel=1e-4)
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert len(content["predictions"]) == 5
    assert content["failed"].keys() == failed.keys()
    assert Image.open(tmp_path / "out/contact_sheet.png").size[0] > 200
    with pytest.raises(DataError, match=r"/none: no such file or folder"):
        find_images([str(tmp_path / "none")])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="no images in .*nothing; known endings"):
        find_images([str(tmp_path / "nothing")])


def test_narrow_net_takes_grey_and_large_pictures(tmp_path):
    picture(tmp_path / "grey.png", size=(640, 480), mode="L")
    model = narrow("cifar")
    path = tmp_path / "w.safetensors"
    zoo.save_weights(model, path, transform=zoo.InputTransform(32, 36, (0.5,) * 3, (0.3,) * 3), classes=list("abcde"))
    predictions, failed = predict_all(classify_images, model, zoo.get_weights(str(path)), [tmp_path / "grey.png"])
    assert len(predictions) == 1
    assert not failed

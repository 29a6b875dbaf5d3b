"""Evaluation over clips and crops."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from tasks.errors import DataError
from tasks.spec import load_model
from tasks.video.data import EvalSet, index_videos
from tasks.video.decode import read_frames
from tasks.video.evaluate import evaluate, evaluate_weights, read_predictions, save_predictions, standardised
from tasks.video.index import Index
from tasks.video.sampling import ClipSampler
from tasks.video.sources import folder_videos
from tasks.video.transforms import crops
from tests.helpers.video import layout


class Recorder(nn.Module):
    """Logits that depend on the clip alone, and a record of what came in."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return torch.stack([x.mean((2, 3, 4)), x[:, :, -1].std((2, 3))]).sum(0) @ self.weight


def test_views_are_averaged_over_clips_and_crops(moving, tmp_path):
    """Ten clips of three crops, against the average of their softmax taken by hand."""
    videos = index_videos(folder_videos(moving / "val"), Index(tmp_path / "i.json", moving / "val"))
    transform = layout(4, 1.0, 10.0, 16, 18)
    data = EvalSet(videos, transform, 10, 3)
    model = Recorder().double().eval()
    from tasks.devices import make_accelerator

    result = evaluate(
        model,
        data,
        make_accelerator(),
        classes=videos.classes,
        inputs=lambda clips: standardised(clips, transform, torch.float64),
        batch_size=4,
    )
    assert len(result.names) == 9
    for number, (item, info) in enumerate(zip(videos.items, videos.infos, strict=True)):
        views = []
        for indices in ClipSampler(transform).uniform(info, 10):
            clip = torch.from_numpy(read_frames(item.path, info, indices.tolist())).permute(0, 3, 1, 2)
            views.append(crops(clip, transform, 3))
        with torch.no_grad():
            scores = model(standardised(torch.cat(views), transform, torch.float64)).softmax(1)
        assert len(scores) == 30
        torch.testing.assert_close(result.multi[number], scores.mean(0))
    metrics = result.metrics()
    assert {"top1", "top5", "macro_f1", "top1_10x3", "top5_10x3", "macro_f1_10x3", "videos", "failed"} <= metrics.keys()


def test_figures_are_sklearns():
    from sklearn.metrics import balanced_accuracy_score, f1_score, top_k_accuracy_score

    from tasks.video.evaluate import VideoResult as Result

    torch.manual_seed(0)
    labels, scores = torch.randint(0, 7, (90,)), torch.rand(90, 7).softmax(1)
    result = Result(tuple("abcdefg"), [str(i) for i in range(90)], labels, scores, None, 1, 1, {"x": "gone"})
    metrics, best = result.metrics(), scores.argmax(1)
    assert metrics["top1"] == pytest.approx(100 * (labels == best).float().mean().item())
    assert metrics["top5"] == pytest.approx(100 * top_k_accuracy_score(labels, scores, k=5))
    assert metrics["mean_class"] == pytest.approx(100 * balanced_accuracy_score(labels, best))
    assert metrics["macro_f1"] == pytest.approx(100 * f1_score(labels, best, average="macro"))
    assert (metrics["videos"], metrics["failed"]) == (90, 1)


def test_predictions_are_saved_and_scored_again(moving, weights, tmp_path):
    entry = zoo.get_weights(str(weights))
    result = evaluate_weights(
        load_model(entry),
        entry,
        folder_videos(moving / "val"),
        Index(tmp_path / "i.json", moving / "val"),
        clips=2,
        out=tmp_path / "out",
    )
    again = read_predictions(tmp_path / "out/predictions.npz")
    assert again.metrics() == result.metrics()
    assert again.table() == result.table()
    assert json.loads((tmp_path / "out/metrics.json").read_text())["metrics"] == result.metrics()
    (tmp_path / "other.npz").write_bytes(b"something else")
    with pytest.raises(DataError, match="other.npz: must be the predictions.npz of an evaluation"):
        read_predictions(tmp_path / "other.npz")
    save_predictions(again, tmp_path / "copy.npz")
    assert torch.equal(read_predictions(tmp_path / "copy.npz").multi, result.multi)


WHOLE = {
    "classes": np.array(["a", "b"]),
    "names": np.array(["x", "y", "z"]),
    "labels": np.array([0, 1, 1]),
    "single": np.full((3, 2), 0.5),
    "views": np.array([1, 1]),
    "failed": np.zeros((0, 2), dtype=str),
}


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("labels", np.array([0, 1, 2]), "labels must be 3 numbers of the 2 classes"),
        ("labels", np.array([0, 1, -1]), "labels must be"),
        ("labels", np.array([0, 1]), "labels must be"),
        ("labels", np.array([0.0, 1.0, 1.0]), "labels must be"),
        ("single", np.full((3, 3), 0.5), r"single must have finite numbers \(3 videos, 2 classes\)"),
        ("single", np.full((3, 2), np.nan), "single must have finite numbers"),
        ("multi", np.full((2, 2), 0.5), "multi must have finite numbers"),
        ("names", np.array([1, 2, 3]), "names and classes must be lists of text"),
        ("views", np.array([1]), "views must be two numbers"),
        ("failed", np.zeros((1, 3), dtype=str), "failed pairs of text"),
        ("labels", None, "labels"),
        ("names", np.array([{}, {}, {}], dtype=object), "allow_pickle=False"),
    ],
)
def test_predictions_that_are_not_valid(tmp_path, key, value, reason):
    path = tmp_path / "p.npz"
    np.savez(path, **WHOLE)
    assert read_predictions(path).names == ["x", "y", "z"]
    np.savez(path, **{k: v for k, v in {**WHOLE, key: value}.items() if v is not None})
    with pytest.raises(DataError, match=rf"p.npz: must be the predictions.npz of an evaluation \(.*{reason}"):
        read_predictions(path)


def test_a_damaged_archive(tmp_path):
    path = tmp_path / "p.npz"
    np.savez(path, **WHOLE)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"PK\x03\x04" + content[4:60], b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"p.npz: must be the predictions.npz of an evaluation"):
            read_predictions(path)

"""Video classification on the command line."""

import json
import shutil

import numpy as np
import pytest

import tasks.config as engine_cfg
from tasks.video.decode import probe
from tests.helpers.commands import call, on_two_processes
from tests.helpers.video import config, video, write_bar


def test_the_command_line(moving, weights, tmp_path, capsys, monkeypatch):
    index = tmp_path / "i.json"
    code, out, _ = call(
        capsys,
        monkeypatch,
        "eval",
        weights,
        moving / "val",
        "--index",
        index,
        "--clips",
        10,
        "--crops",
        3,
        "--out",
        tmp_path / "e",
    )
    assert code == 0
    assert "top1_10x3 " in out
    assert "videos 9  failed 0" in out
    listed = tmp_path / "list.csv"
    listed.write_text("path,label\ndown/0.mp4,down\nstill/1.mp4,still\ngone.mp4,right\n")
    code, out, err = call(capsys, monkeypatch, "eval", weights, listed, "--videos", moving / "val", "--index", index)
    assert code == 0
    assert "videos 2  failed 1" in out
    assert "gone.mp4: no such file" in err
    subset = tmp_path / "subset.txt"
    subset.write_text("down/0.mp4\nright/2.mp4\n")
    _, out, _ = call(capsys, monkeypatch, "eval", weights, moving / "val", "--subset", subset, "--index", index)
    assert "videos 2  failed 0" in out
    code, _, err = call(capsys, monkeypatch, "eval", weights, moving / "val", "--images", moving)
    assert code == 1
    assert "error: --images is not for video" in err
    code, out, _ = call(capsys, monkeypatch, "info", weights)
    assert json.loads(out)["transform"]["frames"] == 4
    code, out, _ = call(capsys, monkeypatch, "export", weights, "--out", tmp_path / "n")
    assert "agrees in onnxruntime" in out


def test_two_processes_evaluate_as_one(moving, weights, tmp_path, capsys, monkeypatch):
    """The same scores to the bit, with the same share of a batch on each process."""
    arguments = ["eval", weights, moving / "val", "--index", tmp_path / "i.json", "--clips", 2]
    _, out, _ = call(capsys, monkeypatch, *arguments, "--batch-size", 2, "--out", tmp_path / "one")
    assert on_two_processes(*arguments, "--batch-size", 4, "--out", tmp_path / "two") == out
    with np.load(tmp_path / "one/predictions.npz") as one, np.load(tmp_path / "two/predictions.npz") as two:
        assert one.files == two.files
        for key in one.files:
            assert np.array_equal(one[key], two[key]), key


def test_odd_videos_are_named_once_a_set(moving, weights, tmp_path, capsys, monkeypatch):
    """In prepare, check, train, eval and predict; 10-bit videos with usual colours are nothing odd."""
    root = tmp_path / "data"
    shutil.copytree(moving, root)
    for name in ("train/down/pq.mp4", "train/still/hlg.mp4", "val/right/pq.mp4"):
        curve = "smpte2084" if "pq" in name else "arib-std-b67"
        stated = f"log-level=none:colorprim=bt2020:transfer={curve}:colormatrix=bt2020nc"
        video(root / name, 12, codec="libx265", pix_fmt="yuv420p10le", x265_params=stated)
    video(root / "train/right/fields.mp4", 12, flags="+ildct+ilme", x264_params="tff=1")
    video(root / "train/right/ten.mp4", 12, codec="libx265", pix_fmt="yuv420p10le", x265_params="log-level=none")
    path = tmp_path / "c.yaml"
    path.write_text(engine_cfg.dump(config(root, tmp_path / "run", epochs=1)))

    def lines(*arguments):
        code, out, err = call(capsys, monkeypatch, *arguments)
        assert code == 0, err
        return sorted(line for line in (out + err).splitlines() if "HDR" in line or "are interlaced" in line)

    hdr, fields = "have HDR colours, which look pale to a net; convert them to SDR", "moving edges are combs"
    for command, train, val in (
        (("prepare", path), "training set: ", "evaluation set: "),
        (("check", path), "warning: train: ", "warning: val: "),
        (("train", path), "training set: ", "evaluation set: "),
    ):
        one, two, three = sorted(lines(*command), key=lambda line: (val in line, "HDR" not in line))
        assert one == f"{train}2 of 28 videos {hdr}: down/pq.mp4, still/hlg.mp4"
        assert two.startswith(f"{train}1 of 28 videos are interlaced: {fields}")
        assert three == f"{val}1 of 10 videos {hdr}: right/pq.mp4"
    index = tmp_path / "i.json"
    (found,) = lines("eval", weights, root / "val", "--index", index)
    assert found == f"1 of 10 videos {hdr}: right/pq.mp4"
    found = lines("predict", weights, root / "train", "--no-files")
    assert [line.partition(" videos")[0] for line in found] == ["1 of 28", "2 of 28"]


def test_prediction_of_files_and_folders(moving, weights, tmp_path, capsys, monkeypatch):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    long = tmp_path / "long.mp4"
    write_bar(long, "right", np.random.RandomState(5), count=45)
    code, out, err = call(
        capsys,
        monkeypatch,
        "predict",
        weights,
        moving / "val/down",
        long,
        tmp_path / "bad.mp4",
        "--annotate",
        "--window",
        1,
        "--step",
        0.4,
        "--out",
        tmp_path / "p",
    )
    assert code == 0
    assert out.count(".mp4: ") == 4
    assert "skipped: " in err
    assert "1 of 5 files could not be read" in err
    content = json.loads((tmp_path / "p/predictions.json").read_text())
    assert len(content["predictions"]) == 4
    assert list(content["failed"]) == [str(tmp_path / "bad.mp4")]
    for row in content["predictions"]:
        assert sum(row["scores"]) == pytest.approx(1, abs=1e-5)  # all three classes
        assert row["scores"] == sorted(row["scores"], reverse=True)
    windows = json.loads((tmp_path / "p/long.timeline.json").read_text())["windows"]
    assert [w["begin"] for w in windows] == pytest.approx([0, 0.4, 0.8, 1.2, 1.6, 2.0, 2.4, 2.8, 3.2, 3.5])
    assert windows[-1]["end"] == pytest.approx(4.5)
    assert (tmp_path / "p/long.timeline.png").stat().st_size > 1000
    assert (tmp_path / "p/contact_sheet.png").exists()
    copy, original = probe(tmp_path / "p/long.annotated.mp4"), probe(long)
    assert copy.frames == original.frames == 45
    np.testing.assert_allclose(copy.times, original.times, atol=1e-3)
    assert not list((tmp_path / "p").glob(".*"))

"""docs/finetune_video.md: every command runs, in the order of the page, on videos of a bar that moves left or right."""

import json
import re
import shlex

import numpy as np
import pytest

from tasks.video.encode import write_video
from tests.helpers.commands import call
from tests.helpers.paths import ROOT

PAGE = (ROOT / "docs/finetune_video.md").read_text()


def write_clips(root):
    random = np.random.RandomState(0)
    y, x = np.mgrid[:48, :64]
    for split, count in (("train", 8), ("val", 4)):
        for name, step in (("left", -2), ("right", 2)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for n in range(count):
                first, noise = random.randint(0, 64), random.randint(0, 60, (48, 64, 3))
                bars = [((x - first - step * t) % 64 < 10) & (abs(y - 24) < 12) for t in range(32)]
                write_video(folder / f"{n}.mp4", [(noise + 180 * bar[..., None]).astype(np.uint8) for bar in bars], 16)


@pytest.mark.slow
def test_the_commands_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_clips(tmp_path / "clips")
    (config,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "clips.yaml").write_text(config)
    outputs = []
    for line in re.findall(r"^rescalenet (.*)$", PAGE, re.MULTILINE):
        code, out, err = call(capsys, monkeypatch, *shlex.split(line))
        assert code == 0, (line, err)
        outputs.append(out)
    check, _, first, second, metrics, predicted, one, exported = outputs
    # what the page shows was printed
    shown = PAGE[PAGE.index("train: 16 of 16 videos") :].partition("```")[0]
    assert all(line in check for line in shown.splitlines())
    assert json.loads(first)["metrics"]["videos"] == 8
    assert "top1_4x3" in metrics
    assert predicted.count(".mp4: ") == 8
    assert "agrees in onnxruntime" in exported
    found = json.loads(one)
    assert found["file"] == "clips/val/left/0.mp4"
    assert [window["begin"] for window in found["timeline"]] == [0, 0.5, 1]
    assert json.loads(second)["output"] == "runs/clips"
    assert (tmp_path / "out/predict/0.annotated.mp4").exists()

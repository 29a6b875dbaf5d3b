"""Videos of all containers, cut, with bits flipped, under wrong endings; lists of videos."""

from __future__ import annotations

import json

import pytest
from hypothesis import strategies as st

from tests.fuzz.harness import FAST
from tests.fuzz.structures import NAMES, TEXTS, damaged, json_files
from tests.fuzz.videos import make_videos

TOGETHER = 5  # videos of one command


@pytest.fixture(scope="module")
def valid():
    return make_videos()


@st.composite
def videos(draw, valid):
    """A video's name and bytes: of any container, under any ending, damaged once or more."""
    name = draw(st.sampled_from(sorted(valid)))
    content = valid[name]
    for _ in range(draw(st.sampled_from((0, 1, 1, 1, 2, 4)))):
        content = draw(damaged(content))
    if draw(st.integers(0, 5)) == 0:
        name = draw(st.sampled_from(sorted(valid)))
    return name, content


def test_frames_are_those_of_the_file_or_none(harness, fuzz, valid):
    """The frames that a clip gives are those of a decode from the beginning, or missing."""

    def run(case):
        name, content = case
        harness.check({name: content}, ["@video", name], peak=2**30, seconds=30)

    fuzz(videos(valid), run, FAST // 2)


def test_predictions(harness, fuzz, valid):
    """A folder of odd videos beside a good one: every file is in the results, once."""
    weights = f"{harness.fixed}/weights/video.safetensors"

    def run(chosen):
        files = {f"a/{number}.{name}": content for number, (name, content) in enumerate(chosen)}
        files["a/good.mp4"] = valid["h264.mp4"]
        command = ["predict", weights, "a", "--window", "0.1", "--step", "0.1", "--out", "out/p"]
        assert harness.check(files, command, peak=2**30, seconds=60) == [0]
        found = json.loads((harness.box / "work/out/p/predictions.json").read_text())
        named = [row["file"] for row in found["predictions"]] + list(found["failed"])
        assert sorted(named) == sorted(files)

    fuzz(st.lists(videos(valid), min_size=TOGETHER, max_size=TOGETHER), run, FAST // 20)


LISTS = (
    "path,label,start,end\na.mp4,a,0,0.2\na.mp4,b,0.2,0.4\n",
    "label,youtube_id,time_start,time_end,split\na,x,0,1,val\nb,y,0,1,val\n",
    "a.mp4 a\nb.mp4 b\n",
    'path;label\n"a.mp4";"a"\nb.mp4;b\n',
)


@st.composite
def lists(draw):
    """A list of videos with other fields, or damaged."""
    content = draw(st.sampled_from(LISTS))
    field = draw(st.sampled_from(("a.mp4", "0.2", "0", "x", "label", "a", "1")))
    text = draw(st.sampled_from((*TEXTS, "inf", "nan", "-1", "1e400", '"', '"a\nb"', ""))).replace("\ud800", "?")
    content = content.replace(field, text, 1).encode()
    return draw(damaged(content)) if draw(st.booleans()) else content


def test_lists(harness, fuzz, valid):
    def run(content):
        harness.check({"l.csv": content, "v/a.mp4": valid["h264.mp4"]}, ["@videos", "l.csv", "v"])

    fuzz(lists(), run, FAST)


SOMETHING = [{"id": "1", "label": "x", "template": "Holding [something]", "placeholders": ["a"]}] * 2


def test_json_lists(harness, fuzz, valid):
    def run(content):
        harness.check({"l.json": content, "v/1.mp4": valid["h264.mp4"]}, ["@videos", "l.json", "v"])

    fuzz(json_files(SOMETHING), run, FAST // 4)


def test_names(harness, fuzz, valid):
    weights = f"{harness.fixed}/weights/video.safetensors"

    def run(name):
        files = {f"a/{name}.mp4": valid["h264.mp4"]}
        harness.check(files, ["predict", weights, f"a/{name}.mp4", "--out", "out/p"], peak=2**30, seconds=60)

    names = [name for name in NAMES if not {"\0", "/", "\ud800"} & {*name} and 0 < len(name) < 200]
    fuzz(st.sampled_from(names), run, FAST // 40)

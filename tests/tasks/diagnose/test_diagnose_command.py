"""The command: its files agree with its numbers, the page needs no network, and wrong input is one line."""

import csv
import dataclasses
import html
import json
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from tasks.diagnose.dynamics import BlockPoint, Cancellation, Dynamics, LayerPoint, SumPoint, describe_cancellation
from tasks.diagnose.figures import course_figure, dynamics_figure, signals_figure, signs_figure
from tasks.diagnose.page import page
from tasks.diagnose.run import Diagnosis, file_names, write_diagnosis
from tasks.diagnose.signals import Activation, Layer, Signals, Sum
from tasks.outputs import OutputFolder
from tasks.plots import save_figure
from tests.helpers.commands import call
from tests.helpers.paths import ROOT

NET = ["rescalenet20_cifar", "width=0.25", "num_classes=4"]
COMPARED = "rescalenet20_cifar width=0.25 num_classes=4 scheme=none"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report on two nets and the log of a run, and what the command printed."""
    folder = tmp_path_factory.mktemp("report")
    monkeypatch = pytest.MonkeyPatch()
    printed = []
    try:
        import typer

        monkeypatch.setattr(typer, "echo", lambda text, **kw: printed.append(text))
        from tasks.cli import diagnose

        log = ROOT / "weights" / "rescalenet20_cifar.cifar10.log.jsonl"
        diagnose(NET[0], NET[1:], compare=[COMPARED, str(log)], batches=1, batch_size=4, out=folder, format="json")
    finally:
        monkeypatch.undo()
    return folder, json.loads("".join(printed))


def colours(path):
    """The size of a picture (height, width) and its colours."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    packed = np.unique(pixels.astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32))
    return pixels.shape[:2], {(int(c) >> 16, int(c) >> 8 & 255, int(c) & 255) for c in packed}


def rows(path):
    return list(csv.DictReader(path.open()))


def test_the_files_have_the_numbers_that_are_printed(report):
    folder, printed = report
    stored = json.loads((folder / "diagnosis.json").read_text())
    assert stored == printed
    assert [net["scheme"] for net in stored["nets"]] == ["rescale", "none"]
    for kind in ("layers", "sums", "activations"):
        expected = [(net["label"], row["name"]) for net in stored["nets"] for row in net[kind]]
        found = rows(folder / f"{kind}.csv")
        assert [(row["net"], row["name"]) for row in found] == expected
        for row, values in zip(found, (row for net in stored["nets"] for row in net[kind]), strict=True):
            assert math.isclose(float(row["power"]), values["power"])
    growths = [row["growth"] for row in rows(folder / "sums.csv")]
    assert growths[0]
    assert growths[3] == ""
    # the channels' means and variances are those of the layer
    channels = [row for row in rows(folder / "channels.csv") if row["net"] == stored["nets"][0]["label"]]
    for layer in stored["nets"][0]["layers"]:
        own = [row for row in channels if row["layer"] == layer["name"]]
        assert len(own) == layer["channels"]
        powers = [float(row["mean"]) ** 2 + float(row["variance"]) for row in own]
        assert math.isclose(sum(powers) / len(own), layer["power"], rel_tol=1e-9)
    points = rows(folder / "dynamics.csv")
    assert len(points) == 9 * 41  # nine blocks, 40 epochs, and the fresh net before them
    first = points[0]
    assert (first["block"], first["step"], first["multiplier"]) == ("layer1.0", "0", "1.0")
    for point in points[::50]:
        product = float(point["norm_1"]) * float(point["norm_2"])
        assert math.isclose(float(point["weight"]), product)
        assert math.isclose(float(point["effective"]), product * float(point["multiplier"]))


def test_every_file_is_one_that_the_command_protects(report):
    folder, _ = report
    assert {path.name for path in folder.iterdir()} <= set(file_names())
    assert {"report.html", "signals.png", "signals.svg", "signs.svg", "dynamics.png"} <= {
        p.name for p in folder.iterdir()
    }


def test_the_figures_are_drawn(report):
    folder, _ = report
    for path in folder.glob("*.png"):
        (_, width), shown = colours(path)
        assert width > 600
        assert len(shown) > 50, path
    for path in folder.glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_the_page_contains_all_it_needs(report):
    folder, stored = report
    text = (folder / "report.html").read_text()
    assert text.count("<svg") == 3
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", text)
    assert "url(http" not in text
    assert "@import" not in text
    assert "<script" not in text
    assert "<!DOCTYPE svg" not in text
    assert text.count("<?xml") == 0
    for net in stored["nets"]:
        assert html.escape(net["label"]) in text
        for verdict in net["verdicts"]:
            assert html.escape(verdict["remedy"]) in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    used = set(re.findall(r'(?:url\(#|xlink:href="#)([^")]+)', text))
    assert used <= set(ids)
    assert len(ids) == len(set(ids))


def test_the_page_in_chromium(report, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("needs chromium")
    folder, _stored = report
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    address = (folder / "report.html").as_uri()
    shot = tmp_path / "page.png"
    command = [browser, *flags, "--window-size=1280,2000", f"--screenshot={shot}", address]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    size, shown = colours(shot)
    assert size == (2000, 1280)
    assert {(0xEF, 0xF8, 0xF1), (0x00, 0x72, 0xB2)} <= shown  # the box of a healthy net, and the first net's line
    dumped = subprocess.run([browser, *flags, "--dump-dom", address], check=True, capture_output=True, timeout=120)
    dom = dumped.stdout.decode()
    assert dom.count("<details>") == 6
    assert dom.count("<svg") == 3
    assert f"<h1>{html.escape(' '.join(NET))}</h1>" in dom


def test_text_for_people(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tasks.diagnose.run.try_to_draw", lambda draw, path: None)  # figures take most of the time
    arguments = [*NET, "calibrate=false", "--batches", "1", "--batch-size", "4", "--out", tmp_path / "a"]
    code, out, err = call(capsys, monkeypatch, "diagnose", *arguments)
    assert code == 0
    assert "uncalibrated (" in out
    assert "zoo.calibrate" in out
    assert "4 samples of pink noise, 32x32, random labels" in out
    assert "report.html" in err
    # earlier results stay
    code, _, err = call(capsys, monkeypatch, "diagnose", *arguments)
    assert code == 1
    assert "has earlier results (report.html)" in err
    code, _, _ = call(capsys, monkeypatch, "diagnose", *arguments, "--overwrite")
    assert code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rescalenet20_cifra"], "did you mean rescalenet20_cifar"),
        ([*NET, "shceme=bn"], "shceme"),
        ([*NET, "calibrate=3"], "calibrate=3: must be true or false"),
        ([*NET, "--noise", "blue"], "--noise blue: must be pink or white"),
        ([*NET, "--noise", "pink", "--data", "."], "--noise and --data: give one of the two"),
        ([*NET, "--size", "4"], "--size 4: must be >= "),
        ([*NET, "--all"], "--all: noise has no end"),
        ([*NET, "--format", "csv"], "--format csv: is in the files of the report"),
        ([*NET, "--compare", " ".join(NET)], "is given twice"),
        ([*NET, "--compare", ""], "--compare: empty"),
        ([*NET, "--compare", "a 'b"], "No closing quotation"),
        (["rescalenet20_cifar.cifar10", "scheme=bn"], "cannot be changed"),
        (["nowhere/log.jsonl"], "no such file"),
        (["tests"], "no run in it"),
        (["classification/cifar10/rescalenet20", "--data", "."], "--data: a config and a run have their own data"),
    ],
)
def test_wrong_input_is_one_line(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    code, out, err = call(capsys, monkeypatch, "diagnose", *arguments, "--out", tmp_path / "out")
    assert code == 1
    assert out == ""
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert list((tmp_path / "out").glob("*")) == []


def made(label="a <b> $x$ & c", **changes):
    """Signals of a small net, with names that HTML and matplotlib would act on."""
    layer = Layer(name="conv<1>", kind="product", channels=4, power=1.0, mean_power=0.25, variance=0.75)
    block = {"identity": True, "chain": 0, "trunk_power": 1.0, "branch_power": 0.5, "power": 1.4, "previous": 1.0}
    unit = Activation(
        name="act", function="relu", power=1.0, channels=4, positive=1, negative=1, units=8, negative_units=2
    )
    values = {
        "model": "net",
        "scheme": "none",
        "source": "2 samples",
        "samples": 2,
        "input": None,
        "layers": (layer,),
        "sums": (Sum(name="block", **block),),
        "activations": (unit,),
    }
    return Signals(label=label, **{**values, **changes})


def run_of(ms, norms, label="run"):
    points = tuple(
        BlockPoint("b", 10 * i, float(i), m, (n, 2.0)) for i, (m, n) in enumerate(zip(ms, norms, strict=True))
    )
    return Dynamics(label, ("b",), (points,))


def test_names_are_shown_as_they_are(tmp_path):
    signals = made()
    figure = signals_figure([signals])
    save_figure(figure, tmp_path / "a.svg")
    text = page("<script>alert(1)</script>", [signals], [], [("title & more", (tmp_path / "a.svg").read_text())])
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "conv&lt;1&gt;" in text
    assert "a &lt;b&gt; $x$ &amp; c" in text
    # equal figures make equal files
    (tmp_path / "b").mkdir()
    save_figure(signals_figure([signals]), tmp_path / "b" / "a.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b" / "a.svg").read_bytes()


def test_figures_of_what_is_missing(tmp_path):
    """A net without residual connections, powers of 0 or infinity, runs without a multiplier or records of signals."""
    plain = made(sums=())
    zero = made("zero", layers=(Layer(name="c", kind="product", channels=1, power=0.0, mean_power=0.0, variance=0.0),))
    infinite = made(
        "inf", layers=(Layer(name="c", kind="product", channels=1, power=math.inf, mean_power=1.0, variance=1.0),)
    )
    for number, figure in enumerate(
        [
            signals_figure([plain]),
            signals_figure([zero]),
            signals_figure([infinite, plain]),
            signs_figure([plain]),
            dynamics_figure([run_of([math.nan, math.nan], [3.0, 2.0])]),
            dynamics_figure([run_of([1.0, 0.0, -1.0], [3.0, 2.0, 1.0]), run_of([1.0], [1.0], "short")]),
        ]
    ):
        save_figure(figure, tmp_path / f"{number}.png")
        assert Image.open(tmp_path / f"{number}.png").width > 100
    assert course_figure([run_of([1.0], [1.0])]) is None


def test_a_report_has_nothing_of_an_earlier_one(tmp_path, monkeypatch):
    """Also where its figures cannot be drawn: the numbers and the page are there without them."""
    for name in file_names():
        (tmp_path / name).write_text("<svg>before</svg>")
    (tmp_path / "notes.txt").write_text("mine")

    def refuse(signals):
        raise ValueError("no font")

    monkeypatch.setattr("tasks.diagnose.run.signals_figure", refuse)
    write_diagnosis(Diagnosis((made("after"),), ()), OutputFolder(tmp_path, file_names(), overwrite=True), "after")
    names = {path.name for path in tmp_path.iterdir()}
    assert {"report.html", "diagnosis.json", "layers.csv", "notes.txt"} <= names
    assert not names & {"signals.svg", "signals.png", "dynamics.csv", "dynamics.svg"}
    text = (tmp_path / "report.html").read_text()
    assert "after" in text
    assert "before" not in text


def test_the_course_of_runs_has_common_colours():
    """Rows are layers in order, columns steps; a norm has no row of gradients, a run without biases no map of them."""
    layers = [
        LayerPoint("conv1", 0, 1e-3, 0.1, 1.0, 0.5),
        LayerPoint("norm", 0, 7.0, math.nan, math.nan, math.nan),
        LayerPoint("conv2", 0, 1e-2, 0.2, 1.0, 0.25),
        LayerPoint("conv1", 50, 1e-1, 0.3, 1.0, 0.5),
    ]
    sums = [SumPoint("b", 0, 4.0, 1.0, -0.25), SumPoint("b", 50, 16.0, 1.0, 0.5)]
    first = dataclasses.replace(run_of([1.0], [1.0]), layers=tuple(layers), sums=tuple(sums))
    loud = [dataclasses.replace(layer, gradient_norm=1e3, bias_offset=math.nan) for layer in layers]
    second = dataclasses.replace(first, layers=tuple(loud), label="loud")
    figure = course_figure([first, second])
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert len(panels) == 2 * 6
    above, below = panels[:6], panels[6:]
    assert above[0].collections[0].get_array().tolist() == [[4.0, 16.0]]
    gradients = above[1].collections[0].get_array()
    assert gradients.filled(math.nan).tolist()[0] == [1e-3, 1e-1]
    assert gradients.filled(math.nan)[1][0] == 1e-2
    assert math.isnan(gradients.filled(math.nan)[1][1])
    assert above[1].collections[0].get_clim() == below[1].collections[0].get_clim() == (1e-3, 1e3)
    assert above[4].collections[0].get_clim() == (-0.5, 0.5)
    assert above[3].collections[0].get_clim() == (0.0, 0.5)
    assert not below[3].collections
    assert [axes.get_ylabel() for axes in (above[0], below[0])] == ["run\ndepth", "loud\ndepth"]
    assert [text.get_text() for text in below[3].texts + above[5].texts] == ["none", "none"]


def test_sentences_on_cancellation():
    # m doubles, the weights' product halves: the effective weight stays
    exact = run_of([1.0, 2.0], [4.0, 2.0])
    assert exact.cancellation == [Cancellation("b", 2.0, 0.5)]
    assert exact.cancellation[0].effective == 1.0
    assert exact.cancellation[0].share == 1.0
    assert "undoes 100% of the weights' change" in describe_cancellation(exact)
    # the last quarter of 8 records: m from 1.5 to 3, the weights from 4 to 2
    late = run_of([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.5, 3.0], [8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 4.0, 2.0])
    assert (
        "the multipliers change 2 times, the weights 0.5 times, the effective weights 1 times"
        in describe_cancellation(late)
    )
    assert "last quarter" not in describe_cancellation(exact)
    # m = sqrt(2): half of it in logarithms
    half = run_of([1.0, math.sqrt(2)], [4.0, 2.0])
    assert math.isclose(half.cancellation[0].share, 0.5)
    # both grow
    both = run_of([1.0, 2.0], [2.0, 4.0])
    assert both.cancellation[0].share == -1.0
    assert "change in the same direction" in describe_cancellation(both)
    # no multiplier, and weights that stay
    assert "product of a branch's weight norms is 0.5 times" in describe_cancellation(
        run_of([math.nan] * 2, [4.0, 2.0])
    )
    assert math.isnan(run_of([1.0, 2.0], [4.0, 4.0]).cancellation[0].share)


def test_all_and_batches_exclude_each_other(capsys, monkeypatch, tmp_path):
    code, _, err = call(capsys, monkeypatch, "diagnose", *NET, "--all", "--batches", "2", "--out", tmp_path)
    assert code == 1
    assert "--all and --batches: give one of the two" in err

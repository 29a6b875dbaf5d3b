"""Results of eval, predict, export and train: formats, files, devices, what cannot be read, exit codes."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zoo
from tasks import cli, plots
from tasks.classification import predict as classification
from tests.helpers.classification import picture
from tests.helpers.commands import call, environment, on_two_processes
from tests.helpers.paths import ROOT


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights of the classes ``$_$``, ``bee`` and ``a, b``, and pictures of the first two."""
    root = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    model = zoo.create_model("rescalenet20_cifar", num_classes=3, width=0.25)
    transform = zoo.InputTransform(16, 16, (0.5,) * 3, (0.3,) * 3)
    zoo.save_weights(model, root / "w.safetensors", transform=transform, classes=["$_$", "bee", "a, b"])
    for c, name in enumerate(("$_$", "bee")):
        for n in range(3):
            picture(root / "val" / name / f"{n}.png", seed=10 * c + n)
    return root


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs ``rescalenet`` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: call(capsys, monkeypatch, *arguments)


def test_version(run):
    assert run("--version") == (0, f"rescalenet-zoo {zoo.__version__}\n", "")


# -- formats ---------------------------------------------------------------------------------------


def test_predictions_in_three_formats(run, files):
    predict = ("predict", files / "w.safetensors", files / "val", "--no-files")
    code, text, err = run(*predict)
    assert code == 0
    assert err.splitlines() == [f"device cpu, precision fp32, 1 process, torch {torch.__version__}"]
    lines = [json.loads(line) for line in run(*predict, "--format", "json")[1].splitlines()]
    rows = list(csv.DictReader(io.StringIO(run(*predict, "--format", "csv")[1])))
    assert len(text.splitlines()) == len(lines) == 6
    for found, line in zip(lines, text.splitlines(), strict=True):
        assert line.startswith(f"{found['file']}: {found['classes'][0]} {found['scores'][0]:.1%}")
    assert [(r["file"], r["class"], float(r["score"]), int(r["rank"])) for r in rows] == [
        (found["file"], name, score, rank)
        for found in lines
        for rank, (name, score) in enumerate(zip(found["classes"], found["scores"], strict=True), 1)
    ]
    assert not list(Path().iterdir())
    assert "--format xml: must be one of" in run(*predict, "--format", "xml")[2]


def test_workers_and_batches_change_nothing(run, files):
    predict = ("predict", files / "w.safetensors", files / "val", "--no-files", "--format", "json")
    one = [json.loads(line) for line in run(*predict)[1].splitlines()]
    other = [json.loads(line) for line in run(*predict, "--workers", 2, "--batch-size", 2)[1].splitlines()]
    for a, b in zip(one, other, strict=True):
        assert (a["file"], a["classes"]) == (b["file"], b["classes"])
        assert a["scores"] == pytest.approx(b["scores"], rel=1e-5)


def test_classes_threshold_and_mirror_images(run, files):
    predict = ("predict", files / "w.safetensors", files / "val", "--no-files", "--format", "json")

    def found(*options):
        return [json.loads(line) for line in run(*predict, *options)[1].splitlines()]

    assert all(row["classes"] == ["a, b"] for row in found("--classes", "a, b"))
    assert all(set(row["classes"]) == {"$_$", "bee"} for row in found("--classes", "bee,$_$"))
    everything = found()
    cut = everything[0]["scores"][1]
    for row, all_of_it in zip(found("--threshold", cut), everything, strict=True):
        assert row["scores"] == [score for score in all_of_it["scores"] if score >= cut]
    assert "--classes: 'be' is not a class of" in run(*predict, "--classes", "be")[2]
    # the mean of both views, whose order does not matter
    reader = classification.Reader(zoo.get_weights(str(files / "w.safetensors")))
    model = zoo.create_model("rescalenet20_cifar", str(files / "w.safetensors")).eval()
    pixels = reader(Path(everything[0]["file"]))[0][None]
    with torch.no_grad():
        mean = (model(pixels).softmax(1) + model(pixels.flip(-1)).softmax(1)) / 2
    assert found("--tta", "flip")[0]["scores"] == pytest.approx(sorted(mean[0].tolist(), reverse=True), rel=1e-5)
    assert "--tta rotate: must be flip" in run(*predict, "--tta", "rotate")[2]


def test_evaluations_in_three_formats(run, files):
    evaluate = ("eval", files / "w.safetensors", files / "val", "--workers", 2)
    code, text, err = run(*evaluate)
    assert code == 0
    assert any(line.startswith("device cpu, precision fp32, 1 process, torch ") for line in err.splitlines())
    content = json.loads(run(*evaluate, "--format", "json")[1])
    assert content["metrics"]["images"] == 6
    assert [row["class"] for row in content["per_class"]] == ["$_$", "bee", "a, b"]
    rows = dict(csv.reader(io.StringIO(run(*evaluate, "--format", "csv")[1])))
    assert rows.pop("metric") == "value"
    assert {key: float(value) for key, value in rows.items()} == content["metrics"]
    assert text.splitlines()[-1].endswith("images 6  failed 0")


# -- what cannot be read ---------------------------------------------------------------------------


def test_an_evaluation_counts_what_it_cannot_read(run, files, tmp_path):
    for name in ("bee/0.png", "bee/1.png", "$_$/0.png"):
        picture(tmp_path / "val" / name)
    for name, content in (("bee/broken.png", b"no picture"), ("$_$/half.jpg", b"\xff\xd8\xff"), ("bee/empty.jpg", b"")):
        (tmp_path / "val" / name).write_bytes(content)
    evaluate = ("eval", files / "w.safetensors", tmp_path / "val")
    code, out, err = run(*evaluate, "--out", "e", "--batch-size", 1)
    assert code == 0
    assert out.splitlines()[-1].endswith("images 3  failed 2")
    assert "left out: 1 empty" in err
    assert err.count("skipped: ") == 2
    assert "2 of 5 images could not be read" in err
    content = json.loads(Path("e/metrics.json").read_text())
    assert (content["metrics"]["images"], content["metrics"]["failed"]) == (3, 2)
    assert set(content["failed"]) == {"bee/broken.png", "$_$/half.jpg"}
    for path in (tmp_path / "val").rglob("*.png"):
        path.write_bytes(b"no picture")
    code, out, err = run(*evaluate)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: none of the 5 images can be read; the first: ")


@pytest.mark.slow
def test_two_processes_count_what_they_cannot_read_as_one(run, files, tmp_path):
    for n in range(5):
        picture(tmp_path / "val/bee" / f"{n}.png", seed=n)
    for n in (0, 3):  # of the first and of the second process
        (tmp_path / f"val/bee/{n}.png").write_bytes(b"no picture")
    evaluate = ("eval", files / "w.safetensors", tmp_path / "val")
    assert on_two_processes(*evaluate, "--format", "json") == run(*evaluate, "--format", "json")[1]


def test_names_that_are_no_text(run, files, tmp_path):
    """Bytes that are not UTF-8, line breaks and escapes: in stdout, JSON, CSV and on the sheet."""
    try:
        for name in (b"caf\xe9.png", b"a\nb\x1b[31m.png"):
            picture(tmp_path / "in" / "x.png")
            os.rename(tmp_path / "in" / "x.png", os.fsencode(tmp_path / "in") + b"/" + name)
    except OSError:
        pytest.skip("the file system takes no such names")
    predict = ("predict", files / "w.safetensors", tmp_path / "in")
    for format in ("text", "json", "csv"):
        code, out, err = run(*predict, "--out", format, "--format", format)
        assert code == 0, err
        assert "caf\\xe9.png" in out.replace("\\\\", "\\")
        assert len(out.splitlines()) == {"text": 2, "json": 2, "csv": 7}[format]
        assert "\x1b" not in out
        written = json.loads(Path(format, "predictions.json").read_text(encoding="utf-8"))
        names = [Path(row["file"]).name for row in written["predictions"]]
        assert names == ["a\nb\x1b[31m.png", "caf\\xe9.png"]
        assert Path(format, "contact_sheet.png").exists()


# -- files -----------------------------------------------------------------------------------------


def test_earlier_results_stay(run, files):
    predict = ("predict", files / "w.safetensors", files / "val")
    assert run(*predict, "--out", "p")[0] == 0
    before = Path("p/predictions.json").read_bytes()
    code, out, err = run(*predict, "--out", "p", "--top", 1)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: p: has earlier results (predictions.json); choose another folder")
    assert Path("p/predictions.json").read_bytes() == before
    assert run(*predict, "--out", "p", "--top", 1, "--overwrite")[0] == 0
    assert Path("p/predictions.json").read_bytes() != before
    for expected in ("out/predict", "out/predict_2"):  # without --out, each gets a folder of its own
        assert f"written to {expected}\n" in run(*predict)[2]
    evaluate = ("eval", files / "w.safetensors", files / "val", "--out", "e")
    assert [run(*evaluate)[0], run(*evaluate)[0], run(*evaluate, "--overwrite")[0]] == [0, 1, 0]
    assert "--no-files: writes nothing into --out p" in run(*predict, "--out", "p", "--no-files")[2]


def test_an_export_stays(run, files):
    export = ("export", files / "w.safetensors", "--out", "n")
    Path("n").write_text("mine")
    for more in ((), ("--overwrite",)):
        code, _, err = run(*export, *more)
        assert (code, err) == (1, "error: n: is a file, and an export is a folder; choose another name\n")
    assert Path("n").read_text() == "mine"
    Path("n").unlink()
    assert run(*export)[0] == 0
    before = Path("n/manifest.json").read_bytes()
    code, _, err = run(*export)
    assert (code, err) == (1, "error: n: exists; choose another name, or give --overwrite\n")
    Path("n/mine.txt").write_text("mine")
    code, _, err = run(*export, "--overwrite")
    assert (code, err) == (1, "error: n: mine.txt is not of the export and would be lost; move it elsewhere\n")
    assert Path("n/manifest.json").read_bytes() == before
    Path("n/mine.txt").unlink()
    assert run(*export, "--overwrite", "--no-fold")[0] == 0
    assert Path("n/manifest.json").read_bytes() != before
    weights = (files / "w.safetensors").read_bytes()
    code, _, err = run("export", files / "w.safetensors", "--out", files / "w.safetensors", "--overwrite")
    assert (code, "an export is a folder; give it a name without .safetensors" in err) == (1, True)
    code, _, err = run("export", files / "w.safetensors", "--out", files, "--overwrite")
    assert (code, "has files that are not of an export; choose another name" in err) == (1, True)
    assert (files / "w.safetensors").read_bytes() == weights


def test_each_command_asks_before_it_replaces_its_results(run, files):
    """One rule for check, eval, convert and convert-fairseq, for each file that they write."""
    Path("mine").write_text("mine")
    vocabulary = ("--dictionary", files / "none", "--sentencepiece", files / "none")
    for name, *command in (
        ("check.json", "check", files / "val"),
        ("samples.png", "check", files / "val"),
        ("metrics.json", "eval", files / "w.safetensors", files / "val"),
        ("confusion.png", "eval", files / "w.safetensors", files / "val"),
    ):
        folder = Path(f"before {name}")
        folder.mkdir()
        (folder / name).write_text("mine")
        code, out, err = run(*command, "--out", folder)
        assert (code, out) == (1, "")
        assert err.splitlines()[-1].startswith(f"error: {folder}: has earlier results ({name}); choose another folder")
        assert (folder / name).read_text() == "mine"
        assert run(*command, "--out", folder, "--overwrite")[0] == 0
        assert (folder / name).read_bytes() != b"mine"
    for command in (("convert", "net.pth", "mine"), ("convert-fairseq", "net.pt", "en-de", "mine", *vocabulary)):
        code, _, err = run(*command)
        assert (code, err) == (1, "error: mine: exists; choose another name, or give --overwrite\n")


def test_inputs_are_never_written(run, files, tmp_path):
    names = ("contact_sheet.png", "a/x.png", "b/x.png", "x_2.png")
    for name in names:
        picture(tmp_path / "photos" / name)
    before = {name: (tmp_path / "photos" / name).read_bytes() for name in names}
    predict = ("predict", files / "w.safetensors", tmp_path / "photos", "--out", tmp_path / "photos")
    for options in ((), ("--overwrite",)):
        code, _, err = run(*predict, *options)
        assert code == 1
        assert "contact_sheet.png: is an input and would be replaced" in err
    assert {name: (tmp_path / "photos" / name).read_bytes() for name in names} == before
    # the images of a set, which are known by the folder that they are in, or by a list
    name = "confusion.png"
    picture(tmp_path / "val/bee" / name)
    picture(tmp_path / "val/$_$/0.png")
    (tmp_path / "list.csv").write_text("path,label\nval/bee/confusion.png,bee\nval/$_$/0.png,$_$\n")
    before = (tmp_path / "val/bee" / name).read_bytes()
    evaluate = ("eval", files / "w.safetensors")
    for command, text in (
        ((*evaluate, tmp_path / "list.csv"), f"{name}: is an input and would be replaced"),
        ((*evaluate, tmp_path / "val"), f"--out {tmp_path / 'val/bee'}: is inside {tmp_path / 'val'}, whose files are"),
    ):
        code, _, err = run(*command, "--out", tmp_path / "val/bee", "--overwrite")
        assert (code, text in err) == (1, True), err
        assert (tmp_path / "val/bee" / name).read_bytes() == before
    picture(tmp_path / "val/bee/samples.png")
    before = (tmp_path / "val/bee/samples.png").read_bytes()
    code, _, err = run("check", tmp_path / "val", "--out", tmp_path / "val/bee", "--overwrite")
    assert (code, "samples.png: is an input and would be replaced" in err) == (1, True)
    assert (tmp_path / "val/bee/samples.png").read_bytes() == before


def test_results_do_not_become_a_class(run, files):
    """A folder of results below the class folders would be a class in the next evaluation."""
    before = sorted(files.rglob("*"))
    for out in (files / "val", files / "val/results", files / "val/../val/a/b"):
        code, _, err = run("eval", files / "w.safetensors", files / "val", "--out", out)
        assert (code, "whose files are the inputs; choose another folder" in err) == (1, True)
    assert sorted(files.rglob("*")) == before
    assert run("eval", files / "w.safetensors", files / "val", "--out", files / "results")[0] == 0


def test_a_folder_that_cannot_be_written_is_told_before_the_net_runs(run, files, monkeypatch):
    Path("file").write_text("")
    monkeypatch.setattr(cli, "print_line", lambda text, **options: None)
    monkeypatch.setattr("tasks.spec.load_model", lambda entry: pytest.fail("the net was loaded"))
    monkeypatch.setattr("tasks.classification.commands.load_model", lambda entry: pytest.fail("the net was loaded"))
    for command in ("predict", "eval"):
        assert run(command, files / "w.safetensors", files / "val", "--out", "file/x")[0] == 1


def test_results_outlive_a_picture_that_fails(run, files, monkeypatch):
    def broken(figure, path, **options):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(plots, "save_figure", broken)
    code, out, err = run("predict", files / "w.safetensors", files / "val", "--out", "p")
    assert (code, out.count(".png: ")) == (0, 6)
    assert "p/contact_sheet.png: cannot be drawn (no fonts)" in err
    code, out, err = run("eval", files / "w.safetensors", files / "val", "--out", "e")
    assert (code, "top1 " in out) == (0, True)
    assert "e/confusion.png: cannot be drawn (no fonts)" in err
    assert Path("e/metrics.json").exists()


# -- the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            1,
            "error: out of memory (CUDA out of memory): lower --batch-size",
        ),
        (MemoryError(), 1, "error: out of memory: lower --batch-size"),
    ],
)
def test_errors_that_are_no_mistakes_are_one_line(run, files, monkeypatch, error, code, message):
    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr(classification, "class_scores", fails)
    found, _, err = run("predict", files / "w.safetensors", files / "val", "--no-files")
    assert found == code
    assert err.splitlines()[-1].startswith(message)
    assert "Traceback" not in err


def test_a_device_that_is_not_there(run, files):
    for command in ("eval", "predict"):
        code, _, err = run(command, files / "w.safetensors", files / "val", "--device", "cuda:7")
        assert code == 1
        assert err.startswith("error: --device cuda:7: this machine has cpu")
        assert len(err.splitlines()) == 1


def test_commands_of_one_process_are_refused_under_torchrun(run, files, monkeypatch):
    """Each process would print the same and write into the same files."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for command in (("predict", files / "w.safetensors", files / "val"), ("check", files / "val"), ("demo",)):
        code, out, err = run(*command)
        assert (code, out) == (1, "")
        assert err == (
            f"error: rescalenet {command[0]} runs in one process, each of 2 (WORLD_SIZE) would do the same: run it "
            "without torchrun\n"
        )
    assert not list(Path().iterdir())


def test_errors_of_the_system_are_sentences(run, files):
    Path("file").write_text("")
    code, _, err = run("train", "classification/cifar10/rescalenet20", f"data.root={files}", "output=file/x")
    assert code == 1
    assert "Errno" not in err
    assert cli._last_line(FileExistsError(17, "File exists", "a b")) == "a b: File exists"
    assert cli._last_line(OSError("of a library")) == "of a library"


def test_the_old_order_of_convert_is_answered(run, files):
    code, _, err = run("convert", "net.pth", "rescalenet50", "o.safetensors")
    assert code == 1
    assert err.endswith("rescalenet convert net.pth o.safetensors --name rescalenet50\n")


@pytest.fixture
def shadowed(tmp_path):
    """The environment of a command in a folder with modules of the user's own that have our names."""
    for name in ("tasks", "zoo"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')\n")
    return {"cwd": tmp_path, "env": {**environment(), "PYTHONPATH": "."}, "text": True}


def test_modules_of_the_user_do_not_take_our_place(shadowed):
    code = "import rescalenet_zoo.__main__, tasks, zoo; print(tasks.__file__, zoo.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, **shadowed)
    assert done.stdout.split() == [str(ROOT / name / "__init__.py") for name in ("tasks", "zoo")]


@pytest.mark.slow
def test_a_closed_pipe_beside_modules_of_the_user(shadowed):
    """The installed command, into a reader that goes."""
    command = [str(Path(sys.executable).with_name("rescalenet")), "list"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **shadowed)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()  # before the first line
    assert process.stderr.read() == ""
    assert process.wait() == 141

"""A wheel installed outside the checkout finds its configs, weights and pictures."""

import configparser
import shutil
import subprocess
import sys

import pytest

from tests.helpers.commands import environment
from tests.helpers.paths import ROOT

CHECK = """
import importlib.metadata, pathlib, sys
import zoo, tasks
from tasks.config import configs_dir
from tasks.spec import resolve
site = pathlib.Path(sys.argv[1])
assert site in pathlib.Path(zoo.__file__).parents, zoo.__file__
assert site in pathlib.Path(tasks.__file__).parents
assert site in configs_dir().parents
resolve("classification/cifar10/rescalenet20")
resolve("video/wagon/rescale_slowonly_r20_cifar")
assert (configs_dir() / "video/shapes/fold1.txt").is_file()
resolve("detection/nuclei/mask_rcnn_rescalenet18")
assert (configs_dir() / "detection/detectron2/mask_rcnn_rescalenet50_fpn.py").is_file()
assert (configs_dir() / "classification/cifar10/holdout.txt").is_file()
from tasks.files import pictures_dir
assert site in pictures_dir().parents
sums = [line.split()[1] for line in (pictures_dir() / "SHA256SUMS").read_text().splitlines()]
assert len(sums) == 12 and all((pictures_dir() / name).is_file() for name in sums), sums
assert "CC0 1.0" in (pictures_dir() / "README.md").read_text()
from tasks.spec import load_model
for name in zoo.list_weights():
    load_model(zoo.get_weights(name))
    assert site in zoo.get_weights(name).path.parents
assert importlib.metadata.version("rescalenet-zoo") == zoo.__version__
print(sorted(zoo.list_weights()))
"""


FOLDERS = ("zoo", "tasks", "rescalenet_zoo", "configs", "weights", "pictures")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: building leaves files behind that a later wheel would pick up
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    built = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    subprocess.run(built, check=True, env=environment())
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True, env=environment())
    return target


def test_the_wheel_works_outside_the_checkout(site, tmp_path):
    """PYTHONPATH comes before the editable install; run in another folder."""
    env = {**environment(), "PYTHONPATH": str(site)}
    arguments = [sys.executable, "-c", CHECK, str(site)]
    done = subprocess.run(arguments, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    import zoo

    assert done.stdout.strip() == str(zoo.list_weights())


def test_every_file_is_in_the_wheel(site):
    """Modules, pages, scripts, templates, recipes, weights: all but logs of trainings and hidden files."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["package_dir"].split("\n")
    packages = {folder.strip(): name.strip() for name, folder in (line.split("=") for line in lines if line)}
    missing = []
    for path in (path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.is_file()):
        folder, *rest = path.relative_to(ROOT).parts
        if path.suffix == ".jsonl" or any(part == "__pycache__" or part.startswith(".") for part in rest):
            continue
        copy = site.joinpath(*packages.get(folder, folder).split("."), *rest)
        if not copy.is_file() or copy.read_bytes() != path.read_bytes():
            missing.append(str(path.relative_to(ROOT)))
    assert missing == []


def test_only_our_packages_are_installed(site):
    found = {p.name for p in site.iterdir() if not p.name.endswith(".dist-info")}
    assert found <= {"zoo", "tasks", "rescalenet_zoo", "bin"}
    assert (site / "zoo" / "py.typed").exists()

"""Weights and runs as repositories, on a hub of this machine."""

import json

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

import zoo
from tests.helpers.server import Answer
from zoo.sources.push import build_repository

TRANSFORM = zoo.InputTransform(16, 16, (0.5,) * 3, (0.3,) * 3)
CONFIG = {
    "task": "classification",
    "output": "runs/secret",
    "model": {"name": "rescalenet20_cifar", "weights": None, "options": {"width": 0.25}},
    "data": {"root": "/home/someone/data", "val": "~/val", "extra": ["D:\\x", "relative/kept"], "size": 16},
}


@pytest.fixture
def run(tmp_path):
    """The folder of a run, which started from no weights."""
    folder = tmp_path / "run"
    write_run(folder, CONFIG)
    return folder


def write_run(folder, config, **meta):
    for name, top1 in (("last", 60.0), ("best", 61.5)):
        torch.manual_seed(len(name) + int(top1))
        model = zoo.create_model("rescalenet20_cifar", num_classes=2, width=0.25)
        content = {"epochs": 3, "config": config, "metrics": {"top1": top1}, **meta}
        path = folder / "checkpoints" / f"{name}.safetensors"
        zoo.save_weights(model, path, transform=TRANSFORM, classes=["ant", "bee"], meta=content)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "log.jsonl").write_text('{"event": "step", "step": 1, "epoch": 0, "loss": 2.0, "lr": 0.1}\n')
    (folder / "checkpoints" / "last.pt").write_bytes(b"the training state stays here")


def files_of(hub, repository):
    return hub.repositories[repository][-1]


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_a_run_is_pushed_and_loaded(hub, run, checkpoint):
    address = zoo.push(run, "owner/pets", checkpoint=checkpoint)
    assert address == f"{hub.address}/owner/pets/commit/{1:040x}"
    assert hub.private["owner/pets"] is True
    files = files_of(hub, "owner/pets")
    assert set(files) == {"model.safetensors", "config.json", "README.md", "config.yaml", "log.jsonl"}
    # what was pushed is loaded by name
    entry = zoo.get_weights("hf-hub:owner/pets")
    own = zoo.get_weights(str(run / "checkpoints" / f"{checkpoint}.safetensors"))
    assert (entry.config, entry.transform, entry.classes) == (own.config, own.transform, own.classes)
    assert entry.meta["metrics"] == own.meta["metrics"]
    loaded, expected = entry.load(), own.load()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    assert json.loads(files["config.json"])["sha256"] == entry.sha256


def test_nothing_of_this_machine_is_in_it(hub, run, tmp_path):
    zoo.push(run, "owner/pets")
    files = files_of(hub, "owner/pets")
    config = yaml.safe_load(files["config.yaml"])
    assert config["data"] == {"extra": ["relative/kept"], "size": 16}
    assert "output" not in config
    assert zoo.get_weights("hf-hub:owner/pets").meta["config"] == config
    for content in files.values():
        for secret in (b"someone", b"runs/secret", b"~/val", bytes(tmp_path)):
            assert secret not in content


def test_the_card(hub, run):
    zoo.push(run, "owner/pets")
    text = files_of(hub, "owner/pets")["README.md"].decode()
    card = ModelCard(text)
    assert card.data.to_dict() == {
        "library_name": "rescalenet-zoo",
        "pipeline_tag": "image-classification",
        "tags": ["rescalenet-zoo", "classification", "rescalenet20_cifar"],
        "license": "unknown",
        "metrics": ["top1"],
    }
    assert 'zoo.create_model("rescalenet20_cifar", weights="hf-hub:owner/pets")' in text
    assert "| top1 | 60 |" in text
    assert "- Licence: unknown" in text
    assert "## Recipe" in text
    assert "width: 0.25" in text


def test_the_licence_is_inherited_by_what_was_fine_tuned(hub, tmp_path, own_file):
    """The run started from weights with a licence of their own."""
    config = {**CONFIG, "model": {**CONFIG["model"], "weights": "hf-hub:owner/start"}}
    zoo.push(str(own_file[0]), "owner/start")
    write_run(tmp_path / "run", config)
    zoo.get_weights("hf-hub:owner/start")  # as the training did
    zoo.push(tmp_path / "run", "owner/tuned")
    card = ModelCard(files_of(hub, "owner/tuned")["README.md"].decode())
    assert (card.data.license, card.data.base_model) == ("cc-by-nc-4.0", "owner/start")
    assert "- Training started from: hf-hub:owner/start" in card.text
    assert zoo.get_weights("hf-hub:owner/tuned").meta["licence"] == "cc-by-nc-4.0"
    with pytest.raises(zoo.ZooError, match="licence 'mit': the weights inherit 'cc-by-nc-4.0'; leave it out"):
        zoo.push(tmp_path / "run", "owner/tuned", licence="mit")


def test_the_licence_is_inherited_over_several_runs(hub, tmp_path, own_file):
    """Files of runs state no licence; that of the weights at the beginning is found over the runs between."""
    start = str(own_file[0])
    for name in ("first", "second"):
        write_run(tmp_path / name, {**CONFIG, "model": {**CONFIG["model"], "weights": start}})
        start = str(tmp_path / name / "checkpoints" / "last.safetensors")
    zoo.push(tmp_path / "second", "owner/second")
    assert ModelCard(files_of(hub, "owner/second")["README.md"].decode()).data.license == "cc-by-nc-4.0"


def test_weights_that_name_each_other_in_a_circle_have_no_licence(hub, tmp_path):
    own = str(tmp_path / "run" / "checkpoints" / "last.safetensors")
    write_run(tmp_path / "run", {**CONFIG, "model": {**CONFIG["model"], "weights": own}})
    zoo.push(tmp_path / "run", "owner/circle")
    assert ModelCard(files_of(hub, "owner/circle")["README.md"].decode()).data.license == "unknown"


def test_weights_that_it_started_from_are_missing(hub, tmp_path, lines):
    config = {**CONFIG, "model": {**CONFIG["model"], "weights": "gone.safetensors"}}
    write_run(tmp_path / "run", config)
    zoo.push(tmp_path / "run", "owner/tuned")
    assert ModelCard(files_of(hub, "owner/tuned")["README.md"].decode()).data.license == "unknown"
    assert any("weights gone.safetensors that it started from are not here" in line for line in lines())


@pytest.mark.parametrize("source", ["hf-hub:owner/start", "timm:resnet18.a1_in1k", "https", "https of a checkpoint"])
def test_what_a_file_names_is_never_fetched(hub, server, tmp_path, own_file, lines, source):
    """A stranger's file may name any address; what is on this machine already is found."""
    if source.startswith("https"):
        server.answers = dict.fromkeys(("/start.safetensors", "/start.pth"), Answer(own_file[0].read_bytes()))
        ending = "pth" if "checkpoint" in source else "safetensors"
        source = f"{server.address}/start.{ending}#sha256={own_file[1]}"
    write_run(tmp_path / "run", {**CONFIG, "model": {**CONFIG["model"], "weights": source}})
    build_repository(tmp_path / "run", "owner/tuned", tmp_path)
    assert hub.requests == server.requests == []
    (line,) = [line for line in lines() if "that it started from are not here" in line]
    assert line.endswith("what a file names is not fetched; their licence is unknown: load them once, or state it")
    assert ModelCard((tmp_path / "README.md").read_text()).data.license == "unknown"


def test_a_given_licence(hub, run):
    zoo.push(run, "owner/pets", licence="Apache-2.0")
    assert ModelCard(files_of(hub, "owner/pets")["README.md"].decode()).data.license == "apache-2.0"
    assert zoo.get_weights("hf-hub:owner/pets").meta["licence"] == "Apache-2.0"


def test_weights_that_ship(hub):
    zoo.push("rescalenet20_cifar.cifar10", "owner/cifar")
    files = files_of(hub, "owner/cifar")
    assert set(files) == {"model.safetensors", "config.json", "README.md"}
    card = ModelCard(files["README.md"].decode())
    assert (card.data.license, card.data.license_name[:12]) == ("other", "no licence i")
    x = torch.randn(1, 3, 32, 32)
    ours, theirs = (zoo.create_model("rescalenet20_cifar", name).eval() for name in ("cifar10", "hf-hub:owner/cifar"))
    assert torch.equal(ours(x), theirs(x))


def test_text_of_a_file_stays_text(tmp_path, own_net):
    """Names and metadata that would end a table, the front matter or a block of code."""
    hostile = {
        "licence": "x\n---\nlicense: mit",
        "metrics": {"a|b\n<script>": 1.0, "c": "text"},
        "config": {"note": "```\n# heading"},
        "source": "timm:../../x\n",
        "protocol": "p\n\n# heading",
    }
    path = tmp_path / "a.safetensors"
    zoo.save_weights(own_net, path, transform=TRANSFORM, classes=["a", "b", "c"], meta=hostile)
    (tmp_path / "out").mkdir()
    build_repository(str(path), "owner/pets", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.license == "other"
    assert card.data.base_model is None
    assert "<script>" not in card.text
    assert [line for line in card.text.splitlines() if line.startswith("#")] == [
        "# pets",
        "## Metrics",
        "## Where the weights come from",
        "## Recipe",
    ]
    assert card.text.count("```") == 4


def test_a_public_repository(hub, run):
    zoo.push(run, "owner/pets", private=False)
    assert hub.private["owner/pets"] is False
    with pytest.raises(zoo.ZooError, match="owner/pets is public already: push with private=False"):
        zoo.push(run, "owner/pets")
    assert len(hub.repositories["owner/pets"]) == 1


def test_a_second_push_is_a_second_commit(hub, run):
    zoo.push(run, "owner/pets")
    first = zoo.get_weights("hf-hub:owner/pets").sha256
    zoo.push(run, "owner/pets", checkpoint="best")
    assert zoo.get_weights("hf-hub:owner/pets").sha256 != first
    assert zoo.get_weights(f"hf-hub:owner/pets@{1:040x}").sha256 == first


@pytest.mark.parametrize(
    ("source", "repository", "message"),
    [
        ("none", "owner/pets", "none: neither the folder of a run nor a name of weights"),
        (".", "owner/pets", "no run with checkpoints/last.safetensors in it"),
        ("none.safetensors", "owner/pets", "no such file"),
        ("rescalenet20_cifar.cifar10", "pets", "'pets': must be OWNER/NAME"),
        ("rescalenet20_cifar.cifar10", "owner/../pets", "must be OWNER/NAME"),
    ],
)
def test_what_is_refused(hub, tmp_path, monkeypatch, source, repository, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(zoo.ZooError, match=message):
        zoo.push(source, repository)
    assert hub.requests == []


def test_no_network_and_offline(run, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(zoo.WeightsError, match=r"owner/pets: no upload \(.*\); check the network"):
        zoo.push(run, "owner/pets")
    monkeypatch.setenv("RESCALENET_OFFLINE", "1")
    with pytest.raises(zoo.ZooError, match="push: RESCALENET_OFFLINE=1 forbids it; unset it"):
        zoo.push(run, "owner/pets")


def test_a_hub_that_refuses(hub, run, monkeypatch):
    from tests.helpers.server import Answer

    monkeypatch.setattr(hub, "post", lambda path, body: Answer(b"{}", status=401))
    with pytest.raises(zoo.WeightsError, match="owner/pets: the hub answered 401: log in with `hf auth login`"):
        zoo.push(run, "owner/pets")

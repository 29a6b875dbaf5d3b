"""The target fairseq without fairseq: its files, and what is noticed. tests/interop has the real thing."""

import json

import pytest
import torch

import zoo
from tasks.translation.vocabulary import train_vocabulary
from zoo.convert.fairseq import read_dictionary
from zoo.errors import ExportError, ZooError
from zoo.export import TARGETS
from zoo.export.fairseq import export_fairseq
from zoo.export.graphs import Settings
from zoo.export.text import whole_graph
from zoo.export.writing import check_graph
from zoo.text import PAD

SMALL = {"dim": 16, "hidden": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 1}


@pytest.fixture(scope="module")
def vocabulary():
    return train_vocabulary(["one two three four five six seven eight"] * 50, 40, "bpe")


@pytest.fixture(params=["rescale", "pre_ln"])
def weights(request, tmp_path, vocabulary):
    torch.manual_seed(0)
    sizes = {"source_vocabulary": len(vocabulary), "target_vocabulary": len(vocabulary)}
    net = zoo.create_model("rescale_transformer_tiny", scheme=request.param, **SMALL, **sizes)
    transform = zoo.TextTransform.from_vocabularies(("en", "de"), vocabulary, vocabulary)
    zoo.save_weights(net, tmp_path / "w.safetensors", transform=transform, classes=())
    return zoo.get_weights(str(tmp_path / "w.safetensors"))


def test_the_folder_has_what_fairseq_reads(tmp_path, weights, vocabulary):
    result = export_fairseq(weights, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.pt", "dict.en.txt", "dict.de.txt", "en.model", "de.model", "manifest.json"}
    assert read_dictionary(tmp_path / "out/dict.de.txt")[4:] == vocabulary.pieces(range(4, len(vocabulary)))
    assert (tmp_path / "out/en.model").read_bytes() == vocabulary.model
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert [port["name"] for port in manifest["graphs"][0]["inputs"]] == ["source", "target"]
    assert manifest["weights"]["name"] == weights.name
    plugin = weights.config.scheme == "rescale"
    assert ("--user-dir" in manifest["remark"]) == ("--user-dir" in str(result)) == plugin
    args = torch.load(tmp_path / "out/model.pt", weights_only=False)["args"]
    assert (args.source_lang, args.target_lang) == ("en", "de")


def test_a_checkpoint_that_changed_is_noticed(tmp_path, weights):
    export_fairseq(weights, tmp_path / "out")
    net = zoo.create_model(weights.config.name, weights.name)
    ids = torch.tensor([[5, 6, 7, 8], [9, 8, PAD, PAD]])
    graph = whole_graph(net, [(ids[:1], ids[:1]), (ids, ids[:, :2])], "ids", weights.transform)
    check_graph(graph, TARGETS["fairseq"], tmp_path / "out", Settings())
    path = tmp_path / "out/model.pt"
    content = torch.load(path, weights_only=False)
    content["model"][next(key for key in content["model"] if "ffn.shrink.weight" in key or "fc2.weight" in key)] *= 1.5
    torch.save(content, path)
    with pytest.raises(ExportError, match="model: outputs differ by"):
        check_graph(graph, TARGETS["fairseq"], tmp_path / "out", Settings())


def test_weights_of_images_are_refused(tmp_path):
    with pytest.raises(ZooError, match="not weights of a translation net"):
        export_fairseq(zoo.get_weights("rescalenet18.flowers"), tmp_path / "out")
    assert not list(tmp_path.iterdir())

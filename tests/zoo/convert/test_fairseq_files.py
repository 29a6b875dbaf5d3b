"""Checkpoints for from_fairseq: what is recognised, and that numbers in them take no memory (needs no fairseq)."""

import collections
import io
import tracemalloc

import numpy as np
import pytest
import sentencepiece
import torch

import zoo
from zoo.convert.fairseq import read_dictionary, read_vocabulary, with_vocabularies

SIZES = {"dim": 8, "hidden": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 2, "max_length": 30}
TEXTS = {"source_vocabulary": 11, "target_vocabulary": 11}


@pytest.fixture(params=["pre_ln", "rescale"])
def checkpoint(request):
    """A net, and the content of its checkpoint: of fairseq's own transformer, and of the plug-in."""
    model = zoo.create_model("rescale_transformer_tiny", scheme=request.param, **SIZES, **TEXTS).eval()
    args, state = zoo.convert.to_fairseq(model)
    return model, {"args": None, "cfg": {"model": args}, "model": state}


def convert(content, path):
    torch.save(content, path)
    return zoo.convert.from_fairseq(path)


def test_the_same_logits(checkpoint, tmp_path):
    model, content = checkpoint
    again = convert(content, tmp_path / "a.pt")
    source, target = torch.randint(4, 11, (2, 6)), torch.randint(4, 11, (2, 5))
    assert torch.equal(again(source, target), model(source, target))


def key_of(content, end):
    return next(key for key in content["model"] if key.endswith(end))


@pytest.mark.parametrize("number", ["99999999", "5", "x", "-1"])
def test_numbers_of_layers(checkpoint, tmp_path, number):
    content = checkpoint[1]
    before = "net.encoder." if "net.encoder_embedding.weight" in content["model"] else "encoder.layers."
    content["model"][f"{before}{number}.ffn.hidden.weight"] = torch.zeros(16, 8)
    with pytest.raises(zoo.ZooError, match="its layers .* are not numbered from 0 to 1"):
        convert(content, tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"encoder_ffn_embed_dim": 10**9, "decoder_ffn_embed_dim": 10**9}, "has shape|no net"),
        ({"encoder_ffn_embed_dim": "many", "decoder_ffn_embed_dim": "many"}, "an argument is no number"),
        ({"max_source_positions": 10**10}, r"option max_length=10000000000: must be below 2\*\*31"),
        ({"encoder_attention_heads": 3, "decoder_attention_heads": 3}, "dim must be a multiple of heads"),
        ({"dropout": "x"}, "an argument is no number"),
        ({"arch": "lstm"}, "has arch 'lstm'; must be transformer or rescale_transformer"),
    ],
)
def test_arguments_that_fit_no_net(checkpoint, tmp_path, args, message):
    content = checkpoint[1]
    content["cfg"]["model"].update(args)
    tracemalloc.start()
    with pytest.raises(zoo.ZooError, match=message) as caught:
        convert(content, tmp_path / "a.pt")
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("key", ["encoder_ffn_embed_dim", "encoder_attention_heads"])
def test_missing_arguments(checkpoint, tmp_path, key):
    content = checkpoint[1]
    del content["cfg"]["model"][key]
    with pytest.raises(zoo.ZooError, match=f"have no '{key}'|differ in"):
        convert(content, tmp_path / "a.pt")


def test_missing_tensors(checkpoint, tmp_path):
    content = checkpoint[1]
    whole = dict(content["model"])
    embedding = next(key for key in whole if "encoder" in key and "embed" in key and key.endswith("weight"))
    content["model"] = {key: value for key, value in whole.items() if key != embedding}
    with pytest.raises(zoo.ZooError, match="has no matrix .*, the embedding of a Transformer"):
        convert(content, tmp_path / "a.pt")
    content["model"] = {key: value for key, value in whole.items() if not key.startswith(("net.decoder.", "decoder.l"))}
    with pytest.raises(zoo.ZooError, match="has no tensors .*, the layers of a Transformer"):
        convert(content, tmp_path / "a.pt")


def test_other_files_are_refused_with_the_remedy(checkpoint, tmp_path):
    own = checkpoint[0].state_dict()
    for content in (own, {"model": own}, {"state_dict": own}, [1], torch.ones(2), {"model": [1], "args": {}}):
        with pytest.raises(zoo.ZooError, match=r"give the \.pt file that fairseq wrote, not a state dict"):
            convert(content, tmp_path / "a.pt")
    with pytest.raises(zoo.ZooError, match="'a' in 'model' is of type int, not a tensor"):
        convert({"model": {"a": 1}, "args": {}}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(b"text")
    with pytest.raises(zoo.ZooError, match="not a checkpoint that can be read safely") as caught:
        zoo.convert.from_fairseq(tmp_path / "b.pt")
    assert len(str(caught.value).splitlines()) == 1


class Meter:
    """A class that the reader does not know."""

    def __init__(self):
        self.sum, self.values = np.float64(3), [1, 2]


def test_numbers_and_objects_beside_the_tensors(checkpoint, tmp_path):
    """The best BLEU and the counters that fairseq stores are numpy's; arguments may be, too."""
    model, content = checkpoint
    counts = collections.OrderedDict(counts=np.arange(4), flags=np.zeros((2, 2), bool), text=np.str_("x"))
    content["extra_state"] = {"best": np.float64(35.1), "metrics": [("valid", counts)], "meter": Meter()}
    content["cfg"]["model"].update(dropout=np.float32(0.25), encoder_attention_heads=np.int64(2))
    again = convert(content, tmp_path / "a.pt")
    source, target = torch.randint(4, 11, (2, 6)), torch.randint(4, 11, (2, 5))
    assert torch.equal(again(source, target), model(source, target))
    assert again.layout.drop_rate == 0.25


def test_nets_of_other_kinds_are_refused_by_name(checkpoint, tmp_path):
    content = checkpoint[1]
    content["cfg"]["model"]["arch"] = "transformer_lm_gpt"
    content["model"] = {key: value for key, value in content["model"].items() if "encoder" not in key}
    message = "has arch 'transformer_lm_gpt' and no encoder; must be a net of translation, with both"
    with pytest.raises(zoo.ZooError, match=message):
        convert(content, tmp_path / "a.pt")


def test_symbols_of_dictionaries(tmp_path):
    """Symbols at which ``str.splitlines`` would split; ends of lines of Windows, a byte order mark."""
    symbols = ["\u2028", "a\x85", "\x0b", "b", "c\rd"]
    text = "".join(f"{symbol} 1\n" for symbol in symbols)
    (tmp_path / "d.txt").write_bytes(text.encode())
    assert read_dictionary(tmp_path / "d.txt")[4:] == symbols
    (tmp_path / "d.txt").write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert read_dictionary(tmp_path / "d.txt")[4:] == symbols
    (tmp_path / "d.txt").write_bytes("café 1\n".encode("latin-1"))
    with pytest.raises(zoo.ZooError, match="d.txt: not a text file in UTF-8"):
        read_dictionary(tmp_path / "d.txt")


def test_projections_of_old_versions_are_packed(tmp_path):
    model = zoo.create_model("rescale_transformer_tiny", scheme="pre_ln", **SIZES, **TEXTS).eval()
    args, state = zoo.convert.to_fairseq(model)
    for key in [key for key in state if "q_proj" in key]:
        begin, leaf = key.split("q_proj.")
        state[f"{begin}in_proj_{leaf}"] = torch.cat([state.pop(f"{begin}{part}_proj.{leaf}") for part in "qkv"])
    torch.save({"args": None, "cfg": {"model": args}, "model": state}, tmp_path / "a.pt")
    again = zoo.convert.from_fairseq(tmp_path / "a.pt").state_dict()
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())


def test_sentencepiece_models_with_any_ids(tmp_path):
    """fairseq's recipes train with sentencepiece's own ids: the pieces of a text stay the same."""
    content = io.BytesIO()
    text = ["one two three four five", "six seven eight nine ten eleven"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=content, vocab_size=50, model_type="bpe", minloglevel=2
    )
    (tmp_path / "s.model").write_bytes(content.getvalue())
    before = sentencepiece.SentencePieceProcessor(model_proto=content.getvalue())
    found = read_vocabulary(tmp_path / "s.model")
    assert len(found) == 51  # with the padding
    for line in (*text[:2], "seventy-two \u2581 twos", "unknown \u4e00"):
        pieces = [before.id_to_piece(i) for i in before.encode(line)]
        assert found.pieces(found.encode([line])[0]) == pieces
        assert found.decode(found.encode([line])[0]) == before.decode(before.encode(line))
    (tmp_path / "s.model").write_bytes(b"no model")
    with pytest.raises(zoo.ZooError, match=r"s\.model: not a sentencepiece model"):
        read_vocabulary(tmp_path / "s.model")
    # a dictionary of other pieces, and one of some of the pieces, filled up
    some = [*("<s>", "<pad>", "</s>", "<unk>"), *found.pieces(range(20, 40)), *(f"madeupword{i:04}" for i in range(30))]
    sizes = {"source_vocabulary": len(some), "target_vocabulary": len(some)}
    model = zoo.create_model("rescale_transformer_tiny", **SIZES, **sizes)
    assert with_vocabularies(model, [some, some], [found, found])[1] == 2 * (47 - 20)
    other = [f"{symbol}@@" for symbol in some]
    with pytest.raises(
        zoo.ZooError, match="source vocabulary has 0 of the 20 symbols .*: they are not of the same net"
    ):
        with_vocabularies(model, [other, other], [found, found])

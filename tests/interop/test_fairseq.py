"""Our nets inside fairseq: it trains and generates with them, checkpoints convert (``make test-interop``)."""

import dataclasses
import itertools
import json
import os
import re
import socket
import subprocess
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fairseq import checkpoint_utils, options, tasks
from fairseq.data import Dictionary, iterators
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq.models import MODEL_REGISTRY
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer.transformer_legacy import base_architecture
from fairseq.sequence_generator import SequenceGenerator
from fairseq.trainer import Trainer
from fairseq.utils import import_user_module

import zoo
from tasks.translation.search import Beam, beam_search
from tasks.translation.vocabulary import train_vocabulary
from zoo.convert.fairseq import (
    dictionary,
    from_fairseq,
    read_checkpoint,
    read_dictionary,
    to_fairseq,
    with_vocabularies,
)
from zoo.export.fairseq import USER_DIR, export_fairseq
from zoo.text import EOS, PAD

SCHEMES = zoo.model_info("rescale_transformer_tiny").schemes
SMALL = {"dim": 32, "hidden": 64, "heads": 4, "encoder_layers": 2, "decoder_layers": 2, "drop_rate": 0.0}
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]


def net(scheme="rescale", vocabulary=40, **options):
    torch.manual_seed(0)
    sizes = {"source_vocabulary": vocabulary, "target_vocabulary": vocabulary}
    model = zoo.create_model("rescale_transformer_tiny", scheme=scheme, **{**SMALL, **sizes, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def sentences():
    """Source, padded at the end; lengths; target."""
    source, target = torch.randint(4, 40, (4, 9)), torch.randint(4, 40, (4, 7))
    target[:, 0] = EOS
    for row in range(1, 4):
        source[row, 9 - row :] = PAD
    return source, (source != PAD).sum(1), target


def symbols(count=40):
    made = Dictionary()
    for i in range(4, count):
        made.add_symbol(f"t{i}")
    return made


def native(model):
    """fairseq's own Transformer with a net's weights."""
    arguments, state = to_fairseq(model, plugin=False)
    args = Namespace(**arguments)
    base_architecture(args)
    task = Namespace(source_dictionary=symbols(), target_dictionary=symbols())
    made = TransformerModel.build_model(args, task)
    made.load_state_dict(state)
    return made.eval(), args


def left_padded(source, lengths):
    return torch.stack([row.roll(len(row) - int(n)) for row, n in zip(source, lengths, strict=True)])


@pytest.mark.parametrize("scheme", ["pre_ln", "post_ln"])
@pytest.mark.parametrize("share", ["all", "decoder", "none"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_normalized_nets_are_fairseqs_own(tmp_path, scheme, share, activation):
    model = net(scheme, share=share, activation=activation)
    theirs, args = native(model)
    source, lengths, target = sentences()
    with torch.no_grad():
        ours = model(source, target)
        for padded in (source, left_padded(source, lengths)):
            torch.testing.assert_close(theirs(padded, lengths, target)[0], ours, rtol=1e-4, atol=1e-5)
    path = tmp_path / "checkpoint.pt"
    args.arch = "transformer"
    torch.save({"args": args, "cfg": None, "model": theirs.state_dict()}, path)
    again = from_fairseq(path)
    assert again.scheme.name == scheme
    assert again.layout.share == share
    assert torch.equal(again(source, target), ours)


@pytest.mark.parametrize("scheme", ["pre_ln", "post_ln"])
@pytest.mark.parametrize("beam", [1, 4])
def test_the_same_hypotheses_as_fairseqs_generator(scheme, beam):
    model = net(scheme)
    with torch.no_grad():
        model.encoder_embedding.weight.mul_(1.5)
    theirs, _ = native(model)
    source, lengths, _ = sentences()
    generator = SequenceGenerator([theirs], symbols(), beam_size=beam, max_len_a=0, max_len_b=12)
    sample = {"net_input": {"src_tokens": left_padded(source, lengths), "src_lengths": lengths}}
    expected = generator.generate([theirs], sample)
    found = beam_search(zoo.fold(model), source, Beam(beam=beam, max_ratio=0, max_extra=12))
    for ours, wanted in zip(found, expected, strict=True):
        assert len(ours) == len(wanted) == beam
        for a, b in zip(ours, wanted, strict=True):
            assert [*a.tokens, EOS] == b["tokens"].tolist()
            assert a.score == pytest.approx(b["score"].item(), abs=1e-4)


# -- the command line -----------------------------------------------------------------------------------


def command(name, *arguments, **environment):
    """Run fairseq-NAME; its output."""
    program = Path(sys.executable).parent / f"fairseq-{name}"
    done = subprocess.run(
        [sys.executable, str(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A binarised corpus: copy words."""
    folder = tmp_path_factory.mktemp("fairseq")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 300), ("valid", 20), ("test", 20)):
        rows = [
            " ".join(
                WORDS[i]
                for i in torch.randint(8, (int(torch.randint(2, 7, (1,), generator=generator)),), generator=generator)
            )
            for _ in range(count)
        ]
        for language in ("en", "de"):
            (folder / f"{split}.{language}").write_text("".join(row + "\n" for row in rows))
    options = ["--source-lang", "en", "--target-lang", "de", "--joined-dictionary", "--destdir", folder / "bin"]
    options += [f"--{key}pref={folder / key}" for key in ("train", "valid", "test")]
    command("preprocess", *options)
    return folder


def train(data, folder, *arguments):
    sizes = ["--encoder-layers", 2, "--decoder-layers", 2, "--encoder-embed-dim", 32, "--encoder-ffn-embed-dim", 64]
    settings = ["--optimizer", "adam", "--lr", 5e-3, "--criterion", "label_smoothed_cross_entropy", "--max-tokens", 800]
    settings += ["--max-epoch", 12, "--cpu", "--no-epoch-checkpoints", "--share-all-embeddings", "--dropout", 0]
    return command(
        "train", data / "bin", *sizes, "--encoder-attention-heads", 4, *settings, "--save-dir", folder, *arguments
    )


ALL = ["--required-batch-size-multiple", 1]  # with 8, the default, this build leaves sentences out


def generate(data, path, *arguments):
    options = ["--path", path, "--beam", 4, "--cpu", "--max-len-a", 0, "--max-len-b", 8, *ALL, *arguments]
    # this build of fairseq loads checkpoints as older versions of torch did
    log = command("generate", data / "bin", *options, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1")
    return float(re.search(r"BLEU4? = ([\d.]+)", log)[1]), log


def hypotheses(log):
    """The translations in the output of fairseq-generate, by number of the sentence."""
    return {int(n): text for n, text in re.findall(r"^H-(\d+)\t\S+\t(.*)$", log, re.MULTILINE)}


@pytest.mark.parametrize(("scheme", "options"), [("rescale", {"decoder_c": 1.0}), ("pre_ln", {})])
def test_fairseq_trains_and_generates(data, tmp_path, scheme, options):
    user = ["--user-dir", USER_DIR]
    named = ["--scheme", scheme, "--scheme-options", json.dumps(options)]
    log = train(data, tmp_path, *user, "--arch", "rescale_transformer_wmt_en_de", *named)
    assert len(re.findall(r"[1-9]\d* biases initialised from data, 0 kept", log)) == (scheme == "rescale")
    losses = [float(x) for x in re.findall(r"valid \| .*?\| loss ([\d.]+)", log)]
    assert losses[-1] < losses[0]
    path = tmp_path / "checkpoint_last.pt"
    bleu, log = generate(data, path, *user)
    assert bleu > 20  # words are copied
    model = from_fairseq(path)
    assert model.scheme.name == scheme
    assert dataclasses.asdict(model.scheme).items() >= options.items()
    known = read_dictionary(data / "bin/dict.en.txt")
    ids = {symbol: number for number, symbol in enumerate(known)}
    settings, theirs = Beam(beam=4, max_ratio=0, max_extra=8), hypotheses(log)
    for number, line in enumerate((data / "test.en").read_text().splitlines()):
        source = torch.tensor([[*(ids[word] for word in line.split()), EOS]])
        found = beam_search(zoo.fold(model), source, settings)[0][0]
        assert [known[i] for i in found.tokens] == theirs[number].split()


# -- biases from the first batch, in every precision -----------------------------------------------------

HALF = ["--fp16", "--fp16-no-flatten-grads"]  # flat copies require a GPU


class Run:
    """A run of ``fairseq-train`` in this process."""

    def __init__(self, data, folder, *arguments, bf16=False):
        sizes = {"layers": 2, "embed-dim": 32, "ffn-embed-dim": 64, "attention-heads": 4}
        named = [item for key, value in sizes.items() for item in (f"--encoder-{key}", str(value))]
        settings = f"--optimizer adam --lr 1e-4 --max-tokens 400 --cpu --decoder-layers 2 --save-dir {folder}"
        settings += f" --arch rescale_transformer --user-dir {USER_DIR} --clip-norm 0.1"
        parser = options.get_training_parser()
        args = options.parse_args_and_arch(
            parser, [str(data / "bin"), *named, *settings.split(), *map(str, arguments)], modify_parser=None
        )
        cfg = convert_namespace_to_omegaconf(args)
        cfg.common.bf16 = bf16  # the argument --bf16 asks for a TPU
        torch.manual_seed(0)
        self.task = tasks.setup_task(cfg.task)
        self.trainer = Trainer(
            cfg, self.task, self.task.build_model(cfg.model), self.task.build_criterion(cfg.criterion)
        )
        _, iterator = checkpoint_utils.load_checkpoint(cfg.checkpoint, self.trainer)
        groups = iterators.GroupedIterator(iterator.next_epoch_itr(shuffle=False), cfg.optimization.update_freq[0])
        self.batches = itertools.cycle(list(groups))
        self.trainer.begin_epoch(iterator.epoch)

    def biases(self):
        layers = (m for m in self.trainer.get_model().modules() if isinstance(m, zoo.calibration.HasDataBias))
        return torch.cat([layer.data_bias.detach().float() for layer in layers])

    def update(self):
        with metrics.aggregate("train"):
            return self.trainer.train_step(next(self.batches))


def calibrated(data, folder, *arguments):
    """The biases that the first batch gives in float32."""
    run = Run(data, folder, *arguments)
    batch = run.trainer._prepare_sample(next(run.batches)[0])[0]["net_input"]
    run.trainer.get_model().train()(**batch)
    assert float(run.biases().norm()) > 5
    return run.biases()


@pytest.mark.parametrize(
    ("arguments", "bf16"),
    [
        ([], False),
        (HALF, False),
        (["--fp16-no-flatten-grads"], True),
        ([*HALF, "--update-freq", 2], False),
        (["--fp16"], False),  # with flat copies
        (["--memory-efficient-fp16"], False),
        ([*HALF, "--store-ema", "--ema-fp32"], False),
    ],
)
def test_updates_start_from_the_calibrated_biases(data, tmp_path, monkeypatch, arguments, bf16):
    """Adam moves a bias by 1e-4 in an update; the largest of these biases is 2, of which bf16 has 1/256."""
    right = calibrated(data, tmp_path / "right")
    close = {"rtol": 1 / 64, "atol": 0.01} if bf16 else {"rtol": 1 / 256, "atol": 2e-3}
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)  # the key of the flat copies on a CPU
    run = Run(data, tmp_path / "run", *arguments, bf16=bf16)
    for _ in range(3):
        assert run.update() is not None
        torch.testing.assert_close(run.biases(), right, **close)
    if "--store-ema" in arguments:
        own = run.trainer.ema.get_model().state_dict()
        one = run.trainer.get_model().net.encoder[1].ffn.shrink.data_bias.detach().float()
        torch.testing.assert_close(own["net.encoder.1.ffn.shrink.pre_bias"].float(), one, rtol=0.01, atol=2e-3)
    # a run that goes on keeps them: they are a checkpoint's
    path = tmp_path / "run" / "checkpoint_last.pt"
    path.parent.mkdir()
    run.trainer.consolidate_optimizer()
    run.trainer.save_checkpoint(str(path), {"train_iterator": {"epoch": 1, "version": 2, "iterations_in_epoch": 3}})
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    again = Run(data, tmp_path / "run", *arguments, bf16=bf16)
    assert again.trainer.get_num_updates() == 3
    torch.testing.assert_close(again.biases(), run.biases(), rtol=0, atol=0)
    assert again.update() is not None
    assert not again.trainer.get_model().fresh
    torch.testing.assert_close(again.biases(), right, **close)


def test_biases_are_kept_when_the_first_updates_overflow(data, tmp_path, monkeypatch):
    """fairseq leaves updates out until the scale of the loss fits."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)  # of the norm that it then logs
    right = calibrated(data, tmp_path / "right")
    run = Run(data, tmp_path / "run", *HALF, "--fp16-init-scale", 2**20)
    count = 0
    while run.trainer.get_num_updates() < 1:
        run.update()
        count += 1
        torch.testing.assert_close(run.biases(), right, rtol=1 / 256, atol=2e-3)
    assert count > 1


def test_two_processes_keep_the_biases_of_both_batches(data, tmp_path):
    """In float32 and in fp16; from both batches, so that they are others than those of one process."""
    one = ["--arch", "rescale_transformer", "--lr", "1e-4", "--max-tokens", "400", "--max-update", "2", "--user-dir"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = f"--distributed-init-method tcp://127.0.0.1:{port} --distributed-no-spawn --distributed-backend gloo"
    two = f"--distributed-world-size 2 {shared} --ddp-backend legacy_ddp --distributed-rank".split()
    found = {}
    for name, extra in {"one": [], "two": [], "half": HALF}.items():
        ranks = ([],) if name == "one" else ([*two, 0], [*two, 1])
        with ThreadPoolExecutor() as pool:
            runs = [pool.submit(train, data, tmp_path / name, *one, USER_DIR, *extra, *rank) for rank in ranks]
            assert "biases initialised from data, 0 kept" in runs[0].result()
        state = read_checkpoint(tmp_path / name / "checkpoint_last.pt")["model"]
        found[name] = torch.cat([value.flatten() for key, value in state.items() if key.endswith("pre_bias")])
    torch.testing.assert_close(found["half"], found["two"], rtol=1 / 256, atol=2e-3)
    assert 0.01 < float((found["one"] - found["two"]).abs().max()) < 0.5


def test_an_optimizer_with_copies_that_are_not_known_is_refused(data, tmp_path):
    run = Run(data, tmp_path)
    before = [p.detach().clone() for p in run.trainer.get_model().parameters()]
    step = run.trainer.optimizer.step

    def copies_back(*args, **kwargs):
        step(*args, **kwargs)
        for parameter, value in zip(run.trainer.get_model().parameters(), before, strict=True):
            parameter.data.copy_(value)

    run.trainer.optimizer.step = copies_back
    with pytest.raises(RuntimeError, match="overwritten the biases that the first batch gave"):
        run.update()


def test_the_plugin_has_fairseqs_logits_for_fairseqs_own_checkpoints(data, tmp_path):
    """What fairseq's own Transformer learned goes through us into the plug-in: the same BLEU."""
    decoder = ["--decoder-embed-dim", 32, "--decoder-ffn-embed-dim", 64, "--decoder-attention-heads", 4]
    train(data, tmp_path / "own", "--arch", "transformer", *decoder)
    path = tmp_path / "own" / "checkpoint_last.pt"
    bleu, _ = generate(data, path)
    model = from_fairseq(path)
    assert model.scheme.name == "post_ln"
    arguments, state = to_fairseq(model, plugin=True)
    content = {
        "args": Namespace(**arguments, source_lang="en", target_lang="de", left_pad_source=True, left_pad_target=False),
        "cfg": None,
        "model": state,
        "optimizer_history": [{"optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}],
        "extra_state": {"train_iterator": {"epoch": 1}},
        "task_state": {},
        "last_optimizer_state": None,
    }
    torch.save(content, tmp_path / "plugin.pt")
    assert generate(data, tmp_path / "plugin.pt", "--user-dir", USER_DIR)[0] == bleu


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_d": 1}, r"no option 'decoder_d' \(did you mean decoder_c"),
        ({"decoder_c": "much"}, "option decoder_c='much': Input should be a valid number"),
        ({"dim": 64}, "--scheme-options: 'dim' has an argument of fairseq"),
    ],
)
def test_scheme_options_that_are_none(options, message):
    import_user_module(Namespace(user_dir=USER_DIR))  # as fairseq imports it; under another name it registers twice
    known = symbols()
    task = SimpleNamespace(source_dictionary=known, target_dictionary=known)
    with pytest.raises(ValueError, match=message):
        MODEL_REGISTRY["rescale_transformer"].build_model(
            Namespace(scheme_options=options, share_all_embeddings=True), task
        )


@pytest.mark.parametrize(
    ("scheme", "options"), [*((s, {}) for s in SCHEMES), ("rescale", {"decoder_c": 1, "encoder_c": 9})]
)
def test_exported_weights_run_in_fairseq(data, tmp_path, scheme, options):
    vocabulary = train_vocabulary((data / "train.en").read_text().splitlines(), 40, "bpe")
    model = net(scheme, len(vocabulary), **options)
    transform = zoo.TextTransform.from_vocabularies(("en", "de"), vocabulary, vocabulary)
    zoo.save_weights(model, tmp_path / "w.safetensors", transform=transform, classes=())
    result = export_fairseq(zoo.get_weights(str(tmp_path / "w.safetensors")), tmp_path / "out")
    assert result.differences["model"].absolute < 1e-5
    plugin = "--user-dir" in str(result)
    assert plugin == (scheme not in ("pre_ln", "post_ln"))
    source, _, target = sentences()
    source, target = source % len(vocabulary), target % len(vocabulary)
    torch.testing.assert_close(from_fairseq(tmp_path / "out/model.pt")(source, target), model(source, target))
    if scheme not in ("rescale", "pre_ln"):
        return
    pieces = {}
    for split in ("train", "valid", "test"):
        texts = (data / f"{split}.en").read_text().splitlines()
        pieces[split] = [" ".join(vocabulary.pieces(ids)) for ids in vocabulary.encode(texts)]
        for language in ("en", "de"):
            (tmp_path / f"{split}.{language}").write_text("".join(f"{p}\n" for p in pieces[split]))
    options = ["--source-lang", "en", "--target-lang", "de", "--destdir", tmp_path / "bin"]
    options += [
        f"--{side}dict={tmp_path / 'out' / f'dict.{lang}.txt'}" for side, lang in (("src", "en"), ("tgt", "de"))
    ]
    options += [f"--{key}pref={tmp_path / key}" for key in ("train", "valid", "test")]
    command("preprocess", *options)
    user = ["--user-dir", USER_DIR] if plugin else []
    options = ["--path", tmp_path / "out/model.pt", "--cpu", "--beam", 3, "--max-len-a", 0, "--max-len-b", 6]
    log = command("generate", tmp_path / "bin", *options, *ALL, *user, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1")
    theirs = hypotheses(log)
    rows = vocabulary.encode((data / "test.en").read_text().splitlines())
    settings = Beam(beam=3, max_ratio=0, max_extra=6)
    ours = [beam_search(model, torch.tensor([[*ids, EOS]]), settings)[0][0].tokens for ids in rows]
    assert len(theirs) == len(ours) == 20
    for number, tokens in enumerate(ours):
        assert theirs[number].split() == vocabulary.pieces(tokens)


def test_dictionaries_become_vocabularies(tmp_path):
    vocabulary = train_vocabulary([" ".join(WORDS)] * 50, 40, "bpe")
    pieces = vocabulary.pieces(range(4, len(vocabulary)))
    known = ["<s>", "<pad>", "</s>", "<unk>", *reversed(pieces[2:]), "madeupword0000", "madeupword0001"]
    path = tmp_path / "dict.txt"
    path.write_text("".join(f"{s} 1\n" for s in known[4:]))
    assert read_dictionary(path) == known
    model = net(vocabulary=len(known))
    again, missing = with_vocabularies(model, [known, known], [vocabulary, vocabulary])
    assert missing == 4  # two on each side
    ids = {symbol: number for number, symbol in enumerate(known)}
    (own,) = vocabulary.encode(["two four one"])
    theirs = [ids.get(p, 3) for p in vocabulary.pieces(own)]
    target = [4, 9]
    before = model(torch.tensor([theirs]), torch.tensor([[EOS, ids.get(pieces[0], 3), ids.get(pieces[5], 3)]]))
    after = again(torch.tensor([own]), torch.tensor([[EOS, *target]]))
    order = [0, 1, 2, 3, *(ids.get(p, 3) for p in pieces)]
    torch.testing.assert_close(after, before[..., order])
    assert dictionary(vocabulary).splitlines() == [f"{p} 1" for p in pieces]
    with pytest.raises(zoo.ZooError, match="the source dictionary has 39 symbols, the checkpoint"):
        with_vocabularies(model, [known[:39], known], [vocabulary, vocabulary])
    path.write_text("word\n")
    with pytest.raises(zoo.ZooError, match="dict.txt, line 1: .* must be 'symbol count'"):
        read_dictionary(path)


def test_checkpoints_that_cannot_be_converted(tmp_path):
    path = tmp_path / "c.pt"
    path.write_bytes(b"nothing")
    with pytest.raises(zoo.ZooError, match="c.pt: not a checkpoint that can be read safely"):
        from_fairseq(path)
    torch.save({"model": 3}, path)
    with pytest.raises(zoo.ZooError, match="not a fairseq checkpoint"):
        from_fairseq(path)
    theirs, args = native(net("pre_ln"))
    for change, message in (
        ({"arch": "fconv"}, "has arch 'fconv'; must be transformer or rescale_transformer"),
        ({"layernorm_embedding": True}, "trained with layernorm_embedding=True"),
        ({"decoder_ffn_embed_dim": 5}, "encoder and decoder differ in ffn_embed_dim"),
        ({"decoder_normalize_before": False}, "encoder and decoder differ in normalize_before"),
    ):
        changed = Namespace(**{**vars(args), "arch": "transformer", **change})
        torch.save({"args": changed, "model": theirs.state_dict()}, path)
        with pytest.raises(zoo.ZooError, match=message):
            from_fairseq(path)
    state = theirs.state_dict()
    del state["encoder.layers.0.fc1.weight"]
    torch.save({"args": Namespace(**{**vars(args), "arch": "transformer"}), "model": state}, path)
    with pytest.raises(zoo.ZooError, match="has no tensor 'encoder.layers.0.fc1.weight'"):
        from_fairseq(path)
    with pytest.raises(zoo.ZooError, match="fairseq has no Transformer of scheme 'rescale'"):
        to_fairseq(net(), plugin=False)


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"args": Evil(), "model": {}}, tmp_path / "evil.pt")
    with pytest.raises(zoo.ZooError):
        from_fairseq(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()

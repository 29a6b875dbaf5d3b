"""A corpus of numbers in words, and training runs on it."""

import random

import torch

from tasks.engine import Trainer
from tasks.spec import check, make_task
from tasks.translation.config import CorpusSection
from tests.helpers.transformers import make

WORDS = {
    "one": "eins",
    "two": "zwei",
    "three": "drei",
    "four": "vier",
    "five": "fünf",
    "six": "sechs",
    "seven": "sieben",
    "eight": "acht",
}


def lines(path, *texts, ending="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(text + ending for text in texts).encode())
    return path


def toy(root, count=400, seed=0, reverse=False):
    """Numbers in words, English and German."""
    generator = random.Random(seed)
    for name, size in (("train", count), ("val", 24), ("test", 16)):
        sources = [[generator.choice(list(WORDS)) for _ in range(generator.randint(2, 7))] for _ in range(size)]
        lines(root / f"{name}.en", *(" ".join(s) for s in sources))
        lines(root / f"{name}.de", *(" ".join(WORDS[w] for w in (reversed(s) if reverse else s)) for s in sources))
    return root


def section(root, **changes):
    content = {
        "root": str(root),
        "source": "en",
        "target": "de",
        "train": ["train"],
        "val": "val",
        "test": {"t": "test"},
    }
    vocabulary = {"size": 60, **changes.pop("vocabulary", {})}
    return CorpusSection.model_validate({**content, "vocabulary": vocabulary, **changes})


def sharp(**options):
    """A net whose distributions are far from uniform, so that search has something to find."""
    model = make(**options).float()
    with torch.no_grad():
        model.encoder_embedding.weight.mul_(1.7)
    return model.eval()


TINY = {"dim": 32, "hidden": 64, "heads": 2, "encoder_layers": 1, "decoder_layers": 1}


def config(prepared, output, model=None, data=None, **train):
    content = {
        "task": "translation",
        "output": str(output),
        "model": {
            "name": "rescale_transformer_tiny",
            "options": {
                "dim": 32,
                "hidden": 64,
                "heads": 2,
                "encoder_layers": 1,
                "decoder_layers": 1,
                "drop_rate": 0.1,
            },
            **(model or {}),
        },
        "data": {
            "corpus": section(prepared / "text", clean={"duplicates": "keep"}).model_dump(),
            "folder": str(prepared / "corpus"),
            "eval_batch_size": 8,
            "search": {"beam": 2},
            **(data or {}),
        },
        "train": {
            "epochs": 2,
            "batch_size": 600,
            "optimizer": {"name": "adamw", "lr": 3e-3, "betas": [0.9, 0.98]},
            "schedule": {"name": "inverse_sqrt", "warmup_steps": 5},
            "log_every": 1,
            "checkpoint_minutes": 0,
            "calibration_batches": 2,
            **train,
        },
    }
    return check(content, "test")


def fit(*args, resume=False, **kwargs):
    return Trainer(make_task(config(*args, **kwargs)), resume=resume).fit()

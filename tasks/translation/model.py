"""Translation as the engine sees it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import zoo
from tasks.config import net_info
from tasks.devices import process_state
from tasks.engine import BaseTask
from tasks.errors import ConfigError, DataError
from tasks.progress import print_line
from tasks.translation.config import TranslationConfig
from tasks.translation.corpus import Corpus
from tasks.translation.data import Batch, Pairs, TokenBatches, collate, merge
from tasks.translation.evaluate import score, tokens_within, translate_ids
from tasks.translation.search import Beam
from zoo.files import write_text


class Translation(BaseTask):
    """Loss, data and metrics of a run of translation.

    Raises:
        DataError: no prepared corpus, one of other settings, or one without pairs that are short enough.
        ConfigError: a net that does not take text, or weights with another vocabulary (on ``build_model``).
    """

    metric, unit = "bleu", "tokens"

    def __init__(self, config: TranslationConfig) -> None:
        self.config = config
        self.corpus = Corpus(Path(config.data.folder))
        self.corpus.expect(config.data.corpus)
        self.main = process_state().is_main_process
        self.source, self.target = self.corpus.sentences("train")
        lengths = np.stack([self.source.lengths, self.target.lengths]) + 1
        self.chosen = np.flatnonzero(lengths.max(0) <= config.data.max_length)
        self.lengths = lengths[:, self.chosen]
        left = lengths.shape[1] - len(self.chosen)
        if left and self.main:
            print_line(
                f"{left} of {lengths.shape[1]} training pairs have more than {config.data.max_length} tokens: left out"
            )
        if not len(self.chosen):
            raise DataError(f"data.max_length={config.data.max_length}: no training pair is as short")

    def build_model(self) -> nn.Module:
        section, transform = self.config.model, self.corpus.transform
        net_info(section.name, "text")
        if section.weights is not None:
            entry = zoo.get_weights(section.weights, model=section.name)
            if entry.transform != transform:
                raise ConfigError(
                    f"model.weights={section.weights}: languages or vocabularies are not those of the corpus in "
                    f"{self.corpus.folder}; prepare one with data.corpus.vocabulary.weights={section.weights}"
                )
        sizes = [len(v) for v in self.corpus.vocabularies]
        options = {**section.options, "source_vocabulary": sizes[0], "target_vocabulary": sizes[1]}
        model = zoo.create_model(section.name, section.weights, scheme=section.scheme, **options)
        assert isinstance(model, zoo.Transformer)
        if model.layout.max_length < self.config.data.max_length:
            raise ConfigError(f"data.max_length={self.config.data.max_length}: the net takes {model.layout.max_length}")
        return model

    def train_set(self) -> Pairs:
        return Pairs(self.source, self.target, self.chosen)

    def batches(self, batch_size: int, seed: int) -> TokenBatches:
        ranks = process_state().num_processes
        source, target = self.lengths
        return TokenBatches(source, target, batch_size // ranks, seed, ranks)

    def collate(self, samples: list[Any]) -> Batch:
        return collate(samples)

    def merge(self, batches: list[Batch]) -> list[Batch]:
        return [merge(batches)]

    def calibration_forward(self, model: nn.Module, batch: Batch, dtype: torch.dtype) -> None:
        assert isinstance(model, zoo.Transformer)
        model.decode(batch.target, model.encode(batch.source))  # no layer with a bias from data makes the logits

    def weight(self, batch: Batch) -> int:
        return batch.tokens

    def losses(self, model: nn.Module, batch: Batch, dtype: torch.dtype) -> dict[str, Tensor]:
        loss, _ = model(batch.source, batch.target, batch.labels, self.config.label_smoothing)
        return {"loss": loss / batch.tokens}

    def evaluate(self, model: nn.Module, accelerator: Accelerator, dtype: torch.dtype) -> dict[str, float]:
        """BLEU and chrF of ``val``, its loss a token without label smoothing, and perplexity."""
        assert isinstance(model, zoo.Transformer)
        data, net = self.config.data, zoo.fold(model)
        source, target = self.corpus.sentences("val")
        limit = net.layout.max_length - 1
        rank, ranks = accelerator.process_index, accelerator.num_processes
        sources, cut = tokens_within(limit, [source[i].tolist() for i in range(len(source))])
        targets, _ = tokens_within(limit, [target[i].tolist() for i in range(len(target))])
        if cut and self.main:
            print_line(f"evaluation: {cut} sources have more than {limit} tokens: cut there")
        likelihood, count = torch.zeros((), dtype=torch.float64, device=accelerator.device), 0
        own = sorted(range(rank, len(source), ranks), key=lambda i: len(targets[i]))
        size = max(1, data.eval_batch_size // ranks)
        with torch.no_grad(), accelerator.autocast():
            for start in range(0, len(own), size):
                rows = own[start : start + size]
                *batch, tokens = collate([(sources[i], targets[i]) for i in rows])
                likelihood += net(*(tensor.to(accelerator.device) for tensor in batch))[1].double()
                count += tokens
            hypotheses = translate_ids(net, sources, Beam(**data.search.model_dump()), data.eval_batch_size)
        texts = [self.corpus.vocabularies[1].decode(h[0].tokens) for h in hypotheses]
        sums = torch.stack([likelihood, likelihood.new_tensor(count)])
        summed, tokens = accelerator.reduce(sums, "sum").tolist()
        bleu, chrf = score(texts, [pair.target for pair in self.corpus.text("val")])[:2]
        if self.main:
            folder = Path(self.config.output) / "evaluation"
            write_text("".join(f"{text}\n" for text in texts), folder / "hypotheses.txt")
        loss = summed / tokens
        return {
            "bleu": bleu.value,
            "chrf": chrf.value,
            "val_loss": loss,
            "perplexity": math.exp(min(loss, 700)),
        }

    def save_weights(self, model: nn.Module, path: Path, meta: dict[str, Any]) -> None:
        assert isinstance(model, zoo.Transformer)
        zoo.save_weights(model, path, transform=self.corpus.transform, classes=(), meta=meta)

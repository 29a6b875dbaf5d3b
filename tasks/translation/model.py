"""The task of translation for the training engine."""

from __future__ import annotations

import dataclasses
import hashlib
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
from tasks.engine import BaseTask, Fingerprint, SetPrint
from tasks.errors import ConfigError, DataError, UserError
from tasks.progress import print_line
from tasks.shards import chunks, own_batch_size, own_part
from tasks.splits import describe_sets
from tasks.translation.config import TranslationConfig
from tasks.translation.corpus import Corpus, with_defaults
from tasks.translation.data import Batch, Pairs, TokenBatches, collate, merge
from tasks.translation.evaluate import translate_texts
from tasks.translation.languages import joint
from tasks.translation.pieces import Splitter
from tasks.translation.scores import Scoring, score
from tasks.translation.search import Beam
from zoo.calibration import sum_dtype
from zoo.files import write_text


class Translation(BaseTask):
    """Loss, data and metrics of a run of translation.

    Raises:
        DataError: a missing corpus, a corpus with other settings, or one in which all pairs are too long.
        ConfigError: a net that does not take text, or weights with another vocabulary (in ``build_model``).
    """

    unit = "tokens"
    per_rank = True  # a batch of pairs of one length each

    def __init__(self, config: TranslationConfig) -> None:
        section = with_defaults(config)
        self.config = config.model_copy(update={"data": config.data.model_copy(update={"corpus": section})})
        self.target_language = section.languages[1]
        try:
            self.scoring = Scoring.of(self.target_language, config.data.tokenize)
        except UserError as error:
            raise ConfigError(f"data.tokenize: {error}") from None
        # 1. Open the corpus.
        self.corpus = Corpus(Path(config.data.folder))
        self.corpus.expect(section)
        self.main = process_state().is_main_process
        self.source, self.target = self.corpus.sentences("train")
        # 2. Choose the training pairs by length.
        limit = config.data.max_length
        lengths = np.stack([self.source.lengths, self.target.lengths]) + 1  # (2, pairs) with </s>
        self.chosen = np.flatnonzero(lengths.max(0) <= limit)  # numbers of the pairs
        self.lengths = lengths[:, self.chosen]  # (2, chosen)
        # What weights state of their training: 999 of 1000 sentences are not longer.
        self.longest = int(np.quantile(self.lengths[0], 0.999, method="higher")) - 1 if len(self.chosen) else 1
        self.longest = max(1, self.longest)
        total = lengths.shape[1]
        if not len(self.chosen):
            raise DataError(f"every training pair has more than {limit} tokens; raise data.max_length")
        if len(self.chosen) < total and self.main:
            print_line(f"{total - len(self.chosen)} of {total} training pairs have more than {limit} tokens: left out")

    def build_model(self) -> nn.Module:
        section, transform = self.config.model, self.corpus.transform
        # 1. Check that the net takes text and the weights have the vocabularies of the corpus.
        net_info(section.name, "text")
        if section.weights is not None:
            entry = zoo.get_weights(section.weights, model=section.name)
            if not (isinstance(entry.transform, zoo.TextTransform) and entry.transform.same_text(transform)):
                raise ConfigError(
                    f"model.weights={section.weights}: languages or vocabularies are not those of the corpus in "
                    f"{self.corpus.folder}; prepare one with data.corpus.vocabulary.weights={section.weights}"
                )
        # 2. Build the net and check its largest length.
        sizes = [len(v) for v in self.corpus.vocabularies]
        options = {**section.options, "source_vocabulary": sizes[0], "target_vocabulary": sizes[1]}
        model = zoo.create_model(section.name, section.weights, scheme=section.scheme, **options)
        assert isinstance(model, zoo.Transformer)
        if model.layout.max_length < self.config.data.max_length:
            raise ConfigError(
                f"data.max_length={self.config.data.max_length}: must be <= {model.layout.max_length}, "
                "the largest length of the net; lower it or raise model.options.max_length"
            )
        model.freeze(section.freeze)
        return model

    def fingerprint(self) -> Fingerprint:
        train = SetPrint.of(zip(self.chosen.tolist(), *self.lengths.tolist(), strict=True))
        vocabularies = tuple(hashlib.sha256(v.model).hexdigest() for v in self.corpus.vocabularies)
        return Fingerprint(vocabularies, train, SetPrint.of(self.corpus.text("val")), "pairs")

    def describe_data(self, data: Fingerprint) -> list[str]:
        return describe_sets(data.train.samples, data.val.samples, data.unit)  # its classes are the vocabularies

    def train_set(self) -> Pairs:
        return Pairs(self.source, self.target, self.chosen)

    def batches(self, batch_size: int, seed: int) -> TokenBatches:
        source, target = self.lengths
        return TokenBatches(source, target, batch_size, seed)

    def collate(self, samples: list[Any]) -> Batch:
        return collate(samples)

    def merge(self, batches: list[Batch]) -> list[Batch]:
        return [merge(batches)]

    def calibration_forward(self, model: nn.Module, batch: Batch, dtype: torch.dtype) -> None:
        assert isinstance(model, zoo.Transformer)
        # Without the logits: no layer behind the decoder has a bias that is initialised from data.
        model.decode(batch.target, model.encode(batch.source, padded=batch.padded))

    def weight(self, batch: Batch) -> int:
        return batch.tokens

    def losses(self, model: nn.Module, batch: Batch, dtype: torch.dtype) -> dict[str, Tensor]:
        loss, _ = model(
            batch.source,
            batch.target,
            batch.labels,
            self.config.label_smoothing,
            places=batch.places,
            padded=batch.padded,
        )
        return {"loss": loss / max(batch.tokens, 1)}

    def evaluate(self, model: nn.Module, accelerator: Accelerator, dtype: torch.dtype) -> dict[str, float]:
        """Return BLEU, chrF, the loss of a token without label smoothing, and perplexity of the evaluation set."""
        assert isinstance(model, zoo.Transformer)
        data, net = self.config.data, zoo.fold(model)
        # 1. Compute the loss of the sentences, cut to the limit of the net.
        most = net.layout.max_length - 1
        source, target = ([side[i].tolist()[:most] for i in range(len(side))] for side in self.corpus.sentences("val"))
        pairs, coder = self.corpus.text("val"), self.corpus.transform.build()
        splitter = Splitter(coder, self.longest, min(data.max_length - 1, most), joint(self.target_language))
        with torch.no_grad(), accelerator.autocast():
            loss = self._val_loss(net, source, target, accelerator)
            # 2. Translate.
            beam = Beam(**data.search.model_dump())
            texts = translate_texts(net, splitter, [pair.source for pair in pairs], beam, data.eval_batch_size)
        # 3. Score the translations.
        bleu, chrf = score(texts, [pair.target for pair in pairs], self.scoring)
        if self.main:
            folder = Path(self.config.output) / "evaluation"
            write_text("".join(f"{text}\n" for text in texts), folder / "hypotheses.txt")
        # math.exp raises an error above 709.
        return {"bleu": bleu.value, "chrf": chrf.value, "val_loss": loss, "perplexity": math.exp(min(loss, 700))}

    def _val_loss(
        self, net: zoo.Transformer, sources: list[list[int]], targets: list[list[int]], accelerator: Accelerator
    ) -> float:
        """Return the mean loss of a token without label smoothing, over all ranks.

        Args:
            net: net in eval mode.
            sources: token ids of the source sentences.
            targets: token ids of the target sentences.
            accelerator: processes of the run.
        """
        device = accelerator.device
        total, count = torch.zeros((), dtype=sum_dtype(device), device=device), 0
        own = sorted(own_part(len(sources), accelerator), key=lambda i: len(targets[i]))
        for rows in chunks(own, own_batch_size(self.config.data.eval_batch_size, accelerator)):
            batch = collate([(sources[i], targets[i]) for i in rows])
            tensors = [tensor.to(device) for tensor in batch[:3]]
            found = net(*tensors, places=batch.places.to(device), padded=batch.padded)
            total += found[1].to(total.dtype)
            count += batch.tokens
        summed, tokens = accelerator.reduce(torch.stack([total, total.new_tensor(count)]), "sum").tolist()
        return summed / tokens

    def save_weights(self, model: nn.Module, path: Path, meta: dict[str, Any]) -> None:
        assert isinstance(model, zoo.Transformer)
        transform = dataclasses.replace(self.corpus.transform, longest=self.longest)
        zoo.save_weights(model, path, transform=transform, classes=(), meta=meta)

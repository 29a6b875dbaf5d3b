"""Translation with the exported encoder and decoder: python translate.py < sentences

Requires numpy, sentencepiece, and onnxruntime or openvino. Each line is one sentence. An export contains this file and
`cleaning.py`; these copies do not import the package rescalenet-zoo.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from zoo.cleaning import clean

PAD, EOS = 1, 2
Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


def load_onnx(folder: Path, name: str) -> Run:
    """Return a function from inputs by name to outputs by name, run by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))


def load_openvino(folder: Path, name: str) -> Run:
    """Return a function from inputs by name to outputs by name, run by OpenVINO in float32."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(folder / f"{name}.xml", "CPU", settings)

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = compiled(dict(inputs))
        return {output.any_name: results[output] for output in compiled.outputs}

    return run


LOADERS = {"onnx": load_onnx, "openvino": load_openvino}


class Translator:
    """Beam search with the graphs of an export, one sentence at a time.

    Args:
        folder: folder of the export.
        beam: number of hypotheses; 1 is greedy search.
        length_penalty: exponent of the length by which log probabilities are divided.
        max_ratio, max_extra: a translation has at most max_ratio * source tokens + max_extra tokens.
        min_length: smallest number of tokens of a translation.
    """

    def __init__(
        self,
        folder: Path,
        *,
        beam: int = 4,
        length_penalty: float = 1.0,
        max_ratio: float = 1.5,
        max_extra: int = 20,
        min_length: int = 1,
    ) -> None:
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        load = LOADERS[self.manifest["target"]]
        self.encoder, self.decoder = load(folder, "encoder"), load(folder, "decoder")
        files = self.manifest["vocabularies"]
        self.source, self.target = (
            sentencepiece.SentencePieceProcessor(model_file=str(folder / files[side])) for side in ("source", "target")
        )
        self.beam, self.length_penalty, self.min_length = beam, length_penalty, min_length
        self.max_ratio, self.max_extra = max_ratio, max_extra
        inputs = {port["name"]: port["axes"] for port in self.manifest["graphs"][1]["inputs"]}
        self.cache_shapes = {name: axes[2:] for name, axes in inputs.items() if name.startswith("past_")}

    def __call__(self, sentence: str) -> str:
        """Return the best translation of a sentence."""
        ids = self.source.encode(clean(sentence))
        if not ids:
            return ""
        tokens, _ = self.search([*ids, EOS])[0]
        return str(self.target.decode(tokens))

    def search(self, ids: Sequence[int]) -> list[tuple[list[int], float]]:
        """Return the hypotheses of a sentence with their scores, best first.

        Args:
            ids: tokens of the source, with </s> at the end.

        Raises:
            ValueError: the sentence has more tokens than the net takes.
        """
        longest = self.manifest["max_length"]
        if len(ids) > longest:
            raise ValueError(f"a sentence of {len(ids)} tokens: must be <= {longest}; cut it into parts")
        limit = max(min(int(len(ids) * self.max_ratio + self.max_extra), longest - 1), self.min_length)
        source = np.array([ids], np.int64)
        memory = self.encoder({"source": source})
        cache = {name: np.zeros((1, 0, *shape), np.float32) for name, shape in self.cache_shapes.items()}
        finished: list[tuple[list[int], float]] = []
        words: list[list[int]] = [[]]  # tokens of each row
        last, scores = np.array([[EOS]], np.int64), np.zeros(1, np.float32)
        for length in range(limit + 1):
            # 1. the logits of the next token, without tokens that may not follow
            rows = len(words)
            inputs = {"source": source, **memory, "token": last, **cache}
            inputs = {key: np.repeat(x, rows, 0) if len(x) < rows else x for key, x in inputs.items()}
            outputs = self.decoder(inputs)
            logits = outputs.pop("logits").copy()
            cache = {name.replace("present", "past"): value for name, value in outputs.items()}
            total = _logsumexp(logits)
            logits[:, PAD] = -np.inf
            if length < self.min_length:
                logits[:, EOS] = -np.inf
            if length == limit:
                ends = logits[:, EOS].copy()
                logits[:] = -np.inf
                logits[:, EOS] = ends
            # 2. the best candidates of each row, then of the sentence
            count = min(2 * self.beam, logits.shape[1])
            tokens = np.argsort(-logits, 1, kind="stable")[:, :count]
            values = (np.take_along_axis(logits, tokens, 1) - total[:, None] + scores[:, None]).ravel()
            best = np.argsort(-values, kind="stable")[: 2 * self.beam]
            candidates = [(int(i) // count, int(tokens.ravel()[i]), values[i]) for i in best]
            # 3. those among the first ``beam`` that end, and the best others, which go on
            for row, word, value in candidates[: self.beam]:
                if word == EOS and np.isfinite(value) and len(finished) < self.beam:
                    finished.append((words[row], float(value / np.float32((length + 1) ** self.length_penalty))))
            if length == limit or len(finished) == self.beam:
                break
            going = [candidate for candidate in candidates if candidate[1] != EOS][: self.beam]
            parents = [row for row, _, _ in going]
            words = [[*words[row], word] for row, word, _ in going]
            last = np.array([[word] for _, word, _ in going], np.int64)
            scores = np.array([value for _, _, value in going], np.float32)
            cache = {name: value[parents] for name, value in cache.items()}
        return sorted(finished, key=lambda hypothesis: -hypothesis[1])


def _logsumexp(x: np.ndarray) -> np.ndarray:
    largest = x.max(1, keepdims=True)
    total: np.ndarray = np.log(np.exp(x - largest).sum(1)) + largest[:, 0]
    return total


def main() -> None:
    """Translate the lines of standard input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beam", type=int, default=4)
    arguments = parser.parse_args()
    translate = Translator(Path(__file__).parent, beam=arguments.beam)
    for line in sys.stdin:
        print(translate(line), flush=True)


if __name__ == "__main__":
    main()

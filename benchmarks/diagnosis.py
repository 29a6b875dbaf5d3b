"""What a record of ``train.diagnose`` costs: steps with and without one, in turn, of any recipe.

    python -m benchmarks.diagnosis classification/cifar10/rescalenet20 data.root=/data/cifar10 --pairs 30

Prints the time of a step with a record over that of one without, as median and quartiles over the pairs, and the share
of the training time that follows for a record every 100 steps. A record includes its writing into the recipe's sinks;
loading the data is part of neither step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from tasks.config import DiagnoseSection
from tasks.devices import synchronize
from tasks.engine import Trainer
from tasks.spec import make_task, resolve

EVERY = 100  # steps between records in the share that is printed


def measure(name: str, overrides: list[str], pairs: int) -> dict[str, float]:
    """Return the ratio of the times, as median and quartiles, and the share of the training time in per cent."""
    config = resolve(name, overrides)
    with tempfile.TemporaryDirectory() as folder:
        train = config.train.model_copy(update={"diagnose": DiagnoseSection(every=2, share=1.0)})
        trainer = Trainer(make_task(config.model_copy(update={"output": f"{folder}/run", "train": train})))
        trainer.model.train()
        seconds: list[float] = []
        while len(seconds) < 2 * pairs + 2:
            trainer.batches.seek(len(seconds), 0)
            for batch in trainer.loader:
                forwards = [batch]
                begun = time.perf_counter()
                trainer._step(forwards)
                synchronize(trainer.accelerator.device)
                seconds.append(time.perf_counter() - begun)
                trainer.at.step += 1
                if len(seconds) == 2 * pairs + 2:
                    break
        trainer.close()
    with_record, without = seconds[2::2], seconds[3::2]  # the first two warm up
    ratios = [a / b for a, b in zip(with_record, without, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return {
        "ratio": median,
        "lower_quartile": low,
        "upper_quartile": high,
        "share": 100 * (median - 1) / (EVERY + median - 1),
        "pairs": pairs,
    }


def main() -> None:
    """Measure one recipe and print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = measure(given.recipe, given.overrides, given.pairs)
    print(
        f"{given.recipe}: a step with a record takes {found['ratio']:.2f} times as long "
        f"({found['lower_quartile']:.2f} to {found['upper_quartile']:.2f}, {given.pairs} pairs); one every {EVERY} "
        f"steps is {found['share']:.2f} % of the training time"
    )
    if given.json is not None:
        given.json.write_text(json.dumps({"recipe": given.recipe, "overrides": given.overrides, **found}, indent=1))


if __name__ == "__main__":
    main()

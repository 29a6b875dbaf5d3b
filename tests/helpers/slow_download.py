"""``rescalenet`` with a data set that takes 15 seconds to download, once: ``python -m tests.helpers.slow_download``."""

import time
from pathlib import Path

import numpy as np
from torchvision import datasets

from tasks import cli


class CIFAR10:
    """Eight pictures of noise, in the place of torchvision's data set."""

    classes = ("dark", "light")
    targets = (0, 1) * 4
    data = np.random.RandomState(0).randint(0, 256, (8, 32, 32, 3)).astype(np.uint8)

    def __init__(self, root: str, train: bool, download: bool) -> None:
        downloaded = Path(root) / "downloaded"
        if not downloaded.exists():
            time.sleep(15)
            downloaded.touch()

    def __len__(self) -> int:
        return len(self.targets)


if __name__ == "__main__":
    datasets.CIFAR10 = CIFAR10
    cli.main()

"""Random pictures on disk."""

import numpy as np
from PIL import Image


def picture(path, size=(20, 16), mode="RGB", seed=0, **save):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **save)
    return pixels

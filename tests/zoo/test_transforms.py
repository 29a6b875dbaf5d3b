"""What ``weights.transforms()`` builds."""

import pytest
import torch

from tests.helpers.weights import TRANSFORM
from zoo import registry


def test_transforms_equal_torchvisions_on_photos():
    """Resize, crop and standardise as torchvision's own classification preset does."""
    import numpy as np
    from PIL import Image
    from torchvision.transforms._presets import ImageClassification

    image = Image.fromarray(np.random.RandomState(0).randint(0, 255, (50, 70, 3), np.uint8))
    ours = TRANSFORM.build()(image)
    theirs = ImageClassification(crop_size=32, resize_size=36, mean=TRANSFORM.mean, std=TRANSFORM.std)(
        torch.from_numpy(np.array(image)).permute(2, 0, 1)
    )
    # torch resizes the two memory layouts by different code, which may round one grey level apart
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1.01 / 255 / min(TRANSFORM.std))
    assert TRANSFORM.build()(image.convert("L")).shape == (3, 32, 32)
    bgr = registry.dataclasses.replace(
        TRANSFORM, mean=TRANSFORM.mean[::-1], std=TRANSFORM.std[::-1], channel_order="BGR"
    )
    assert torch.equal(bgr.build()(image), TRANSFORM.build()(image).flip(0))
    with pytest.raises(ValueError, match="channel_order='GBR'"):
        registry.dataclasses.replace(TRANSFORM, channel_order="GBR")

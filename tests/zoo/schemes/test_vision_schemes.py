"""Schemes of nets for images and clips."""

import torch

import zoo
from tests.helpers.nets import narrow, samples


def test_frozen_batch_norm_of_clips(tmp_path):
    """frozen_bn of bn weights gives the bn net's outputs in eval mode, and no statistic or affine trains."""
    model = narrow("r3d", scheme="bn")
    model.train()(samples("r3d", 4, 32))
    path = tmp_path / "w.safetensors"
    transform = zoo.VideoTransform(5, None, None, 32, 36, (0.5,) * 3, (0.5,) * 3)
    zoo.save_weights(model.eval(), path, transform=transform, classes=list("abcde"))
    frozen = zoo.create_model("rescale_r3d_18", str(path), scheme="frozen_bn").train()
    x = samples("r3d", 2, 32)
    torch.testing.assert_close(frozen(x), model(x), rtol=1e-4, atol=1e-5)
    assert not [n for n, _ in frozen.named_parameters() if "norm" in n]
    assert zoo.get_weights(str(path)).transform == transform

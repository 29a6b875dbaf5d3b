"""Narrow Transformers, and padded sentences for them."""

import torch

import zoo
from zoo.text import EOS, PAD

SCHEMES = zoo.model_info("rescale_transformer_tiny").schemes
SMALL = {"dim": 32, "hidden": 64, "heads": 4, "encoder_layers": 2, "decoder_layers": 3, "drop_rate": 0.0}
VOCABULARY = 40


def make(scheme="rescale", seed=0, calibrated=True, **options):
    """A narrow net in double precision; a rescale net calibrated, with all its parameters away from special values."""
    torch.manual_seed(seed)
    sizes = {"source_vocabulary": VOCABULARY, "target_vocabulary": VOCABULARY}
    model = zoo.create_model("rescale_transformer_tiny", scheme=scheme, **{**SMALL, **sizes, **options}).double()
    if calibrated:
        if scheme == "rescale":
            zoo.calibrate(model, [batch()], forward=lambda net, pair: net(*pair))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim < 2:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def batch(count=5, source=9, target=8, seed=1):
    """Padded sentences."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randint(4, VOCABULARY, (count, source), generator=generator)
    right = torch.randint(4, VOCABULARY, (count, target), generator=generator)
    right[:, 0] = EOS
    for row in range(1, count):
        left[row, source - row :] = PAD
        right[row, target - row :] = PAD
    return left, right

"""An input transform for weights files."""

import zoo
from zoo.fingerprint import COUNT

TRANSFORM = zoo.InputTransform(32, 36, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))

# Relative to the largest of the eight numbers, which have nine digits. A net of version 0.1.0 in float32 differs by
# up to 9e-7 from machine to machine; fingerprints are taken in float64.
TOLERANCE = 1e-6


def far(found, expected):
    """The largest difference over the largest expected number."""
    assert len(found) == len(expected) == COUNT
    return max(abs(a - b) for a, b in zip(found, expected, strict=True)) / max(map(abs, expected))

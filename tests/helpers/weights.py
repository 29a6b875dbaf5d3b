"""An input transform for weights files."""

import zoo

TRANSFORM = zoo.InputTransform(32, 36, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))

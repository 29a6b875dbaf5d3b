"""The average before a product: not saved by forward, computed again by backward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pooled(x: Tensor, pool: tuple[int, ...]) -> Tensor:
    """Average x (N, C, *positions) over windows of size ``pool``; return x itself if ``pool`` is ().

    Sizes are rounded up: a window that ends outside of x averages the positions inside.
    """
    if not pool:
        return x
    if len(pool) == 2:
        return F.avg_pool2d(x, pool, pool, ceil_mode=True, count_include_pad=False)
    pool = clipped_window(pool, x)
    return F.avg_pool3d(_supported(x), pool, pool, ceil_mode=True, count_include_pad=False).to(x.dtype)


def pooled_backward(grad: Tensor, x: Tensor, pool: tuple[int, ...]) -> Tensor:
    """Return the gradient of x, given the gradient of ``pooled(x, pool)``."""
    if len(pool) == 2:
        return torch.ops.aten.avg_pool2d_backward(grad, x, pool, pool, [0, 0], True, False, None)
    pool = clipped_window(pool, x)
    backward = torch.ops.aten.avg_pool3d_backward
    return backward(_supported(grad), _supported(x), pool, pool, [0, 0, 0], True, False, None).to(grad.dtype)


def clipped_window(window: tuple[int, ...], x: Tensor) -> tuple[int, ...]:
    """Return the window, at most as large as x (N, C, *positions): torch's 3D pools refuse larger ones."""
    return tuple(min(extent, size) for extent, size in zip(window, x.shape[2:], strict=True))


def _supported(x: Tensor) -> Tensor:
    """Convert x to float32 if torch has no avg_pool3d for its dtype: half precision on the CPU."""
    return x.float() if x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16) else x

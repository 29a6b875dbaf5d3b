"""Products with the bias before them, y = scale * (W (x + b) + bias), at nearly the cost of the bare product.

This is the layer of RescaleNet (docs/method.md, M7). Written with ordinary operations, x + b costs one pass over the
activations in forward, one in backward and a saved copy, and the scale costs a saved copy of W. Here backward saves
only the parameters and x itself, which the ReLU before the product has saved already. M9 gives two exact ways:

- *fold*: W x + W b, for products without padding. It makes no pass over x, but several over tensors of W's size.
- *shift*: W pad(x + b), for products with padding, where W b would be wrong at the borders, and for products of small
  maps with large weights. It makes two passes over x whose results are not saved, and sums x's gradient.

``convolution`` chooses between the two; ``linear`` always folds. docs/performance.md has the measurements.
"""

from zoo.products.common import Scale, autocast_dtype, of_filters, per_channel, per_filter, product_bias
from zoo.products.convolution import Geometry, biased_product
from zoo.products.linear import Sections, biased_linear, folded_bias
from zoo.products.pooling import clipped_window, pooled

__all__ = [
    "Geometry",
    "Scale",
    "Sections",
    "autocast_dtype",
    "biased_linear",
    "biased_product",
    "clipped_window",
    "folded_bias",
    "of_filters",
    "per_channel",
    "per_filter",
    "pooled",
    "product_bias",
]

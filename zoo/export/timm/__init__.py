"""The zoo's nets for images among timm's models, done by importing this package. Requires the extra ``timm``.

    import timm
    import zoo.export.timm

    timm.create_model("rescalenet50", pretrained=True, features_only=True)

timm loads no plugins by itself, so a script that does not know this package runs as
``python -m zoo.export.timm SCRIPT ARGUMENTS``. docs/timm.md describes names, tags and arguments.
"""

from zoo.export.timm.rescalenet import FeatureNet, register
from zoo.export.timm.tags import DEFAULTS, TAGS, Tag

__all__ = ["DEFAULTS", "TAGS", "FeatureNet", "Tag", "register"]

"""Conversion of checkpoints of other projects into nets of this one, and of its nets into others."""

from zoo.convert.batchnorm import Conversion, convert_batchnorm, from_batchnorm
from zoo.convert.centering import center_inputs_
from zoo.convert.detectron2 import from_detectron2
from zoo.convert.fairseq import from_fairseq, to_fairseq
from zoo.convert.inflate import inflate
from zoo.convert.reference import from_reference
from zoo.convert.rescaled import Form, rescaled

__all__ = [
    "Conversion",
    "Form",
    "center_inputs_",
    "convert_batchnorm",
    "from_batchnorm",
    "from_detectron2",
    "from_fairseq",
    "from_reference",
    "inflate",
    "rescaled",
    "to_fairseq",
]

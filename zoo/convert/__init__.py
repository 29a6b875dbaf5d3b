"""Conversion of checkpoints of other projects into nets of this one, and of its nets into others."""

from zoo.convert.fairseq import from_fairseq, to_fairseq
from zoo.convert.inflate import inflate
from zoo.convert.reference import from_reference

__all__ = ["from_fairseq", "from_reference", "inflate", "to_fairseq"]

"""Checkpoints of other projects, and nets of this one, become other models of this one."""

from zoo.convert.fairseq import from_fairseq, to_fairseq
from zoo.convert.inflate import inflate
from zoo.convert.reference import from_reference

__all__ = ["from_fairseq", "from_reference", "inflate", "to_fairseq"]

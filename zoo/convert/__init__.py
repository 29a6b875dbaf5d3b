"""Checkpoints of other projects, and nets of this one, become other models of this one."""

from zoo.convert.inflate import inflate
from zoo.convert.reference import from_reference

__all__ = ["from_reference", "inflate"]

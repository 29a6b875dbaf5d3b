"""Checkpoints of other projects become models of this one."""

from zoo.convert.reference import from_reference

__all__ = ["from_reference"]

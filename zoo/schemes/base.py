"""The base of all schemes, the place of a branch in its net, and the registration of schemes by name.

A scheme decides how a net does without normalization, or which one it has. It makes the layers with their init, the
norms and the joins of trunk and branch, so that the nets are written once. A new scheme is a frozen dataclass that
derives from ``VisionScheme`` or ``TextScheme`` and is given to ``register_scheme``; its fields are its options.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from zoo.arguments import shown
from zoo.errors import ZooError
from zoo.joins import Join, PlainJoin

Growth = Literal["stays", "grows", "doubles"]  # of E[x^2] along the trunk at init, see ``Scheme.trunk_growth``


@dataclass(frozen=True)
class Place:
    """A residual branch's place in its net.

    Attributes:
        index: number of the branch in its stack, from 1.
        total: number of branches in the stack.
        layers: linear layers that the branch's values pass.
        stack: ``encoder`` or ``decoder`` of a Transformer; ``body`` of a vision net, which is one stack.
        encoders, decoders: layers of a Transformer's stacks; 0 for vision nets.
        added: branches that were added to the trunk since its last projection shortcut, that of the projection's own
            block included; 0 for Transformers.
    """

    index: int
    total: int
    layers: int
    stack: str = "body"
    encoders: int = 0
    decoders: int = 0
    added: int = 0


@dataclass(frozen=True)
class Scheme:
    """Base of all schemes.

    Attributes:
        name: value of ``scheme=`` that chooses it.
        needs_weights: whether a net of it starts from weights only.
        normalized: whether its nets contain normalization layers, so that feature maps have power near 1 at init.
        residual_options: options that only nets with residual branches have.
        residual_only: whether only nets with residual branches have it, because it differs from another scheme there
            alone.
        trunk_growth: course of E[x^2] along the trunk at init, by the scheme's theory: it ``stays``, ``grows`` by the
            same amount in each branch, or ``doubles``.
        multiplier_init: value at which the learnable scalars of the branches begin, in schemes that have them.
        registered: schemes of this kind by name, filled by ``register_scheme``.
    """

    name: ClassVar[str]
    needs_weights: ClassVar[bool] = False
    normalized: ClassVar[bool] = False
    residual_options: ClassVar[tuple[str, ...]] = ()
    residual_only: ClassVar[bool] = False
    trunk_growth: ClassVar[Growth] = "doubles"
    multiplier_init: ClassVar[float] = 1.0
    registered: ClassVar[dict[str, type[Any]]]

    def join(self, place: Place, channels: int) -> Join:
        """Return the join of trunk and branch.

        Args:
            place: place of the branch.
            channels: channels of the trunk after it.
        """
        return PlainJoin()


SchemeClass = TypeVar("SchemeClass", bound=type[Scheme])


def register_scheme(cls: SchemeClass) -> SchemeClass:
    """Add a scheme to the table of its kind, ``VISION_SCHEMES`` or ``TEXT_SCHEMES``; usable as a decorator.

    Returns:
        The class itself.

    Raises:
        ZooError: a class that is no frozen dataclass of a kind, or a name that another scheme has.
    """
    if not isinstance(cls, type) or not hasattr(cls, "registered"):
        raise ZooError(f"scheme {getattr(cls, '__name__', shown(cls))}: must derive from VisionScheme or TextScheme")
    if "__dataclass_fields__" not in vars(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ZooError(f"scheme {cls.__name__}: must be a frozen dataclass; write @dataclass(frozen=True) above it")
    if without := [field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING]:
        raise ZooError(f"scheme {cls.__name__}: option {without[0]!r} must have a default")
    if cls.name in cls.registered:
        raise ZooError(f"scheme {cls.__name__}: the name {cls.name!r} is registered already; choose another")
    cls.registered[cls.name] = cls
    return cls

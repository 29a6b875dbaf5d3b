"""What a run remembers of its data, to notice when it resumes that they have changed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pydantic

from tasks.errors import TrainingError
from tasks.printing import listed

_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class SetPrint:
    """One set of samples.

    Attributes:
        samples: number of the samples.
        sha256: hash of what identifies each sample, in order.
    """

    samples: int
    sha256: str

    @classmethod
    def of(cls, samples: Iterable[object]) -> SetPrint:
        """Return the print of samples.

        Args:
            samples: name and label of each sample, or what else identifies it besides its content.
        """
        digest, count = hashlib.sha256(), 0
        for sample in samples:
            digest.update(repr(sample).encode("utf-8", "surrogatepass") + b"\n")
            count += 1
        return cls(count, digest.hexdigest())


@dataclass(frozen=True)
class Fingerprint:
    """The data of a run.

    Attributes:
        classes: names of the classes in order; of translation the hashes of the vocabularies.
        train: training samples in order.
        val: evaluation samples in order.
        unit: plural noun of the samples.
    """

    classes: tuple[str, ...]
    train: SetPrint
    val: SetPrint
    unit: str

    def as_dict(self) -> dict[str, Any]:
        """Return the form that a checkpoint stores."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Fingerprint:
        """Return the fingerprint that a checkpoint stores.

        Raises:
            pydantic.ValidationError: content of another form.
        """
        return pydantic.TypeAdapter(cls).validate_python(content)

    def require_classes(self, stored: Fingerprint, source: str) -> None:
        """Refuse classes that are not those of a checkpoint, in order.

        Args:
            stored: fingerprint of the checkpoint.
            source: path of the checkpoint, for the message.

        Raises:
            TrainingError: other classes.
        """
        if self.classes == stored.classes:
            return
        before, now = set(stored.classes), set(self.classes)
        gone = [repr(name) for name in stored.classes if name not in now]
        new = [repr(name) for name in self.classes if name not in before]
        changes = [f"{listed(names, _SHOWN)} {verb}" for names, verb in ((gone, "gone"), (new, "new")) if names]
        raise TrainingError(
            f"{source}: the classes of the data have changed ({', '.join(changes) or 'their order'}); restore them, or "
            "start a new run from the weights beside it by model.weights"
        )

    def changes(self, stored: Fingerprint) -> list[str]:
        """Return a phrase for each set whose samples are not those of a checkpoint, in order."""
        found = []
        for name in ("train", "val"):
            old, new = getattr(stored, name), getattr(self, name)
            if old.samples != new.samples:
                found.append(f"{name} has {new.samples} {self.unit}, had {old.samples}")
            elif old != new:
                found.append(f"{name} has other {self.unit}, or the same in another order")
        return found

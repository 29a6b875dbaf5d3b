"""Errors that the user can correct: the command line prints them as one line, without a traceback."""

import signal


class UserError(Exception):
    """Wrong input or environment. The message names the file, key or value at fault and what to do."""


class ConfigError(UserError):
    """A config or override that is not valid."""


class DataError(UserError):
    """Data that is missing or cannot be read."""


class TrainingError(UserError):
    """A run that cannot start or continue; its checkpoints are intact."""


class OutOfMemory(TrainingError, MemoryError):
    """A run that ended because memory ran out; callers of the engine may treat it as any other ``MemoryError``."""


class Interrupted(BaseException):
    """A run that a signal ended. Its message is where it stopped and how it goes on.

    It is no ``Exception``, so that code which goes on after a failure does not go on after it.

    Args:
        number: number of the signal.
        message: the message; default: the training has not begun.

    Attributes:
        exit_code: code of the process, 128 and the number of the signal, as shells have it.
    """

    def __init__(self, number: int, message: str | None = None) -> None:
        super().__init__(number, message)
        self.number, self.exit_code = number, 128 + number
        early = f"{self.name}: stopped before the training began; continue with --resume"
        self.message = early if message is None else message

    @property
    def name(self) -> str:
        """Name of the signal."""
        return signal.Signals(self.number).name

    def __str__(self) -> str:
        return self.message


# parts of torch's messages of an allocation that fails: on a device, on the CPU, in a library of CUDA, in a worker
_MEMORY = ("out of memory", "can't allocate", "ALLOC_FAILED", "Cannot allocate memory")


def out_of_memory(error: BaseException) -> str | None:
    """Return a phrase for an error that means too little memory, of the device or the machine; None for others.

    None too for an error that states it already (``OutOfMemory``).
    """
    if isinstance(error, UserError):
        return None
    text = str(error)
    # torch.OutOfMemoryError by its name, because this module does not load torch
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__) or isinstance(error, MemoryError)
    if not named and not (isinstance(error, RuntimeError) and any(part in text for part in _MEMORY)):
        return None
    reason = " ".join(text.split()).partition(". ")[0]
    return f"out of memory ({reason})" if reason else "out of memory"


def dead_worker(error: BaseException) -> str | None:
    """Return the message where torch reports that a data loading process died; None for other errors."""
    if not isinstance(error, RuntimeError) or "DataLoader worker" not in str(error):
        return None
    reason = str(error).splitlines()[0].rstrip(". ")
    return f"a data loading process died ({reason}), often for lack of memory: use fewer workers, or smaller samples"

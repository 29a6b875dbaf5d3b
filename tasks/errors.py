"""Errors that the user can correct: the command line prints them as one line, without a traceback."""


class UserError(Exception):
    """Wrong input or environment. The message names the file, key or value at fault and what to do."""


class ConfigError(UserError):
    """A config or override that is not valid."""


class DataError(UserError):
    """Data that is missing or cannot be read."""


class TrainingError(UserError):
    """A run that cannot start or continue; its checkpoints are intact."""


def dead_worker(error: BaseException) -> str | None:
    """Return the message where torch reports that a data loading process died; None for other errors."""
    if not isinstance(error, RuntimeError) or "DataLoader worker" not in str(error):
        return None
    reason = str(error).splitlines()[0].rstrip(". ")
    return f"a data loading process died ({reason}), often for lack of memory: use fewer workers, or smaller samples"

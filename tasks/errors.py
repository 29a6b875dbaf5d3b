"""Errors that are the user's to mend: the command line shows them as one line, without a traceback."""


class UserError(Exception):
    """Bad input or environment. The message names the file, key or value at fault and the mend."""


class ConfigError(UserError):
    """A config or override that is not valid."""


class DataError(UserError):
    """Data that is missing or cannot be read."""


class TrainingError(UserError):
    """A run that cannot start or go on; its checkpoints are intact."""

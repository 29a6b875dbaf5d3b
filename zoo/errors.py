"""Errors that are the caller's to mend: one line that names what is wrong and the nearest right thing."""


class ZooError(ValueError):
    """A wrong name, option or argument."""


class WeightsError(ZooError):
    """Weights that are missing, damaged, or do not fit the model."""


class ExportError(ZooError):
    """An export that failed, or whose outputs differ from the model's."""

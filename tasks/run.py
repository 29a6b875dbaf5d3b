"""The functions of ``tasks.spec`` under their module's name of 0.1.0 (deprecated)."""

import warnings

from tasks.spec import check, load_model, make_task, resolve, task_of

__all__ = ["check", "load_model", "make_task", "resolve", "task_of"]

warnings.warn("tasks.run has moved to tasks.spec", DeprecationWarning, stacklevel=2)

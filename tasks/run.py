"""The functions of ``tasks.spec`` under their module's name of 0.1.0 (deprecated)."""

from tasks.spec import check, load_model, make_task, resolve, task_of

__all__ = ["check", "load_model", "make_task", "resolve", "task_of"]

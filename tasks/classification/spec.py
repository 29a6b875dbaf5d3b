"""The entry of classification in the table of tasks."""

from __future__ import annotations

from tasks.classification import commands
from tasks.spec import Command, TaskSpec

SPEC = TaskSpec(
    name="classification",
    input_kind="images",
    config="tasks.classification.config:ClassificationConfig",
    task="tasks.classification.model:Classification",
    transform="zoo:InputTransform",
    eval=Command(commands.run_eval, commands.ClassificationEvalOptions, ("confusion.png",)),
    predict=Command(commands.run_predict, commands.ClassificationPredictOptions),
    export=Command(commands.run_export, commands.ClassificationExportOptions),
    check=Command(commands.run_check, commands.ClassificationCheckOptions),
)

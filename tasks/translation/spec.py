"""Translation in the table of tasks (``tasks.spec``)."""

from __future__ import annotations

from tasks.spec import Command, TaskSpec
from tasks.translation import commands

SPEC = TaskSpec(
    name="translation",
    input_kind="text",
    config="tasks.translation.config:TranslationConfig",
    task="tasks.translation.model:Translation",
    transform="zoo:TextTransform",
    eval=Command(commands.run_eval, commands.TranslationEvalOptions, ("hypotheses.txt",)),
    predict=Command(commands.run_predict, commands.TranslationPredictOptions),
    check=Command(commands.run_check, commands.TranslationCheckOptions),
    export=Command(commands.run_export, commands.TranslationExportOptions),
    prepare="tasks.translation.commands:prepare",
    predict_out=None,
)

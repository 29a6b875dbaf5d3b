"""Video classification in the table of tasks (``tasks.spec``)."""

from __future__ import annotations

from tasks.spec import Command, TaskSpec
from tasks.video import commands

SPEC = TaskSpec(
    name="video",
    input_kind="clips",
    config="tasks.video.config:VideoConfig",
    task="tasks.video.model:VideoClassification",
    transform="zoo:VideoTransform",
    eval=Command(commands.run_eval, commands.VideoEvalOptions, ("confusion.png", "predictions.npz")),
    predict=Command(commands.run_predict, commands.VideoPredictOptions),
    export=Command(commands.run_export, commands.VideoExportOptions),
    check=Command(commands.run_check, commands.VideoCheckOptions),
    recognises=commands.recognises,
    prepare="tasks.video.commands:prepare",
)

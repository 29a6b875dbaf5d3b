"""The entry of detection in the table of tasks."""

from __future__ import annotations

from tasks.detection import commands
from tasks.spec import Command, TaskSpec

SPEC = TaskSpec(
    name="detection",
    input_kind="image_lists",
    config="tasks.detection.config:DetectionConfig",
    task="tasks.detection.model:Detection",
    transform="zoo:DetectionTransform",
    eval=Command(commands.run_eval, commands.DetectionEvalOptions, ("results_bbox.json", "results_segm.json")),
    score=Command(commands.run_score, commands.DetectionScoreOptions),
    predict=Command(commands.run_predict, commands.DetectionPredictOptions),
    export=Command(commands.run_export, commands.DetectionExportOptions),
    check=Command(commands.run_check, commands.DetectionCheckOptions),
    recognises=commands.recognises,
)

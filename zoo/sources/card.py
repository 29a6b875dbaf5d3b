"""The generated card of weights on a hub."""

from __future__ import annotations

import re
from typing import Any

import yaml

from zoo.sources.hub import check_repository
from zoo.weights import Weights

PIPELINES = {
    "classification": "image-classification",
    "detection": "object-detection",
    "video": "video-classification",
    "translation": "translation",
}
# what the hub calls licences; other texts become "other" with a name
LICENCES = (
    "apache-2.0",
    "bsd-2-clause",
    "bsd-3-clause",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-sa-3.0",
    "cc-by-sa-4.0",
    "gpl-3.0",
    "mit",
    "unknown",
)
_REPOSITORY_SOURCES = {"timm:": "timm/", "hf-hub:": ""}  # sources that are repositories on the hub


def write_card(weights: Weights, repository: str, task: str, start: str | None) -> str:
    """Return the text of a card: front matter for the hub, then usage, metrics, provenance and recipe.

    Args:
        weights: weights that are in the repository.
        repository: OWNER/NAME.
        task: task of the model.
        start: name of the weights that training started from; None if there are none.
    """
    meta, config = weights.meta, weights.config
    stated = meta["metrics"] if isinstance(meta.get("metrics"), dict) else {}
    metrics = {key: value for key, value in stated.items() if isinstance(value, int | float)}
    # what the hub reads
    front: dict[str, Any] = {
        "library_name": "rescalenet-zoo",
        "pipeline_tag": PIPELINES.get(task, task),
        "tags": ["rescalenet-zoo", task, config.name],
        **_licence_entries(str(meta.get("licence", "unknown"))),
        **({"metrics": list(metrics)} if metrics else {}),
        **_base_model(meta.get("source") or start),
    }
    # what people read
    lines = [
        f"# {repository.partition('/')[2]}",
        "",
        f"`{config.name}` of rescalenet-zoo, scheme `{config.scheme}`, for {task}; {config.num_classes} classes.",
        "",
        "```python",
        "import zoo",
        "",
        f'model = zoo.create_model("{config.name}", weights="hf-hub:{repository}")',
        "```",
        "",
        *_metric_lines(meta, metrics),
        *_provenance_lines(meta, start),
        *_recipe_lines(meta),
    ]
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n" + "\n".join(lines)


def _licence_entries(licence: str) -> dict[str, str]:
    """Return the entries of the front matter about the licence."""
    key = licence.lower().replace(" ", "-")
    if key in LICENCES:
        return {"license": key}
    return {"license": "other", "license_name": _inline(licence)[:100]}


def _base_model(source: Any) -> dict[str, str]:
    """Return the entry with the repository on the hub that weights come from; none if they come from elsewhere."""
    for prefix, owner in _REPOSITORY_SOURCES.items():
        if isinstance(source, str) and source.startswith(prefix):
            repository = owner + source.removeprefix(prefix).partition("@")[0]
            return {"base_model": repository} if check_repository(repository) else {}
    return {}


def _metric_lines(meta: dict[str, Any], metrics: dict[str, float]) -> list[str]:
    if not metrics:
        return []
    rows = [f"| {_inline(key)} | {value:.4g} |" for key, value in metrics.items()]
    note = [_inline(meta["protocol"]), ""] if "protocol" in meta else []
    return ["## Metrics", "", "| metric | value |", "|---|---|", *rows, "", *note]


def _provenance_lines(meta: dict[str, Any], start: str | None) -> list[str]:
    """Return what is known of the origin of weights."""
    labels = {
        "source": "Converted from",
        "source_sha256": "sha256 of the source",
        "url": "Address",
        "revision": "Revision",
        "form": "Form of the conversion",
        "eps": "eps of the norms",
        "data": "Data",
        "recipe": "Recipe of the source",
        "command": "Command",
    }
    found = [("Licence", meta.get("licence", "unknown")), *([("Training started from", start)] if start else [])]
    found += [(label, meta[key]) for key, label in labels.items() if meta.get(key) is not None]
    return ["## Where the weights come from", "", *(f"- {label}: {_inline(value)}" for label, value in found), ""]


def _recipe_lines(meta: dict[str, Any]) -> list[str]:
    if "config" not in meta:
        return []
    recipe = yaml.safe_dump(meta["config"], sort_keys=False).replace("```", "'''")
    return ["## Recipe", "", "```yaml", recipe.rstrip(), "```", ""]


def _inline(value: Any) -> str:
    """Return a value as text on one line that neither ends a table's cell nor begins HTML."""
    return re.sub(r"[|<>`]", " ", " ".join(str(value).split()))

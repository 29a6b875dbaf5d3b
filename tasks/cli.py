"""The command ``rescalenet``."""

from __future__ import annotations

from typing import Annotated

import typer

from tasks.errors import UserError
from tasks.progress import say

app = typer.Typer(
    name="rescalenet",
    help="Deep networks without normalization layers: train, evaluate, predict, export.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command("list")
def list_(
    filter: Annotated[str, typer.Argument(help="Shell pattern.")] = "*",
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Only nets with weights.")] = False,
) -> None:
    """The nets, and the weights that can be loaded by name."""
    import zoo

    for name in zoo.list_models(filter, pretrained=pretrained):
        tags = ", ".join(zoo.model_info(name).weights)
        typer.echo(f"{name}  [{tags}]" if tags else name)


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that ships.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Show the resolved config and stop.")] = False,
) -> None:
    """Train by a recipe. Under torchrun: torchrun --no-python --nproc-per-node 2 rescalenet train CONFIG."""
    from tasks import config as cfg
    from tasks.run import make_task, resolve

    resolved = resolve(config, overrides or [])
    if print_config:
        typer.echo(cfg.dump(resolved), nl=False)
        return
    from tasks.engine import Trainer

    metrics = Trainer(make_task(resolved), resume=resume).fit()
    say(f"{resolved.output}: " + ", ".join(f"{key} {value:.4g}" for key, value in metrics.items()))


def main() -> None:
    """Run the command line: a user's error becomes one line and exit code 1."""
    import logging

    from zoo import WeightsError

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("rescalenet").setLevel(logging.INFO)
    try:
        app(standalone_mode=True)
    except (UserError, WeightsError, ValueError) as error:
        say(f"error: {_last_line(error)}")
        raise SystemExit(1) from (None if isinstance(error, UserError) else error)


def _last_line(error: BaseException) -> str:
    """The message; of an error that a data loading process raised, the part after its traceback."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return text


if __name__ == "__main__":
    main()

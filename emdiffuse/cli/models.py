"""The command `emdiffuse models`, for the shipped models."""

from __future__ import annotations

import typer

from emdiffuse.cli.app import START, app

models = typer.Typer(invoke_without_command=True)
app.add_typer(
    models,
    name="models",
    help="List the shipped models, or verify them.",
    rich_help_panel=START,
)


@models.callback()
def list_models(context: typer.Context) -> None:
    """List the shipped models; their names can be used wherever a model folder is expected."""
    from emdiffuse.models.shipped import shipped_models

    if context.invoked_subcommand is None:
        for model in shipped_models():
            print(f"{model.name:<12}  {model.size / 2**20:5.1f} MiB  {model.title}")
            data = ", ".join(model.data_licenses) or "not stated"
            print(f"{'':<12}  licence {model.license}; training data: {data}")
            print(f"{'':<12}  {model.folder}")


@models.command()
def verify() -> None:
    """Compare the files of the shipped models with their checksums."""
    from emdiffuse.models.shipped import verify_shipped

    print(f"{verify_shipped()} files of the shipped models are intact.")

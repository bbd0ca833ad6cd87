"""Commands about files of published parameters: ``ds4sci weights inspect`` and ``ds4sci weights convert``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

weights_app = typer.Typer(
    help="Parameters of AlphaFold 2 (.npz), OpenFold (.pt) and ds4sci (.safetensors).", no_args_is_help=True
)


class NamesOf(StrEnum):
    """Program whose names the tensors of a file have."""

    ds4sci = "ds4sci"
    openfold = "openfold"
    alphafold = "alphafold"


@weights_app.command("inspect")
def inspect(file: Annotated[Path, typer.Argument(metavar="FILE", help="A .npz, .pt or .safetensors file.")]) -> None:
    """Print format, number of parameters, the published model that FILE fits, and what is unknown or missing."""
    from ds4sci.models.published_weights.inspection import describe

    for line in describe(file):
        typer.echo(line)


@weights_app.command("convert")
def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .npz, .pt or .safetensors file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New file; its ending gives the format.")],
    names: Annotated[
        NamesOf | None,
        typer.Option("--names", help="Names in OUT; by default alphafold in .npz, openfold in .pt, else ds4sci."),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            "--skip", metavar="PATTERN", help="Tensors to leave out, such as 'template_embedder.*'; repeatable."
        ),
    ] = None,
) -> None:
    """Convert parameters between AlphaFold's .npz, OpenFold's .pt and .safetensors, without a change of any value."""
    from ds4sci.models.published_weights.inspection import convert as write
    from ds4sci.models.published_weights.translation import parameters

    written = write(file, out, names.value if names else None, skip=skip or ())
    size = f"{len(written.tensors):,} tensors, {parameters(written.tensors):,} parameters"
    typer.echo(f"{out}: {size}, from {written.title}")
    if written.notice:
        typer.echo(f"license: {written.notice}")

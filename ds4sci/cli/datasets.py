"""The commands ``ds4sci data list``, ``info``, ``get``, ``verify`` and ``manifest``: datasets by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name in `ds4sci data list`, or a dotted module name.")]


def list_datasets() -> None:
    """List the datasets, with version, kind, size and state."""
    from ds4sci.datasets import registry, store

    rows = [("name", "version", "kind", "size", "state", "title")]
    failures = []
    for name in registry.names():
        try:
            dataset = registry.find(name).dataset
            state, _ = store.state(name)
        except ValueError as error:
            failures.append(str(error))
            continue
        rows.append((name, dataset.version, dataset.kind, megabytes(dataset.size), state, dataset.title))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for failure in failures:
        typer.secho(failure, fg="red", err=True)


def info(name: Name) -> None:
    """Describe a dataset: origin, licence, splits, sources and files with their checksums."""
    from ds4sci.datasets import registry, store

    dataset = registry.find(name).dataset
    state, folder = store.state(name)
    rows = [
        ("name", dataset.name), ("version", dataset.version), ("title", dataset.title), ("kind", dataset.kind),
        ("origin", dataset.origin), ("licence", dataset.licence), ("size", megabytes(dataset.size)),
        *((f"split {split}", text) for split, text in dataset.splits.items()),
        *(
            (f"source {one.kind}", f"{one.package} {one.version}, {megabytes(one.size)}, sha256 {one.sha256}")
            for one in dataset.sources
        ),
        *((f"file {file}", f"sha256 {sha256}") for file, sha256 in sorted(dataset.files.items())),
        ("state", state), ("folder", str(folder)),
    ]  # fmt: skip
    width = max(len(key) for key, _ in rows)
    for key, value in rows:
        typer.echo(f"{key.ljust(width)}  {value}")


def get(
    name: Name,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Folder to make it in. Default: the store.")
    ] = None,
    mirror: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="DIR", help="Folder with the archives or the finished dataset; nothing is downloaded."
        ),
    ] = None,
) -> None:
    """Download, generate or copy a dataset, unless it is there intact. Prints its folder."""
    from ds4sci.datasets import store

    typer.echo(str(store.get(name, to=to, mirror=mirror, log=lambda text: typer.echo(text, err=True))))


def verify(
    name: Name,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Folder that it was made in. Default: the store.")
    ] = None,
) -> None:
    """Read every file of a dataset and compare it with its checksum. Exit code 1 if one is missing or damaged."""
    from ds4sci.datasets import store

    faults = store.verify(name, to)
    for fault in faults:
        typer.secho(fault, fg="red", err=True)
    if faults:
        target = f" --to {to}" if to else ""
        typer.secho(f"make it again with: ds4sci data get {name}{target}", err=True)
        raise typer.Exit(1)
    typer.echo(f"{to or store.state(name)[1]}: every file is intact")


def write_manifest(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of your own files.")],
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the dataset. Default: that of the folder.")
    ] = None,
    version: Annotated[str, typer.Option("--version", help="Version of the dataset.")] = "1",
) -> None:
    """Write manifest.json of a folder: size and checksum of every file. Staging requires it."""
    from ds4sci.datasets import manifest

    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    stored = manifest.write(folder, name or folder.resolve().name, version)
    typer.echo(f"{folder / manifest.MANIFEST}: {len(stored.files)} files, {megabytes(stored.size)}")


def megabytes(size: int) -> str:
    """A size, such as ``21.8 MB``; below 1 MB in kB."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"

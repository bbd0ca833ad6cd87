"""The commands ``ds4sci data …``: datasets by name; build, index and split training data; leakage of a split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ds4sci.cli import datasets
from ds4sci.cli.template_options import MaxTemplateDate, ObsoleteEntries, TemplateStructures, template_hits
from ds4sci.config.number_lists import numbers

data_app = typer.Typer(
    help="Get datasets by name. Prepare training data: build, index, split, and check for leakage.",
    no_args_is_help=True,
)
data_app.command("list")(datasets.list_datasets)
data_app.command("info")(datasets.info)
data_app.command("get")(datasets.get)
data_app.command("verify")(datasets.verify)
data_app.command("manifest")(datasets.write_manifest)


@data_app.command("build")
def data_build(
    source: Annotated[Path, typer.Argument(metavar="SRC_DIR", help="Folder of mmCIF or PDB files, plain or gzipped.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New chain set: a file OUT.npz, or a folder.")],
    msa: Annotated[
        Path | None,
        typer.Option(
            "--msa", metavar="DIR|INDEX", help="Folder of alignments ID.a3m, ID.sto or ID/, or OpenFold's super-index."
        ),
    ] = None,
    templates: Annotated[
        Path | None,
        typer.Option(
            "--templates", metavar="DIR|INDEX", help="Folder of template hits ID.hhr, ID.sto or ID/, or a super-index."
        ),
    ] = None,
    template_structures: TemplateStructures = None,
    max_template_date: MaxTemplateDate = None,
    obsolete_entries: ObsoleteEntries = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Number of processes. Default: one per core.")
    ] = None,
    complexes: Annotated[
        bool, typer.Option("--complexes", help="One record per file with all its chains, for models of complexes.")
    ] = False,
    assembly: Annotated[
        str,
        typer.Option(
            "--assembly",
            metavar="ID|first|asymmetric_unit",
            help="With --complexes: the biological assembly. Default: asymmetric_unit, the chains of the file.",
            show_default=False,
        ),
    ] = "asymmetric_unit",
    chains_per_file: Annotated[
        int | None,
        typer.Option(
            "--chains-per-file", min=1, help="Write a folder of uncompressed files, which are mapped into memory."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]…", help="Filters, such as max_length=512 or max_resolution=3.", show_default=False
        ),
    ] = None,
) -> None:
    """Build a chain set from structure files. Can be restarted. Reports each rejected entry with its reason."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ds4sci.data.structures.build import BuildSettings, build

    given: dict[str, Any] = {"complexes": complexes, "assembly": assembly} | dict(
        key_and_value(text) for text in settings or []
    )
    for key in given:
        if key not in BuildSettings.model_fields:
            raise ValueError(f"unknown setting {key!r}; expected one of: {', '.join(BuildSettings.model_fields)}")
    chosen = BuildSettings.model_validate(given)
    hits = template_hits(templates, template_structures, max_template_date, obsolete_entries)
    columns = (TextColumn("reading structures"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("")
        done = build(
            source,
            out,
            msa_dir=msa,
            templates=hits,
            jobs=jobs,
            settings=chosen,
            chains_per_file=chains_per_file,
            progress=lambda seen, files: bar.update(task, completed=seen, total=files),
        )
    typer.echo(done.summary())


@data_app.command("index")
def data_index(
    paths: Annotated[
        list[Path], typer.Argument(metavar="FASTA… OUT_DIR", help="Sequence files, then the folder of the new store.")
    ],
    alphabet: Annotated[str, typer.Option("--alphabet", help="auto, protein or dna.")] = "auto",
    bad: Annotated[
        str,
        typer.Option("--bad", help="For a record that cannot be read: error (stop), or skip (skip it and count it)."),
    ] = "error",
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=1, help="Longest record to keep, in residues.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Number of processes. Default: one per core.")
    ] = None,
) -> None:
    """Index FASTA, FASTQ or GenBank files (plain, gz, bgz) into a memory-mapped store. Can be restarted."""
    from ds4sci.data.sequences import index

    if len(paths) < 2:
        raise ValueError(
            "data index needs at least two paths: ds4sci data index FASTA… OUT_DIR, with the folder of the store last"
        )
    done = index(paths[:-1], paths[-1], alphabet=alphabet, on_bad_record=bad, max_length=max_length, jobs=jobs)  # type: ignore[arg-type]
    typer.echo(str(done))


@data_app.command("split")
def data_split(
    chains: Annotated[Path, typer.Argument(metavar="CHAINS|STORE", help="Chain set, or store made by data index.")],
    train_out: Annotated[Path, typer.Argument(metavar="TRAIN", help="New training set.")],
    valid_out: Annotated[Path, typer.Argument(metavar="VALID", help="New validation set.")],
    fraction: Annotated[float, typer.Option(help="Fraction of the data for validation.")] = 0.1,
    identity: Annotated[
        float, typer.Option(help="Proteins with at least this sequence identity stay in the same set.")
    ] = 0.3,
    seed: Annotated[int, typer.Option(help="Random seed of the choice of clusters or records for validation.")] = 0,
) -> None:
    """Split data into training and validation sets: proteins by identity clusters, genomes by whole records.

    Outputs that end in .npz are files; others are folders of files, which are mapped into memory.
    """
    if chains.is_dir() and not any(chains.glob("*.npz")):
        from ds4sci.data.clustering.sequence_split import split_store
        from ds4sci.data.sequences import SequenceStore

        for store in split_store(SequenceStore.open(chains), train_out, valid_out, fraction, identity, seed):
            typer.echo(f"{store.folder}: {len(store):,} records, {store.total:,} residues")
        return
    from ds4sci.data.clustering.chain_split import split
    from ds4sci.data.structures.chain_set import ChainSet

    records = ChainSet.open(chains)
    parts = split(records, fraction, identity, seed)
    for out, indices in zip((train_out, valid_out), parts, strict=True):
        records.write_subset(out, indices)
        typer.echo(f"{out}: {len(indices)} chains")


@data_app.command("images")
def data_images(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of TIFF, PNG, NIfTI, DICOM or NPZ files.")],
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="New folder of the dataset.")],
    size: Annotated[str, typer.Option(metavar="[Z,]Y,X", help="Shape of an example, such as 64,64,64.")],
    masks: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of masks with the relative names of the images.")
    ] = None,
    classes: Annotated[
        str, typer.Option(metavar="A,B,…", help="Names of the classes 0, 1, … of masks or labels.")
    ] = "",
    table: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Columns file and any of patient, label, split.")
    ] = None,
    patients: Annotated[
        str, typer.Option(help="Where the patient is named: metadata, folder or file (one patient per file).")
    ] = "metadata",
    spacing: Annotated[
        str | None, typer.Option(metavar="[Z,]Y,X", help="Voxel spacing in mm to resample to. Default: as stored.")
    ] = None,
    channels: Annotated[int, typer.Option(min=1, help="Number of channels of every image.")] = 1,
    normalize: Annotated[
        str, typer.Option(help="image: mean 0, deviation 1 per image and channel; or none.")
    ] = "image",
    fit: Annotated[str, typer.Option(help="tiles: cut images; whole: resample each to the size.")] = "tiles",
    overlap: Annotated[float, typer.Option(help="Least overlap of neighbouring tiles, as a fraction.")] = 0.0,
    fraction: Annotated[float, typer.Option(help="Fraction of the patients for validation.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Random seed of the choice of patients for validation.")] = 0,
    bad: Annotated[
        str, typer.Option("--bad", help="For an image that cannot be used: error (stop), or skip (report it).")
    ] = "error",
) -> None:
    """Make a dataset for the task `image` from image files, split by patient. Reports images left out with reasons."""
    from ds4sci.data.images import image_set
    from ds4sci.data.images.patients import read_table
    from ds4sci.data.images.recipe import Recipe

    if bad not in ("error", "skip"):
        raise ValueError(f"--bad {bad}: expected error or skip")
    recipe = Recipe(
        numbers("--size", size, int), channels,
        None if spacing is None else numbers("--spacing", spacing, float), normalize, fit, overlap,
    )  # fmt: skip
    report = image_set.build(
        images, out, recipe, masks=masks, classes=[name.strip() for name in classes.split(",") if name.strip()],
        table=None if table is None else read_table(table), patients=patients, valid_fraction=fraction, seed=seed,
        strict=bad == "error",
    )  # fmt: skip
    typer.echo(str(report))


@data_app.command("leakage")
def data_leakage(
    train_set: Annotated[Path, typer.Argument(metavar="TRAIN.npz|STORE", help="Training set.")],
    valid_set: Annotated[Path, typer.Argument(metavar="VALID.npz|STORE", help="Validation set.")],
    identity: Annotated[
        float | None,
        typer.Option(help="Sequence identity from which two sequences are homologous. Default: 0.3; DNA stores: 0.9."),
    ] = None,
) -> None:
    """List validation sequences with homologs in the training set. Exit code 1 if there are any."""
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pairs: list[Any]
        if train_set.is_dir():
            from ds4sci.data.clustering.sequence_split import leakage as between_stores
            from ds4sci.data.sequences import SequenceStore

            pairs = list(between_stores(SequenceStore.open(train_set), SequenceStore.open(valid_set), identity))
        else:
            from ds4sci.data.clustering.chain_split import leakage
            from ds4sci.data.structures.chain_set import ChainSet

            pairs = list(leakage(ChainSet.open(train_set), ChainSet.open(valid_set), identity or 0.3))
    for match in pairs:
        typer.echo(f"{match.train}\t{match.valid}\t{match.identity:.0%}")
    for warning in caught:
        typer.echo(f"warning: {warning.message}", err=True)
    if pairs:
        raise typer.Exit(1)
    typer.echo("no homologs found" if identity is None else f"no homologs of {identity:.0%} identity or more found")


def key_and_value(text: str) -> tuple[str, str]:
    """Key and value of ``KEY=VALUE``. Raises ValueError without a ``=``."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r}: expected KEY=VALUE, such as max_length=512")
    return key, value

"""Commands that read a run: ``ds4sci eval``, ``embed``, ``export``, ``predict`` and ``report``."""

from __future__ import annotations

from collections.abc import Sequence
from json import loads
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ds4sci.cli.template_options import MaxTemplateDate, ObsoleteEntries, TemplateStructures, template_hits
from ds4sci.cli.train import Overrides

Run = Annotated[Path, typer.Option("--run", help="Run folder, such as runs/quickstart.", metavar="RUN")]
Quantize = Annotated[
    Literal["int8", "nf4"] | None,
    typer.Option("--quantize", help="Compress the weights of linear layers: int8 (1 byte) or nf4 (4 bits)."),
]
Runs = Annotated[
    list[Path],
    typer.Option(
        "--run",
        help="Run folder, such as runs/quickstart, or a run file with train.weights. Several: ensemble of surrogates.",
        metavar="RUN",
    ),
]


def evaluate(
    runs: Runs,
    json: Annotated[Path, typer.Option("--json", metavar="OUT", help="JSON file to write all scores to.")],
    chains: Annotated[
        Path | None,
        typer.Option("--chains", metavar="FILE.npz", help="Structure models: chain set with the true structures."),
    ] = None,
    fasta: Annotated[
        Path | None,
        typer.Option("--fasta", metavar="FILE", help="Language models: sequences to score, in nats per residue."),
    ] = None,
    variants: Annotated[
        Path | None,
        typer.Option("--variants", metavar="CSV", help="Language models: variants of the one sequence in --fasta."),
    ] = None,
    contacts: Annotated[
        Path | None,
        typer.Option("--contacts", metavar="FILE.npz", help="Language models: chain set on which to predict contacts."),
    ] = None,
    marginal: Annotated[
        str | None, typer.Option("--marginal", help="How --variants is scored: masked (default) or wildtype marginals.")
    ] = None,
    ngrams: Annotated[
        bool, typer.Option("--ngrams", help="With --fasta: also score n-gram models of the training data.")
    ] = False,
    overrides: Overrides = None,
    which: Annotated[
        str,
        typer.Option("--checkpoint", help="best, latest, a step number, or untrained."),
    ] = "best",
    quantize: Quantize = None,
) -> None:
    """Score a trained model with one of the evaluations of its task, selected by the input files.

    Structure models: --chains. Language models: --fasta, --fasta with --variants, or --contacts. Neural operators need
    no file: they are scored on functions that training does not draw. Without a file, other models are scored on the
    held-out data of the run. Several runs of surrogates: error and calibration of their ensemble.
    """
    from ds4sci.inference.evaluate import evaluate_run

    files = {"chains": chains, "fasta": fasta, "variants": variants, "contacts": contacts}
    options: dict[str, Any] = {"ngrams": True} if ngrams else {}
    if marginal is not None:
        options["marginal"] = marginal
    given = {name: path for name, path in files.items() if path is not None}
    if len(runs) > 1:
        from ds4sci.inference.ensemble import evaluate_ensemble

        if given or options or overrides or quantize:
            raise ValueError("several --run are an ensemble of surrogates, which takes --checkpoint and --json only")
        evaluate_ensemble(runs, json, which=which)
        return
    evaluate_run(runs[0], json, files=given, options=options, which=which, overrides=overrides or [], quantize=quantize)


def embed(
    run: Run,
    fasta: Annotated[Path, typer.Option("--fasta", metavar="FILE", help="Sequences of any length.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New folder for safetensors and index.json.")],
    ranks: Annotated[int, typer.Option("--ranks", min=1, help="Number of processes that share each sequence.")] = 1,
    mean: Annotated[
        bool, typer.Option("--mean", help="Write one vector per sequence: the mean over its tokens.")
    ] = False,
    which: Annotated[str, typer.Option("--checkpoint", help="best, latest or a step number.")] = "best",
    quantize: Quantize = None,
) -> None:
    """Embed sequences with a language model: write the last hidden state of every token, or the mean over tokens."""
    from ds4sci.inference.embed import INDEX
    from ds4sci.inference.embed import embed as write

    count = write(run, fasta, out, which=which, ranks=ranks, mean=mean, quantize=quantize)
    index = loads((out / INDEX).read_text(encoding="utf-8"))
    skipped = f"; skipped: {', '.join(index['untokenized_records'])}" if index["untokenized_records"] else ""
    used = f"{index['tokenized_residues']:,} of {index['total_residues']:,} residues in tokens"
    typer.echo(f"{count} sequences in {out}: {used}{skipped}")


def export(
    run: Run,
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="New folder.")],
    which: Annotated[str, typer.Option("--checkpoint", help="best, latest or a step number.")] = "best",
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write only the LoRA adapter, in the format of peft.")
    ] = False,
    quantize: Quantize = None,
) -> None:
    """Export a trained model. A language model becomes a Hugging Face folder: weights, config and tokenizer."""
    from ds4sci.inference.export import export_run, list_files

    for name, size in list_files(export_run(run, out, which=which, adapter=adapter, quantize=quantize)):
        typer.echo(f"{out / name}  {size:,} bytes")


def predict(
    runs: Runs,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the predictions.")],
    fasta: Annotated[
        Path | None, typer.Option("--fasta", metavar="FILE", help="Structure models: sequences to predict.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="PATH", help="Image models: an image, or a folder of images.")
    ] = None,
    parameters: Annotated[
        Path | None,
        typer.Option("--parameters", metavar="FILE", help="Surrogates: .csv or .npz file with the input parameters."),
    ] = None,
    msa: Annotated[
        Path | None, typer.Option("--msa", metavar="DIR", help="Folder of alignments named NAME.a3m or NAME.sto.")
    ] = None,
    templates: Annotated[
        Path | None,
        typer.Option(
            "--templates", metavar="DIR", help="Folder of templates NAME.npz, or of hits NAME.hhr, NAME.sto or NAME/."
        ),
    ] = None,
    one_complex: Annotated[
        bool,
        typer.Option("--complex", help="All records of --fasta are chains of one complex (or write A:B in a record)."),
    ] = False,
    template_structures: TemplateStructures = None,
    max_template_date: MaxTemplateDate = None,
    obsolete_entries: ObsoleteEntries = None,
    overrides: Overrides = None,
    which: Annotated[str, typer.Option("--checkpoint", help="best, latest or a step number.")] = "best",
    quantize: Quantize = None,
    check_memory: Annotated[
        bool,
        typer.Option(
            "--memory-check/--no-memory-check",
            help="Skip records that need more memory than is free, or try them anyway.",
        ),
    ] = True,
) -> None:
    """Predict structures (--fasta), masks or classes of images (--images), or outputs of surrogates (--parameters).

    pLDDT is in the B-factor column of structures, and OUT/index.html shows them in 3-D. Surrogates of several runs give
    mean and standard deviation. OUT/summary.json lists each result. A record that fails is reported, and the remaining
    records are still predicted.
    Exit code 0: all records were predicted. 1: some failed. 2: the input could not be read, or no record was attempted.
    """
    if sum(given is not None for given in (fasta, images, parameters)) != 1:
        raise ValueError(
            "give one of --fasta FILE (structure models), --images PATH (image models) and --parameters FILE "
            "(surrogates)"
        )
    if parameters is not None:
        from ds4sci.inference import ensemble

        if msa is not None or templates is not None or one_complex or overrides or quantize:
            raise ValueError("--parameters takes --run, --checkpoint and --out only")
        _show_predictions(ensemble.predict_parameters(runs, parameters, out, which=which), out)
        return
    if len(runs) > 1:
        raise ValueError(
            "--fasta and --images take one --run; several are an ensemble of surrogates, with --parameters"
        )
    if images is not None:
        from ds4sci.inference.predict_images import predict_images

        if msa is not None or templates is not None or one_complex or quantize is not None:
            raise ValueError("--msa, --templates, --complex and --quantize go with --fasta")
        records = predict_images(runs[0], images, out, which=which, overrides=overrides or ())["records"]
        _report_failures([f"{row['id']}: {row['error']}" for row in records if row["error"] is not None])
        return
    assert fasta is not None
    from ds4sci.inference import predict as command

    search = None
    if template_structures or max_template_date or obsolete_entries:
        search = template_hits(templates, template_structures, max_template_date, obsolete_entries)
    summary = command.predict_run(
        runs[0],
        fasta,
        out,
        msa,
        template_dir=templates,
        one_complex=one_complex,
        template_hits=search,
        which=which,
        overrides=overrides or (),
        quantize=quantize,
        check_memory=check_memory,
    )
    from ds4sci.report.prediction_page import write_prediction_page

    for path in command.written_files(summary, out):
        typer.echo(path)
    typer.echo(write_prediction_page(out))
    _report_failures(command.failures(summary))


def _report_failures(failed: Sequence[str]) -> None:
    """Print the records that failed; then exit with 1 if there is one."""
    for line in failed:
        typer.secho(f"failed: {line}", fg="red", err=True)
    if failed:
        raise typer.Exit(1)


def _show_predictions(summary: dict[str, Any], out: Path) -> None:
    """Print the files of an ensemble's predictions, and a warning about extrapolation."""
    for name in [*summary["files"], "summary.json"]:
        typer.echo(out / name)
    if outside := summary["outside_of_training_range"]:
        total = summary["predictions"]
        typer.secho(
            f"warning: {outside} of {total} rows have a parameter outside the range of the training data", fg="yellow",
            err=True,
        )  # fmt: skip


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Run folder, such as runs/quickstart, or folder of predictions.")
    ],
) -> None:
    """Write one self-contained page: RUN/report.html with learning curves, scores and figures of a run, or
    OUT/index.html with the structures in a folder of ``ds4sci predict --fasta``."""
    from ds4sci.inference.predict import SUMMARY
    from ds4sci.report.prediction_page import write_prediction_page
    from ds4sci.report.run_report import write_report

    typer.echo(write_prediction_page(folder) if (folder / SUMMARY).is_file() else write_report(folder))

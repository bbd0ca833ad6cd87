"""Commands that read a run: ``ds4sci eval``, ``embed``, ``export``, ``predict`` and ``report``."""

from __future__ import annotations

from json import loads
from pathlib import Path
from typing import Annotated

import typer

from ds4sci.cli.train import Overrides

Run = Annotated[Path, typer.Option("--run", help="Run folder, such as runs/quickstart.", metavar="RUN")]


def evaluate(
    run: Run,
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
        str, typer.Option("--marginal", help="How --variants is scored: masked or wildtype marginals.")
    ] = "masked",
    ngrams: Annotated[
        bool, typer.Option("--ngrams", help="With --fasta: also score n-gram models of the training data.")
    ] = False,
    overrides: Overrides = None,
    which: Annotated[
        str,
        typer.Option("--checkpoint", help="best, latest, a step number, or (structure models) untrained."),
    ] = "best",
) -> None:
    """Score a trained model: structures, sequences, variants or contacts. Neural operators need no file: they are
    scored on functions that training does not draw."""
    if sum(x is not None for x in (chains, contacts, fasta)) > 1:
        raise ValueError(
            "more than one input to score: use one of --chains (structure models), --fasta or --contacts (language "
            "models)"
        )
    if variants is not None and fasta is None:
        raise ValueError("--variants without --fasta: add --fasta FILE with the sequence that the variants change")
    changes = overrides or []
    if chains is not None:
        from ds4sci.inference.evaluate_fold import evaluate_run

        evaluate_run(run, chains, json, which=which, overrides=changes)
    elif fasta is None and contacts is None:
        from ds4sci.inference.evaluate_neural_operator import evaluate_operator

        evaluate_operator(run, json, which=which, overrides=changes)
        typer.echo(f"wrote {json.with_suffix('.png')}")
    else:
        from ds4sci.inference import evaluate_language as language

        if contacts is not None:
            found = language.evaluate_contacts(run, contacts, json, which=which, overrides=changes)["precision"]
            typer.echo("\n".join(f"{name}  {value:.3f}" for name, value in found.items()))
        elif variants is not None and fasta is not None:
            scored = language.evaluate_variants(
                run, fasta, variants, json, which=which, marginal=marginal, overrides=changes
            )
            rank = scored["spearman"]
            typer.echo(f"{len(scored['scores'])} variants" + ("" if rank is None else f", Spearman {rank:.3f}"))
        elif fasta is not None:
            language.evaluate_sequences(run, fasta, json, which=which, overrides=changes, ngrams=ngrams)
    typer.echo(f"wrote {json}")


def embed(
    run: Run,
    fasta: Annotated[Path, typer.Option("--fasta", metavar="FILE", help="Sequences of any length.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New folder for safetensors and index.json.")],
    ranks: Annotated[int, typer.Option("--ranks", min=1, help="Number of processes that share each sequence.")] = 1,
    mean: Annotated[
        bool, typer.Option("--mean", help="Write one vector per sequence: the mean over its tokens.")
    ] = False,
    which: Annotated[str, typer.Option("--checkpoint", help="best, latest or a step number.")] = "best",
) -> None:
    """Embed sequences with a language model: write the last hidden state of every token, or the mean over tokens."""
    from ds4sci.inference.embed import INDEX
    from ds4sci.inference.embed import embed as write

    count = write(run, fasta, out, which=which, ranks=ranks, mean=mean)
    index = loads((out / INDEX).read_text(encoding="utf-8"))
    unread = f"; no vector for {', '.join(index['silent'])}" if index["silent"] else ""
    typer.echo(f"{count} sequences in {out}: {index['read']:,} of {index['given']:,} residues read{unread}")


def export(
    run: Run,
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="New folder.")],
    which: Annotated[str, typer.Option("--checkpoint", help="best, latest or a step number.")] = "best",
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write only the LoRA adapter, in the format of peft.")
    ] = False,
) -> None:
    """Export a language model as a Hugging Face folder: weights, config and tokenizer."""
    from ds4sci.inference.export import export_run, files

    for name, size in files(export_run(run, out, which=which, adapter=adapter)):
        typer.echo(f"{out / name}  {size:,} bytes")


def predict(
    run: Run,
    fasta: Annotated[Path, typer.Option("--fasta", metavar="FILE", help="Sequences to predict structures for.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for mmCIF and PDB files.")],
    msa: Annotated[
        Path | None, typer.Option("--msa", metavar="DIR", help="Folder of alignments named NAME.a3m or NAME.sto.")
    ] = None,
    overrides: Overrides = None,
    which: Annotated[str, typer.Option("--checkpoint", help="best, latest or a step number.")] = "best",
    check_memory: Annotated[
        bool,
        typer.Option(
            "--memory-check/--no-memory-check",
            help="Skip records that need more memory than is free, or try them anyway.",
        ),
    ] = True,
) -> None:
    """Predict structures. pLDDT is in the B-factor column; OUT/summary.json lists the result of each record.

    A record that fails is reported, and the remaining records are still predicted. Exit code 0: all records were
    predicted. 1: some failed. 2: the input could not be read, or no record was attempted.
    """
    from ds4sci.inference import predict as command

    summary = command.predict_run(
        run, fasta, out, msa, which=which, overrides=overrides or (), check_memory=check_memory
    )
    for path in command.written_files(summary, out):
        typer.echo(path)
    failed = command.failures(summary)
    for line in failed:
        typer.secho(f"failed: {line}", fg="red", err=True)
    if failed:
        raise typer.Exit(1)


def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, such as runs/quickstart.")]) -> None:
    """Write RUN/report.html: one self-contained page with learning curves, scores and figures."""
    from ds4sci.report.report import write_report

    typer.echo(write_report(run))

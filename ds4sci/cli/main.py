"""The command ``ds4sci``: parse, call, print. A command imports what it needs when it runs, so that help is quick."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ds4sci.cli.bench import Overrides, bench_app

app = typer.Typer(
    help="Train protein-structure models on DeepSpeed, on any machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Prepare training data.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")

Run = Annotated[Path, typer.Option("--run", help="Run folder, such as runs/quickstart.", metavar="RUN")]


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False) -> None:
    """Options of every command. ``main`` reads ``--debug`` itself: it must also know when parsing fails."""


@app.command()
def train(
    config: Annotated[str | None, typer.Argument(metavar="CONFIG", help="Run file (TOML).", show_default=False)] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]…", help="Such as train.steps=10.", show_default=False)
    ] = None,
    resume: Annotated[Path | None, typer.Option("--resume", metavar="RUN", help="Go on with this run.")] = None,
    deepspeed_config: Annotated[
        Path | None, typer.Option("--deepspeed_config", metavar="JSON", help="Replaces the JSON the run file names.")
    ] = None,
    ranks: Annotated[
        int | None, typer.Option("--ranks", min=1, help="Processes; default: one per GPU, two on a CPU.")
    ] = None,
) -> None:
    """Train what a run file says, or go on with a run: --resume needs nothing else."""
    changes = list(overrides or [])
    if config is not None and "=" in config and resume is not None:
        changes, config = [config, *changes], None
    if config is None and resume is None:
        raise ValueError("say what to train: `ds4sci train CONFIG`, or `ds4sci train --resume RUN`")
    from ds4sci.train import launch

    raise typer.Exit(launch.train(config, changes, resume=resume, deepspeed_config=deepspeed_config, ranks=ranks))


@app.command("eval")
def evaluate(
    run: Run,
    json: Annotated[Path, typer.Option("--json", metavar="OUT", help="Where every figure goes.")],
    chains: Annotated[
        Path | None, typer.Option("--chains", metavar="FILE.npz", help="fold: chain set with the true structures.")
    ] = None,
    fasta: Annotated[
        Path | None, typer.Option("--fasta", metavar="FILE", help="Language models: nats per residue of its sequences.")
    ] = None,
    variants: Annotated[
        Path | None,
        typer.Option("--variants", metavar="CSV", help="Effects of variants of the one sequence in --fasta."),
    ] = None,
    contacts: Annotated[
        Path | None,
        typer.Option("--contacts", metavar="FILE.npz", help="Contacts from attention, on known structures."),
    ] = None,
    marginal: Annotated[str, typer.Option("--marginal", help="Of --variants: masked or wildtype.")] = "masked",
    ngrams: Annotated[bool, typer.Option("--ngrams", help="Beside n-gram models of the training data.")] = False,
    overrides: Overrides = None,
    which: Annotated[str, typer.Option("--checkpoint", help="best, latest, a step, or (fold) untrained.")] = "best",
) -> None:
    """Score a run: structures of a chain set (fold); sequences, variants, contacts (language models); unseen functions
    (operator), which need no file."""
    if sum(x is not None for x in (chains, contacts, fasta)) > 1:
        raise ValueError("say what to score: one of --chains (fold), --fasta or --contacts (language models)")
    if variants is not None and fasta is None:
        raise ValueError("--variants needs --fasta with the sequence that they are variants of")
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


@app.command()
def embed(
    run: Run,
    fasta: Annotated[Path, typer.Option("--fasta", metavar="FILE", help="Sequences, of any length.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New folder for safetensors and index.json.")],
    ranks: Annotated[int, typer.Option("--ranks", min=1, help="Processes that share each sequence.")] = 1,
    mean: Annotated[bool, typer.Option("--mean", help="One vector a sequence: the mean over its tokens.")] = False,
    which: Annotated[str, typer.Option("--checkpoint", help="best, latest or a step.")] = "best",
) -> None:
    """Embed sequences with a language model: the last hidden state of every token, or their mean."""
    from ds4sci.inference.embed import INDEX
    from ds4sci.inference.embed import embed as write

    count = write(run, fasta, out, which=which, ranks=ranks, mean=mean)
    told = json.loads((out / INDEX).read_text(encoding="utf-8"))
    unread = f"; no vector for {', '.join(told['silent'])}" if told["silent"] else ""
    typer.echo(f"{count} sequences in {out}: {told['read']:,} of {told['given']:,} residues read{unread}")


@app.command()
def export(
    run: Run,
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="New folder.")],
    which: Annotated[str, typer.Option("--checkpoint", help="best, latest or a step.")] = "best",
    adapter: Annotated[bool, typer.Option("--adapter", help="The adapters alone, as peft reads them.")] = False,
) -> None:
    """Write a language model's weights, config and tokenizer as a Hugging Face folder."""
    from ds4sci.inference.export import export_run, files

    for name, size in files(export_run(run, out, which=which, adapter=adapter)):
        typer.echo(f"{out / name}  {size:,} bytes")


@app.command()
def predict(
    run: Run,
    fasta: Annotated[Path, typer.Option("--fasta", metavar="FILE", help="Sequences to fold.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for mmCIF and PDB files.")],
    msa: Annotated[
        Path | None, typer.Option("--msa", metavar="DIR", help="Alignments named NAME.a3m or NAME.sto.")
    ] = None,
    overrides: Overrides = None,
    which: Annotated[str, typer.Option("--checkpoint", help="best, latest or a step.")] = "best",
    check_memory: Annotated[
        bool,
        typer.Option(
            "--memory-check/--no-memory-check", help="Refuse a record that needs more memory than is free, or try it."
        ),
    ] = True,
) -> None:
    """Predict structures, with pLDDT in the B-factor column; OUT/summary.json tells what became of each record.

    A record that fails is named and the others go on. Exit code 0: all were predicted. 1: some failed. 2: nothing could
    be read, or nothing was attempted.
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


@app.command()
def report(run: Annotated[Path, typer.Argument(metavar="RUN")]) -> None:
    """Write RUN/report.html: one self-contained page of curves, scores and pictures."""
    from ds4sci.report.report import write_report

    typer.echo(write_report(run))


@data_app.command("build")
def data_build(
    source: Annotated[Path, typer.Argument(metavar="SRC_DIR", help="Folder of mmCIF or PDB files, plain or gzipped.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.npz")],
    msa: Annotated[Path | None, typer.Option("--msa", metavar="DIR", help="Alignments named ID.a3m or ID.sto.")] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Processes; default: the cores.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]…", help="Such as max_length=512 or max_resolution=3.", show_default=False),
    ] = None,
) -> None:
    """Make a chain set from structure files; restartable, with a report of what was refused and why."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ds4sci.data.structures.build import BuildSettings, build

    given = dict(pair(text) for text in settings or [])
    for key in given:
        if key not in BuildSettings.model_fields:
            raise ValueError(f"no setting {key!r}; there are: {', '.join(BuildSettings.model_fields)}")
    chosen = BuildSettings.model_validate(given)
    columns = (TextColumn("reading structures"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("")
        done = build(
            source,
            out,
            msa_dir=msa,
            jobs=jobs,
            settings=chosen,
            progress=lambda seen, files: bar.update(task, completed=seen, total=files),
        )
    typer.echo(done.summary())


@data_app.command("index")
def data_index(
    paths: Annotated[list[Path], typer.Argument(metavar="FASTA… OUT_DIR", help="Sequence files, then the new store.")],
    alphabet: Annotated[str, typer.Option("--alphabet", help="auto, protein or dna.")] = "auto",
    bad: Annotated[
        str, typer.Option("--bad", help="A record that cannot be read: error, or skip and count.")
    ] = "error",
    max_length: Annotated[int | None, typer.Option("--max-length", min=1, help="Residues of a record.")] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Processes; default: the cores.")] = None,
) -> None:
    """Index FASTA, FASTQ or GenBank files (plain, gz, bgz) into a memory-mapped store; restartable."""
    from ds4sci.data.sequences import index

    if len(paths) < 2:
        raise ValueError("name the files and, last, the folder of the store: ds4sci data index FASTA… OUT_DIR")
    done = index(paths[:-1], paths[-1], alphabet=alphabet, bad=bad, max_length=max_length, jobs=jobs)  # type: ignore[arg-type]
    typer.echo(str(done))


@data_app.command("split")
def data_split(
    chains: Annotated[Path, typer.Argument(metavar="CHAINS.npz|STORE", help="Chain set, or what data index made.")],
    train_out: Annotated[Path, typer.Argument(metavar="TRAIN")],
    valid_out: Annotated[Path, typer.Argument(metavar="VALID")],
    fraction: Annotated[float, typer.Option(help="Share for validation.")] = 0.1,
    identity: Annotated[float, typer.Option(help="Proteins at least this alike stay together.")] = 0.3,
    seed: Annotated[int, typer.Option(help="Draws which clusters or records go to validation.")] = 0,
) -> None:
    """Part sequences for training and validation: proteins by clusters of identity, genomes by whole records."""
    if chains.is_dir():
        from ds4sci.data.clustering.sequence_split import split_store
        from ds4sci.data.sequences import SequenceStore

        for store in split_store(SequenceStore.open(chains), train_out, valid_out, fraction, identity, seed):
            typer.echo(f"{store.folder}: {len(store):,} records, {store.total:,} residues")
        return
    from ds4sci.data.clustering.chain_split import split
    from ds4sci.data.structures.chain_set import ChainSet

    records = ChainSet.open(chains)
    sides = split(records, fraction, identity, seed)
    for out, side in zip((train_out, valid_out), sides, strict=True):
        ChainSet.write(out, [records[index] for index in side])
        typer.echo(f"{out}: {len(side)} chains")


@data_app.command("leakage")
def data_leakage(
    train_set: Annotated[Path, typer.Argument(metavar="TRAIN.npz|STORE")],
    valid_set: Annotated[Path, typer.Argument(metavar="VALID.npz|STORE")],
    identity: Annotated[
        float | None, typer.Option(help="At least this alike are relatives. Default: 0.3; of stores of DNA 0.9.")
    ] = None,
) -> None:
    """List validation sequences that have relatives in the training set; exit code 1 if there are any."""
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
    for one in pairs:
        typer.echo(f"{one.train}\t{one.valid}\t{one.identity:.0%}")
    for warning in caught:
        typer.echo(f"warning: {warning.message}", err=True)
    if pairs:
        raise typer.Exit(1)
    typer.echo("no relatives" if identity is None else f"no relatives of {identity:.0%} identity or more")


def pair(text: str) -> tuple[str, str]:
    """``KEY=VALUE`` in two. Raises ValueError when there is no ``=``."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r}: expected KEY=VALUE, such as max_length=512")
    return key, value


@app.command()
def doctor(json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Say what this machine has, what would run on it, and how to get what is missing."""
    from ds4sci.cli.doctor import examine

    findings = examine()
    if json:
        from json import dumps

        typer.echo(dumps([asdict(finding) for finding in findings], indent=1))
    else:
        show_findings(findings)
    raise typer.Exit(1 if any(finding.level == "problem" for finding in findings) else 0)


def show_findings(findings: list[Any]) -> None:
    """The doctor's report on the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = 140
    marks = {"ok": Text("ok", "green"), "optional": Text("–", "yellow"), "problem": Text("!!", "bold red")}
    for section in dict.fromkeys(finding.section for finding in findings):
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(no_wrap=True, min_width=2)
        table.add_column(no_wrap=True, min_width=26)
        table.add_column(overflow="fold")
        for finding in (f for f in findings if f.section == section):
            table.add_row(marks[finding.level], finding.name, Text(finding.detail))
            if finding.level != "ok" and finding.remedy:
                table.add_row("", "", Text(f"→ {finding.remedy}", "cyan"))
        console.print(Text(section, "bold"))
        console.print(table)


def main(arguments: list[str] | None = None) -> None:
    """Entry point. What a user can mend is one clear message and exit code 2; ``--debug`` shows the traceback."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    try:
        app(args=[a for a in given if a != "--debug"], prog_name="ds4sci")
    except (ValueError, OSError) as error:
        if debug:
            raise
        typer.secho(f"ds4sci: {message(error)}", fg="red", err=True)
        raise SystemExit(2) from None


def message(error: Exception) -> str:
    """An error in words; pydantic's many-lined ones become one line for each key."""
    problems = getattr(error, "errors", None)
    if not callable(problems):
        return str(error)
    lines = []
    for problem in problems(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        lines.append(f"{key} = {problem['input']!r}: {problem['msg']}")
    return "\n".join(lines)

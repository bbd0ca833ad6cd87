"""``ds4sci bench …``: parse, measure, print. What is measured, and how, is in the ``bench`` modules."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ds4sci.cli.train import Overrides

bench_app = typer.Typer(help="Measure speed; every result is JSON with machine and commit.", no_args_is_help=True)


@bench_app.command("data")
def bench_data(
    config: Annotated[str, typer.Argument(metavar="CONFIG")] = "configs/fold/tiny_cpu.toml",
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the JSON.")] = Path("benchmarks"),
) -> None:
    """Samples/s of the loader alone against the training step."""
    from ds4sci.bench.measurement import loading

    show_measurement(loading(config, overrides or []), out)


@bench_app.command("parse")
def bench_parse(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of mmCIF files.")] = Path(
        "tests/fixtures/mmcif"
    ),
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the JSON.")] = Path("benchmarks"),
) -> None:
    """Entries/s of the mmCIF readers, side by side."""
    from ds4sci.bench.measurement import parsing

    show_measurement(parsing(folder), out)


@bench_app.command("kernels")
def bench_kernels(
    json: Annotated[Path, typer.Option("--json", metavar="OUT", help="Where every figure goes.")],
    op: Annotated[
        str, typer.Option("--op", metavar="NAME", help="An operation of ds4sci.kernels, all, or evoformer_block.")
    ] = "evoformer_attention",
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    case: Annotated[
        list[str] | None, typer.Option("--case", metavar="NAME", help="This case alone; repeatable.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke test, not a measurement.")] = False,
) -> None:
    """An operation's implementations beside torch's ways: time, peak memory, share of the machine's limit."""
    from ds4sci.bench import evoformer_attention, evoformer_block, kernel_op, varlen_attention
    from ds4sci.bench.tables import section
    from ds4sci.config import renamed

    known = ["evoformer_attention", "varlen_attention", *dict.fromkeys(p.operation for p in kernel_op.PROBLEMS), "all"]
    if (new_name := renamed.new_value("--op", op)) is not None:
        raise ValueError(renamed.value_message("--op", op, new_name))
    if op not in (*known, "evoformer_block"):
        raise ValueError(f"--op {op}: measured are: {', '.join((*known, 'evoformer_block'))}")
    if op == "evoformer_block":
        measured = evoformer_block.run(device, quick=quick, out=json)
    elif op == "evoformer_attention":
        measured = evoformer_attention.run(device, quick=quick, out=json, cases=case or ())
    elif op == "varlen_attention":
        measured = varlen_attention.run(device, quick=quick, out=json)
    else:
        measured = kernel_op.run(op, device, quick=quick, out=json)
    typer.echo(section(asdict(measured)))
    typer.echo(f"wrote {json}")
    if not quick and not case and op.startswith("evoformer"):
        from ds4sci.bench.plot import plot

        typer.echo(f"wrote {plot(json)}")


@bench_app.command("commits")
def bench_commits(
    against: Annotated[str, typer.Option("--against", metavar="COMMIT", help="A commit, or a checkout's folder.")],
    json: Annotated[Path, typer.Option("--json", metavar="OUT", help="Where every figure goes.")],
    case: Annotated[
        list[str] | None, typer.Option("--case", metavar="PART", help="Cases with this in their name; repeatable.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns of each checkout.")] = 7,
) -> None:
    """The kernels beside those of another commit, A B A B: time and peak memory, geometric mean and worst case."""
    from ds4sci.bench.commits import run
    from ds4sci.bench.tables import section

    typer.echo(section(asdict(run(against, out=json, only=case or (), rounds=rounds))))
    typer.echo(f"wrote {json}")


@bench_app.command("esmfold")
def bench_esmfold(
    json: Annotated[Path, typer.Option("--json", metavar="OUT", help="Where every figure goes.")],
    n: Annotated[
        list[int] | None, typer.Option("--n", min=2, help="Residues; repeatable. Default: 64, 128, 256.")
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option("--dtype", metavar="NAME", help="float32 or bfloat16; repeatable. Default: both."),
    ] = None,
    blocks: Annotated[int, typer.Option("--blocks", min=1, help="Blocks of the trunk.")] = 2,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="A smoke test, not a measurement.")] = False,
) -> None:
    """Blocks of ESMFold's trunk, plain beside patched: time and peak memory."""
    from ds4sci.bench.esmfold import run
    from ds4sci.bench.tables import section

    measured = run(n or (), dtype or (), out=json, blocks=blocks, device=device, quick=quick)
    typer.echo(section(asdict(measured)))
    typer.echo(f"wrote {json}")


@bench_app.command("sequences")
def bench_sequences(
    files: Annotated[list[Path], typer.Argument(metavar="FASTA…", help="Plain FASTA files.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the JSON.")] = Path("benchmarks"),
) -> None:
    """MB/s of indexing and reads/s beside Biopython and pyfaidx."""
    from ds4sci.bench.sequence_files import measure

    show_measurement(measure(files), out)


@bench_app.command("packing")
def bench_packing(
    config: Annotated[str, typer.Argument(metavar="CONFIG")] = "configs/lm/protein_tiny.toml",
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the JSON.")] = Path("benchmarks"),
) -> None:
    """Training steps on packed rows beside padded batches of the same sequences: real tokens/s."""
    from ds4sci.bench.packing import measure

    show_measurement(measure(config, overrides or []), out)


@bench_app.command("lm")
def bench_lm(
    json: Annotated[Path, typer.Option("--json", metavar="OUT", help="Where every figure goes.")],
    n: Annotated[list[int] | None, typer.Option("--n", min=64, help="Tokens of the row; repeatable.")] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", metavar="NAME", help="causal_lm or masked_lm; repeatable.")
    ] = None,
    longest: Annotated[bool, typer.Option("--longest/--no-longest", help="Search the longest row in 8 GB.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke test, not a measurement.")] = False,
) -> None:
    """A language model's training step by Hugging Face's Trainer and by ds4sci: time, peak memory, longest row."""
    from ds4sci.bench.lm_step import KINDS, run
    from ds4sci.bench.plot import plot
    from ds4sci.bench.tables import section

    for name in kind or ():
        if name not in KINDS:
            raise ValueError(f"--kind {name}: measured are {', '.join(KINDS)}")
    measured = run(n or (), out=json, kinds=kind or (), quick=quick, longest=longest)
    typer.echo(section(asdict(measured)))
    typer.echo(f"wrote {json}" + (f" and {plot(json)}" if len(n or (1, 2)) > 1 and not quick else ""))


@bench_app.command("zcs")
def bench_zcs(
    json: Annotated[Path, typer.Option("--json", metavar="OUT", help="Where every figure goes.")],
    quick: Annotated[bool, typer.Option("--quick", help="A smoke test, not a measurement.")] = False,
) -> None:
    """Derivatives by zero coordinate shift beside the ways before it: bytes kept, peak memory and time of a step."""
    from ds4sci.bench.plot import plot
    from ds4sci.bench.tables import section
    from ds4sci.bench.zcs import run

    measured = run(out=json, quick=quick)
    typer.echo(section(asdict(measured)))
    typer.echo(f"wrote {json} and {plot(json)}")


@bench_app.command("operators")
def bench_operators(
    names: Annotated[list[str] | None, typer.Argument(metavar="[EQUATION]…", show_default=False)] = None,
    folder: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Runs, scores and pictures.")] = Path(
        "runs/operators"
    ),
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the JSON.")] = Path("benchmarks"),
) -> None:
    """Train the equations of configs/operator, each to its end, and score unseen functions."""
    from ds4sci.bench.neural_operators import measure

    show_measurement(measure(names or (), folder=folder, out=out / "operators.json"), out)


@bench_app.command("step")
def bench_step(
    config: Annotated[str, typer.Argument(metavar="CONFIG")] = "configs/fold/small.toml",
    overrides: Overrides = None,
    crops: Annotated[str, typer.Option("--crops", help="Residues, comma between.")] = "64,128,192,256",
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="KEY=VALUE",
            help="Beside the same with this, or with `reference` for every kernel; one crop.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the JSON.")] = Path("benchmarks"),
) -> None:
    """Seconds and peak memory of a training step by crop length."""
    from ds4sci.bench.measurement import steps, steps_against

    if not all(part.isdigit() and int(part) > 0 for part in crops.split(",")):
        raise ValueError(f"--crops {crops!r}: expected lengths in residues with commas between, such as 64,128")
    lengths = [int(part) for part in crops.split(",")]
    if against and len(lengths) > 1:
        raise ValueError(f"--against compares at one crop; --crops names {len(lengths)}")
    measured = (
        steps_against(config, overrides or [], against, lengths[0])
        if against
        else steps(config, overrides or [], lengths)
    )
    show_measurement(measured, out)


def show_measurement(measurement: Any, out: Path) -> None:
    """A benchmark's table on the terminal; its JSON goes to ``out``."""
    from ds4sci.bench.tables import section

    typer.echo(section(asdict(measurement)))
    typer.echo(f"wrote {measurement.save(out)}")

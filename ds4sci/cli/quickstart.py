"""What ``launch/quickstart.sh`` runs: train the tiny fold model, score chains it never saw, fold a FASTA, show it all.

With ``--config configs/fold/cpu_hour.toml`` the same for a longer training.
Every stage leaves its result in ``runs/quickstart`` and is skipped when that result is there already; a training that
was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from ds4sci.bench.measurement import Measurement
from ds4sci.config import run_version
from ds4sci.config.run_file import RunConfig

CONFIG = Path("configs/fold/tiny_cpu.toml")
MANY_GPUS = Path("configs/deepspeed/tiny_gpus.json")
CHAINS = Path("examples/fold/data/chains_valid.npz")
FASTA = Path("examples/fold/example.fasta")
TRAIN_CHAINS = Path("examples/fold/data/chains_train.npz")
UNREFINED = ("data.evaluation_refinement=0", "data.evaluation_relaxation=0")
COLUMNS = {
    "lddt_ca": "lDDT-Cα",
    "tm_score": "TM-score",
    "gdt_ts": "GDT-TS",
    "rmsd": "RMSD (Å)",
    "right_handed": "right-handed helices",
    "bond_ok": "Cα–Cα bonds",
    "clash": "clashing residues",
}
SHARES = ("right_handed", "bond_ok", "clash")
"""Columns shown in per cent."""

Means = dict[str, float]


def position(run: Path) -> int:
    """Step of the newest checkpoint of a run; 0 when there is none."""
    latest = run / "checkpoints" / "latest"
    if not latest.exists():
        return 0
    folder = latest.parent / latest.read_text(encoding="utf-8").strip()
    return int(json.loads((folder / "state.json").read_text(encoding="utf-8"))["step"])


def same_settings(run: Path, wanted: RunConfig) -> bool:
    """Whether the run in the folder was made with the run file as it is now; the folder's name does not matter."""
    file = run / "config.json"
    if not file.exists():
        return False
    saved, asked = json.loads(file.read_text(encoding="utf-8")), wanted.resolved()
    if not run_version.is_readable(saved.pop(run_version.KEY, None)):
        return False
    for tree in (saved, asked):
        tree["deepspeed"] = ""
        tree["train"] = {key: value for key, value in tree["train"].items() if key not in ("name", "output")}
    return (
        saved == json.loads(json.dumps(asked))
        and wanted.deepspeed.read_bytes() == (run / "deepspeed.json").read_bytes()
    )


def train(say: Callable[[str], None], config: Path, run: Path, overrides: list[str]) -> None:
    """Bring ``run`` to its last step, doing no more than is missing. Raises ValueError when training fails."""
    import torch

    from ds4sci.train import launch

    # The tiny batch of 4 is 2 ranks × 2 chains; where there are more GPUs each takes 2.
    json_file = MANY_GPUS if config == CONFIG and torch.cuda.device_count() > 2 else None
    overrides = [*overrides, f"train.output={json.dumps(str(run.parent))}", f"train.name={run.name}"]
    wanted = RunConfig.load(config, overrides, deepspeed=json_file)
    done = position(run)
    if run.exists() and not (done and same_settings(run, wanted)):
        aside = run.with_name(f"{run.name}-{time.strftime('%Y%m%d-%H%M%S')}")
        run.rename(aside)
        say(f"{run} has no checkpoint of these settings: moved to {aside}")
        done = 0
    if done >= wanted.train.steps:
        say(f"[green]reused[/] the finished training in {run}; remove the folder to train anew")
        return
    ranks = launch.default_rank_count()
    what = f"--resume {run}" if done else f"--config {config} {' '.join(overrides)}"
    say(f"[bold]deepspeed --num_accelerators {ranks} launch/train.py {escape(what)}[/]")
    if done:
        code = launch.train(None, resume=run, ranks=ranks)
    else:
        code = launch.train(config, overrides, deepspeed_config=json_file, ranks=ranks)
    # A rank may still abort in gloo's teardown when everything is saved: the saved result counts, not the code.
    if position(run) < wanted.train.steps:
        raise ValueError(
            f"training ended with code {code} at step {position(run)} of {wanted.train.steps}, see above; "
            "the same command goes on from the last checkpoint"
        )


def kept(say: Callable[[str], None], path: Path, run: Path, make: Callable[[], object]) -> dict[str, Any]:
    """The JSON at ``path``; ``make`` writes it first, unless it is there and newer than the run's last checkpoint."""
    latest = run / "checkpoints" / "latest"
    if path.exists() and path.stat().st_mtime >= latest.stat().st_mtime:
        say(f"[green]reused[/] {path}")
    else:
        make()
    return json.loads(path.read_text(encoding="utf-8"))


def baselines(path: Path) -> None:
    """Measure what needs no model, learnt from the training chains, with a progress bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ds4sci.baselines import measure_baselines
    from ds4sci.files.atomic_files import replace_text

    columns = (TextColumn("measuring baselines"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("", total=None)
        result = measure_baselines(
            TRAIN_CHAINS, CHAINS, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(result) + "\n")


def stages(console: Console, config: Path, run: Path, overrides: list[str], *, record: bool) -> None:
    """Train, score, fold, report; each only as far as it is not done yet. Raises ValueError or OSError."""

    def say(text: str) -> None:
        console.print(text)

    say(f"[bold]1 · train[/]  {config} on {TRAIN_CHAINS}")
    train(say, config, run, overrides)

    from ds4sci.inference.evaluate import evaluate_run
    from ds4sci.inference.predict import predict_fasta
    from ds4sci.inference.trained_run import UNTRAINED, evaluation_files
    from ds4sci.report.run_report import write_report

    files = evaluation_files(run)
    chains = {"chains": CHAINS}
    say(f"[bold]2 · score[/]  the chains of {CHAINS}, which it never saw")
    trained = kept(say, files["held_out"], run, lambda: evaluate_run(run, files=chains))
    raw = run / "evaluations" / "unrefined.json"
    as_built = kept(say, raw, run, lambda: evaluate_run(run, raw, files=chains, overrides=UNREFINED))
    before = kept(say, files[UNTRAINED], run, lambda: evaluate_run(run, files=chains, which=UNTRAINED))
    simple = kept(say, files["baselines"], run, lambda: baselines(files["baselines"]))

    say(f"[bold]3 · fold[/]  the sequences of {FASTA}")
    folded = run / "predictions"
    kept(say, folded / "summary.json", run, lambda: list(predict_fasta(run, FASTA, folded)))

    say("[bold]4 · report[/]")
    page = write_report(run)
    rows = [("before training", before["mean"])]
    rows += [(entry["label"], entry["mean"]) for entry in simple["baselines"].values()]
    rows.append((f"trained, {trained['step']} steps, as the structure module builds it", as_built["mean"]))
    rows.append((f"trained, {trained['step']} steps", trained["mean"]))
    console.print(result_table(rows, trained=len(rows) - 1))
    result = measurement(rows, config, run)
    result.save(run)
    if record:
        say(f"wrote {result.save()}; python -m ds4sci.bench.tables takes it into README.md")
    say(f"structures: {folded}    report: {Path(page).resolve()}")


def result_table(rows: list[tuple[str, Means]], trained: int) -> Any:
    """The table at the end; ``trained`` is the row of the model."""
    from rich.table import Table

    table = Table(title="held-out chains at full length, means", title_justify="left", header_style="bold")
    table.add_column("")
    for header in COLUMNS.values():
        table.add_column(header, justify="right")
    for index, (name, means) in enumerate(rows):
        cells = [cell(key, means.get(key)) for key in COLUMNS]
        table.add_row(name, *cells, style="bold green" if index == trained else None)
    return table


def cell(key: str, value: float | None) -> str:
    """A score as people read it: shares in per cent, Å with one digit, the others with three."""
    if value is None:
        return "–"
    if key in SHARES:
        return f"{100 * value:.0f} %"
    return f"{value:.1f}" if key == "rmsd" else f"{value:.3f}"


def measurement(rows: list[tuple[str, Means]], file: Path, run: Path) -> Measurement:
    """The table as one of ``benchmarks/``, with how long the training took."""
    config = RunConfig.load(run / "config.json")
    state = json.loads((run / "checkpoints" / f"step_{position(run):06d}" / "state.json").read_text(encoding="utf-8"))
    return Measurement(
        name="quickstart" if file == CONFIG else file.stem,
        title=f"{'Quickstart' if file == CONFIG else f'`{file.stem}`'}: 160 held-out chains at full length, means",
        command="bash launch/quickstart.sh" + ("" if file == CONFIG else f" --config {file}"),
        columns=["method", *COLUMNS.values()],
        rows=[[name, *(cell(key, means.get(key)) for key in COLUMNS)] for name, means in rows],
        notes=[f"{config.train.steps} steps in {state['seconds'] / 60:.1f} minutes, seed {config.seed}, 2,000 chains"],
        machine=json.loads((run / "machine.json").read_text(encoding="utf-8")),
    )


def main(arguments: list[str] | None = None) -> int:
    """Every stage in order; returns the exit code."""
    parser = argparse.ArgumentParser(prog="quickstart.sh", description=__doc__.split("\n")[0])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the run file, such as train.steps=200")
    parser.add_argument("--config", type=Path, default=CONFIG, help="run file of the task fold (default: %(default)s)")
    parser.add_argument("--run", type=Path, help="folder of the run (default: runs/quickstart, or runs/ and its name)")
    parser.add_argument("--record", action="store_true", help="write the table to benchmarks/ too")
    options = parser.parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 140
    started = time.monotonic()
    try:
        run = options.run or Path("runs") / ("quickstart" if options.config == CONFIG else options.config.stem)
        stages(console, options.config, run, options.overrides, record=options.record)
    except (ValueError, OSError) as error:
        console.print(f"[red]quickstart:[/] {escape(str(error))}")
        return 2
    console.print(f"quickstart took {(time.monotonic() - started) / 60:.1f} minutes (without the environment)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Stages of ``launch/quickstart.sh``: train a small structure model, score held-out chains, predict a FASTA, report.

``--config configs/fold/cpu_hour.toml`` trains for longer. Every stage writes its result to ``runs/quickstart`` and is
skipped if the result already exists. An interrupted training resumes from its last checkpoint.
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
MANY_GPUS_JSON = Path("configs/deepspeed/tiny_gpus.json")
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
PERCENT_COLUMNS = ("right_handed", "bond_ok", "clash")
"""Columns shown as a percentage."""

Means = dict[str, float]


def last_step(run: Path) -> int:
    """Step of the last checkpoint of a run, or 0 without a checkpoint."""
    latest = run / "checkpoints" / "latest"
    if not latest.exists():
        return 0
    folder = latest.parent / latest.read_text(encoding="utf-8").strip()
    return int(json.loads((folder / "state.json").read_text(encoding="utf-8"))["step"])


def same_settings(run: Path, wanted: RunConfig) -> bool:
    """Whether the run was started with these settings. Its name and folder do not matter."""
    file = run / "config.json"
    if not file.exists():
        return False
    saved, current = json.loads(file.read_text(encoding="utf-8")), wanted.resolved()
    if not run_version.is_readable(saved.pop(run_version.KEY, None)):
        return False
    for tree in (saved, current):
        tree["deepspeed"] = ""
        tree["train"] = {key: value for key, value in tree["train"].items() if key not in ("name", "output")}
    return (
        saved == json.loads(json.dumps(current))
        and wanted.deepspeed.read_bytes() == (run / "deepspeed.json").read_bytes()
    )


def train(say: Callable[[str], None], config: Path, run: Path, overrides: list[str]) -> None:
    """Train ``run`` to its last step, starting or resuming it as needed. Raises ValueError if training fails."""
    import torch

    from ds4sci.train import launch

    # the batch of 4 is 2 ranks × 2 chains; with more GPUs, each takes 2 chains
    json_file = MANY_GPUS_JSON if config == CONFIG and torch.cuda.device_count() > 2 else None
    overrides = [*overrides, f"train.output={json.dumps(str(run.parent))}", f"train.name={run.name}"]
    wanted = RunConfig.load(config, overrides, deepspeed=json_file)
    done = last_step(run)
    if run.exists() and not (done and same_settings(run, wanted)):
        renamed = run.with_name(f"{run.name}-{time.strftime('%Y%m%d-%H%M%S')}")
        run.rename(renamed)
        say(f"{run} has no checkpoint with these settings; the folder was renamed to {renamed}")
        done = 0
    if done >= wanted.train.steps:
        say(f"[green]reused[/] the finished training in {run}; delete the folder to train again")
        return
    ranks = launch.default_rank_count()
    what = f"--resume {run}" if done else f"--config {config} {' '.join(overrides)}"
    say(f"[bold]deepspeed --num_accelerators {ranks} launch/train.py {escape(what)}[/]")
    if done:
        code = launch.train(None, resume=run, ranks=ranks)
    else:
        code = launch.train(config, overrides, deepspeed_config=json_file, ranks=ranks)
    # a rank may abort in gloo's teardown after everything is saved: the checkpoint decides, not the exit code
    if last_step(run) < wanted.train.steps:
        raise ValueError(
            f"training stopped at step {last_step(run)} of {wanted.train.steps} with exit code {code}, see the log "
            "above; run the same command again to resume from the last checkpoint"
        )


def load_or_make(say: Callable[[str], None], path: Path, run: Path, make: Callable[[], object]) -> dict[str, Any]:
    """JSON at ``path``. ``make`` writes it if it does not exist or is older than the last checkpoint of the run."""
    latest = run / "checkpoints" / "latest"
    if path.exists() and path.stat().st_mtime >= latest.stat().st_mtime:
        say(f"[green]reused[/] {path}")
    else:
        make()
    return json.loads(path.read_text(encoding="utf-8"))


def baselines(path: Path) -> None:
    """Measure the baselines, which use the training chains and no model, with a progress bar."""
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
    """Train, score, predict, report. Skips finished stages. Raises ValueError or OSError."""

    def say(text: str) -> None:
        console.print(text)

    say(f"[bold]1 · train[/]  {config} on {TRAIN_CHAINS}")
    train(say, config, run, overrides)

    from ds4sci.inference.evaluate import evaluate_run
    from ds4sci.inference.predict import predict_fasta
    from ds4sci.inference.trained_run import UNTRAINED, evaluation_files
    from ds4sci.report.prediction_page import write_prediction_page
    from ds4sci.report.run_report import write_report

    files = evaluation_files(run)
    chains = {"chains": CHAINS}
    say(f"[bold]2 · score[/]  the held-out chains of {CHAINS}")
    trained = load_or_make(say, files["held_out"], run, lambda: evaluate_run(run, files=chains))
    raw = run / "evaluations" / "unrefined.json"
    as_built = load_or_make(say, raw, run, lambda: evaluate_run(run, raw, files=chains, overrides=UNREFINED))
    before = load_or_make(say, files[UNTRAINED], run, lambda: evaluate_run(run, files=chains, which=UNTRAINED))
    simple = load_or_make(say, files["baselines"], run, lambda: baselines(files["baselines"]))

    say(f"[bold]3 · predict[/]  the sequences of {FASTA}")
    folded = run / "predictions"
    load_or_make(say, folded / "summary.json", run, lambda: list(predict_fasta(run, FASTA, folded)))

    say("[bold]4 · report[/]")
    report, structures = write_report(run), write_prediction_page(folded)
    rows = [("before training", before["mean"])]
    rows += [(entry["label"], entry["mean"]) for entry in simple["baselines"].values()]
    rows.append((f"trained, {trained['step']} steps, without refinement", as_built["mean"]))
    rows.append((f"trained, {trained['step']} steps", trained["mean"]))
    console.print(result_table(rows, trained=len(rows) - 1))
    result = measurement(rows, config, run)
    result.save(run)
    if record:
        say(f"wrote {result.save()}; python -m ds4sci.bench.tables adds it to README.md and docs/results.md")
    say(f"report: {report.resolve()}")
    say(f"structures: {structures.resolve()}")


def result_table(rows: list[tuple[str, Means]], trained: int) -> Any:
    """Final table. ``trained`` is the index of the model's row."""
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
    """Score as text: percentages without decimals, Å with one decimal, other scores with three."""
    if value is None:
        return "–"
    if key in PERCENT_COLUMNS:
        return f"{100 * value:.0f} %"
    return f"{value:.1f}" if key == "rmsd" else f"{value:.3f}"


def measurement(rows: list[tuple[str, Means]], file: Path, run: Path) -> Measurement:
    """The table as a JSON file for ``benchmarks/``, with the duration of the training."""
    config = RunConfig.load(run / "config.json")
    state = json.loads((run / "checkpoints" / f"step_{last_step(run):06d}" / "state.json").read_text(encoding="utf-8"))
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
    """Run all stages. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="quickstart.sh", description=__doc__.split("\n")[0])
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings that replace those of the run file, such as train.steps=200",
    )
    parser.add_argument("--config", type=Path, default=CONFIG, help="run file of task fold (default: %(default)s)")
    parser.add_argument(
        "--run", type=Path, help="run folder (default: runs/quickstart, or runs/NAME for another run file)"
    )
    parser.add_argument("--record", action="store_true", help="also write the table to benchmarks/")
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
    console.print(f"quickstart took {(time.monotonic() - started) / 60:.1f} minutes (without installation)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

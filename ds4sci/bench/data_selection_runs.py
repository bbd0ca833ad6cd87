"""Study of data selection in whole trainings: a run file at several batch sizes, on all data and on a part of it.

For each batch size and seed, runs of as many samples (and so as many steps) are trained

    full     on all training samples
    random   on a random part: the control
    lowest   on the part with the lowest score

with learning rate, schedule and decay of the averaged weights scaled to the batch (``ds4sci.select.batch_scaling``).
The score is that of all samples after a short run of another seed on all data. Quality is that of the last evaluation.
λ_max is the largest eigenvalue of the Hessian of the loss, on samples of the run's own training data and on fixed
held-out ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from ds4sci.bench.data_selection import KEPT, summarize
from ds4sci.bench.measurement import Measurement, write
from ds4sci.bench.registry import JsonFile, Overrides, RunFile, show
from ds4sci.config.number_lists import whole_numbers
from ds4sci.config.run_file import RunConfig
from ds4sci.files import atomic_files
from ds4sci.inference.trained_run import TrainedRun
from ds4sci.machine.processor import usable_cores
from ds4sci.report.run_artifacts import read_artifacts
from ds4sci.select import landscape, landscape_page, scoring
from ds4sci.select.batch_scaling import scale_to_batch
from ds4sci.tasks.build import build_task, default_kernels
from ds4sci.train import launch

COMMAND = "data_selection_runs"
METHODS = ("full", "random", "lowest")
SCORING_SEED = 1000


@dataclass(frozen=True)
class Study:
    """What to train.

    file, overrides  the run file and settings over it
    score            the score of ``lowest``: loss, el2n, gradient_norm or gradient_norm_full
    part             of the steps, after which the samples are scored
    batches          samples per step
    seeds            number of seeds, from 0
    samples          of each kind for λ_max
    iterations       most products of a power iteration
    folder           of the runs; what is there already is used
    """

    file: str
    overrides: tuple[str, ...]
    score: str
    part: float
    batches: tuple[int, ...]
    seeds: int
    samples: int
    iterations: int
    folder: Path


@dataclass(frozen=True)
class Training:
    """One run: its batch, method and seed, and the steps after which it ends, None for those of its schedule."""

    batch: int
    method: str
    seed: int
    end: int | None = None

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return f"{self.method}_batch_{self.batch}_seed_{self.seed}"


def run(study: Study, base: RunConfig, metric: str, log: Callable[[str], None]) -> list[dict[str, Any]]:
    """Train all runs, as many at once as there are cores, one rank each; return a row of figures for each.

    base    the run file with its overrides
    metric  of an evaluation, which is the quality

    Raises RuntimeError, naming the log, if a training fails. A study that was interrupted continues.
    """
    batch = int(base.deepspeed_config()["train_batch_size"])
    first = Training(batch, "full", SCORING_SEED, max(1, round(study.part * base.train.steps)))
    train_all(study, base, [first], log)
    scores = study.folder / f"{study.score}.npz"
    if not scores.exists():
        scoring.score_runs([study.folder / first.name], scores, wanted=(study.score,), which="latest", shown=True)
    trainings = [Training(*one) for one in product(study.batches, METHODS, range(study.seeds))]
    train_all(study, base, trainings, log)
    return [measure(study, metric, one) for one in trainings]


def train_all(study: Study, base: RunConfig, trainings: list[Training], log: Callable[[str], None]) -> None:
    """Train runs side by side. Runs that are finished are left as they are, others resume."""
    at_once = min(usable_cores(), len(trainings))
    variables = launch.rank_environment(at_once)
    for start in range(0, len(trainings), at_once):
        group = trainings[start : start + at_once]
        log(f"training {', '.join(one.name for one in group)}")
        launches = [
            launch.Launch(
                launch.launcher_command(1, arguments(study, base, one)), dict(variables),
                study.folder / f"{one.name}.log",
            )
            for one in group
        ]  # fmt: skip
        for one, code in zip(launches, launch.run_launchers(launches), strict=True):
            if code:
                raise RuntimeError(f"a training ended with exit code {code}; see {one.log}")


def arguments(study: Study, base: RunConfig, one: Training) -> list[str]:
    """The arguments of ``python -m ds4sci.train`` for a run; its DeepSpeed JSON is written into the study's folder."""
    tree = base.deepspeed_config()
    factor = one.batch / int(tree["train_batch_size"])
    scaled, _ = scale_to_batch(tree, one.batch)
    study.folder.mkdir(parents=True, exist_ok=True)
    json_file = study.folder / f"batch_{one.batch}.json"
    atomic_files.replace_text(json_file, json.dumps(scaled, indent=1) + "\n")
    steps = one.end or round(base.train.steps / factor)
    settings = {
        "seed": one.seed, "train.steps": steps, "train.evaluate_every": steps, "train.name": one.name,
        "train.output": str(study.folder),
    }  # fmt: skip
    if base.train.ema_decay:
        settings["train.ema_decay"] = base.train.ema_decay**factor
    if base.benchmark is not None:  # a target that is reached would end the run
        settings["benchmark.target"] = 1e9 if base.benchmark.direction == "higher" else -1e9
    if one.method != "full":
        settings |= {"data.selection.fraction": KEPT, "data.selection.seed": one.seed}
        settings["data.selection.keep"] = one.method
    if one.method == "lowest":
        settings |= {"data.selection.scores": str(study.folder / f"{study.score}.npz")}
        settings["data.selection.score"] = study.score
    given = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return ["--config", study.file, "--deepspeed_config", str(json_file), *study.overrides, *given]


def measure(study: Study, metric: str, one: Training) -> dict[str, Any]:
    """Quality and λ_max of a finished run."""
    folder = study.folder / one.name
    last = read_artifacts(folder).evaluations[-1]
    found = {
        "noise": 0.0, "batch": one.batch, "method": one.method, "seed": one.seed, "steps": last["step"],
        "quality": last[metric],
    }  # fmt: skip
    return found | dict(curvature(study, folder))


def curvature(study: Study, folder: Path) -> Iterator[tuple[str, float]]:
    """λ_max on each kind of data, and how well it has converged: ‖Hv − λv‖ / |λ|."""
    for split, _ in landscape_page.SPLITS:
        trained = TrainedRun.load(folder, "latest")
        with default_kernels(trained.config):
            surface = landscape_page.surface_of(trained, split, study.samples)
            found = landscape.curvature(surface, iterations=study.iterations, probes=0, tolerance=1e-2)
        yield f"lambda_{split}", found.largest
        yield f"residual_{split}", found.residual


def quality_of(config: RunConfig) -> str:
    """The metric of the benchmark, or that which chooses the best checkpoint."""
    return config.benchmark.metric if config.benchmark is not None else build_task(config).target


def command(
    out: JsonFile,
    config: RunFile = "configs/benchmarks/protein_lm.toml",
    overrides: Overrides = None,
    score: Annotated[str, typer.Option("--score", help="loss, el2n, gradient_norm, gradient_norm_full.")] = "el2n",
    batches: Annotated[str, typer.Option("--batches", metavar="N,N,…", help="Samples per step.")] = "8,32",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeds of each.")] = 1,
    part: Annotated[float, typer.Option("--part", help="Part of the steps before the samples are scored.")] = 0.2,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Samples of each kind for λ_max.")] = 8,
    iterations: Annotated[int, typer.Option("--iterations", min=2, help="Most products for a λ_max.")] = 20,
) -> None:
    """Data selection in whole trainings of a run file: quality and curvature by batch size, with the random control."""
    from ds4sci.bench.plot import plot

    if not 0 < part <= 1:
        raise ValueError(f"--part {part:g}: expected a number above 0, up to 1")
    study = Study(
        config, tuple(overrides or ()), score, part, whole_numbers("--batches", batches), seeds, samples, iterations,
        out.with_suffix(".runs").absolute(),
    )  # fmt: skip
    base = RunConfig.load(study.file, study.overrides)
    metric, name = quality_of(base), Path(config).stem
    runs = run(study, base, metric, typer.echo)
    columns = ["batch", "kept", metric, "± 95 %", "over random", "± 95 % ", "λ_max, training", "λ_max, held out"]
    measurement = Measurement(
        name=out.stem, title=f"Data selection: {name}, 80 % of the data kept",
        command=f"ds4sci bench data_selection_runs {' '.join([config, *study.overrides])} --score {score} --batches "
        f"{batches} --seeds {seeds} --part {part:g} --samples {samples} --iterations {iterations} --json OUT",
        columns=columns, rows=[row[1:] for row in summarize(runs)],
        notes=[
            f"lowest: without the fifth with the highest {score} after {part:.0%} of the steps of a run on all data; "
            f"as many steps for every method; {seeds} seed{'s' * (seeds > 1)}; quality of the last evaluation",
            f"λ_max by power iteration in fp64 on {samples} samples, at most {iterations} products; ‖Hv − λv‖ / |λ| "
            f"up to {max(max(one['residual_train'], one['residual_valid']) for one in runs):.2g}",
        ],
    )  # fmt: skip
    picture = out.with_suffix(".png").name
    study_json = asdict(study) | {"folder": study.folder.name}
    write(out, asdict(measurement) | {"runs": runs, "study": study_json, "quality": metric, "plot": picture})
    show(measurement, out, plot(out))

"""The commands ``ds4sci select``."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

CONVERGED = 0.1
"""Largest ‖Hv − λv‖ / |λ| of a λ_max that is reported without a remark."""

select_app = typer.Typer(
    help="Data selection and large batches: scores of training samples, and settings that follow the batch size.",
    no_args_is_help=True,
)


Ranks = Annotated[
    int, typer.Option("--ranks", min=1, help="Processes of this machine that share the samples, one per GPU or core.")
]


class Kept(Enum):
    """What ``[data.selection]`` keeps by a score."""

    lowest = "lowest"
    highest = "highest"
    middle = "middle"
    stratified = "stratified"


class ScalingRule(Enum):
    """Rules of the learning rate; see ``ds4sci.select.batch_scaling``."""

    linear = "linear"
    sqrt = "sqrt"
    none = "none"


def _check_output(out: Path, overwrite: bool) -> None:
    """Raise ValueError, before the work, if ``out`` cannot be written."""
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists; give another --out, or --overwrite")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out}: the folder {out.parent} does not exist; make it, or give another --out")


@select_app.command()
def scale(
    file: Annotated[Path, typer.Argument(metavar="JSON", help="DeepSpeed JSON to start from.")],
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples per step of the new JSON.")],
    out: Annotated[Path, typer.Option("--out", metavar="JSON", help="File to write.")],
    rule: Annotated[
        ScalingRule | None,
        typer.Option("--rule", help="Of the learning rate. Default: linear for SGD and LARS, sqrt for others."),
    ] = None,
    warmup_steps: Annotated[
        int | None, typer.Option("--warmup_steps", min=0, help="Default: the samples of the old warm-up.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
) -> None:
    """Write a DeepSpeed JSON for another batch size: learning rate, schedule and batch, for as many samples as before.

    The steps of the run file change as well; the command prints the factor.
    """
    from ds4sci.config import deepspeed_json
    from ds4sci.files.atomic_files import replace_text
    from ds4sci.select.batch_scaling import Rule, default_rule, scale_to_batch

    config = deepspeed_json.read(file)
    chosen: Rule = rule.value if rule else default_rule(config)
    try:
        scaled, changes = scale_to_batch(config, batch, rule=chosen, warmup_steps=warmup_steps)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    _check_output(out, overwrite)
    replace_text(out, json.dumps(scaled, indent=2) + "\n")
    typer.echo("\n".join([f"Learning rate: {chosen} rule", *changes]))
    factor = config["train_batch_size"] / batch
    typer.echo(f"{out}. For the same samples, multiply train.steps of the run file by {factor:g}")


@select_app.command()
def score(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders; scores are averaged over them.")],
    out: Annotated[Path, typer.Option("--out", metavar="NPZ", help="File of scores to write.")],
    scores: Annotated[
        list[str] | None,
        typer.Option("--score", help="loss, el2n, gradient_norm, gradient_norm_full, learnability. Default: loss."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", metavar="RUN", help="Run whose loss learnability subtracts.")
    ] = None,
    which: Annotated[str, typer.Option("--checkpoint", help="best, latest or a step.")] = "best",
    fraction: Annotated[
        float,
        typer.Option("--fraction", help="Part of the samples to score, drawn by --seed; `learn` predicts the others."),
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the part.")] = 0,
    ranks: Ranks = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
) -> None:
    """Score every training sample of trained runs, for ``[data.selection]`` of a run file.

    Each sample is scored on its own, in evaluation mode. The file is a .npz with the numbers and names of the samples.
    """
    import numpy as np

    from ds4sci.select.scoring import score_runs

    _check_output(out, overwrite)
    wanted = tuple(scores or ("loss",))
    if not 0 < fraction <= 1:
        raise ValueError(f"--fraction {fraction:g}: expected a number above 0, up to 1")
    found = score_runs(
        runs, out, wanted=wanted, reference=reference, which=which, fraction=fraction, seed=seed, shown=True,
        ranks=ranks,
    )  # fmt: skip
    for name, every in found.scores.items():
        values = every[~np.isnan(every)]
        typer.echo(f"{name}: mean {values.mean():.4g}, {values.min():.4g} to {values.max():.4g}, {len(values)} samples")
    typer.echo(out)


@select_app.command()
def report(
    file: Annotated[Path, typer.Argument(metavar="NPZ", help="File of scores.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="HTML", help="Default: beside the file.")] = None,
) -> None:
    """Write a page of a file of scores: distributions, agreement, and the samples with the lowest and highest ones."""
    from ds4sci.data import score_file
    from ds4sci.select.score_page import write_page

    typer.echo(write_page(score_file.read(file), out or file.with_suffix(".html")))


@select_app.command("filter")
def filter_samples(
    file: Annotated[Path, typer.Argument(metavar="NPZ", help="File of scores.")],
    keep: Annotated[Kept, typer.Option("--keep", help="Samples to keep.")],
    fraction: Annotated[float, typer.Option("--fraction", help="Fraction of the samples to keep, above 0 up to 1.")],
    out: Annotated[Path, typer.Option("--out", metavar="TSV", help="List to write: sample, name, score, kept.")],
    name: Annotated[str, typer.Option("--score", help="Name of the score.")] = "el2n",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of random choices.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
) -> None:
    """List which samples ``[data.selection]`` with these settings keeps, and print the section for a run file."""
    from ds4sci.data import score_file
    from ds4sci.data.sample_selection import SelectionConfig, kept_samples
    from ds4sci.files.atomic_files import replace_text

    _check_output(out, overwrite)
    config = SelectionConfig.model_validate(
        {"keep": keep.value, "fraction": fraction, "scores": file, "score": name, "seed": seed}
    )
    scores = score_file.read(file)
    names = [""] * len(scores.sample)
    for number, one in zip(scores.sample.tolist(), scores.name.tolist(), strict=True):
        if not 0 <= number < len(names):
            raise ValueError(f"{file}: sample {number} ({one}) of {len(names)}: the scores do not cover a whole set")
        names[number] = one
    kept = set(kept_samples(config, names).tolist())
    values = dict(zip(scores.sample.tolist(), scores.score(name).tolist(), strict=True))
    shown = [" ".join(one.split()) for one in names]  # a tab would add a column
    lines = [f"{i}\t{one}\t{values[i]:.9g}\t{int(i in kept)}" for i, one in enumerate(shown)]
    replace_text(out, "\n".join(["\t".join(("sample", "name", name, "kept")), *lines]) + "\n")
    typer.echo(f"{len(kept):,} of {len(names):,} samples kept; {out}")
    typer.echo(f'\n[data.selection]\nkeep = "{keep.value}"\nfraction = {fraction!r}\nscores = "{file.absolute()}"')
    typer.echo(f'score = "{name}"')
    typer.echo(f"seed = {seed}")


@select_app.command()
def landscape(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Default: RUN/landscape.")] = None,
    checkpoints: Annotated[
        list[str] | None,
        typer.Option("--checkpoint", help="best, latest or a step; repeat it to see a run. Default: best."),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Training and held-out samples, each.")] = 64,
    span: Annotated[float, typer.Option("--span", help="Length of the slices, in units of the weights.")] = 0.5,
    points: Annotated[int, typer.Option("--points", min=3, help="Points of the 1-D slice.")] = 21,
    grid: Annotated[int, typer.Option("--grid", min=0, help="Points of a side of the 2-D slice; 0 = none.")] = 9,
    iterations: Annotated[int, typer.Option("--iterations", min=2, help="Most products of the power iteration.")] = 100,
    ranks: Ranks = 1,
) -> None:
    """Curvature of the loss and slices through it, on the selected training data and on held-out data."""
    from ds4sci.select import landscape_page

    if not 0 < span < float("inf"):
        raise ValueError(f"--span {span:g}: expected a number above 0")
    if grid == 1:
        raise ValueError("--grid 1: a plane needs at least 2 points a side; 0 draws none")
    plan = landscape_page.Plan(tuple(checkpoints or ["best"]), samples, span, points, grid, iterations)
    measured = landscape_page.measure(run, plan, ranks=ranks)
    for one in measured["surfaces"]:
        typer.echo(
            f"step {one['step']:,}, {one['label']}: loss {one['loss']:.4g}, λ_max {one['largest']:.4g}, trace "
            f"{one['trace']:.4g} ± {one['trace_error']:.2g}"
            + ("; λ_max has not converged: increase --iterations" if one["residual"] > CONVERGED else "")
        )
    for path in landscape_page.write(measured, out or run / "landscape"):
        typer.echo(path)


@select_app.command()
def clusters(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Run file (TOML).")],
    out: Annotated[Path, typer.Option("--out", metavar="NPZ", help="File of scores to write.")],
    identity: Annotated[float, typer.Option("--identity", help="Sequence identity within a cluster.")] = 0.3,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
) -> None:
    """Weigh training proteins by 1 / size of their homology cluster, for ``[data.weights]`` of a run file."""
    from ds4sci.config.run_file import RunConfig
    from ds4sci.select.homology_weights import write_weights

    _check_output(out, overwrite)
    found = write_weights(RunConfig.load(config), identity, out)
    sizes = found.scores["cluster_size"]
    count = int(found.scores["cluster"].max()) + 1
    typer.echo(f"{len(sizes):,} samples in {count:,} clusters, the largest of {int(sizes.max()):,}; {out}")


@select_app.command()
def learn(
    file: Annotated[Path, typer.Argument(metavar="NPZ", help="File with the scores of a part of the samples.")],
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Run file (TOML) with the training sequences.")],
    out: Annotated[Path, typer.Option("--out", metavar="NPZ", help="File of scores to write.")],
    name: Annotated[str, typer.Option("--score", help="Score to predict.")] = "el2n",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the network and the folds.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
) -> None:
    """Predict a score of all training sequences from those of a part, by a small network on cheap features.

    Prints the rank correlation of predicted and given scores in cross-validation: below 0.5 the prediction says little.
    """
    from ds4sci.config.run_file import RunConfig
    from ds4sci.data import score_file
    from ds4sci.select.learned_scorer import learn as predict_scores

    _check_output(out, overwrite)
    found, correlation = predict_scores(RunConfig.load(config), score_file.read(file), name, out, seed=seed)
    typer.echo(f"{', '.join(found.scores)} of {len(found.sample):,} samples; rank correlation {correlation:.2f} in")
    typer.echo(f"cross-validation on {found.about['samples']:,} samples; {out}")

"""Benchmark of weights in 8 and 4 bits: size, quality and time of evaluations of trained runs, beside fp32 weights."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ds4sci.bench.measurement import Measurement, spread, write
from ds4sci.bench.registry import JsonFile, show
from ds4sci.inference.evaluate import evaluate_run
from ds4sci.inference.trained_run import TrainedRun
from ds4sci.machine.processor import usable_cores
from ds4sci.nn.quantized_weights import FORMATS, Format
from ds4sci.tasks import StructurePredictor


def command(
    runs: Annotated[list[Path], typer.Option("--run", metavar="RUN", help="Run folder of a language or fold model.")],
    json: JsonFile,
    fasta: Annotated[Path | None, typer.Option("--fasta", help="Sequences to score language models on.")] = None,
    chains: Annotated[Path | None, typer.Option("--chains", help="Chain set to score structure models on.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Evaluations with each format.")] = 3,
) -> None:
    """Weights in 8 and 4 bits: size, quality and time of evaluation, beside fp32 weights."""
    measurement = measure(runs, fasta, chains, rounds)
    write(json, asdict(measurement))
    show(measurement, json)


def measure(runs: list[Path], fasta: Path | None, chains: Path | None, rounds: int) -> Measurement:
    """Evaluate every run with every format, A B C A B C, on ``fasta`` (language models) or ``chains`` (structure)."""
    rows: list[list[Any]] = []
    for run in runs:
        results: dict[Format | None, list[dict[str, Any]]] = {None: [], **{format: [] for format in FORMATS}}
        files = _files(run, fasta, chains)
        for _ in range(rounds):
            for format, found in results.items():
                found.append(evaluate_run(run, files=files, quantize=format, show=False))
        exact = results[None][0]
        for format, found in results.items():
            score, before = _score(found[0]), _score(exact)
            seconds = [one["seconds"] for one in found]
            rows.append([
                exact["name"], format or "fp32", found[0]["weight_bytes"] / 1e6,
                exact["weight_bytes"] / found[0]["weight_bytes"], _metric(exact), score,
                f"{(score - before) / before:+.2%}", statistics.median(seconds), f"{spread(seconds):.0%}",
            ])  # fmt: skip
    names = " ".join(f"--run {run}" for run in runs)
    inputs = "".join(f" {key} {path}" for key, path in (("--fasta", fasta), ("--chains", chains)) if path is not None)
    return Measurement(
        name="quantized",
        title="Weights of linear layers in 8 and 4 bits, beside fp32",
        command=f"ds4sci bench quantized {names}{inputs} --rounds {rounds} --json quantized.json",
        columns=["run", "weights", "MB", "smaller", "metric", "value", "change", "seconds", "spread"],
        rows=rows,
        notes=[
            "MB: all parameters and buffers, embeddings, norms and heads included; seconds of an evaluation, in which "
            f"weights are decompressed where they are used; {usable_cores()} threads",
        ],
    )


def _files(run: Path, fasta: Path | None, chains: Path | None) -> dict[str, Path]:
    """The input that the task of ``run`` is evaluated on."""
    predicts = isinstance(TrainedRun.load(run).task, StructurePredictor)
    name, path = ("chains", chains) if predicts else ("fasta", fasta)
    if path is None:
        raise ValueError(f"{run}: give --{name}, which its models are scored on")
    return {name: path}


def _metric(result: dict[str, Any]) -> str:
    return "nats per residue" if "nats" in result else "lDDT-Cα"


def _score(result: dict[str, Any]) -> float:
    return float(result["nats"] if "nats" in result else result["mean"]["lddt_ca"])

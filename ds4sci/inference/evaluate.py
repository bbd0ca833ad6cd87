"""Evaluation of a trained run: selects one of the task's evaluations, runs it and writes the result."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from ds4sci.files.atomic_files import replace_text, replacing
from ds4sci.files.json_values import to_plain
from ds4sci.inference.trained_run import UNTRAINED, TrainedRun, evaluation_files
from ds4sci.machine import provenance
from ds4sci.nn.quantized_weights import Format, stored_bytes
from ds4sci.tasks.build import default_kernels
from ds4sci.tasks.evaluations import EvaluationRequest, EvaluationResult, select_evaluation
from ds4sci.train.progress import progress_bar


def evaluate_run(
    run: Path | str,
    out: Path | str | None = None,
    *,
    files: Mapping[str, Path | str] | None = None,
    options: Mapping[str, Any] | None = None,
    which: str = "best",
    overrides: Sequence[str] = (),
    quantize: Format | None = None,
    show: bool = True,
) -> dict[str, Any]:
    """Run the evaluation of the task that takes the input ``files``, and write ``out`` (JSON) atomically.

    files      input name → file, such as ``{"chains": "valid.npz"}``; see ``Task.evaluations``
    options    option name → value, such as ``{"ngrams": True}``
    which      ``best``, ``latest``, ``step_NNNNNN`` (or N), or ``untrained``: the weights before the first step
    overrides  ``key=value`` over the configuration of the run, such as ``data.evaluation_recycling=3``
    quantize   evaluate with weights in ``int8`` or ``nf4``; see ``TrainedRun.load``
    show       print a progress bar, a table of the result and the names of the files

    Returns what ``out`` holds: ``run``, ``name``, ``checkpoint``, ``step``, ``overrides``, ``quantize``,
    ``weight_bytes``, ``evaluation``, the values
    of the evaluation, ``machine``, ``commit``, ``finished`` and ``seconds``. Figures and other attachments are written
    beside ``out``. If the files are the run's own validation data and nothing is overridden, the files of
    ``evaluation_files`` are written too, so that the report shows them.

    Raises ValueError for a run, checkpoint or file that cannot be used, and for files or options that no evaluation of
    the task takes; the message then lists the evaluations.
    """
    paths = {name: Path(path) for name, path in (files or {}).items()}
    loaded = TrainedRun.load(run, which, overrides, quantize=quantize)
    try:
        name, evaluation = select_evaluation(loaded.task.evaluations(), set(paths), set(options or {}))
    except ValueError as error:
        raise ValueError(f"{run}, task {loaded.config.task.name}: {error}") from None
    began = time.monotonic()
    if show:
        for message in loaded.messages:
            print(message)
    request = EvaluationRequest(
        loaded.device, paths, options or {}, progress=lambda label, total: progress_bar(label, total, shown=show)
    )
    with default_kernels(loaded.config):
        result = evaluation.run(request)
    values = {
        "run": str(run), "name": loaded.name, "checkpoint": which, "step": loaded.step, "overrides": list(overrides),
        "quantize": quantize, "weight_bytes": stored_bytes(loaded.task.model),
        "evaluation": name, "machine": provenance.describe(), "commit": provenance.commit(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(time.monotonic() - began, 1),
    } | result.values  # fmt: skip
    written = [] if out is None else _write_result(Path(out), values, result)
    if result.is_validation and not overrides and quantize is None:
        _write_report_files(loaded, values, result)
    if show:
        console = Console(highlight=False, soft_wrap=True)
        if result.table is not None:
            console.print(result.table)
        for path in written:
            console.print(f"wrote {path}", markup=False)
    return values


def _write_result(out: Path, values: dict[str, Any], result: EvaluationResult) -> list[Path]:
    """Write the JSON file and its attachments; return their paths, the JSON file last."""
    out.parent.mkdir(parents=True, exist_ok=True)
    attachments = {out.with_suffix(suffix): write for suffix, write in result.attachments.items()}
    for path, write in attachments.items():
        with replacing(path, sync=False) as file:
            write(file)
    _write_json(out, values)
    return [*attachments, out]


def _write_report_files(loaded: TrainedRun, values: dict[str, Any], result: EvaluationResult) -> None:
    """Write the result on the run's validation data into the run folder."""
    files = evaluation_files(loaded.folder)
    target = {"best": files["held_out"], UNTRAINED: files[UNTRAINED]}.get(loaded.checkpoint)
    if target is None:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if loaded.checkpoint == "best":
        for name, write in result.report_files.items():
            with replacing(target.with_name(name), sync=False) as file:
                write(file)
    _write_json(target, values)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    replace_text(path, json.dumps(to_plain(values), indent=1, allow_nan=False) + "\n")

"""Evaluations of trained models: what each requires, how it is run and what it returns.

A task declares its evaluations in ``Task.evaluations``. ``ds4sci eval`` selects one by the input files on the command
line, runs it on the checkpoint, and writes the result. An evaluation opens no run and writes no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import torch

    from ds4sci.tasks.task import Task

ProgressBar = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""(label, total) → context that yields a function which advances the bar by one."""


FileWriter = Callable[[BinaryIO], object]
"""Function that writes the content of a file."""


@contextmanager
def no_progress(label: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar that shows nothing."""
    yield lambda: None


@dataclass(frozen=True)
class EvaluationRequest:
    """Arguments of an evaluation.

    device    of the model
    files     input name → file, such as ``{"fasta": Path("x.fa")}``
    options   option name → value, such as ``{"ngrams": True}``; options that were not given are absent
    progress  progress bar of a loop
    """

    device: torch.device
    files: Mapping[str, Path] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    progress: ProgressBar = no_progress


@dataclass(frozen=True)
class EvaluationResult:
    """Outcome of an evaluation.

    values         what goes into the JSON file, as plain values
    table          text or ``rich`` renderable for the terminal
    attachments    file suffix → function that writes the file, which is placed beside the JSON file (``scores.png``)
    is_validation  whether the inputs are the run's own validation data; the report of the run then shows the result
    report_files   file name → function that writes it into the run's ``evaluations`` folder, for the report; only
                   written if ``is_validation``
    """

    values: dict[str, Any]
    table: Any = None
    attachments: Mapping[str, FileWriter] = field(default_factory=dict)
    is_validation: bool = False
    report_files: Mapping[str, FileWriter] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation that a task offers.

    run      the function that evaluates the task's model
    inputs   names of the required input files, which are flags of ``ds4sci eval``: ``("fasta",)`` for ``--fasta``
    options  names of the optional flags
    """

    run: Callable[[EvaluationRequest], EvaluationResult]
    inputs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def usage(self) -> str:
        """Return the flags as on the command line: ``--fasta [--ngrams]``, or ``no input``."""
        flags = [*(f"--{name}" for name in self.inputs), *(f"[--{name}]" for name in self.options)]
        return " ".join(flags) or "no input"


def select_evaluation(
    evaluations: Mapping[str, Evaluation], inputs: set[str], options: set[str]
) -> tuple[str, Evaluation]:
    """Return the evaluation that requires exactly ``inputs``, with its name.

    Raises ValueError, listing the evaluations, if none does or if it does not take one of ``options``.
    """
    offered = "; ".join(f"{name} ({one.usage()})" for name, one in evaluations.items()) or "none"
    matching = [(name, one) for name, one in evaluations.items() if set(one.inputs) == inputs]
    if not matching:
        problem = (
            f"takes {', '.join(f'--{name}' for name in sorted(inputs))}" if inputs else "runs without an input file"
        )
        raise ValueError(f"no evaluation {problem}; this task has the evaluations: {offered}")
    name, evaluation = matching[0]
    if unknown := sorted(options - set(evaluation.options)):
        raise ValueError(
            f"the evaluation {name!r} does not take {', '.join(f'--{one}' for one in unknown)}; this task has the "
            f"evaluations: {offered}"
        )
    return name, evaluation


def held_out_evaluation(task: Task) -> Evaluation:
    """``Task.evaluate`` on the held-out data of the run, as during training.

    The result has ``mean`` (the metrics of ``Task.summarize``) and ``rows`` (one per example).
    """

    def run(request: EvaluationRequest) -> EvaluationResult:
        import torch

        with torch.no_grad():
            rows = task.evaluate(task.model, rank=0, world_size=1, device=request.device)
        means = {name: float(value) for name, value in task.summarize(rows).items()}
        table = "\n".join(f"{name}  {value:.4f}" for name, value in means.items())
        return EvaluationResult({"mean": means, "rows": rows}, table)

    return Evaluation(run)

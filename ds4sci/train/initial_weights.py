"""Initial weights of a run, ``train.weights``: loading, report, and the record with their origin and license."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ds4sci.config.run_file import TrainConfig
from ds4sci.files.atomic_files import fingerprint, replace_text
from ds4sci.models.published_weights.weight_file import RECORD, read_notice
from ds4sci.models.weight_fit import WeightFit
from ds4sci.nn.name_patterns import shortened
from ds4sci.tasks import PublishedWeights, Task
from ds4sci.train import checkpoint


@dataclass(frozen=True)
class InitialWeights:
    """Weights that a run started from.

    file        file that was read
    format      of the file, or empty for a task that reads files of ds4sci only
    fit         tensors that were loaded, left out, and kept
    parameters  number of parameters that were loaded
    notice      origin and license of the weights, or empty
    """

    file: Path
    format: str
    fit: WeightFit
    parameters: int
    notice: str

    def messages(self) -> Iterator[str]:
        """Yield lines for the log; the record has all names."""
        size = f"{len(self.fit.loaded):,} tensors ({self.parameters:,} parameters)"
        yield f"Initial weights: {size} from {self.file}{f' ({self.format})' if self.format else ''}"
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.fit.unused.items():
            by_reason.setdefault(reason, []).append(name)
        for reason, names in by_reason.items():
            kind = "WARNING" if reason.startswith("train.") else "Note"
            yield f"{kind}: {len(names):,} tensors of the file are not loaded ({reason}): {shortened(names)}"
        if self.fit.new:
            yield f"Note: {len(self.fit.new):,} tensors keep their initial values: {shortened(self.fit.new)}"
        if self.notice:
            yield f"License: {self.notice}"

    def save(self, run: Path) -> None:
        """Write the record into the folder of a run."""
        record: dict[str, Any] = {
            "file": str(self.file), **fingerprint(self.file), "format": self.format, "notice": self.notice,
            "loaded": {"tensors": len(self.fit.loaded), "parameters": self.parameters},
            "unused": dict(self.fit.unused), "new": list(self.fit.new),
        }  # fmt: skip
        replace_text(run / RECORD, json.dumps(record, indent=1) + "\n")


def load_initial_weights(task: Task, settings: TrainConfig) -> InitialWeights | None:
    """Load ``train.weights`` into the model of ``task``; None if the run starts from random weights.

    Raises ValueError for a run or file that cannot be read or does not fit the model, naming the tensors.
    """
    if settings.weights is None:
        if settings.weights_skip or settings.weights_new:
            raise ValueError("train.weights_skip and train.weights_new need train.weights: a run folder or a file")
        return None
    if not settings.weights.exists():
        raise ValueError(f"train.weights = {str(settings.weights)!r}: no such file or run folder")
    file, skip, new = checkpoint.weights_file(settings.weights), settings.weights_skip, settings.weights_new
    kind, notice = "", ""
    if isinstance(task, PublishedWeights):
        checkpoint.check_against_manifest(file)
        given = task.read_weights(file, skip=skip, new=new)
        fit, kind, notice = given.fit, given.format, given.notice
        own = dict(task.model.named_parameters()) | dict(task.model.named_buffers())
        with torch.no_grad():
            for name in fit.loaded:
                own[name].copy_(given.tensors[name])
    else:
        fit = checkpoint.load_weights(task.model, file, skip=skip, new=new)
    sizes = {name: tensor.numel() for name, tensor in task.model.state_dict().items()}
    return InitialWeights(file, kind, fit, sum(sizes[name] for name in fit.loaded), notice or read_notice(file))

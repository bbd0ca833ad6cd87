"""Files of a run folder, read for the report."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.inference.trained_run import UNTRAINED, evaluation_files

SEQUENCE_TASKS = ("masked_lm", "causal_lm", "token_classification")
"""Tasks that ``ds4sci eval`` scores on a file of sequences."""


@dataclass
class RunArtifacts:
    """Contents of a run folder. A missing file gives None or an empty field; ``unreadable`` lists damaged files."""

    run: Path
    config: dict[str, Any] | None = None
    deepspeed: str | None = None
    machine: dict[str, Any] | None = None
    commit: str = "unknown"
    train: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    held_out: dict[str, Any] | None = None
    untrained: dict[str, Any] | None = None
    baselines: dict[str, Any] | None = None
    chains: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    best_step: int | None = None
    unreadable: list[str] = field(default_factory=list)

    @property
    def task(self) -> str:
        """Name of the task; ``fold`` if config.json is missing."""
        return str((self.config or {}).get("task", {}).get("name", "fold"))

    @property
    def name(self) -> str:
        """Name of the run."""
        return str((self.config or {}).get("train", {}).get("name") or self.run.name)


def read_artifacts(run: Path) -> RunArtifacts:
    """Read the files of a run folder. Raises ValueError if ``run`` is not one."""
    if not (run / "config.json").is_file() and not (run / "metrics.jsonl").is_file():
        raise ValueError(
            f"{run}: not a run folder (no config.json and no metrics.jsonl); give a folder such as runs/NAME"
        )
    artifacts = RunArtifacts(run)
    files = evaluation_files(run)
    artifacts.config = _json(run / "config.json", artifacts)
    artifacts.machine = _json(run / "machine.json", artifacts)
    artifacts.held_out = _json(files["held_out"], artifacts)
    artifacts.untrained = _json(files[UNTRAINED], artifacts)
    artifacts.baselines = _json(files["baselines"], artifacts)
    if (run / "deepspeed.json").is_file():
        artifacts.deepspeed = (run / "deepspeed.json").read_text(encoding="utf-8")
    if (run / "commit.txt").is_file():
        artifacts.commit = (run / "commit.txt").read_text(encoding="utf-8").strip()
    pointer = run / "checkpoints" / "best"
    if pointer.is_file():
        name = pointer.read_text(encoding="utf-8").strip().removeprefix("step_")
        artifacts.best_step = int(name) if name.isdigit() else None
    if (run / "metrics.jsonl").is_file():
        for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the last line is incomplete if the run was killed
            if entry.get("kind") in ("train", "eval"):
                (artifacts.train if entry["kind"] == "train" else artifacts.evaluations).append(entry)
    if files["predictions"].is_file():
        try:
            with np.load(files["predictions"], allow_pickle=False) as arrays:
                for key in arrays.files:
                    chain, _, name = key.rpartition("/")
                    artifacts.chains.setdefault(chain, {})[name] = arrays[key]
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            artifacts.unreadable.append(f"{files['predictions']}: {error}")
            artifacts.chains = {}
    return artifacts


def _json(path: Path, artifacts: RunArtifacts) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        artifacts.unreadable.append(f"{path}: {error}")
        return None


def data_file(artifacts: RunArtifacts, which: str) -> str:
    """Chain set that the run file names as ``train`` or ``valid``."""
    return str((artifacts.config or {}).get("data", {}).get(which, f"{which.upper()}.npz"))


def eval_command(artifacts: RunArtifacts, which: str = "best") -> str:
    """Command that scores the validation set of the run."""
    if artifacts.task != "fold":
        what = " --fasta FILE" if artifacts.task in SEQUENCE_TASKS else ""
        return f"ds4sci eval --run {artifacts.run}{what} --json {artifacts.run}/scores.json"
    extra = "" if which == "best" else f" --checkpoint {which}"
    name = "scores" if which == "best" else which
    chains = data_file(artifacts, "valid")
    return f"ds4sci eval --run {artifacts.run} --chains {chains} --json {artifacts.run}/{name}.json{extra}"

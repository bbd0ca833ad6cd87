"""What lies in a run folder, read for the report; nothing here is drawn or computed."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.inference.trained_run import UNTRAINED, evaluation_files


@dataclass
class Story:
    """What there is to tell of a run; absent files leave None, empty or a name in ``broken``."""

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
    broken: list[str] = field(default_factory=list)

    @property
    def task(self) -> str:
        """The task's name; a run whose config is lost is taken for the fold task's."""
        return str((self.config or {}).get("task", {}).get("name", "fold"))

    @property
    def name(self) -> str:
        """The run's name."""
        return str((self.config or {}).get("train", {}).get("name") or self.run.name)


def read_story(run: Path) -> Story:
    """Gather a run's files; those that cannot be read are named in ``broken``."""
    if not (run / "config.json").is_file() and not (run / "metrics.jsonl").is_file():
        raise ValueError(f"{run}: no run folder (neither config.json nor metrics.jsonl); give one such as runs/NAME.")
    story = Story(run)
    files = evaluation_files(run)
    story.config = _json(run / "config.json", story)
    story.machine = _json(run / "machine.json", story)
    story.held_out = _json(files["held_out"], story)
    story.untrained = _json(files[UNTRAINED], story)
    story.baselines = _json(files["baselines"], story)
    if (run / "deepspeed.json").is_file():
        story.deepspeed = (run / "deepspeed.json").read_text(encoding="utf-8")
    if (run / "commit.txt").is_file():
        story.commit = (run / "commit.txt").read_text(encoding="utf-8").strip()
    pointer = run / "checkpoints" / "best"
    if pointer.is_file():
        name = pointer.read_text(encoding="utf-8").strip().removeprefix("step_")
        story.best_step = int(name) if name.isdigit() else None
    if (run / "metrics.jsonl").is_file():
        for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the last line of a run that was killed may be torn
            if entry.get("kind") in ("train", "eval"):
                (story.train if entry["kind"] == "train" else story.evaluations).append(entry)
    if files["predictions"].is_file():
        try:
            with np.load(files["predictions"], allow_pickle=False) as shelf:
                for key in shelf.files:
                    chain, _, name = key.rpartition("/")
                    story.chains.setdefault(chain, {})[name] = shelf[key]
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            story.broken.append(f"{files['predictions']}: {error}")
            story.chains = {}
    return story


def _json(path: Path, story: Story) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        story.broken.append(f"{path}: {error}")
        return None


def data_file(story: Story, which: str) -> str:
    """The chain set that the run calls ``train`` or ``valid``."""
    return str((story.config or {}).get("data", {}).get(which, f"{which.upper()}.npz"))


def eval_command(story: Story, which: str = "best") -> str:
    """The command that scores the run's validation set."""
    if story.task != "fold":
        what = "" if story.task == "neural_operator" else " --fasta FILE"
        return f"ds4sci eval --run {story.run}{what} --json {story.run}/scores.json"
    extra = "" if which == "best" else f" --checkpoint {which}"
    name = "scores" if which == "best" else which
    return f"ds4sci eval --run {story.run} --chains {data_file(story, 'valid')} --json {story.run}/{name}.json{extra}"

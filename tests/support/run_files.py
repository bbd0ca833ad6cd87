"""Readers and comparison of the files of a run: metrics, losses, digests, DeepSpeed's state."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

MEASURED = {"seconds", "elapsed", "cpu_seconds", "samples_per_second", "memory_mb"}


def metrics(run: Path, *kinds: str) -> list[dict]:
    """Return the lines of ``metrics.jsonl`` of the given kinds, without measured times and memory."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines if line["kind"] in kinds]


def digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def assert_same_tree(a: object, b: object, where: str = "", ignore: tuple[str, ...] = ()) -> None:
    """Assert that two nested structures are equal bit for bit, except for the keys ``ignore`` of dicts."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - set(ignore):
            assert_same_tree(a[key], b[key], f"{where}.{key}", ignore)
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_tree(x, y, f"{where}[{i}]", ignore)
    elif isinstance(a, (int, float, str, bool, type(None))):
        assert a == b, where


def training_state(run: Path, step: int) -> dict[str, dict]:
    """Return what a checkpoint holds for resuming: ``engine`` (hyperparameters, schedule, counters), and for each
    parameter its step counts and, joined from the slices of all ranks, fp32 weight and moments."""
    from ds4sci.train.checkpoint import checkpoint_folder
    from ds4sci.train.slice_files import WEIGHT, SliceReader

    folder = checkpoint_folder(run, step)
    found: dict[str, dict] = {"engine": json.loads((folder / "state.json").read_text())["engine"]}
    with SliceReader(folder) as reader:
        for name, entry in reader.parameters.items():
            found[name] = dict(entry["scalars"])
            for kind in entry["kinds"]:
                dtype = torch.float32 if kind == WEIGHT else reader.dtype(kind, name)
                found[name][kind] = torch.full(entry["shape"], float("nan"), dtype=dtype)
                reader.read_into(found[name][kind], kind, name, 0)
    return found


def losses(run: Path) -> dict[int, float]:
    """Return step → loss of the lines of ``metrics.jsonl``."""
    return {line["step"]: line["loss"] for line in metrics(run, "train")}

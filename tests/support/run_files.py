"""Readers and comparison of the files of a run: metrics, losses, digests, DeepSpeed's state."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

MEASURED = {"seconds", "cpu_seconds", "samples_per_second", "memory_mb"}


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


def deepspeed_files(run: Path, step: int) -> dict[str, dict]:
    """Return the content of DeepSpeed's files of a checkpoint by name."""
    from ds4sci.train.checkpoint_engine import SyncedCheckpointEngine

    folder = run / "checkpoints" / f"step_{step:06d}" / "deepspeed"
    return {file.name: SyncedCheckpointEngine().load(str(file), "cpu") for file in sorted(folder.glob("*.pt"))}


def losses(run: Path) -> dict[int, float]:
    """Return step → loss of the lines of ``metrics.jsonl``."""
    return {line["step"]: line["loss"] for line in metrics(run, "train")}

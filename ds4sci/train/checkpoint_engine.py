"""Checkpoint engine for DeepSpeed that syncs and fingerprints its files. Imports deepspeed: import it in functions."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine

from ds4sci.files.atomic_files import Writer


class SyncedCheckpointEngine(CheckpointEngine):
    """Saves DeepSpeed's files through a ``Writer``; loading refuses pickled objects other than DeepSpeed's own."""

    def __init__(self) -> None:
        super().__init__(None)
        self.name = "ds4sci"
        self.writer: Writer | None = None

    def create(self, info: CheckpointCommitInfo) -> None:
        """Do nothing: ``ds4sci.train.checkpoint`` owns the folder."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing: ``ds4sci.train.checkpoint`` made the folder, where a failure is reported on every rank."""

    def save(self, state_dict: Any, path: str) -> None:
        assert self.writer is not None, "ds4sci.train.checkpoint sets it before saving"
        self.writer.write(Path(path), lambda handle: torch.save(state_dict, handle))

    def load(self, path: str, map_location: Any = None) -> Any:
        allowed: list[Any] = []
        for name in torch.serialization.get_unsafe_globals_in_checkpoint(path):
            if name == "builtins.getattr":  # Python before 3.11.4 pickles enum members this way
                allowed.append((enum_member, name))
                continue
            module, _, attribute = name.rpartition(".")
            if not module.startswith("deepspeed."):
                raise ValueError(
                    f"{path}: contains a pickled {name}, which no checkpoint of ds4sci does; it is not loaded"
                )
            allowed.append(getattr(__import__(module, fromlist=[attribute]), attribute))
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location=map_location, weights_only=True)

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True


def enum_member(kind: Any, name: str) -> Enum:
    """Replacement of a pickled ``getattr``: returns members of enums and raises ValueError for anything else."""
    if isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__:
        return kind[name]
    raise ValueError(f"a checkpoint refers to {name!r} of {kind!r}; only members of enums are loaded")

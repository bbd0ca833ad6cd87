"""Loading of checkpoints in DeepSpeed's own format, which earlier versions wrote. Imports deepspeed.

They load on the ZeRO stage and number of ranks that wrote them.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine

if TYPE_CHECKING:
    from ds4sci.train.engine import Engine

FOLDER = "deepspeed"
"""DeepSpeed's tag, and so the subfolder of a checkpoint that holds its files."""


def load(folder: Path, state: dict[str, Any], engine: Engine) -> None:
    """Load the checkpoint ``folder`` into the engine. A collective operation.

    Raises ValueError if the ZeRO stage, or with ZeRO the number of ranks, differs from that of the checkpoint.
    """
    now = {"zero_stage": engine.zero_stage, "world_size": engine.context.world_size}
    stage, ranks = state["zero_stage"], state["world_size"]
    if stage != now["zero_stage"] or (ranks != now["world_size"] and stage > 0):
        raise ValueError(
            f"{folder}: written by an older version in DeepSpeed's own format, with ZeRO stage {stage} on {ranks} "
            f"ranks, but this run has stage {now['zero_stage']} on {now['world_size']}. Resume it once on its own "
            "layout: the checkpoints that it saves resume on any"
        )
    if engine.deepspeed.load_universal_checkpoint():
        raise ValueError(
            f"{engine.json_file}: checkpoint.load_universal: {folder} was written by an older version in DeepSpeed's "
            "own format; remove the key and resume once on the layout of the run: the checkpoints that it saves "
            "resume on any"
        )
    engine.deepspeed.checkpoint_engine = SafeCheckpointEngine()
    loaded, _ = engine.deepspeed.load_checkpoint(str(folder), tag=FOLDER)
    if loaded is None:
        raise ValueError(f"{folder / FOLDER}: DeepSpeed found no checkpoint to load")


class SafeCheckpointEngine(CheckpointEngine):
    """Loads DeepSpeed's files and refuses pickled objects other than DeepSpeed's own."""

    def __init__(self) -> None:
        super().__init__(None)
        self.name = "ds4sci"

    def create(self, info: CheckpointCommitInfo) -> None:
        """Raise RuntimeError: ``ds4sci.train.checkpoint`` saves."""
        raise RuntimeError("checkpoints are not saved in DeepSpeed's format")

    def save(self, state_dict: Any, path: str) -> None:
        """Raise RuntimeError, as ``create`` does."""
        raise RuntimeError(f"{path}: checkpoints are not saved in DeepSpeed's format")

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

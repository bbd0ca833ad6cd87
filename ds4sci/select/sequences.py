"""Sequences of the training samples of a run file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds4sci.config.run_file import RunConfig
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.text_files import resolve_data_path
from ds4sci.tasks import SampleScoring
from ds4sci.tasks.build import build_task


@dataclass(frozen=True)
class TrainingSequences:
    """Training samples of a run file that are sequences.

    names    of all samples, in order
    letters  the sequence of each
    chains   the chain set, or None for the records of a store
    store    the sequence store, or None for a chain set
    records  number of each sample's record in the store
    """

    names: list[str]
    letters: list[str]
    chains: ChainSet | None = None
    store: Any = None
    records: tuple[int, ...] = ()


def training_sequences(config: RunConfig) -> TrainingSequences:
    """Read the training samples of a run file. Raises ValueError for a task whose samples are no sequences."""
    task: Any = build_task(config)
    if not isinstance(task, SampleScoring):
        raise ValueError(f"{config.source}: the task {config.task.name} has no fixed training samples")
    names, data = task.sample_names(), getattr(config.settings, "data", None)
    if isinstance(file := getattr(data, "train", None), Path):
        chains = ChainSet.open(resolve_data_path(file))
        return TrainingSequences(names, [chain.sequence for chain in chains], chains)
    if not hasattr(task, "train_valid_readers"):
        raise ValueError(f"{config.source}: the task {config.task.name} trains on no sequences")
    reader, regions, _, _ = task.train_valid_readers()
    places = list(zip(regions.record.tolist(), regions.start.tolist(), regions.stop.tolist(), strict=True))
    letters = [reader.residues(*place).tobytes().decode("ascii") for place in places]
    return TrainingSequences(names, letters, store=reader.store, records=tuple(record for record, _, _ in places))

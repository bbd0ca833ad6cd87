"""Order in which a run takes its samples: strict, whatever is ready, or as another run took them.

A sample is known by its position in the endless sequence of shuffled epochs (``ds4sci.data.loader``). Its contents are
those that it has in the strict order, where position p is sample p mod B of step p // B (B = samples per step).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ds4sci.data.delivery_ledger import Ledger
from ds4sci.data.ready_loader import in_background, ready_samples
from ds4sci.data.sample_pools import WorkerType

S = TypeVar("S")
B = TypeVar("B")


class OrderConfig(BaseModel):
    """Keys of ``[data]`` that choose the order of the samples."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    order: Literal["strict", "ready", "replay"] = "strict"
    """``strict``: the samples of a step depend on the seed alone. ``ready``: a batch takes the samples that are ready,
    so that a slow one does not hold up the step; every sample is used exactly once per epoch, and RUN/ledger records
    the order. ``replay``: the order of ``replay``, with bit-identical losses."""
    window: int = Field(64, ge=0)
    """With the order ``ready``: most samples that overtake another one, on each rank."""
    replay: Path | None = None
    """With the order ``replay``: the run folder, or its ``ledger``, whose order is repeated."""

    @model_validator(mode="after")
    def _check_replay(self) -> OrderConfig:
        if (self.order == "replay") != (self.replay is not None):
            raise ValueError(
                f'order = "{self.order}" with replay = {str(self.replay)!r}: order = "replay" needs the run folder '
                "whose order is repeated, and other orders have none"
            )
        return self


STRICT = OrderConfig()
"""The strict order."""


@dataclass(frozen=True)
class Share:
    """This rank's share of every step, and the first step; see ``ds4sci.tasks.Task.batches``."""

    start_step: int
    rank: int
    world_size: int
    micro_batch_size: int
    accumulation_steps: int

    @property
    def rank_size(self) -> int:
        """Samples of a step on this rank."""
        return self.micro_batch_size * self.accumulation_steps

    @property
    def step_size(self) -> int:
        """Samples of a step."""
        return self.rank_size * self.world_size

    def of_rank(self, samples: Iterator[S]) -> Iterator[S]:
        """Keep this rank's part of the samples of all ranks: sample j of a step belongs to micro-batch
        j // micro_batch_size, and that to its number modulo the ranks."""
        for number, sample in enumerate(samples):
            if number % self.step_size // self.micro_batch_size % self.world_size == self.rank:
                yield sample


@dataclass(frozen=True)
class Delivery:
    """Record of the samples that a run has used.

    ledger   where they are recorded, or None outside a run
    steps    steps of the run, in which every sample of the strict order is delivered; None: without end
    records  whether this rank writes: the first of those that share samples
    """

    ledger: Ledger | None = None
    steps: int | None = None
    records: bool = True

    def keeps_ledger(self, config: OrderConfig) -> bool:
        """Whether the order of ``config`` is recorded: any but the strict one from the first step on."""
        return self.ledger is not None and (config.order != "strict" or self.ledger.exists())


UNRECORDED = Delivery()
"""Delivery outside a run."""


def ordered_batches(
    make: Callable[[int], S],
    collate: Callable[[Sequence[S], int], B],
    name: Callable[[int], str],
    *,
    config: OrderConfig,
    share: Share,
    delivery: Delivery,
    workers: int = 0,
    kind: WorkerType = "thread",
) -> Iterator[B]:
    """Yield this rank's micro-batches, without end, in the order of ``config``.

    make     position → sample; see ``ready_samples``
    collate  samples, step → batch; the batch has ``ids``
    name     position → id of the sample
    workers  threads or processes (``kind``) that make samples; with 0, they are made when they are requested, and all
             orders but ``replay`` are the strict one

    In the order ``ready`` of a run of N steps, the steps contain the same samples as the N steps of the strict order.
    At most 4 · workers + 2 steps of samples are in the making or ready, and one further step of batches.
    """
    ledger = delivery.ledger if delivery.keeps_ledger(config) else None
    order, barrier = _order(config, share, delivery, ledger, name)
    stop = threading.Event()

    def batches() -> Iterator[tuple[list[int], B]]:
        samples = ready_samples(
            make, order, workers=workers, kind=kind, window=config.window if config.order == "ready" else 0,
            capacity=4 * workers + 2 * share.rank_size if workers else 1, barrier=barrier, name=name, stop=stop,
        )  # fmt: skip
        for step in count(share.start_step):
            for _ in range(share.accumulation_steps):
                taken = list(islice(samples, share.micro_batch_size))
                if len(taken) < share.micro_batch_size:
                    return
                yield [position for position, _ in taken], collate([sample for _, sample in taken], step)

    source = in_background(batches(), stop, share.accumulation_steps) if workers else batches()
    for step in count(share.start_step):
        positions: list[int] = []
        ids: list[str] = []
        for _ in range(share.accumulation_steps):
            found = next(source, None)
            if found is None:
                raise ValueError(f"{config.replay}: the ledger ends before step {step}; the run cannot be repeated")
            positions += found[0]
            batch: Any = found[1]
            ids += batch.ids
            if ledger is not None and delivery.records and len(positions) == share.rank_size:
                ledger.append(step, share.rank, share.world_size, share.micro_batch_size, positions, ids)
            yield batch


def _order(
    config: OrderConfig, share: Share, delivery: Delivery, ledger: Ledger | None, name: Callable[[int], str]
) -> tuple[Iterator[int], int | None]:
    """Return the positions of this rank in order, and how many of them are the rest of the run."""
    if config.order == "replay":
        assert config.replay is not None
        return share.of_rank(_replayed(_find_ledger(config.replay, ledger), share, name)), None
    first = share.start_step * share.step_size
    remaining: Iterator[int] = count(first)
    if ledger is not None and share.start_step:
        remaining = ledger.remaining(share.start_step, share.step_size)
    rest = None if delivery.steps is None else max(0, delivery.steps - share.start_step) * share.rank_size
    return share.of_rank(remaining), rest


def _find_ledger(path: Path, own: Ledger | None) -> Ledger:
    folder = path / "ledger" if (path / "ledger").is_dir() else path
    ledger = Ledger(folder)
    if own is not None and own.folder.resolve() == folder.resolve():
        raise ValueError(f"data.replay = {str(path)!r}: a run cannot replay its own ledger; give another run")
    if not ledger.exists():
        raise ValueError(
            f"data.replay = {str(path)!r}: no ledger in {folder}; expected the folder of a run with data.order = ready"
        )
    return ledger


def _replayed(ledger: Ledger, share: Share, name: Callable[[int], str]) -> Iterator[int]:
    """Yield the positions of a ledger from the start step on. Raises ValueError if they are other samples here."""
    expected = share.start_step
    for entry in ledger.steps():
        if entry.step < share.start_step:
            continue
        if entry.step != expected:
            raise ValueError(f"{ledger.folder}: begins at step {entry.step}; this run needs step {expected}")
        expected += 1
        if len(entry.positions) != share.step_size:
            raise ValueError(
                f"{ledger.folder}: step {entry.step} has {len(entry.positions)} samples, and a step of this run "
                f"{share.step_size}; use the same batch size"
            )
        for position, recorded in zip(entry.positions, entry.ids, strict=True):
            if recorded != name(position):
                raise ValueError(
                    f"{ledger.folder}: step {entry.step}: position {position} is {recorded}, but {name(position)} in "
                    "this run; use the same seed and data"
                )
            yield position

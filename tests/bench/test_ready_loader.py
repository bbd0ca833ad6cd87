"""Benchmark of loaders on small inputs. No assertion depends on the speed of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ds4sci.bench import ready_loader
from ds4sci.bench.ready_loader import BATCH, Sample, Source
from ds4sci.data.alignments import msa

TIMES = (0.002, 0.05, 0.001, 0.004, 0.003, 0.002, 0.001, 0.008, 0.002)


def test_every_loader_gives_every_sample(tmp_path: Path) -> None:
    found = ready_loader.available_loaders()
    assert {"ds4sci ready", "torch DataLoader", "torch DataLoader, in_order=False"} <= set(found)
    for label, loader in found.items():
        seconds, ideal = ready_loader.run_epoch(loader, Source(tmp_path / "gate", 2 * BATCH, TIMES), workers=2)
        # a run cannot take less time than its consumer, which sleeps after each of the three batches
        assert seconds >= 3 * ready_loader.STEP_SECONDS, label
        assert ideal >= max(3 * ready_loader.STEP_SECONDS, sum(TIMES) / 2), label


def test_a_loader_that_loses_samples_is_refused(tmp_path: Path) -> None:
    def lossy(source: Source, workers: int) -> Iterator[list[Sample]]:
        yield from list(ready_loader.ready(source, workers))[:-1]

    with pytest.raises(RuntimeError, match="the loader gave 8 of 9 samples"):
        ready_loader.run_epoch(lossy, Source(tmp_path / "gate", 2 * BATCH, TIMES), workers=2)


def test_alignments_are_uneven_and_the_same_each_time(tmp_path: Path) -> None:
    files = ready_loader.write_alignments(tmp_path / "one", 5)
    again = ready_loader.write_alignments(tmp_path / "two", 5)
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    found = [msa.read(file) for file in files]
    depths = [len(one.sequences) for one in found]
    assert max(depths) > 3 * min(depths)
    assert all(one.deletions.max() == 3 for one in found)

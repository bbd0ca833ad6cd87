"""``data.order`` in the trainer: replayed losses, and resume after kill -9 on another number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds4sci.data.delivery_ledger import Ledger
from ds4sci.train import checkpoint
from tests.support import array_toy, rank_processes
from tests.support.run_files import digest, losses

STEPS, BATCH = 12, 4


@pytest.fixture
def file(tmp_path: Path, run_file) -> Path:
    array_toy.write_dataset(tmp_path / "arrays")
    return run_file(
        data='path = "arrays"\norder = "ready"\nwindow = 5\nworkers = 3', steps=STEPS, save_every=2, log_every=1,
        ds={"train_micro_batch_size_per_gpu": 1},
    )  # fmt: skip


def train(ranks: int, file: Path, name: str, *overrides: str, code: int | None = 0) -> Path:
    arguments = ["--config", str(file), "task.name=tests.support.array_toy", f"train.name={name}", *overrides]
    rank_processes.run(ranks, arguments, file.parent, code=code)
    return file.parent / "runs" / name


def used(run: Path) -> list[int]:
    return [position for entry in Ledger(run / "ledger").steps() for position in entry.positions]


def test_replay_has_the_same_losses(tmp_path: Path, file: Path) -> None:
    ready = train(2, file, "ready")
    assert sorted(used(ready)) == list(range(STEPS * BATCH))
    assert used(ready) != sorted(used(ready))
    replay = train(2, file, "replay", "data.order=replay", f"data.replay={ready}", "data.workers=1")
    strict = train(2, file, "strict", "data.order=strict")
    assert used(replay) == used(ready)
    assert losses(replay) == losses(ready)
    assert losses(strict) != losses(ready)
    weights = [checkpoint.checkpoint_folder(run, STEPS) / "model.safetensors" for run in (ready, replay)]
    assert digest(weights[0]) == digest(weights[1])
    assert not (strict / "ledger").exists()


def test_killed_run_resumes_exactly_on_another_number_of_ranks(tmp_path: Path, file: Path) -> None:
    run = train(1, file, "run", "data.kill_at=7", code=-9)
    assert checkpoint.checkpoint_steps(run)[-1] == 6
    before = used(run)
    assert len(before) == 8 * BATCH  # the step that was killed has been recorded
    rank_processes.run(2, ["--resume", str(run)], tmp_path)
    after = used(run)
    assert after[: 6 * BATCH] == before[: 6 * BATCH]
    assert sorted(after) == list(range(STEPS * BATCH))


def test_ready_order_is_refused_for_ranks_that_share_samples(tmp_path: Path) -> None:
    from tests.train.test_fold_task import arrange

    arguments = [*arrange(tmp_path, 1), "data.order=ready", "parallel.sequence=2", "train.name=shared"]
    ended = rank_processes.run(2, arguments, tmp_path, code=None)
    assert 0 not in ended.codes
    assert 'data.order = "ready", and 2 ranks compute each sample' in ended.output

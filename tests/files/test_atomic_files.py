"""Files that are whole or absent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ds4sci.files.atomic_files import Writer, replace_text
from ds4sci.train import checkpoint, rng_state
from ds4sci.train.metric_log import LossSums, MetricLog


def test_a_full_device_is_kept_as_an_error_and_nothing_more_is_written(tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    writer = Writer(tmp_path)
    writer.write_bytes(tmp_path / "fine", b"1")
    writer.write(tmp_path / "full", lambda handle: torch.save(torch.zeros(100_000), handle))
    assert "No space left on device" in (writer.error or "")
    assert "MB free" in (writer.error or "")
    writer.write_bytes(tmp_path / "after", b"1")
    assert not (tmp_path / "after").exists()
    assert set(writer.files) == {"fine"}


def test_replace_text_leaves_old_or_new(tmp_path: Path) -> None:
    file = tmp_path / "latest"
    replace_text(file, "one")
    with pytest.raises(UnicodeEncodeError):
        replace_text(file, "\ud800")
    assert file.read_text() == "one"
    assert list(tmp_path.iterdir()) == [file]


def test_metrics_are_truncate_after_the_checkpoint_and_torn_lines_go(tmp_path: Path) -> None:
    file = MetricLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        file.write("train", step, loss=float("nan"), values=np.arange(2), tensor=torch.tensor(1.5))
    with file.path.open("a") as handle:
        handle.write('{"kind": "train", "st')
    file.truncate_after(2)
    lines = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0] == {"kind": "train", "step": 1, "loss": "nan", "values": [0, 1], "tensor": 1.5}


def test_means_are_over_steps_and_the_micro_batches_that_had_the_term() -> None:
    """Two ranks: a step of two micro-batches each, shares 1/8, 3/8 and 1/8, 3/8; then one of one each, 1/4 and 3/4."""
    one, two = LossSums(), LossSums()
    one.add({"loss": 8.0}, 1 / 8)
    one.add({"loss": 16.0, "clash": 6.0}, 3 / 8)
    two.add({"loss": 24.0}, 1 / 8)
    two.add({"loss": 8.0, "clash": 2.0}, 3 / 8)
    assert LossSums.mean([one, two]) == {"loss": 1 + 6 + 3 + 3, "clash": 4.0}
    one.add({"loss": 4.0}, 1 / 4)
    two.add({"loss": 8.0}, 3 / 4)
    assert LossSums.mean([one, two]) == {"loss": (13 + 7) / 2, "clash": 4.0}
    kept = json.loads(json.dumps([one.state(), two.state()]))
    again = [LossSums(), LossSums()]
    for rank, sums in enumerate(again):
        sums.restore(kept, rank, 2)
    assert [sums.state() for sums in again] == kept
    more = [LossSums(), LossSums(), LossSums()]
    for rank, sums in enumerate(more):
        sums.restore(kept, rank, 3)
    assert LossSums.mean(more) == LossSums.mean([one, two])
    nothing = LossSums()
    nothing.add({"loss": 0.0}, 0.0)
    assert LossSums.mean([nothing]) == LossSums.mean([LossSums()]) == {}


def test_ranks_that_share_rows_add_up_to_the_mean() -> None:
    parts = [LossSums(), LossSums()]
    for rank, sums in enumerate(parts):
        sums.add({"loss": 1.0 + rank}, 1.0, parts=2)
    assert LossSums.mean(parts) == {"loss": 3.0}


def test_random_numbers_are_a_function_of_the_key() -> None:
    import random

    def draw(*key: int, part: int = 0) -> tuple[tuple[float, float], float]:
        rng_state.seed_all(*key, part=part)
        return (random.gauss(0, 1), np.random.standard_normal()), float(torch.rand(()))  # noqa: NPY002

    first = draw(5, rng_state.MICRO_BATCH, 2, 0)
    others = [draw(5, rng_state.MICRO_BATCH, 2, 1), draw(5, rng_state.MICRO_BATCH, 0, 2), draw(5, rng_state.WEIGHTS)]
    assert draw(5, rng_state.MICRO_BATCH, 2, 0) == first
    assert all(a != b for other in others for a, b in zip(first, other, strict=True))
    part = draw(5, rng_state.MICRO_BATCH, 2, 0, part=1)
    assert part[0] == first[0], "what ranks that share rows decide alike"
    assert part[1] != first[1]


def test_pickled_code_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    from ds4sci.train.checkpoint_engine import SyncedCheckpointEngine

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt: contains a pickled"):
        SyncedCheckpointEngine().load(str(tmp_path / "evil.pt"))
    assert not (tmp_path / "executed").exists()


def test_enums_pickled_by_an_old_python_are_read_and_no_other_attribute(tmp_path: Path) -> None:
    """Python before 3.11.4 pickles a member of an enum as getattr(kind, name); DeepSpeed's files hold such members."""
    from deepspeed.runtime.zero.config import ZeroStageEnum

    from ds4sci.train.checkpoint_engine import SyncedCheckpointEngine

    class Attribute:
        def __init__(self, name: str) -> None:
            self.name = name

        def __reduce__(self) -> tuple:
            return getattr, (ZeroStageEnum, self.name)

    file = tmp_path / "x.pt"
    torch.save({"zero_stage": Attribute("weights")}, file)
    assert SyncedCheckpointEngine().load(str(file), "cpu") == {"zero_stage": ZeroStageEnum.weights}
    torch.save({"zero_stage": Attribute("mro")}, file)
    with pytest.raises(Exception, match="only members of enums"):
        SyncedCheckpointEngine().load(str(file), "cpu")


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    import safetensors.torch

    model = torch.nn.Linear(2, 3)
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(3, 5), "extra": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="do not fit") as caught:
        checkpoint.load_weights(model, file)
    message = str(caught.value)
    assert "weight: (3, 5) in the file, (3, 2) in the model" in message
    assert "not in the model: ['extra'], not in the file: ['bias']" in message
    file.write_bytes(b"not a safetensors file")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        checkpoint.load_weights(model, file)

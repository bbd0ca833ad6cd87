"""Files that are whole or absent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ds4sci.train import checkpoint, randomness
from ds4sci.train.durable import Writer, replace_text
from ds4sci.train.metrics import MetricsFile, Sums


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
    with pytest.raises(TypeError):
        replace_text(file, 3)  # type: ignore[arg-type]
    assert file.read_text() == "one"


def test_metrics_are_cut_after_the_checkpoint_and_torn_lines_go(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        file.write("train", step, loss=float("nan"), values=np.arange(2), tensor=torch.tensor(1.5))
    with file.path.open("a") as handle:
        handle.write('{"kind": "train", "st')
    file.cut_after(2)
    lines = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0] == {"kind": "train", "step": 1, "loss": "nan", "values": [0, 1], "tensor": 1.5}


def test_means_are_over_the_micro_batches_that_had_the_term() -> None:
    one, two = Sums(), Sums()
    one.add({"loss": 1.0})
    one.add({"loss": 2.0, "clash": 6.0})
    two.add({"loss": 6.0, "clash": 2.0})
    again = Sums()
    again.restore(json.loads(json.dumps(one.state())))
    assert Sums.mean([again, two]) == {"loss": 3.0, "clash": 4.0}
    assert Sums.mean([Sums()]) == {}


def test_random_generators_come_back(tmp_path: Path) -> None:
    import random

    device = torch.device("cpu")
    randomness.seed_all(5, rank=1)
    random.gauss(0, 1)  # leaves a cached second value
    np.random.standard_normal(3)  # noqa: NPY002
    np.savez(tmp_path / "r.npz", **randomness.capture(device))

    def draw() -> tuple:
        return random.gauss(0, 1), random.random(), np.random.standard_normal(), float(torch.rand(()))  # noqa: NPY002

    expected = draw()
    with np.load(tmp_path / "r.npz", allow_pickle=False) as arrays:
        randomness.apply(dict(arrays), device)
    assert draw() == expected
    with randomness.undisturbed(device):
        draw()
    after = draw()
    randomness.seed_all(5, rank=0)
    assert draw() != after


def test_pickled_code_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    from ds4sci.train.storage import DurableCheckpointEngine

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt: it holds a pickled"):
        DurableCheckpointEngine().load(str(tmp_path / "evil.pt"))
    assert not (tmp_path / "executed").exists()


def test_enums_pickled_by_an_old_python_are_read_and_no_other_attribute(tmp_path: Path) -> None:
    """Python before 3.11.4 pickles a member of an enum as getattr(kind, name); DeepSpeed's files hold such members."""
    from deepspeed.runtime.zero.config import ZeroStageEnum

    from ds4sci.train.storage import DurableCheckpointEngine

    class Attribute:
        def __init__(self, name: str) -> None:
            self.name = name

        def __reduce__(self) -> tuple:
            return getattr, (ZeroStageEnum, self.name)

    file = tmp_path / "x.pt"
    torch.save({"zero_stage": Attribute("weights")}, file)
    assert DurableCheckpointEngine().load(str(file), "cpu") == {"zero_stage": ZeroStageEnum.weights}
    torch.save({"zero_stage": Attribute("mro")}, file)
    with pytest.raises(Exception, match="only members of enums"):
        DurableCheckpointEngine().load(str(file), "cpu")


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
    with pytest.raises(ValueError, match="not readable as safetensors"):
        checkpoint.load_weights(model, file)

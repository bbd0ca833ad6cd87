"""Files of a checkpoint that are refused, and the random numbers of a step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ds4sci.train import checkpoint, rng_state


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
    from ds4sci.train.checkpoint_engine import SafeCheckpointEngine

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt: contains a pickled"):
        SafeCheckpointEngine().load(str(tmp_path / "evil.pt"))
    assert not (tmp_path / "executed").exists()


def test_enums_pickled_by_an_old_python_are_read_and_no_other_attribute(tmp_path: Path) -> None:
    """Python before 3.11.4 pickles a member of an enum as getattr(kind, name); DeepSpeed's files hold such members."""
    from deepspeed.runtime.zero.config import ZeroStageEnum

    from ds4sci.train.checkpoint_engine import SafeCheckpointEngine

    class Attribute:
        def __init__(self, name: str) -> None:
            self.name = name

        def __reduce__(self) -> tuple:
            return getattr, (ZeroStageEnum, self.name)

    file = tmp_path / "x.pt"
    torch.save({"zero_stage": Attribute("weights")}, file)
    assert SafeCheckpointEngine().load(str(file), "cpu") == {"zero_stage": ZeroStageEnum.weights}
    torch.save({"zero_stage": Attribute("mro")}, file)
    with pytest.raises(Exception, match="only members of enums"):
        SafeCheckpointEngine().load(str(file), "cpu")


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

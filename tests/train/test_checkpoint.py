"""Files of a checkpoint that are refused, and the random numbers of a step."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ds4sci.train import checkpoint, rng_state, slice_files
from ds4sci.train.engine_state import engine_state, restore_engine_state
from ds4sci.train.tensor_file import TensorReader, TensorSpec, byte_chunks, write_tensors


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
    assert "1 tensor with another shape: weight: [3, 5] in the file, [3, 2] in the model" in message
    assert "1 tensor of the model not in the file: bias." in message
    assert "1 tensor of the file (1 parameters) not in the model: extra: the model has no such tensor." in message
    file.write_bytes(b"not a safetensors file")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        checkpoint.load_weights(model, file)


def test_weights_that_differ_from_the_manifest_are_refused(tmp_path: Path) -> None:
    """Evaluation, prediction, export and train.weights read the file without the other files of the checkpoint."""
    import safetensors.torch

    from ds4sci.files.atomic_files import fingerprint

    model, file, manifest = torch.nn.Linear(2, 3), tmp_path / "model.safetensors", tmp_path / "manifest.json"
    safetensors.torch.save_file({k: v.detach() for k, v in model.state_dict().items()}, file)
    manifest.write_text(json.dumps({"files": {file.name: fingerprint(file)}}))
    checkpoint.load_weights(model, file)
    content = bytearray(file.read_bytes())
    content[-2] ^= 0x40
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: corrupt: .* than when it was written"):
        checkpoint.load_weights(model, file)
    manifest.write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json: JSONDecodeError"):
        checkpoint.load_weights(model, file)
    manifest.unlink()
    checkpoint.load_weights(model, file)  # a file that was copied alone


def test_every_element_is_assigned_to_one_rank_that_holds_it() -> None:
    """Three ranks hold all of a, parts of b, and rank 2 alone c; large replicas are divided evenly."""
    sizes = {"a": 300_001, "b": 10, "c": 5, "empty": 0}
    held = [{"a": (0, 300_001), "b": (0, 6)}, {"a": (0, 300_001), "b": (6, 10)}, {"a": (0, 300_001), "c": (0, 5)}]
    slices = slice_files.divide(sizes, held)
    for name, size in sizes.items():
        covered = sorted((s.start, s.stop) for s in slices if s.name == name)
        assert [start for start, _ in covered] + [size] == [0, *(stop for _, stop in covered)]
        for one in (s for s in slices if s.name == name):
            first, last = held[one.rank][name]
            assert first <= one.start <= one.stop <= last
    counts = [s.stop - s.start for s in slices if s.name == "a"]
    assert len(counts) == 3
    assert max(counts) - min(counts) <= 1
    with pytest.raises(RuntimeError, match="no rank holds the elements 6 to 8 of b"):
        slice_files.divide({"b": 10}, [{"b": (0, 6)}, {"b": (8, 10)}])


def test_slices_of_a_safetensors_file(tmp_path: Path) -> None:
    import safetensors.torch

    tensors = {
        "matrix": torch.randn(3, 5), "number": torch.tensor(7), "mask": torch.arange(6) % 2 == 0,
        "transposed": torch.randn(4, 2).bfloat16().t(), "empty": torch.zeros(0, 3),
    }  # fmt: skip
    file = tmp_path / "x.safetensors"
    with file.open("wb") as handle:
        specs = [TensorSpec(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]
        write_tensors(handle, specs, (c.numpy().data for t in tensors.values() for c in byte_chunks(t)))
    read = safetensors.torch.load_file(file)
    assert all(torch.equal(read[name], t) for name, t in tensors.items())
    with TensorReader(file) as reader:
        for name, tensor in tensors.items():
            found = torch.empty_like(tensor)  # the transposed one is not contiguous
            reader.read_into(found, name)
            assert torch.equal(found, tensor), name
        part = torch.empty(4, dtype=torch.float64)
        reader.read_into(part, "matrix", 5)
        assert torch.equal(part, tensors["matrix"].flatten()[5:9].double())
        with pytest.raises(ValueError, match="no elements 14 to 18 of matrix"):
            reader.read_into(part, "matrix", 14)
    content = file.read_bytes()
    for broken in (content[:-3], content[:20], b"", b"\xff" * 40, content.replace(b'"BF16"', b'"BF17"')):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=r"x\.safetensors: not a readable safetensors file"):
            TensorReader(file)


def test_the_loss_scale_of_fp16_is_restored() -> None:
    """With a stand-in for the engine: DeepSpeed has no fp16 on CPUs."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    def engine(scaler: Any) -> Any:
        wrapper = SimpleNamespace(optimizer=torch.optim.Adam([torch.nn.Parameter(torch.ones(2))]), loss_scaler=scaler)
        inner = SimpleNamespace(
            optimizer=wrapper, lr_scheduler=None, global_steps=3, global_samples=12, skipped_steps=1
        )
        return SimpleNamespace(uses_dynamic_loss_scale=True, json_file="ds.json", deepspeed=inner)

    made = [DynamicLossScaler(2.0**16, 1000, 1, 2, False) for _ in range(2)]
    made[0].cur_scale, made[0].cur_iter, made[0].last_overflow_iter, made[0].cur_hysteresis = 512.0, 9, 5, 1
    restore_engine_state(engine(made[1]), json.loads(json.dumps(engine_state(engine(made[0])))))
    assert vars(made[1]) == vars(made[0])

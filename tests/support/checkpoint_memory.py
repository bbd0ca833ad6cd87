"""Programs of one process that measure the memory of saving, restoring and exporting a model of many parameters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from ds4sci.machine.memory import from_proc
from ds4sci.nn import activation_memory

LAYERS = 6
ADAM = {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}


def added_mb() -> Callable[[], float]:
    """Return a function that returns the highest memory of this process since now, above that of now, in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    before = from_proc("self/status", "VmRSS")

    def added() -> float:
        peak = from_proc("self/status", "VmHWM")
        assert before is not None
        assert peak is not None
        return (peak - before) / 1e6

    return added


def save_and_restore(folder: str, stage: int, width: int) -> None:
    """Train a step of ``LAYERS`` · ``width``² weights, save twice, corrupt, and restore; rank 0 writes out.json.

    out.json: [{"save": MB, "restore": MB} of each rank], and the checkpoint that is found with one flipped byte in each
    file of slices.
    """
    from ds4sci.train import checkpoint
    from ds4sci.train import engine as engines
    from ds4sci.train.distributed import set_rank_environment
    from ds4sci.train.ema import Ema

    activation_memory.return_freed_tensors()
    run = Path(folder)
    set_rank_environment()
    engines.silence_deepspeed()
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1, "optimizer": ADAM, "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 1 << 22, "stage3_prefetch_bucket_size": 0},
    }  # fmt: skip
    context = engines.init_distributed(config)
    if context.is_main:
        for name in ("config.json", "commit.txt"):
            (run / name).write_text("{}")
        (run / "deepspeed.json").write_text(json.dumps(config))
    context.barrier()

    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(LAYERS)))
    engine = engines.Engine(model, run / "deepspeed.json", context)
    ema = Ema(engine.named_parameters(), 0.9)
    engine.backward(engine.deepspeed(torch.ones(1, width)).square().mean(), 0.5)
    assert engine.step()
    ema.update()
    numbers: dict[str, float] = {}
    for step in (1, 2):
        added = added_mb()
        state = {"step": step, "train_batch_size": context.world_size, "ema_updates": ema.updates, "best": None}
        checkpoint.save(run, engine, ema, state, {})
        numbers["save"] = max(numbers.get("save", 0.0), added())
    found = []
    for rank in range(context.world_size):
        file = checkpoint.checkpoint_folder(run, 2) / f"rank_{rank:04d}.safetensors"
        for _ in range(2):  # once corrupt, once mended
            if context.is_main:
                flip(file)
            context.barrier()
            found.append(checkpoint.newest_intact(run, context, lambda text: None).name)
    added = added_mb()
    checkpoint.restore(checkpoint.checkpoint_folder(run, 2), engine, ema)
    numbers["restore"] = added()
    every = context.gather(numbers)
    if context.is_main:
        (run / "out.json").write_text(json.dumps([every, found]))


def flip(file: Path) -> None:
    """Change one bit in the middle of ``file``."""
    with file.open("r+b") as handle:
        handle.seek(file.stat().st_size // 2)
        byte = handle.read(1)[0]
        handle.seek(-1, 1)
        handle.write(bytes([byte ^ 1]))


def export(run: str, out: str) -> None:
    """Export ``run`` as ``ds4sci export`` does; write the memory that it adds to the built model beside ``out``."""
    from ds4sci.inference.export import export_run
    from ds4sci.train import checkpoint

    activation_memory.return_freed_tensors()
    build = checkpoint.build_task
    measured: list[Callable[[], float]] = []

    def built(config: Any) -> Any:
        task = build(config)
        measured.append(added_mb())
        return task

    with mock.patch.object(checkpoint, "build_task", built):
        export_run(Path(run), Path(out))
    Path(out).with_suffix(".json").write_text(json.dumps(measured[0]()))

"""Checkpoints that are complete or absent, and the way back from them.

``RUN/checkpoints/step_NNNNNN/`` holds ``deepspeed/`` (weights, optimizer, schedule, as DeepSpeed writes them),
``model.safetensors`` (EMA weights, whole: what evaluation and prediction read), ``state.json`` (data position,
counters, best so far, every rank's running sums of losses), the resolved config, and ``manifest.json`` (size and
SHA-256 of every file). States of random generators are not needed (``ds4sci.train.rng_state``). It is written as
``.step_NNNNNN.partial``, synced, and renamed by rank 0 once every rank has said that its part is on the disk.
``latest`` and ``best`` are text files that name a step.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch

from ds4sci.config.run_file import RunConfig
from ds4sci.config.task_module import import_task
from ds4sci.files.atomic_files import Writer, fingerprint, free_space, replace_text, sync_folder
from ds4sci.train.build import build_task

if TYPE_CHECKING:
    from ds4sci.tasks import Task
    from ds4sci.train.ema import Ema
    from ds4sci.train.engine import Engine

DEEPSPEED = "deepspeed"
"""Tag of DeepSpeed's part inside a checkpoint's folder."""


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` lies."""
    return run / "checkpoints" / f"step_{step:06d}"


def checkpoint_steps(run: Path) -> list[int]:
    """Steps with a checkpoint under its final name, rising."""
    return sorted(int(p.name[5:]) for p in (run / "checkpoints").glob("step_*") if p.name[5:].isdigit())


def save(run: Path, engine: Engine, ema: Ema, state: dict[str, Any], sums: dict[str, Any]) -> Path:
    """Write the checkpoint of ``state["step"]``; every rank calls it.

    state  plain values, the same on all ranks → state.json
    sums   plain values of this rank, kept with those of the others in state.json

    Raises OSError on all ranks alike when any rank could not write (a full disk, say), with the path and the free
    space; then nothing is left of the attempt, and earlier checkpoints are untouched.
    """
    from ds4sci.train.checkpoint_engine import SyncedCheckpointEngine

    context = engine.context
    final = checkpoint_folder(run, state["step"])
    partial = final.with_name(f".{final.name}.partial")
    writer = Writer(partial)
    if context.is_main:
        try:
            shutil.rmtree(partial, ignore_errors=True)
            (partial / DEEPSPEED).mkdir(parents=True)
        except OSError as error:
            writer.error = str(error)
    _raise_on_any_error(engine, writer, partial)

    storage = engine.deepspeed.checkpoint_engine = SyncedCheckpointEngine()
    storage.writer = writer
    # Its recovery script would be copied by rank 0 alone, past the writer: a full disk would leave the others waiting.
    engine.deepspeed._copy_recovery_script = lambda save_path: None
    engine.deepspeed.save_checkpoint(str(partial), tag=DEEPSPEED, save_latest=False)
    weights = ema.full_tensors(engine.module)
    everyones = context.gather(sums)
    if context.is_main:
        # safetensors writes by itself and reports a full disk badly; its bytes go through our hands.
        content = safetensors.torch.save({k: v.contiguous() for k, v in weights.items()}, {"format": "pt"})
        writer.write_bytes(partial / "model.safetensors", content)
        writer.write_bytes(partial / "state.json", json.dumps(state | {"sums": everyones}, indent=2).encode())
        for name in ("config.json", "deepspeed.json", "commit.txt"):
            writer.write_bytes(partial / name, (run / name).read_bytes())
    _raise_on_any_error(engine, writer, partial)

    files = {name: entry for part in context.gather(writer.files) for name, entry in part.items()}
    if context.is_main:
        try:
            replace_text(partial / "manifest.json", json.dumps({"files": files}, indent=1))
            sync_folder(partial / DEEPSPEED)
            sync_folder(partial)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            sync_folder(final.parent)
            replace_text(final.parent / "latest", final.name + "\n")
            if state.get("best"):
                replace_text(final.parent / "best", f"step_{state['best']['step']:06d}\n")
        except OSError as error:
            writer.error = str(error)
    _raise_on_any_error(engine, writer, partial)
    return final


def prune(run: Path, keep_last: int, best: int | None) -> None:
    """Remove all but the newest ``keep_last`` checkpoints and the best one; rank 0 calls it."""
    for step in checkpoint_steps(run)[:-keep_last]:
        if step != best:
            shutil.rmtree(checkpoint_folder(run, step), ignore_errors=True)


def remove_after(run: Path, step: int) -> None:
    """Remove what a run wrote of the steps after ``step``, and what a killed process left half written."""
    for path in (run / "checkpoints").glob(".step_*.partial"):
        shutil.rmtree(path, ignore_errors=True)
    for pattern in ("checkpoints/step_*", "evaluations/step_*.jsonl", "nonfinite/step_*.json"):
        for path in run.glob(pattern):
            number = path.stem.removeprefix("step_")
            if not number.isdigit() or int(number) <= step:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _raise_on_any_error(engine: Engine, writer: Any, partial: Path) -> None:
    """Go on only if no rank has an error; otherwise remove ``partial`` and raise on all."""
    errors = [(rank, error) for rank, error in enumerate(engine.context.gather(writer.error)) if error]
    if not errors:
        return
    if engine.context.is_main:
        shutil.rmtree(partial, ignore_errors=True)
    engine.context.barrier()
    rank, error = errors[0]
    raise OSError(
        f"the checkpoint {partial.with_name(partial.name[1:-8])} could not be written: rank {rank}: {error}. "
        f"{free_space(partial.parent)} now in {partial.parent}. Earlier checkpoints are untouched: "
        "make room, then go on with --resume"
    )


def find_corruption(folder: Path) -> str | None:
    """What is wrong with a checkpoint, by its manifest; None if every file is there, whole and unchanged."""
    manifest = folder / "manifest.json"
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"{manifest}: {type(error).__name__}: {error}"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
    for name, expected in files.items():
        if fingerprint(folder / name) != expected:
            return f"{name} has changed since it was written"
    return None


def newest_intact(run: Path, say: Any = print) -> Path:
    """The newest checkpoint that is whole; says which broken ones it passes over.

    Raises ValueError when there is none.
    """
    for step in reversed(checkpoint_steps(run)):
        folder = checkpoint_folder(run, step)
        trouble = find_corruption(folder)
        if trouble is None:
            return folder
        say(f"WARNING: {folder} is broken ({trouble}); going back to the checkpoint before it")
    raise ValueError(f"{run}: no whole checkpoint in {run / 'checkpoints'}; start the run anew")


def restore(folder: Path, engine: Engine, ema: Ema) -> dict[str, Any]:
    """Bring engine and EMA to the checkpoint ``folder``; every rank calls it.

    Returns the state as ``save`` got it, with the ``"sums"`` of every rank that saved. Raises ValueError where the
    number of ranks, ZeRO stage or batch size forbids an exact continuation.
    """
    from ds4sci.train.checkpoint_engine import SyncedCheckpointEngine

    state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    tag = DEEPSPEED
    if engine.deepspeed.load_universal_checkpoint():
        tag = "universal"
        if not (folder / tag).is_dir():
            raise ValueError(
                f"{folder}: the DeepSpeed JSON has checkpoint.load_universal, and there is no {folder / tag}. Make it "
                f"with\n  {_universal_conversion(folder)}\nor resume with a JSON without that key"
            )
    else:
        _check_same_layout(folder, state, engine)
    _check_same_batch(folder, state, engine)
    engine.deepspeed.checkpoint_engine = SyncedCheckpointEngine()
    loaded, _ = engine.deepspeed.load_checkpoint(str(folder), tag=tag)
    if loaded is None:
        raise ValueError(f"{folder / tag}: DeepSpeed finds nothing to load there")
    ema.restore(safetensors.torch.load_file(folder / "model.safetensors"), state["ema_updates"])
    return state


def _check_same_batch(folder: Path, state: dict[str, Any], engine: Engine) -> None:
    """The data position is step × train_batch_size: with another batch, samples would be left out or seen twice."""
    before, now = state["train_batch_size"], engine.batch[0]
    if before != now:
        micro, accumulation = engine.batch[1:]
        ranks = engine.context.sequence.data_size
        raise ValueError(
            f"{engine.json_file}: train_batch_size is {now} here ({ranks} × {micro} × {accumulation}: ranks × micro "
            f"batch × accumulation), and {folder} was written with {before}; the data position is step × "
            f"train_batch_size, so the run would go on elsewhere in its data. Resume with train_batch_size = {before} "
            "(change gradient_accumulation_steps or the micro batch to fit the ranks), or start a new run with "
            f"train.weights = {json.dumps(str(folder / 'model.safetensors'))}"
        )


def _check_same_layout(folder: Path, state: dict[str, Any], engine: Engine) -> None:
    now = {"zero_stage": engine.zero_stage, "world_size": engine.context.world_size}
    if state["zero_stage"] != now["zero_stage"]:
        raise ValueError(
            f"{folder}: written with ZeRO stage {state['zero_stage']}, and the DeepSpeed JSON asks for "
            f"{now['zero_stage']}; use the JSON of the run"
        )
    if state["world_size"] != now["world_size"] and now["zero_stage"] > 0:
        raise ValueError(
            f"{folder}: written by {state['world_size']} ranks, and this run has {now['world_size']}. Start "
            f"{state['world_size']} ranks, or convert it once with\n  {_universal_conversion(folder)}\n"
            'and resume with a DeepSpeed JSON that has "checkpoint": {"load_universal": true}'
        )


def _universal_conversion(folder: Path) -> str:
    """The command that makes a checkpoint loadable by any number of ranks."""
    return (
        f"python -m deepspeed.checkpoint.ds_to_universal --inject_missing_state "
        f"--input_folder {folder / DEEPSPEED} --output_folder {folder / 'universal'}"
    )


def chosen(run: Path, which: str = "best") -> Path:
    """The folder of a run's checkpoint: ``best``, ``latest``, ``step_NNNNNN`` or the number alone.

    Raises ValueError naming what is missing. Without a best one yet, the latest is taken with a warning.
    """
    if not (run / "checkpoints").is_dir():
        raise ValueError(f"{run}: no run folder with checkpoints; a run is what `ds4sci train` made, such as runs/NAME")
    if not checkpoint_steps(run):
        raise ValueError(f"{run}: the run has no checkpoint yet")
    if which in ("best", "latest"):
        pointer = run / "checkpoints" / which
        name = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
        if not (run / "checkpoints" / name / "model.safetensors").is_file() or not name:
            folder = checkpoint_folder(run, checkpoint_steps(run)[-1])
            warnings.warn(f"{run}: no {which} checkpoint; taking {folder.name}", stacklevel=2)
            return folder
        return run / "checkpoints" / name
    folder = checkpoint_folder(run, int(which)) if which.isdigit() else run / "checkpoints" / which
    if not folder.is_dir():
        have = ", ".join(checkpoint_folder(run, step).name for step in checkpoint_steps(run))
        raise ValueError(f"{run}: no checkpoint {folder.name!r}; there are best, latest, {have}")
    return folder


def load_run(run: Path | str, *, which: str = "best", overrides: Sequence[str] = ()) -> tuple[RunConfig, Task]:
    """A trained task, ready to evaluate and predict: EMA weights in fp32, eval mode, on the CPU. No deepspeed.

    which      ``best`` (by the task's target), ``latest`` or ``step_NNNNNN``
    overrides  ``key=value`` over the run's own configuration, such as ``data.evaluation_recycling=3``

    Raises ValueError when there is no such run or checkpoint, or when its weights do not fit the model of its config.
    """
    folder = chosen(Path(run), which)
    config = RunConfig.load(folder / "config.json", list(overrides))
    asset_overrides = import_task(config.task.name).asset_overrides(Path(run).resolve())
    if asset_overrides:
        config = RunConfig.load(folder / "config.json", [*asset_overrides, *overrides])
    task = build_task(config)
    load_weights(task.model, folder / "model.safetensors")
    task.model.eval()
    return config, task


def weights_file(path: Path) -> Path:
    """``model.safetensors`` of the run folder ``path`` (its best checkpoint), or the file itself."""
    return chosen(path) / "model.safetensors" if path.is_dir() else path


def load_weights(model: torch.nn.Module, file: Path) -> None:
    """Put the tensors of a safetensors ``file`` into ``model``. Raises ValueError naming what does not fit."""
    try:
        tensors = safetensors.torch.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{file}: not readable as safetensors: {error}") from None
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    wrong = [
        f"{k}: {tuple(v.shape)} in the file, {tuple(own[k].shape)} in the model"
        for k, v in tensors.items()
        if k in own and own[k].shape != v.shape
    ]
    unknown = sorted(tensors.keys() - own.keys())
    missing = sorted(own.keys() & model.state_dict().keys() - tensors.keys())
    if wrong or unknown or missing:
        raise ValueError(
            f"{file}: the weights do not fit the model: wrong shape: {wrong[:3]}, not in the model: {unknown[:3]}, "
            f"not in the file: {missing[:3]}"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)

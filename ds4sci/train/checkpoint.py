"""Checkpoints: atomic saving, verification, restoring, and loading of trained runs.

``RUN/checkpoints/step_NNNNNN/`` contains

- ``rank_NNNN.safetensors`` and ``index.json``: fp32 weights and optimizer state in slices that any layout reads, and
  ``model.safetensors``: the unsharded EMA weights, which evaluation and prediction read (``slice_files``);
- ``state.json``: data position, counters, best evaluation so far, every rank's running sums of losses, and the numbers
  of DeepSpeed's engine (``engine_state``);
- ``data_state.npz``, if the order of the samples depends on more than the seed;
- the resolved configuration;
- ``manifest.json``: size and SHA-256 of every file.

States of random generators are not saved (``ds4sci.train.rng_state``). A checkpoint is written as
``.step_NNNNNN.partial`` and synced to the disk; rank 0 renames it after every rank has reported success. ``latest`` and
``best`` are text files that name a step.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ds4sci.config.run_file import RunConfig
from ds4sci.config.task_module import import_task
from ds4sci.files.array_files import save_arrays
from ds4sci.files.atomic_files import Writer, fingerprint, free_space, replace_text, sync_folder
from ds4sci.models.weight_fit import WeightFit, fit_weights
from ds4sci.tasks.build import build_task
from ds4sci.train import slice_files
from ds4sci.train.engine_state import check_kinds, engine_state, restore_engine_state
from ds4sci.train.tensor_file import TensorReader

if TYPE_CHECKING:
    from ds4sci.tasks import Task
    from ds4sci.train.distributed import DistributedContext
    from ds4sci.train.ema import Ema
    from ds4sci.train.engine import Engine


DATA_STATE = "data_state.npz"
"""File of a checkpoint with what the order of the samples depends on, if it does (``Task.data_state``)."""


def checkpoint_folder(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint of ``step``."""
    return run / "checkpoints" / f"step_{step:06d}"


def checkpoint_steps(run: Path) -> list[int]:
    """Return the steps that have a complete checkpoint, in ascending order."""
    return sorted(int(p.name[5:]) for p in (run / "checkpoints").glob("step_*") if p.name[5:].isdigit())


def save(
    run: Path, engine: Engine, ema: Ema, state: dict[str, Any], sums: dict[str, Any],
    data_state: dict[str, np.ndarray] | None = None,
) -> Path:  # fmt: skip
    """Write the checkpoint of ``state["step"]``. A collective operation: every rank calls it.

    state       JSON values, identical on all ranks; written to state.json
    sums        JSON values of this rank; state.json holds those of all ranks
    data_state  ``Task.data_state()``; if not empty, written to data_state.npz

    Raises OSError on every rank if any rank failed to write, for example on a full disk, with the path and the free
    space. The partial checkpoint is then removed, and earlier checkpoints are unchanged.
    """
    context = engine.context
    final = checkpoint_folder(run, state["step"])
    partial = final.with_name(f".{final.name}.partial")
    writer = Writer(partial)
    if context.is_main:
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        except OSError as error:
            writer.error = str(error)
    _raise_on_any_error(engine, writer, partial)

    slice_files.write_slices(partial, engine, writer)
    slice_files.write_model(partial, engine, ema, writer)
    state |= {"engine": engine_state(engine), "sums": context.gather(sums)}
    if context.is_main:
        writer.write_bytes(partial / "state.json", json.dumps(state, indent=2).encode())
        if data_state:
            arrays: dict[str, Any] = data_state
            writer.write(partial / DATA_STATE, lambda handle: save_arrays(handle, arrays))
        for name in ("config.json", "deepspeed.json", "commit.txt"):
            writer.write_bytes(partial / name, (run / name).read_bytes())
    _raise_on_any_error(engine, writer, partial)

    files = {name: entry for part in context.gather(writer.files) for name, entry in part.items()}
    if context.is_main:
        try:
            replace_text(partial / "manifest.json", json.dumps({"files": files}, indent=1))
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


def read_data_state(folder: Path) -> dict[str, np.ndarray]:
    """Return the data state of the checkpoint ``folder``; empty if it has none."""
    file = folder / DATA_STATE
    if not file.is_file():
        return {}
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def prune(run: Path, keep_last: int, best: int | None) -> None:
    """Remove all but the newest ``keep_last`` checkpoints and that of step ``best``. Only rank 0 calls it."""
    for step in checkpoint_steps(run)[:-keep_last]:
        if step != best:
            shutil.rmtree(checkpoint_folder(run, step), ignore_errors=True)


def remove_after(run: Path, step: int) -> None:
    """Remove the files that a run wrote for steps after ``step``, and partial checkpoints of killed processes."""
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
    """Return if no rank has an error; otherwise remove ``partial`` and raise OSError on every rank."""
    errors = [(rank, error) for rank, error in enumerate(engine.context.gather(writer.error)) if error]
    if not errors:
        return
    if engine.context.is_main:
        shutil.rmtree(partial, ignore_errors=True)
    engine.context.barrier()
    rank, error = errors[0]
    raise OSError(
        f"the checkpoint {partial.with_name(partial.name[1:-8])} could not be written: rank {rank}: {error}. "
        f"{free_space(partial.parent)} now in {partial.parent}. Earlier checkpoints are unchanged: "
        "free some disk space, then resume with --resume"
    )


def find_corruption(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """Return the first mismatch between a checkpoint and its manifest, or None if every file is intact.

    part, parts  read only the files with these numbers: ``part``, ``part + parts``, …; the sizes of all are compared
    """
    try:
        files = _manifest(folder)
    except ValueError as error:
        return str(error)
    for name, expected in files.items():
        path, size = folder / name, int(expected["size"])
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    # Files of slices first, so that each rank reads its own if there are as many ranks as before.
    for name in sorted(files, key=lambda name: (not name.startswith("rank_"), name))[part::parts]:
        try:
            found = fingerprint(folder / name)
        except OSError as error:
            return f"{name} cannot be read: {error}"
        if found != files[name]:
            return f"{name} has another SHA-256 than when it was written"
    return None


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Return name → ``{"size", "sha256"}`` of the files of a checkpoint. Raises ValueError for a damaged manifest."""
    file = folder / "manifest.json"
    try:
        files: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["files"]
        for entry in files.values():
            int(entry["size"])
        return files
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: {type(error).__name__}: {error}") from None


def newest_intact(run: Path, context: DistributedContext, log: Any = print) -> Path:
    """Return the newest checkpoint that passes verification, the same on all ranks. A collective operation.

    The ranks share the reading. Each corrupt checkpoint before it is reported through ``log``. Raises ValueError if
    there is none.
    """
    for step in reversed(context.broadcast(checkpoint_steps(run))):
        folder = checkpoint_folder(run, step)
        found = context.gather(find_corruption(folder, context.rank, context.world_size))
        trouble = next((one for one in found if one is not None), None)
        if trouble is None:
            return folder
        log(f"WARNING: {folder} is corrupt ({trouble}); trying the previous checkpoint")
    raise ValueError(f"{run}: no intact checkpoint in {run / 'checkpoints'}; start a new run")


def read_state(folder: Path) -> dict[str, Any]:
    """``state.json`` of the checkpoint ``folder``. Raises OSError or ValueError if it cannot be read."""
    state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return state


def restore(folder: Path, engine: Engine, ema: Ema) -> dict[str, Any]:
    """Load the checkpoint ``folder`` into engine and EMA. A collective operation: every rank calls it.

    Any number of ranks, ZeRO stage, offload and precision reads a checkpoint; one of an earlier version only its own
    layout. Returns the state that ``save`` was given, with the ``"sums"`` of every rank that saved. Raises ValueError
    if the batch size differs, or if model, optimizer or schedule do not fit.
    """
    state = read_state(folder)
    _check_same_batch(folder, state, engine)
    if (folder / slice_files.INDEX).is_file():
        check_kinds(engine, state["engine"], str(folder))
        slice_files.read_slices(folder, engine)
        restore_engine_state(engine, state["engine"])
    else:
        from ds4sci.train import checkpoint_engine

        checkpoint_engine.load(folder, state, engine)
    slice_files.read_ema(folder, ema, state["ema_updates"])
    return state


def _check_same_batch(folder: Path, state: dict[str, Any], engine: Engine) -> None:
    """Raise ValueError if train_batch_size differs: the data position is step × train_batch_size, so samples would be
    skipped or repeated."""
    before, now = state["train_batch_size"], engine.batch[0]
    if before != now:
        micro, accumulation = engine.batch[1:]
        ranks = engine.context.sequence.data_size
        raise ValueError(
            f"{engine.json_file}: train_batch_size is {now} (ranks × micro batch × accumulation = {ranks} × {micro} × "
            f"{accumulation}), but {folder} was written with {before}. The data position is step × train_batch_size: "
            f"the run would continue at another position of its data. Resume with train_batch_size = {before} "
            "(change gradient_accumulation_steps or the micro batch to fit the ranks), or start a new run with "
            f"train.weights = {json.dumps(str(folder / 'model.safetensors'))}"
        )


def select_checkpoint(run: Path, which: str = "best") -> Path:
    """Return the folder of a checkpoint of ``run``.

    which  ``best``, ``latest``, ``step_NNNNNN`` or a step number; without a best one, the latest with a warning

    Raises ValueError if the run or the checkpoint does not exist.
    """
    if not (run / "checkpoints").is_dir():
        raise ValueError(
            f"{run}: not a run folder (no checkpoints); expected a folder made by `ds4sci train`, such as runs/NAME"
        )
    if not checkpoint_steps(run):
        raise ValueError(f"{run}: no checkpoint yet")
    if which in ("best", "latest"):
        pointer = run / "checkpoints" / which
        name = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
        if not (run / "checkpoints" / name / "model.safetensors").is_file() or not name:
            folder = checkpoint_folder(run, checkpoint_steps(run)[-1])
            warnings.warn(f"{run}: no {which} checkpoint; using {folder.name}", stacklevel=2)
            return folder
        return run / "checkpoints" / name
    folder = checkpoint_folder(run, int(which)) if which.isdigit() else run / "checkpoints" / which
    if not folder.is_dir():
        have = ", ".join(checkpoint_folder(run, step).name for step in checkpoint_steps(run))
        raise ValueError(f"{run}: no checkpoint {folder.name!r}; available: best, latest, {have}")
    return folder


def load_run(run: Path | str, *, which: str = "best", overrides: Sequence[str] = ()) -> tuple[RunConfig, Task]:
    """Load a trained task for evaluation and prediction: EMA weights in fp32, eval mode, on the CPU, no deepspeed.

    which      see ``select_checkpoint``
    overrides  ``key=value`` overrides of the run's configuration, such as ``data.evaluation_recycling=3``

    Raises ValueError if the run or checkpoint does not exist, or if its weights do not fit the configured model.
    """
    folder = select_checkpoint(Path(run), which)
    config = RunConfig.load(folder / "config.json", list(overrides))
    asset_overrides = import_task(config.task.name).asset_overrides(Path(run).resolve())
    if asset_overrides:
        config = RunConfig.load(folder / "config.json", [*asset_overrides, *overrides])
    task = build_task(config)
    load_weights(task.model, folder / "model.safetensors")
    task.model.eval()
    return config, task


def weights_file(path: Path) -> Path:
    """Return ``model.safetensors`` of the best checkpoint of the run folder ``path``, or ``path`` if it is a file."""
    return select_checkpoint(path) / "model.safetensors" if path.is_dir() else path


def load_weights(model: torch.nn.Module, file: Path, *, skip: Sequence[str] = (), new: Sequence[str] = ()) -> WeightFit:
    """Copy the tensors of a safetensors ``file`` into ``model``. ``skip``, ``new``: see ``fit_weights``.

    Raises ValueError naming those that do not fit, or if the file is not the one of its checkpoint's manifest.
    """
    check_against_manifest(file)
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    with TensorReader(file) as reader:
        shapes = {name: spec.shape for name, spec in reader.specs.items()}
        saved = model.state_dict().keys() | shapes.keys()
        expected = [name for name in own if name in saved]
        fit = fit_weights({name: tuple(own[name].shape) for name in expected}, shapes, source=file, skip=skip, new=new)
        for name in fit.loaded:
            reader.read_into(own[name], name)
    return fit


def check_against_manifest(file: Path) -> None:
    """Raise ValueError if ``file`` differs from what the manifest next to it says; without one, return."""
    if not (file.is_file() and file.with_name("manifest.json").is_file()):
        return
    expected = _manifest(file.parent).get(file.name)
    if expected is not None and fingerprint(file) != expected:
        raise ValueError(
            f"{file}: corrupt: it has another size or SHA-256 than when it was written; use another checkpoint of the "
            "run, or a copy of this one"
        )

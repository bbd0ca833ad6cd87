"""Runs that save on one layout and resume on another: variants of a task, layouts, and the programs of one rank."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from ds4sci.config.run_file import RunConfig
from tests.support import layouts, rank_processes
from tests.support.run_files import digest, losses, training_state

SAVED, STEPS, BATCH = 3, 6, 4
"""Step of the checkpoint, last step, samples of a step."""

ADAM = {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.1, "torch_adam": True}}
SCHEDULE = {"type": "WarmupLR", "params": {"warmup_max_lr": 1e-3, "warmup_num_steps": 5, "warmup_type": "linear"}}
CPU = {"device": "cpu"}


@dataclass(frozen=True)
class Layout:
    """Ranks, ZeRO stage, and further keys.

    sequence  ranks that share each row; of a fold model, an example (axial parallelism)
    pipeline  stages of the model
    zero      keys of ``zero_optimization``
    """

    name: str
    ranks: int
    stage: int
    sequence: int = 1
    pipeline: int = 1
    zero: tuple[str, ...] = ()

    def deepspeed(self, variant: dict[str, Any]) -> dict[str, Any]:
        """Return the DeepSpeed JSON."""
        groups = self.ranks // self.sequence // self.pipeline
        return {
            "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": BATCH // 2 // groups,
            "gradient_clipping": 0.5, "optimizer": variant.get("optimizer", ADAM),
            "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {
                "stage": self.stage, "stage3_param_persistence_threshold": 40, "sub_group_size": 2000,
            } | dict.fromkeys(self.zero, CPU) | variant.get("zero", {}),
        } | ({"bf16": {"enabled": True}} if variant.get("bf16") else {}) | (
            {} if variant.get("groups") or "optimizer" in variant else {"scheduler": SCHEDULE}
        )  # fmt: skip


LAYOUTS = [
    *(Layout(f"{ranks} ranks, stage {stage}", ranks, stage) for ranks in (1, 2) for stage in range(4)),
    Layout("offloaded optimizer", 2, 1, zero=("offload_optimizer",)),
    Layout("offloaded parameters", 2, 3, zero=("offload_optimizer", "offload_param")),
    *(Layout(f"sequence 2, stage {stage}", 2, stage, sequence=2) for stage in (1, 3)),
    Layout("pipeline 2", 2, 1, pipeline=2),
]

LLAMA = layouts.SMALL_LLAMA | {"tie_word_embeddings": True, "num_hidden_layers": 2}
ESM = layouts.SMALL_ESM | {"num_hidden_layers": 2}
FOLD = {"evoformer": layouts.SMALL_FOLD["evoformer"] | {"blocks": 2}}
VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {"task": "causal_lm", "model": {"config": LLAMA}},
    "frozen": {
        "task": "masked_lm", "model": {"config": ESM, "freeze": ["*.embeddings.*", "*.layer.0.attention.*"]},
    },
    "LoRA": {"task": "causal_lm", "model": {"config": LLAMA, "lora": {"rank": 2}}},
    "two groups": {"task": "causal_lm", "model": {"config": LLAMA}, "groups": True},
    "fold": {"task": "fold", "model": FOLD},
    "bf16": {"task": "causal_lm", "model": {"config": LLAMA}, "bf16": True},
}  # fmt: skip
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "SGD without momentum": {"lr": 0.1},
    "RMSprop": {"lr": 1e-3, "centered": True},
    "Adagrad": {"lr": 1e-2},
    "NAdam": {"lr": 1e-3},
    "Adamax": {"lr": 1e-3},
    "LAMB": {"lr": 1e-2, "weight_decay": 0.1},
    "LARS": {"lr": 1.0, "trust_coefficient": 1e-2},
    "Muon": {"lr": 1e-3, "torch_adam": True},
}  # fmt: skip
VARIANTS |= {
    name: {
        "task": "causal_lm", "model": {"config": LLAMA}, "optimizer": {"type": name.split()[0], "params": params},
    }
    for name, params in OPTIMIZERS.items()
}  # fmt: skip
# DeepSpeed requires that key, and computes other updates on each stage: undisturbed runs differ as well.
VARIANTS["Muon"] |= {"zero": {"reduce_scatter": False}, "differs": True}


def configure(variant: str, folder: Path) -> Path:
    """Write the run file of a variant and return its path."""
    chosen = VARIANTS[variant]
    train = {"steps": STEPS, "save_every": SAVED, "evaluate_every": 0, "ema_decay": 0.9, "keep_last": 2}
    config = layouts.configure(chosen["task"], folder, train=train, model=chosen["model"])
    return Path(config.source)


class Grid:
    """Runs of one variant: saved on each layout, and resumed on others."""

    def __init__(self, variant: str, folder: Path) -> None:
        self.variant, self.folder = variant, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.source = configure(variant, folder)

    def save(self, chosen: list[Layout]) -> None:
        """Train to the last step on each layout, with a checkpoint on the way."""
        self._run([{"layout": one, "name": self._name(one)} for one in chosen])

    def resume(self, pairs: list[tuple[Layout, Layout]]) -> dict[tuple[str, str], list[str]]:
        """Resume each pair (saved on, resumed on). Returns the differences of each pair; none if all is well."""
        rows = []
        for source, target in pairs:
            before, name = self.run(source), f"{self._name(source)}_to_{self._name(target)}"
            shutil.copytree(before, self.folder / "runs" / name)
            shutil.rmtree(self.folder / "runs" / name / f"checkpoints/step_{STEPS:06d}")
            rows.append({"layout": target, "name": name, "resumes": True})
        self._run(rows)
        return {
            (source.name, target.name): self._differences(source, target, self.folder / "runs" / row["name"])
            for (source, target), row in zip(pairs, rows, strict=True)
        }

    def run(self, layout: Layout) -> Path:
        """Return the folder of the run that was saved on ``layout``."""
        return self.folder / "runs" / self._name(layout)

    def _name(self, layout: Layout) -> str:
        return layout.name.replace(", ", "_").replace(" ", "_")

    def _run(self, rows: list[dict[str, Any]]) -> None:
        def groups(row: dict[str, Any]) -> tuple[int, int, int]:
            return row["layout"].ranks, row["layout"].sequence, row["layout"].pipeline

        # stage 3 last: it replaces torch's linear function for the rest of the process, which changes the last bit
        rows = sorted(rows, key=lambda row: (groups(row), row["layout"].stage))
        for (ranks, sequence, pipeline), chosen in itertools.groupby(rows, key=groups):
            cases = []
            for row in chosen:
                file = self.folder / f"{row['name']}.json"
                file.write_text(json.dumps(row["layout"].deepspeed(VARIANTS[self.variant])))
                cases.append({
                    "config": str(self.source), "deepspeed": str(file), "name": row["name"], "sequence": sequence,
                    "pipeline": pipeline,
                    "resumes": row.get("resumes", False), "groups": VARIANTS[self.variant].get("groups", False),
                })  # fmt: skip
            (self.folder / "cases.json").write_text(json.dumps(cases))
            rank_processes.call(ranks, run_cases, [str(self.folder / "cases.json")], self.folder, seconds=600)

    def _differences(self, source: Layout, target: Layout, resumed: Path) -> list[str]:
        """Compare a resumed run with the undisturbed one."""
        whole, found = self.run(source), []
        # The checkpoint that the resumed run saved before its first step, on its own layout
        again = resumed / "again"
        before, after = training_state(whole, SAVED), training_state(again, SAVED)
        found += [f"restored {name}" for name in before if not same(before[name], after[name])]
        if digest(model_file(whole, SAVED)) != digest(model_file(again, SAVED)):
            found.append("restored means, frozen parameters or buffers")
        ours, theirs = losses(whole), losses(resumed)
        if sorted(theirs) != list(range(1, STEPS + 1)):
            found.append(f"steps {sorted(theirs)}")
        off = max(abs(theirs[step] / ours[step] - 1) for step in range(SAVED + 1, STEPS + 1))
        chosen = VARIANTS[self.variant]
        if off > 1e-6 and not chosen.get("bf16") and not chosen.get("differs"):
            found.append(f"losses by {off:.1e}")
        if source == target:
            if off or not same(training_state(whole, STEPS), training_state(resumed, STEPS)):
                found.append("bits of the last step")
            if digest(model_file(whole, STEPS)) != digest(model_file(resumed, STEPS)):
                found.append("bits of the last means")
        return found


def model_file(run: Path, step: int) -> Path:
    """Return the file of the averaged weights."""
    return run / f"checkpoints/step_{step:06d}/model.safetensors"


def same(a: Any, b: Any) -> bool:
    """Whether two trees are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return bool(torch.equal(a, b)) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


def run_cases(cases_file: str) -> None:
    """Train or resume every case of the file on this rank."""
    from ds4sci.train import distributed, loop
    from ds4sci.train.run import Session

    loop.peak_rate = lambda device, dtype: None  # only displayed
    # DeepSpeed creates the groups of a process once
    distributed.create_sequence_group = functools.cache(distributed.create_sequence_group)
    for case in json.loads(Path(cases_file).read_text()):
        overrides = [f"train.name={case['name']}", *(f"parallel.{k}={case[k]}" for k in ("sequence", "pipeline"))]
        with _two_groups() if case["groups"] else contextlib.nullcontext():
            if not case["resumes"]:
                config = RunConfig.load(case["config"], overrides, deepspeed=case["deepspeed"])
                Session.join(config).train()
                continue
            run = Path(case["config"]).parent / "runs" / case["name"]
            config = RunConfig.load(run / "config.json", overrides, deepspeed=case["deepspeed"])
            with _other_values(), _saved_again():
                Session.join(config, resume=run).train()


@contextlib.contextmanager
def _two_groups() -> Iterator[None]:
    """Give DeepSpeed's optimizer two groups of parameters, with their own learning rate and weight decay."""
    import deepspeed

    initialize = deepspeed.initialize

    def grouped(*, model_parameters: list[Any], **more: Any) -> Any:
        wide = [p for p in model_parameters if p.ndim > 1]
        narrow = [p for p in model_parameters if p.ndim < 2]
        groups = [{"params": wide}, {"params": narrow, "lr": 3e-3, "weight_decay": 0.0}]
        return initialize(model_parameters=groups, **more)

    with mock.patch.object(deepspeed, "initialize", grouped):
        yield


@contextlib.contextmanager
def _other_values() -> Iterator[None]:
    """Build models with other weights and buffers than those that were saved."""
    from ds4sci.train import run

    build = run.build_task

    def changed(config: RunConfig) -> Any:
        task = build(config)
        with torch.no_grad():
            for tensor in task.model.state_dict().values():
                if tensor.is_floating_point():
                    tensor.mul_(1.5).add_(0.25)
        return task

    with mock.patch.object(run, "build_task", changed):
        yield


@contextlib.contextmanager
def _saved_again() -> Iterator[None]:
    """Save the restored state again, before the first step, into ``RUN/again``, and check the weights of the model."""
    from ds4sci.train import checkpoint
    from ds4sci.train.loop import TrainingLoop

    restore = TrainingLoop.restore

    def restored(self: Any, folder: Path) -> None:
        restore(self, folder)
        _check_model_weights(self.engine, folder)
        again = self.run / "again"
        if self.context.is_main:
            again.mkdir()
            for name in ("config.json", "deepspeed.json", "commit.txt"):
                shutil.copy(self.run / name, again)
        self.context.barrier()
        state = vars(self.state) | {"ema_updates": self.ema.updates, "train_batch_size": BATCH}
        checkpoint.save(again, self.engine, self.ema, state, self.sums.state())

    with mock.patch.object(TrainingLoop, "restore", restored):
        yield


def _check_model_weights(engine: Any, folder: Path) -> None:
    """Check that the weights that compute are the restored fp32 weights, rounded."""
    from ds4sci.train.ema import local_slice, local_tensor
    from ds4sci.train.slice_files import WEIGHT, SliceReader

    with SliceReader(folder) as reader:
        for name, p in engine.named_parameters():
            if p.requires_grad:
                own, start = local_slice(p, local_tensor(p))
                master = torch.empty(own.numel())
                reader.read_into(master, WEIGHT, name, start)
                assert torch.equal(own.reshape(-1), master.to(own.dtype)), name


def train_in_old_format(arguments: str) -> None:
    """Train with ``arguments``, a JSON list; checkpoints are written by DeepSpeed, as earlier versions did."""
    from ds4sci.train import slice_files
    from ds4sci.train.__main__ import main

    def write(folder: Path, engine: Any, writer: Any) -> None:
        engine.deepspeed.save_checkpoint(str(folder), tag="deepspeed", save_latest=False)

    with mock.patch.object(slice_files, "write_slices", write):
        assert main(json.loads(arguments)) == 0

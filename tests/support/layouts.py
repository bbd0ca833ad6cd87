"""Training on many layouts: run files, the program of one rank, and the reference in fp64 torch."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from ds4sci import __version__
from ds4sci.config import run_version
from ds4sci.config.run_file import RunConfig
from ds4sci.data.array_shards import write_shard
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.losses.fold import fold_loss
from ds4sci.selftest.comparison import initial_weights
from ds4sci.tasks.build import build_task
from ds4sci.tasks.fold import FoldTask
from ds4sci.types import ArrayBatch, Batch, LanguageBatch, OperatorBatch, in_double
from tests.support import language_oracle as oracle
from tests.support.complex_batch import as_complex
from tests.support.fold_run import CHAINS
from tests.support.template_batches import with_templates

BATCH, STEPS, RATE, CLIP = 16, 4, 0.3, 0.25
"""Samples per step; number of steps; learning rate of SGD; clipping norm, below the gradient norm of every task."""

SPLITS = {1: ((16, 1), (4, 4), (1, 16)), 2: ((8, 1), (2, 4), (1, 8)), 4: ((4, 1), (2, 2), (1, 4))}
"""Number of ranks → (micro-batch, accumulation) pairs with ``BATCH`` samples per step."""

SMALL_FOLD: dict[str, Any] = {
    "c_m": 16, "c_z": 8, "c_s": 12, "c_plddt": 8,
    "heads": ["masked_msa", "experimentally_resolved", "secondary", "tm"],
    "evoformer": {"blocks": 1, "heads_msa": 2, "d_msa": 4, "heads_pair": 2, "d_pair": 4, "c_outer": 4,
                  "c_multiplication": 4, "dropout_msa": 0.0, "dropout_pair": 0.0},
    "extra_msa": {"blocks": 0},
    "structure": {"iterations": 2, "heads": 2, "d_ipa": 4, "c_angle": 8, "dropout": 0.0},
}  # fmt: skip
SMALL_TEMPLATE: dict[str, Any] = {
    "blocks": 2, "c_t": 8, "heads_pair": 2, "d_pair": 4, "c_multiplication": 4, "d_attention": 2, "dropout": 0.0,
}  # fmt: skip
WITH_TEMPLATES: dict[str, Any] = {"msa_input": "profile", "max_templates": 3}
ALL_TERMS = (
    "experimentally_resolved", "violation", "secondary", "smooth_lddt", "relative_distance", "local_fape",
    "chirality", "chain_bonds", "ca_clashes", "aligned_error",
)  # fmt: skip
SMALL_ESM = oracle.ESM | {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 1}
SMALL_LLAMA = oracle.LLAMA | {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1,
                              "intermediate_size": 24, "num_hidden_layers": 1}  # fmt: skip
SMALL_CNN = {"channels": [4, 6, 5], "hidden": [8], "whitening_examples": 16}

TASKS = (
    "fold",
    "masked_lm",
    "masked_lm unpacked",
    "causal_lm",
    "causal_lm unpacked",
    "token_classification",
    "neural_operator",
    "volume_regression",
)


LORA = {"rank": 4, "alpha": 16.0, "dropout": 0.0}
OFFLOAD = {"device": "cpu"}
RESAMPLED: dict[str, Any] = {"msa_input": "profile", "resample_msa": True, "masked_msa_probability": 0.3}
"""A sample for each recycling pass."""
WITHOUT_OVERLAPS = {"violation": 0.0, "ca_clashes": 0.0}
"""Settings of the loss without overlaps of atoms, whose kinks amplify the rounding of fp32 from step to step."""
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "fold recomputed": ("fold", {"model": {"checkpoint_blocks": True}}, {}),
    "fold recycled": (
        "fold",
        {
            "data": {"features": RESAMPLED, "plan": {"phases": [{"crops": [20, 14]}], "max_recycling": 3}},
            "loss": WITHOUT_OVERLAPS,
        },
        {},
    ),
    "fold averaged": ("fold", {"train": {"ema_decay": 0.9}}, {}),
    "fold offloaded": ("fold", {}, {"offload_optimizer": OFFLOAD}),
    "fold offloaded with parameters": ("fold", {}, {"offload_optimizer": OFFLOAD, "offload_param": OFFLOAD}),
    "masked_lm recomputed": ("masked_lm", {"train": {"activation_budget": 0}}, {}),
    "causal_lm averaged, recomputed": (
        "causal_lm", {"train": {"activation_budget": 2e-5, "ema_decay": 0.9}}, {},
    ),
    "masked_lm offloaded": ("masked_lm", {}, {"offload_optimizer": OFFLOAD}),
    "token_classification lora": ("token_classification", {"model": {"lora": LORA}}, {}),
    "causal_lm lora, recomputed": ("causal_lm", {"model": {"lora": LORA}, "train": {"activation_budget": 0}}, {}),
    "token_classification lora, offloaded": (
        "token_classification", {"model": {"lora": LORA}}, {"offload_optimizer": OFFLOAD},
    ),
    "causal_lm chunked": ("causal_lm", {"model": {"chunk_tokens": 16}}, {}),
    "masked_lm chunked": ("masked_lm", {"model": {"chunk_tokens": 24}}, {}),
    "fold lora": ("fold", {"model": {"lora": {"rank": 3, "alpha": 0.75}}}, {}),
    "fold templates": (
        "fold", {"model": {"template": SMALL_TEMPLATE}, "data": {"features": WITH_TEMPLATES}}, {},
    ),
    "fold multimer": (
        "fold", {"model": {"kind": "multimer", "template": SMALL_TEMPLATE}, "data": {"features": WITH_TEMPLATES},
                 "loss": {"interface_fape": 0.5, "chain_centers": 0.5} | WITHOUT_OVERLAPS}, {},
    ),
}  # fmt: skip
"""Name → (task, sections of the run file, keys of ``zero_optimization``): settings that must not change the numbers."""


def variant_stages(name: str) -> list[int]:
    """ZeRO stages that a variant can use: optimizer states are offloaded from stage 1 on, parameters at stage 3, and
    layers in chunks and adapters of structure models are refused at stage 3."""
    zero = VARIANTS[name][2]
    if "chunked" in name or name == "fold lora":
        return [0, 1, 2]
    return [3] if "offload_param" in zero else [1, 2, 3] if zero else [0, 1, 2, 3]


def sections(task: str, folder: Path) -> dict[str, Any]:
    """Return the sections of the task in a run file; its data is written into ``folder``."""
    name, packing = task.split()[0], "unpacked" not in task
    if name == "fold":
        _chains(folder)
        return {
            "model": SMALL_FOLD,
            "data": {
                "train": str(folder / "train.npz"), "valid": str(folder / "valid.npz"), "evaluation_recycling": 0,
                "features": {"msa_input": "profile"}, "plan": {"phases": [{"crops": [20, 14]}], "max_recycling": 1},
            },
            "loss": dict.fromkeys(ALL_TERMS, 0.5) | {"unclamped_fraction": 0.5, "resolution": [0.1, 2.0]},
        }  # fmt: skip
    if name == "token_classification":
        _chains(folder)
        data = {"train": str(folder / "train.npz"), "valid": str(folder / "valid.npz"), "length": 96, "row_length": 128}
        return {"model": {"config": SMALL_ESM}, "data": data | {"tokenizer": {"kind": "esm"}}}
    if name == "neural_operator":
        return {
            "pde": {"name": "reaction_diffusion"}, "model": {"branch": [8, 8], "trunk": [8, 8], "latent": 6},
            "data": {"points": 24, "boundary_points": 6, "valid_functions": 2},
        }  # fmt: skip
    if name == "volume_regression":
        _volumes(folder / "volumes")
        return {"model": SMALL_CNN, "data": {"path": str(folder / "volumes"), "valid_examples": 3}}
    _proteins(folder / "proteins.fa")
    model = SMALL_ESM if name == "masked_lm" else SMALL_LLAMA
    data = {
        "path": str(folder / "proteins.fa"), "valid": str(folder / "valid.fa"), "tokenizer": {"kind": "esm"},
        "packing": packing, "phases": [{"length": 48, "row_length": 64}], "soft_masked_weight": 0.5,
    }  # fmt: skip
    return {"model": {"config": model}, "data": data}


def _chains(folder: Path) -> None:
    if not (folder / "train.npz").exists():
        records = sorted(ChainSet.open(CHAINS), key=lambda record: len(record.sequence))
        for number, record in enumerate(records[:24]):
            # angles of missing atoms may be rounding noise, which differs between fp32 and fp64
            record = with_templates(record, number % 6, seed=number, missing=0.0) if number % 6 else record
            records[number] = replace(record, resolution=1.5 + number % 3)  # two of three resolutions are out of range
        ChainSet.write(folder / "train.npz", records[:24])
        ChainSet.write(folder / "valid.npz", records[:1])


def _volumes(folder: Path) -> None:
    """Write volumes of two channels and 8³ cells with three targets, on which the variances depend."""
    if not folder.exists():
        folder.mkdir()
        rng = np.random.default_rng(6)
        for split, count in (("train", 40), ("valid", 3)):
            targets = rng.uniform(-1, 1, (count, 3)).astype(np.float32)
            spread = np.exp(targets[:, :2])[:, :, None, None, None]
            write_shard(folder, split, 0, (spread * rng.normal(size=(count, 2, 8, 8, 8))).astype(np.float16), targets)


def _proteins(file: Path) -> None:
    rng = np.random.default_rng(4)
    chains = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), rng.integers(3, 60))) for _ in range(60)]
    valid = "".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 30))
    chains = [chain[: len(chain) // 2].lower() + chain[len(chain) // 2 :] for chain in chains]
    file.write_text("".join(f">p{i}\n{chain}\n" for i, chain in enumerate(chains)))
    file.with_name("valid.fa").write_text(f">v\n{valid}\n")


def configure(task: str, folder: Path, *, file_name: str = "", **more: Any) -> RunConfig:
    """Write the run file of a task, in fp32 with clipping and SGD, and its initial weights into ``folder``.

    file_name  name of the files, for a task with several settings
    more       sections of the run file; their keys replace those of ``sections``
    """
    file = folder / f"{(file_name or task).replace(' ', '_')}.json"
    tree = {
        run_version.KEY: __version__, "deepspeed": str(folder / "plain.json"), "seed": 3,
        "task": {"name": task.split()[0]},
        "train": {"steps": STEPS, "ema_decay": 0.0, "log_every": 1, "output": str(folder / "runs")},
    } | sections(task, folder)  # fmt: skip
    for section, values in more.items():
        tree[section] = tree.get(section, {}) | values
    (folder / "plain.json").write_text(json.dumps(deepspeed(1, BATCH, 1)))
    file.write_text(json.dumps(tree))
    config = RunConfig.load(file)
    weights = file.with_suffix(".safetensors")
    if not weights.exists():
        safetensors.torch.save_file(initial_weights(build_task(config).model), weights)
    tree["train"]["weights"] = str(weights)
    file.write_text(json.dumps(tree))
    return RunConfig.load(file)


def deepspeed(
    stage: int, micro: int, accumulation: int, *, zero: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """A DeepSpeed JSON.

    zero  more keys of ``zero_optimization``
    """
    return {
        "train_micro_batch_size_per_gpu": micro, "gradient_accumulation_steps": accumulation,
        "gradient_clipping": CLIP, "optimizer": {"type": "SGD", "params": {"lr": RATE}},
        "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0} | (zero or {}),
    } | more  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A run of a task on one layout."""

    task: str
    stage: int
    micro: int
    accumulation: int
    variant: str = ""

    def name(self, ranks: int) -> str:
        task = (self.variant or self.task).replace(",", "")
        return f"{task} {ranks}x{self.micro}x{self.accumulation} stage {self.stage}".replace(" ", "_")

    def configure(self, folder: Path, **more: Any) -> RunConfig:
        """Write the run file of this case into ``folder``; ``more`` are sections of it."""
        if not self.variant:
            return configure(self.task, folder, **more)
        settings = VARIANTS[self.variant][1]
        merged = {key: settings.get(key, {}) | more.get(key, {}) for key in settings.keys() | more.keys()}
        return configure(self.task, folder, file_name=self.variant.replace(",", ""), **merged)

    def deepspeed(self) -> dict[str, Any]:
        """The DeepSpeed JSON of this case."""
        zero = VARIANTS[self.variant][2] if self.variant else {}
        return deepspeed(self.stage, self.micro, self.accumulation, zero=zero)


def run(cases_file: str) -> None:
    """Train every case of the file on this rank."""
    from ds4sci.train import distributed, loop
    from ds4sci.train.run import Session

    # DeepSpeed creates the groups of a process once
    distributed.create_sequence_group = functools.cache(distributed.create_sequence_group)
    loop.peak_rate = lambda device, dtype: None  # only displayed, and measuring it takes longer than this training
    for case in json.loads(Path(cases_file).read_text()):
        config = RunConfig.load(case["config"], [f"train.name={case['name']}"], deepspeed=case["deepspeed"])
        with complexes(config):
            Session.join(config).train()


@contextmanager
def complexes(config: RunConfig) -> Iterator[None]:
    """Give a multimer model complexes instead of the single chains of its chain set."""
    if getattr(config.settings, "model", None) is None or getattr(config.settings.model, "kind", "") != "multimer":
        yield
        return
    chains = FoldTask.batches
    with mock.patch.object(FoldTask, "batches", lambda *own, **given: map(as_complex, chains(*own, **given))):
        yield


def curve(run_folder: Path) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Return (losses, gradient norms, final weights in their moving average) of a run."""
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["kind"] == "train"]
    weights = safetensors.torch.load_file(run_folder / f"checkpoints/step_{STEPS:06d}/model.safetensors")
    return [line["loss"] for line in lines], [line["grad_norm"] for line in lines], weights


def plain(
    config: RunConfig, make_optimizer: Callable[[list[nn.Parameter]], Any] | None = None
) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Return the same from fp64 torch in one process: the whole batch at once, no DeepSpeed.

    The weights are their exponential moving average with ``train.ema_decay``, as those of a checkpoint.

    make_optimizer  function of the trainable parameters; by default ``torch.optim.SGD``
    """
    task = build_task(config)
    assert config.train.weights is not None
    task.model.load_state_dict(safetensors.torch.load_file(config.train.weights), strict=False)
    model = task.model.double().train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(parameters) if make_optimizer else torch.optim.SGD(parameters, lr=RATE)
    with complexes(config):
        batches = task.batches(start_step=0, rank=0, world_size=1, micro_batch_size=BATCH, accumulation_steps=1)
    losses, norms, named = [], [], dict(model.named_parameters())
    means = {name: p.detach().clone() for name, p in named.items()}
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = _plain_loss(task, model, next(batches))
        loss.backward()
        losses.append(float(loss.detach()))
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, CLIP)))
        optimizer.step()
        decay = min(config.train.ema_decay, (1 + step) / (10 + step))
        means = {name: decay * mean + (1 - decay) * named[name].detach() for name, mean in means.items()}
    return losses, norms, means


def _plain_loss(task: Any, model: nn.Module, batch: Any) -> Tensor:
    if isinstance(batch, LanguageBatch):
        return oracle.plain_loss(model, batch)  # transformers' own forward pass, document by document
    if isinstance(batch, Batch):
        return fold_loss(model(in_double(batch)), in_double(batch), task.config.loss)[0]
    if isinstance(batch, ArrayBatch):
        return nn.functional.mse_loss(model(batch), batch.targets.double())
    residuals = model(in_double(batch))
    weights = task.weights.values()
    return torch.stack([w * r.square().mean() for w, r in zip(weights, residuals, strict=True)]).sum()


def part(batch: Any, first: int, last: int) -> Any:
    """Return samples ``first`` … ``last`` − 1 of a batch; structures lose padding that only the other samples need."""
    ids = batch.ids[first:last]
    if isinstance(batch, Batch):
        n = int(batch.token_mask[first:last].sum(-1).max())
        along = {"msa_feat": 2, "msa_mask": 2, "extra_msa_feat": 2, "extra_msa_mask": 2, "true_msa": 2, "masked_msa": 2}
        along |= {"template_aatype": 2, "template_positions": 2, "template_atom_mask": 2}
        cut = {
            name: value[first:last] if value.ndim == 1 else value[first:last].narrow(along.get(name, 1), 0, n)
            for name, value in vars(batch).items()
            if isinstance(value, Tensor) and name != "template_mask"
        }
        if batch.template_mask is not None:
            cut["template_mask"] = batch.template_mask[first:last]
        earlier = None if batch.earlier_msa is None else batch.earlier_msa[first:last]
        return in_double(replace(batch, ids=ids, earlier_msa=earlier, **cut))
    if isinstance(batch, OperatorBatch):
        given = {name: x[first:last] for name, x in batch.given.items()}
        return replace(batch, ids=ids, functions=batch.functions[first:last], given=given)
    if isinstance(batch, ArrayBatch):
        cut = {name: value[first:last] for name, value in vars(batch).items() if isinstance(value, Tensor)}
        return replace(batch, ids=ids, **cut)
    from tests.support.shared_rows import part as rows

    return rows(batch, first, last)


def splits(size: int, seed: int) -> Iterator[list[tuple[int, int]]]:
    """Yield divisions of ``size`` samples: all at once, one at a time, and random unequal parts."""
    rng = np.random.default_rng(seed)
    drawn = [sorted(rng.choice(np.arange(1, size), rng.integers(1, size - 1), replace=False)) for _ in range(3)]
    for cuts in [[], list(range(1, size)), *drawn]:
        edges = [0, *map(int, cuts), size]
        yield list(pairwise(edges))

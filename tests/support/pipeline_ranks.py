"""Pipeline runs for tests: models with several blocks, and the program of one rank, which counts backward passes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tests.support import layouts

TWO_BLOCKS: dict[str, Any] = layouts.SMALL_FOLD | {"evoformer": layouts.SMALL_FOLD["evoformer"] | {"blocks": 2}}
THREE_BLOCKS = layouts.SMALL_FOLD | {"evoformer": layouts.SMALL_FOLD["evoformer"] | {"blocks": 3}}
ESM = layouts.SMALL_ESM | {"num_hidden_layers": 3}
LLAMA = layouts.SMALL_LLAMA | {"num_hidden_layers": 3}
RECOMPUTED = {"train": {"activation_budget": 0}}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("causal_lm", {"model": {"config": LLAMA}}),
    "tied": ("causal_lm unpacked", {"model": {"config": LLAMA | {"tie_word_embeddings": True}}} | RECOMPUTED),
    "esm": ("masked_lm", {"model": {"config": ESM}} | RECOMPUTED),
    "labels": ("token_classification", {"model": {"config": ESM}}),
    "fold": (
        "fold",
        {
            "model": TWO_BLOCKS | {"checkpoint_blocks": True},
            "data": {"evaluation_recycling": 1, "features": layouts.RESAMPLED},
            "loss": layouts.WITHOUT_OVERLAPS,
        },
    ),
    "fold, all stacks": (
        "fold",
        {
            "model": THREE_BLOCKS
            | {"extra_msa": {"blocks": 1, "c_e": 8}, "stem": {"blocks": 1, "stem_only_fraction": 0.5}},
            "data": {"evaluation_recycling": 1},
        },
    ),
    "fold, templates": (
        "fold",
        {
            "model": THREE_BLOCKS | {"template": layouts.SMALL_TEMPLATE},
            "data": {"evaluation_recycling": 1, "features": layouts.WITH_TEMPLATES},
        },
    ),
    "lora": ("causal_lm", {"model": {"config": LLAMA, "lora": layouts.LORA}}),
    "frozen": ("masked_lm", {"model": {"config": ESM, "freeze": ["*embeddings*", "*layer.2.*"]}}),
    "bert": (
        "masked_lm unpacked",
        {
            "model": {
                "config": {
                    "model_type": "bert", "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24,
                    "num_hidden_layers": 3, "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0,
                }
            }
        },
    ),
}  # fmt: skip
"""Name → (task of ``layouts``, sections of the run file)."""


def run(cases_file: str) -> None:
    """Train every case of the file on this rank. Writes how often each parameter received a gradient into
    ``RUN/gradients_RANK.json``."""
    from ds4sci.train.pipeline_engine import PipelineEngine

    counts: Counter[str] = Counter()
    initialize = PipelineEngine.__init__

    def counting(self: Any, *arguments: Any) -> None:
        initialize(self, *arguments)
        counts.clear()
        for name, p in self.named_parameters():
            if p.requires_grad:
                p.register_hook(lambda gradient, name=name: counts.update([name]))

    with mock.patch.object(PipelineEngine, "__init__", counting):
        for case in json.loads(Path(cases_file).read_text()):
            file = Path(cases_file).with_name("case.json")
            own = file.with_name(f"case_{torch.distributed.get_rank() if torch.distributed.is_initialized() else 0}")
            own.write_text(json.dumps([case]))
            layouts.run(str(own))
            folder = Path(case["config"]).parent / "runs" / case["name"]
            rank = torch.distributed.get_rank()
            (folder / f"gradients_{rank}.json").write_text(json.dumps(counts))


def skip_steps(cases_file: str) -> None:
    """Train the cases with a loss that is NaN on the last stage at step 1, and a gradient that is infinite on the first
    stage at step 2."""
    from ds4sci.train.pipeline_engine import PipelineEngine

    run_step = PipelineEngine.run_step
    steps = 0

    def disturbed(self: Any, task: Any, parts: Any, seed: Any) -> Any:
        nonlocal steps
        step, steps = steps, steps + 1
        loss, hooks = task.loss, []
        if step == 1:
            task.loss = lambda out, batch: (loss(out, batch)[0] * float("nan"), {})
        if step == 2 and self.group.is_first:
            _, p = next((name, p) for name, p in self.named_parameters() if "norm" in name)
            hooks = [p.register_hook(lambda gradient: gradient * float("inf"))]
        try:
            return run_step(self, task, parts, seed)
        finally:
            task.loss = loss
            for hook in hooks:
                hook.remove()

    with mock.patch.object(PipelineEngine, "run_step", disturbed):
        layouts.run(cases_file)

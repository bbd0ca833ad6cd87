"""Comparison of the settings of two runs."""

from __future__ import annotations

import json
from typing import Any

from ds4sci.config.run_file import RunConfig

MAY_DIFFER = {
    "deepspeed",  # the path; its content is compared
    "parallel",
    *(f"benchmark.{key}" for key in ("title", "datasets", "hyperparameters", "reference")),
    *(
        f"train.{key}"
        for key in (
            "steps", "evaluate_every", "save_every", "keep_last", "max_nonfinite", "hang_seconds",
            "monitor_seconds", "log_every", "stage_to", "output", "name",
        )
    ),
}  # fmt: skip
"""Keys of the run file that change the length, the layout or the output of a run, but not what it trains."""

JSON_MAY_DIFFER = {"train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "zero_optimization"}
"""Keys of the DeepSpeed JSON that change the layout only. The checkpoint refuses a layout that it cannot be read on."""


def differences(saved: RunConfig, now: RunConfig) -> list[str]:
    """Describe the settings in which ``now`` trains something else than ``saved``: ``key: old there, new here``."""
    trees = [json.loads(json.dumps(config.resolved())) for config in (saved, now)]
    files = [config.deepspeed_config() for config in (saved, now)]
    return [
        *_differences(trees[0], trees[1], MAY_DIFFER),
        *(f"DeepSpeed JSON: {text}" for text in _differences(files[0], files[1], JSON_MAY_DIFFER)),
    ]


def _differences(old: dict[str, Any], new: dict[str, Any], may_differ: set[str], section: str = "") -> list[str]:
    found = []
    for key in sorted(old.keys() | new.keys()):
        name, before, after = f"{section}{key}", old.get(key), new.get(key)
        if before == after or name in may_differ:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(before, after, may_differ, f"{name}.")
        else:
            found.append(f"{name}: {json.dumps(before)} there, {json.dumps(after)} here")
    return found

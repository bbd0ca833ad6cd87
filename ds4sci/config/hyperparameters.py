"""Comparison of a run's hyperparameters with the reference ones of its benchmark.

In the closed division they are equal; a run with others belongs to the open division.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ds4sci.config.benchmark import BenchmarkConfig
from ds4sci.config.run_file import RunConfig


@dataclass(frozen=True)
class Hyperparameter:
    """One reference hyperparameter.

    key        dotted key of the run file, or of the DeepSpeed JSON
    reference  value of the benchmark
    own        value of the run; None if the run does not set it
    """

    key: str
    reference: Any
    own: Any

    @property
    def is_equal(self) -> bool:
        """Whether the run has the reference value. Lists, tuples and paths are compared as JSON."""
        return bool(_plain(self.reference) == _plain(self.own))


def compare(config: RunConfig, benchmark: BenchmarkConfig | None = None) -> list[Hyperparameter]:
    """Return the reference hyperparameters with the values of ``config``.

    benchmark  the benchmark that the run is compared with; by default the run's own section
    """
    benchmark = benchmark or config.benchmark
    if benchmark is None:
        return []
    run_file, deepspeed = config.resolved(), config.deepspeed_config()
    found = []
    for key, reference in benchmark.hyperparameters.items():
        own = value_at(run_file, key)
        found.append(Hyperparameter(key, reference, value_at(deepspeed, key) if own is None else own))
    return found


def differences(config: RunConfig, benchmark: BenchmarkConfig | None = None) -> list[str]:
    """Describe where ``config`` departs from the closed division of a benchmark. Empty: it belongs to it.

    Besides the hyperparameters, metric, target and direction must be those of the benchmark.
    """
    found = [
        f"{one.key} = {_text(one.own)} (reference: {_text(one.reference)})"
        for one in compare(config, benchmark)
        if not one.is_equal
    ]
    if benchmark is not None and config.benchmark is not None:
        for key in ("metric", "target", "direction"):
            reference, own = getattr(benchmark, key), getattr(config.benchmark, key)
            if own != reference:
                found.append(f"benchmark.{key} = {_text(own)} (reference: {_text(reference)})")
    return found


def value_at(tree: Any, key: str) -> Any:
    """Return the value at a dotted key, in which numbers index lists; None if there is none."""
    for part in key.split("."):
        if isinstance(tree, dict) and part in tree:
            tree = tree[part]
        elif isinstance(tree, list | tuple) and part.isdigit() and int(part) < len(tree):
            tree = tree[int(part)]
        else:
            return None
    return tree


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _text(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, default=str, ensure_ascii=False)

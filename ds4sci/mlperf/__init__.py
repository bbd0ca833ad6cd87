"""Measurement as MLPerf HPC defines it: logs, their rules, scores, reference convergence, submission folders.

``log`` writes the log of a run whose run file has ``[benchmark]``. ``check`` applies the rules of ``rules/`` with the
checker of ``mlperf-logging``; ``score`` computes time to quality and throughput, ``reference`` compares convergence
with reference runs, ``submission`` builds the folder that is submitted.

Writing and checking logs needs the extra ``mlperf``; reading and scoring them does not.
"""

from __future__ import annotations

import importlib.util

RULES_VERSION = "3.0.0"
"""Version of the MLPerf HPC rules. It is the last one."""

OFFICIAL = ("cosmoflow", "deepcam", "oc20", "openfold")
"""Names of the benchmarks of MLPerf HPC."""

INSTALL = 'pip install "ds4sci[mlperf]"'
"""Command that installs the extra."""


def is_available() -> bool:
    """Whether ``mlperf-logging`` is installed."""
    return importlib.util.find_spec("mlperf_logging") is not None


def require(purpose: str) -> None:
    """Raise ValueError if ``mlperf-logging`` is not installed."""
    if not is_available():
        raise ValueError(f"{purpose} needs the package mlperf-logging; install it with: {INSTALL}")

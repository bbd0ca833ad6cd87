"""Rule files for logs, in the format of the checker of ``mlperf-logging``.

They derive from ``hpc_3.0.0`` of mlperf-logging 4.1 (Apache-2.0) and are stricter: the run must end with the status
``success`` after an evaluation that reached the target, the cache must have been cleared, seeds are required in both
divisions. Upstream's checker reads them as well: ``python -m mlperf_logging.compliance_checker --usage hpc --ruleset
3.0.0 --config FILE LOG`` with the absolute path of ``common.yaml``. The comment of a check is its reason in messages.
"""

from __future__ import annotations

from pathlib import Path


def file(name: str) -> str:
    """Absolute path of a rule file, such as ``common``."""
    return str(Path(__file__).parent / f"{name}.yaml")

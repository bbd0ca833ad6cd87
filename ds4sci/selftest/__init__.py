"""Selftest of a run file: the user's model at tiny width on the user's layout, against fp64 torch in one process.

Checked are the scale of gradients, the split of a batch into ranks, micro-batches and accumulation, examples that
several ranks share, and a resume on other ranks and another ZeRO stage. See ``checks``.
"""

from __future__ import annotations

from ds4sci.selftest.checks import selftest
from ds4sci.selftest.comparison import Result

__all__ = ["Result", "selftest"]

"""Seeding of the global random generators of a process.

Every micro-batch has its own key: (seed, step, number in the step over all ranks). Dropout therefore depends neither on
the rank that computes the micro-batch nor on earlier draws, and a resumed run needs no saved generator state. It does
depend on the number of pipeline stages: each stage has its own stream, because the draws of a whole model follow each
other through all layers.
"""

from __future__ import annotations

import random

import numpy as np
import torch

WEIGHTS, MICRO_BATCH, EVALUATION = range(3)
"""Purposes of random streams; each has its own stream."""


def seed_all(*key: int, part: int = 0) -> None:
    """Seed the global generators of Python, NumPy and torch from ``key``, a tuple of non-negative integers.

    part  index of this rank's part of the rows under sequence parallelism, if dropout of the parts is independent; 0 if
          the ranks draw the same numbers (``Task.shares_random_state``). The stage under pipeline parallelism. The seed
          of torch depends on it. The seeds of Python and NumPy do not: ranks that share rows must take decisions such
          as skipping a layer together
    """
    common = np.random.SeedSequence(key).generate_state(2, dtype=np.uint64)
    own = np.random.SeedSequence((*key, part)).generate_state(1, dtype=np.uint64)
    random.seed(int(common[0]))
    np.random.seed(int(common[1] % 2**32))  # noqa: NPY002  (libraries may use the global generator)
    torch.manual_seed(int(own[0] % 2**63))

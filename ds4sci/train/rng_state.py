"""The global random generators of one process: seeded anew before all that draws from them.

Every micro-batch has a key of its own, (seed, step, its number in the step over all ranks). So dropout depends neither
on which rank computes the micro-batch nor on what was computed before it, and a resumed run needs no state of a
generator.
"""

from __future__ import annotations

import random

import numpy as np
import torch

WEIGHTS, MICRO_BATCH, EVALUATION = range(3)
"""What is drawn for: two purposes never share a stream."""


def seed_all(*key: int, part: int = 0) -> None:
    """Seed Python's, NumPy's and torch's global generators by ``key``, numbers of at least 0.

    part  of the rows that this rank holds under sequence parallelism: torch's generators differ by it, because the
          parts are different tokens, whose dropout is independent. The others do not, because what they decide (which
          layers to skip, say) must be decided alike by ranks that exchange parts of the same rows
    """
    common = np.random.SeedSequence(key).generate_state(2, dtype=np.uint64)
    own = np.random.SeedSequence((*key, part)).generate_state(1, dtype=np.uint64)
    random.seed(int(common[0]))
    np.random.seed(int(common[1] % 2**32))  # noqa: NPY002  (libraries that we call may use the global generator)
    torch.manual_seed(int(own[0] % 2**63))

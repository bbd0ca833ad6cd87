"""Memory that a prediction by the structure model takes, estimated from its sizes before it is tried."""

from __future__ import annotations

from ds4sci.models.fold import Config

BINS = 64
"""Of the distogram, in ``ds4sci.nn.heads.DistogramHead``."""


def prediction_bytes(config: Config, n: int, s: int = 1, e: int = 0, *, recycling: int = 0, refinement: int = 0) -> int:
    """Bytes beyond the weights at the highest point of a prediction of n residues with s MSA and e extra MSA rows.

    ``4 · (P n² + M s n + E e n) + 40 MB`` with, in numbers per pair, MSA letter and extra letter,

    - ``P = previous + max(trunk, heads)``; ``trunk = 20 + max(5.3 c_z, c_z + 4 c_multiplication, 2 c_z + 5.5 heads_pair
      · d_pair)`` is the greediest update of the pairs (transition, multiplication, attention), ``heads = c_z + 2 · 64 +
      40`` the pairs, the logits of the distogram and their probabilities (90 more with refinement), ``previous = c_z +
      64`` what recycling keeps;
    - ``M = 1.5 c_m + heads_msa · d_msa + 49``, and ``E = 1.5 c_e + heads_msa · d_msa + 25`` with the extra stack's.

    The factors are fitted to the resident set's peak on CPUs, fp32, batch 1: 22 predictions with c_z from 8 to 128,
    n = 384 and 640, s to 256, e to 512, with and without recycling. They gave .93 to 1.11 of what was
    measured at n = 640, and .71 to 1.17 at 384, where the allocator keeps much of what was freed.
    """
    evoformer, extra, z = config.evoformer, config.extra_msa, config.c_z
    updates = {
        "transition": 5.3 * z,
        "multiplication": z + 4.0 * evoformer.c_multiplication,
        "attention": 2 * z + 5.5 * evoformer.heads_pair * evoformer.d_pair,
    }
    used = [size for name, size in updates.items() if any(name in update for update in evoformer.pair_updates)]
    trunk = 20 + max(used, default=z)
    heads = z + 2 * BINS + (130 if refinement else 40)
    pair = max(trunk, heads) + (z + BINS if recycling else 0)
    row = 1.5 * config.c_m + evoformer.heads_msa * evoformer.d_msa + 49
    extra_row = 1.5 * extra.c_e + evoformer.heads_msa * extra.d_msa + 25 if extra.blocks else 0.0
    return int(4 * (pair * n * n + row * s * n + extra_row * e * n)) + 40_000_000

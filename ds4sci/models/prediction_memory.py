"""Estimated memory of a prediction by the structure model."""

from __future__ import annotations

from ds4sci.models.fold import Config
from ds4sci.nn.heads import DISTOGRAM_BINS


def prediction_bytes(
    config: Config,
    n: int,
    s: int = 1,
    e: int = 0,
    t: int = 0,
    *,
    recycling: int = 0,
    refinement: int = 0,
    resampled: bool = False,
) -> int:
    """Estimated peak memory of a prediction beyond the weights: n residues, s MSA rows, e extra MSA rows, t templates.

    ``4 · (P n² + M (s + t) n + E e n) + T + 40 MB`` bytes, where the numbers of floats per pair, MSA entry and extra
    MSA entry are

    - ``P = max(trunk, heads, recycling, templates)``. ``trunk = c_z + 1.25 c_multiplication + heads_msa + 20`` (updates
      are added in place), ``heads = c_z + 2 · 64 + 40`` is the pair representation, the logits of the distogram and
      their probabilities (90 more with refinement), or the logits of distogram and aligned errors, ``recycling = 2 c_z
      + 20`` is the previous pair representation too. ``templates = c_z + (t + 2) c_t + 1.25 · c_multiplication + 20``
      are those of all templates and the one that passes the stack.
    - ``M = 1.5 c_m + heads_msa · d_msa + 49``, and ``E = 1.5 c_e + heads_msa · d_msa + 25`` with the sizes of the
      extra-MSA stack. Where each recycling pass has its own features (``resampled``), 49 and 25 count twice.

    T, for the parts that are updated at a time, is four sixteenths of the pair representation, at most 64 MB. The
    factors are fitted to the peak resident set size on CPUs, fp32, batch size 1, with c_z from 8 to 128: at n = 640 the
    estimate is 1.07 to 1.20 times the measured value, at n = 400 it is 0.99 to 1.40 times.
    """
    evoformer, extra, z = config.evoformer, config.extra_msa, config.c_z
    multiplies = any("multiplication" in update for update in evoformer.pair_updates)
    trunk = z + (1.25 * evoformer.c_multiplication if multiplies else 0) + evoformer.heads_msa + 20
    heads = z + 2 * DISTOGRAM_BINS + (130 if refinement else 40)
    template = config.template
    templates = z + (t + 2) * template.c_t + 1.25 * template.c_multiplication + 20 if t else 0
    pair = max(trunk, heads, 2 * z + 20 if recycling else 0, templates)
    copies = 2 if recycling and resampled else 1
    row = 1.5 * config.c_m + evoformer.heads_msa * evoformer.d_msa + 49 * copies
    extra_row = 1.5 * extra.c_e + evoformer.heads_msa * extra.d_msa + 25 * copies if extra.blocks else 0.0
    parts = 4 * min(16 * 2**20, 4 * z * n * n / 16)
    return int(4 * (pair * n * n + row * (s + t) * n + extra_row * e * n) + parts) + 40_000_000

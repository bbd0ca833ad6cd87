"""How far one gets without a model: what a trained one has to beat, measured on the same chains and sequences.

Every baseline is learnt from the training data alone.

Structures (``measure_baselines``): means over the 160 chains of ``chains_valid``, learnt from ``chains_train``
(lDDT-Cα / TM-score):

ideal helix .318 / .220 · native fold of the same length, at random .311 / .190 · median distances .328 / .193 ·
with predicted secondary structure .414 / .254 · with the true one .429 / .260

Sequences (``measure_ngrams``): nats per base of the last tenth of E. coli NC_008253, learnt from the rest: 1.386 at
order 0, 1.343 at order 6, 1.336 at order 12.
"""

from __future__ import annotations

from ds4sci.baselines.measure import BASELINES, MUST_BEAT, measure_baselines
from ds4sci.baselines.ngrams import measure_ngrams

__all__ = ["BASELINES", "MUST_BEAT", "measure_baselines", "measure_ngrams"]

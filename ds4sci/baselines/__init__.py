"""How far one gets without a model: what a trained one has to beat, measured on the same chains.

Every baseline is learnt from the training chains alone. Means over the 160 chains of ``chains_valid``, learnt from
``chains_train`` (lDDT-Cα / TM-score):

ideal helix .318 / .220 · native fold of the same length, at random .311 / .190 · median distances .328 / .193 ·
with predicted secondary structure .414 / .254 · with the true one .429 / .260
"""

from __future__ import annotations

from ds4sci.baselines.measure import BASELINES, MUST_BEAT, measure_baselines

__all__ = ["BASELINES", "MUST_BEAT", "measure_baselines"]

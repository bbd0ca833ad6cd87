"""Baselines that a trained model has to beat, measured on the same chains and sequences.

Every baseline is fitted on the training data only.

Structures (``measure_baselines``), means over the 160 chains of ``chains_valid``, fitted on ``chains_train``:

| baseline | lDDT-Cα | TM-score |
|---|---|---|
| ideal α-helix | 0.318 | 0.220 |
| random native fold of the same length | 0.311 | 0.190 |
| median distances | 0.328 | 0.193 |
| median distances given predicted secondary structure | 0.414 | 0.254 |
| median distances given true secondary structure | 0.429 | 0.260 |

Sequences (``measure_ngrams``), nats per base of the last tenth of E. coli NC_008253, fitted on the other nine tenths:
1.386 at order 0, 1.343 at order 6, 1.336 at order 12.
"""

from __future__ import annotations

from ds4sci.baselines.ngrams import measure_ngrams
from ds4sci.baselines.structure_baselines import BASELINES, MUST_BEAT, measure_baselines

__all__ = ["BASELINES", "MUST_BEAT", "measure_baselines", "measure_ngrams"]

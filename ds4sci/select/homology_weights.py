"""Weights of protein samples by homology: a family of many similar sequences counts as one.

A sample in a cluster of m samples has the weight 1 / m, so that every cluster contributes equally to the loss: the
weights of sequences in profiles and covariance models (Henikoff and Henikoff 1994; Morcos et al. 2011), applied to
training samples.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ds4sci.config.run_file import RunConfig
from ds4sci.data import score_file
from ds4sci.data.clustering import chain_split, sequence_split
from ds4sci.data.score_file import ScoreFile
from ds4sci.select.sequences import training_sequences


def write_weights(config: RunConfig, identity: float, out: Path) -> ScoreFile:
    """Cluster the training samples of a run file at this sequence identity, and write ``out``. Returns its contents:
    ``cluster`` (number), ``cluster_size`` and ``weight``.

    Raises ValueError for a task without proteins.
    """
    found = training_sequences(config)
    if found.chains is not None:
        groups = chain_split.clusters(found.chains, identity)
    elif found.store.alphabet != "protein":
        raise ValueError(f"{config.source}: the sequences are {found.store.alphabet}; only proteins are clustered")
    else:
        of_record = {record: number for number, record in enumerate(found.records)}
        records = sequence_split.clusters(found.store, identity)
        groups = [[of_record[one] for one in group if one in of_record] for group in records]
    cluster, size = np.zeros(len(found.names)), np.ones(len(found.names))
    for number, group in enumerate(group for group in groups if group):
        cluster[group], size[group] = number, len(group)
    scores = {"cluster": cluster, "cluster_size": size, "weight": 1 / size}
    return score_file.write_scores(out, found.names, scores, {"identity": identity, "config": str(config.source)})

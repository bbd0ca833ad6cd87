"""Weights of protein samples by homology: a family of many similar sequences counts as one.

A sample in a cluster of m samples has the weight 1 / m, so that every cluster contributes equally to the loss: the
weights of sequences in profiles and covariance models (Henikoff and Henikoff 1994; Morcos et al. 2011), applied to
training samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.config.run_file import RunConfig
from ds4sci.data import score_file
from ds4sci.data.clustering import chain_split, sequence_split
from ds4sci.data.score_file import ScoreFile
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.text_files import resolve_data_path
from ds4sci.tasks import SampleScoring
from ds4sci.tasks.build import build_task


def write_weights(config: RunConfig, identity: float, out: Path) -> ScoreFile:
    """Cluster the training samples of a run file at this sequence identity, and write ``out``. Returns its contents:
    ``cluster`` (number), ``cluster_size`` and ``weight``.

    Raises ValueError for a task without proteins.
    """
    task: Any = build_task(config)
    if not isinstance(task, SampleScoring):
        raise ValueError(f"{config.source}: the task {config.task.name} has no fixed training samples to cluster")
    names, data = task.sample_names(), getattr(config.settings, "data", None)
    if isinstance(file := getattr(data, "train", None), Path):
        groups = chain_split.clusters(ChainSet.open(resolve_data_path(file)), identity)
    elif hasattr(task, "train_valid_readers"):
        reader, regions, _, _ = task.train_valid_readers()
        if reader.store.alphabet != "protein":
            raise ValueError(f"{config.source}: the sequences are {reader.store.alphabet}; only proteins are clustered")
        of_record = {int(record): number for number, record in enumerate(regions.record)}
        records = sequence_split.clusters(reader.store, identity)
        groups = [[of_record[one] for one in group if one in of_record] for group in records]
    else:
        raise ValueError(f"{config.source}: the task {config.task.name} trains on no proteins")
    cluster, size = np.zeros(len(names)), np.ones(len(names))
    for number, group in enumerate(group for group in groups if group):
        cluster[group], size[group] = number, len(group)
    scores = {"cluster": cluster, "cluster_size": size, "weight": 1 / size}
    return score_file.write_scores(out, names, scores, {"identity": identity, "config": str(config.source)})

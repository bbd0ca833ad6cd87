"""The largest micro-batch of a run, made up: a plan needs no data files."""

from __future__ import annotations

from typing import Any

import numpy as np

from ds4sci.data.language.batches import Document
from ds4sci.data.language.batches import collate as collate_documents
from ds4sci.data.language.targets import MaskingPolicy
from ds4sci.data.loader import make_pass_rng
from ds4sci.data.structures.batch import collate
from ds4sci.data.structures.features import featurize
from ds4sci.data.structures.synthetic import synthetic_chain
from ds4sci.tasks import Task
from ds4sci.tasks.fold import FoldTask
from ds4sci.tasks.language_modeling import LanguageModelingTask
from ds4sci.tasks.language_task import LanguageTask
from ds4sci.tasks.token_classification import TokenClassificationTask


def largest_batch(task: Task, size: int) -> Any:
    """Return a micro-batch of ``size`` samples, the largest that the settings of ``task`` allow.

    Chains have the longest crop, complete side chains, a full alignment and one recycling pass, because further passes
    need no more memory. Rows of tokens are full. Other tasks read the first batch of their own data.
    """
    rng = np.random.default_rng(0)
    if isinstance(task, FoldTask):
        return _chains(task, size, rng)
    if isinstance(task, LanguageTask):
        return _rows(task, size, rng)
    return next(iter(task.batches(start_step=0, rank=0, world_size=1, micro_batch_size=size, accumulation_steps=1)))


def _chains(task: FoldTask, size: int, rng: np.random.Generator) -> Any:
    features, plan = task.config.data.features, task.config.data.plan
    n = max(max(phase.crops) for phase in plan.phases)
    chain = synthetic_chain(n, features.max_clusters + features.max_extra, rng, side_chains=True)
    recycling = min(1, plan.max_recycling)
    pass_rng = make_pass_rng(task.seed)
    samples = [featurize(chain, features, rng, earlier_passes=recycling, pass_rng=pass_rng) for _ in range(size)]
    return collate(samples, recycling=recycling, step=0, progress=1.0, multiple=plan.pad_multiple)


def _rows(task: LanguageTask, size: int, rng: np.random.Generator) -> Any:
    """Rows of documents of the largest length, of which the last may be shorter."""
    if isinstance(task, LanguageModelingTask):
        phase = max(task.config.data.phases, key=lambda one: max(one.length, task.row_length(one) or 0))
        length, row, policy = phase.length, task.row_length(phase), task.masking_policy
    elif isinstance(task, TokenClassificationTask):
        data = task.config.data
        length, row, policy = data.length, (data.row_length or data.length) if data.packing else None, MaskingPolicy()
    else:
        raise ValueError(f"{type(task).__name__}: its rows are not known to the planner")
    n = row or length
    tokens = task.tokenizer.residue_ids

    def document(count: int) -> tuple[Any, Any]:
        ids = tokens[rng.integers(len(tokens), size=count)]
        labels = np.zeros(count, np.int64) if isinstance(task, TokenClassificationTask) else None
        one = Document(
            ids, np.ones(count, np.float32), np.zeros(count, bool), np.arange(count), np.ones(count, np.int64),
            np.zeros(count, bool), "synthetic", labels,
        )  # fmt: skip
        return one, policy.apply(one, rng)

    rows = [[document(min(length, n - start)) for start in range(0, n, length)] for _ in range(size)]
    padded = -(-n // task.row_multiple) * task.row_multiple
    return collate_documents(rows, padded, task.tokenizer.pad_id)

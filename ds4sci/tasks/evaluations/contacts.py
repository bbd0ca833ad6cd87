"""Evaluation of residue contacts predicted from the attention maps of a language model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.metrics import contacts as contact_metrics
from ds4sci.metrics.local import pseudo_beta
from ds4sci.tasks.evaluations import Evaluation, EvaluationRequest, EvaluationResult

if TYPE_CHECKING:
    from ds4sci.tasks.language_modeling import LanguageModelingTask

MIN_LENGTH = 32
"""Shorter chains are excluded."""

MIN_SEPARATION = 6
"""Residues closer than this in the chain are not counted."""


def contact_evaluation(task: LanguageModelingTask, *, num_train: int = 20, max_length: int = 512) -> Evaluation:
    """Predict contacts from attention: APC, then logistic regression over all heads.

    The regression is fitted on ``num_train`` chains of the chain set ``--contacts``; the other chains are scored. Two
    residues are in contact if their Cβ atoms are within 8 Å. Chains of more than ``max_length`` residues are excluded.

    The result has ``chains``; the numbers of chains ``train_chains``, ``scored`` and ``excluded``; ``unmeasured``,
    names of the chains without two known residues ``MIN_SEPARATION`` apart; ``precision``, means of P@L, P@L/2 and
    P@L/5 at separations of 6, 12 and 24; ``chance``, the fraction of pairs in contact; and ``heads_used``.
    """

    def run(request: EvaluationRequest) -> EvaluationResult:
        path = request.files["contacts"]
        if not task.tokenizer.encoder.one_per_residue:
            raise ValueError("contact prediction needs a tokenizer with one token per residue")
        chains = ChainSet.open(path).require_single_chains()
        order = np.random.default_rng(0).permutation(len(chains))
        eligible = [int(i) for i in order if MIN_LENGTH <= chains.lengths[i] <= max_length]
        if len(eligible) <= num_train:
            raise ValueError(
                f"{path}: {len(eligible)} chains of {MIN_LENGTH} to {max_length} residues; expected at least "
                f"{num_train + 1}: {num_train} to fit the regression and one to score"
            )
        examples, tables, chance, unmeasured = [], [], [], []
        model: contact_metrics.ContactRegression | None = None
        for number, index in enumerate(eligible):
            record = chains[index]
            points, present = pseudo_beta(record.atom_positions, record.atom_mask, record.sequence)
            contacts = contact_metrics.contact_map(points, present)
            ids, _, size = task.tokenizer.encode(np.frombuffer(record.sequence.encode(), np.uint8))
            tokens = torch.from_numpy(ids)[None].to(request.device)
            maps = task.language.attention_maps(tokens, rope_factor=task.rope_factor)
            own = np.flatnonzero(size == 1)
            maps = maps[:, own][:, :, own]
            if number < num_train:
                examples.append(contact_metrics.pair_features(maps, contacts, present))
                continue
            far = np.triu(np.ones_like(contacts), MIN_SEPARATION) & present[:, None] & present[None]
            if not far.any():
                unmeasured.append(record.id)
                continue
            model = model or contact_metrics.fit_contact_regression(examples)
            tables.append(contact_metrics.precision_table(model(maps), contacts, present))
            chance.append(float(contacts[far].mean()))
        if not tables:
            raise ValueError(
                f"{path}: no chain to score has two residues with known Cβ at least {MIN_SEPARATION} apart: "
                f"{', '.join(unmeasured[:5])}"
            )
        columns = {key: [table[key] for table in tables if not np.isnan(table[key])] for key in tables[0]}
        precision = {key: float(np.mean(column)) if column else None for key, column in columns.items()}
        values = {
            "chains": str(path), "train_chains": num_train, "scored": len(tables),
            "excluded": len(chains) - len(eligible), "unmeasured": unmeasured, "precision": precision,
            "chance": float(np.mean(chance)), "heads_used": int((model.weight != 0).sum()) if model else 0,
        }  # fmt: skip
        lines = [f"{name}  {'–' if value is None else f'{value:.3f}'}" for name, value in precision.items()]
        return EvaluationResult(values, "\n".join(lines))

    return Evaluation(run, inputs=("contacts",))

"""Evaluation of variant effects by the log-probabilities of a language model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ds4sci.data.language.batches import as_batch
from ds4sci.metrics import variants as variant_effects
from ds4sci.tasks.evaluations import Evaluation, EvaluationRequest, EvaluationResult
from ds4sci.types import RESIDUES

if TYPE_CHECKING:
    from ds4sci.tasks.language_modeling import LanguageModelingTask

MARGINALS = ("masked", "wildtype")
"""``masked``: one pass per mutated position, with that position masked; ``wildtype``: one pass over the sequence."""

BATCH_SIZE = 16
"""Masked copies of the sequence per batch."""


def variant_evaluation(task: LanguageModelingTask, *, measured_column: str = "DMS_score") -> Evaluation:
    """Score the variants in the file ``--variants`` of the one sequence in ``--fasta``.

    The file is CSV; its column ``mutant`` has ``A24G`` or ``A24G:K30R``. The score of a variant is
    Σ log p(mutant) − log p(wild type) (Meier et al. 2021). The option ``--marginal`` is one of ``MARGINALS``; by
    default ``masked``.

    The result has ``sequence``, ``variants``, ``marginal``, ``scores`` (variant → score) and ``spearman``, the rank
    correlation with ``measured_column``: null if the file has no such column, or if the ranks are undefined. Raises
    ValueError naming file, line and column.
    """

    def run(request: EvaluationRequest) -> EvaluationResult:
        fasta, csv = request.files["fasta"], request.files["variants"]
        marginal = request.options.get("marginal", "masked")
        if marginal not in MARGINALS:
            raise ValueError(f"--marginal {marginal}: expected masked or wildtype")
        with tempfile.TemporaryDirectory() as folder:
            store = task.open_sequences(fasta, Path(folder))
            if len(store) != 1:
                raise ValueError(
                    f"{fasta}: {len(store)} sequences; expected one, because all variants are of one sequence"
                )
            residues = np.array(store.residues(0))
        variants = variant_effects.read_variants(csv, residues.tobytes().decode(), measured_column=measured_column)
        if marginal == "masked" and task.is_causal:
            raise ValueError("masked marginals need a masked model; for a causal model use --marginal wildtype")
        positions = variant_effects.mutated_positions(variants) if marginal == "masked" else None
        table = residue_log_probabilities(task, residues, positions)
        if marginal == "wildtype" and np.isnan(table[0]).any():
            for one in variants:
                if any(mutation.position == 0 for mutation in one.mutations):
                    raise ValueError(
                        f"{csv}: {one.text}: a causal model without a begin token does not predict the first residue; "
                        "remove such variants"
                    )
        scores = variant_effects.marginal_scores(table, variants)
        measured = np.array([one.measured for one in variants])
        spearman = None if np.isnan(measured).any() else variant_effects.spearman(scores, measured)
        if spearman is not None and np.isnan(spearman):
            spearman = None  # one variant, or equal values: there is no order to compare
        values = {
            "sequence": str(fasta), "variants": str(csv), "marginal": marginal, "spearman": spearman,
            "scores": {one.text: float(score) for one, score in zip(variants, scores, strict=True)},
        }  # fmt: skip
        summary = f"{len(variants)} variants" + ("" if spearman is None else f", Spearman {spearman:.3f}")
        return EvaluationResult(values, summary)

    return Evaluation(run, inputs=("fasta", "variants"), options=("marginal",))


@torch.no_grad()
def residue_log_probabilities(
    task: LanguageModelingTask, residues: np.ndarray, masked: np.ndarray | None
) -> np.ndarray:
    """Return float64 [n, 20], log-probabilities in nats in the order of ``RESIDUES``.

    residues  uint8 letters [n]
    masked    positions; each is masked in a pass of its own, and other rows are NaN. None: all rows of one pass over
              the unmasked sequence. The first row of a causal model without a begin token is NaN
    """
    if not task.tokenizer.encoder.one_per_residue:
        raise ValueError("variant effects need a tokenizer with one token per residue")
    ids, start, size = task.tokenizer.encode(residues)
    if missing := [letter for letter in RESIDUES if letter not in task.tokenizer.tokens]:
        raise ValueError(
            "variants are amino-acid substitutions, and the tokenizer has no token for "
            f"{', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}"
        )
    device = next(task.model.parameters()).device
    columns = [task.tokenizer.tokens.index(letter) for letter in RESIDUES]
    at = np.flatnonzero(size == 1)
    log_probabilities = np.full((len(residues), len(RESIDUES)), np.nan)
    task.model.eval()
    if masked is None:
        batch = as_batch([ids], len(ids), task.tokenizer.pad_id, rope_factor=task.rope_factor).to(device)
        values = task.language.log_probabilities(batch)[0].double().cpu().numpy()
        shift = 1 if task.is_causal else 0  # a causal model predicts a token at the position before it
        source = at - shift
        exists = source >= 0
        log_probabilities[start[at][exists]] = values[source[exists]][:, columns]
        return log_probabilities
    for first in range(0, len(masked), BATCH_SIZE):
        group = masked[first : first + BATCH_SIZE]
        copies = []
        for position in group:
            copy = ids.copy()
            copy[at[position]] = task.tokenizer.mask_id
            copies.append(copy)
        batch = as_batch(copies, len(ids), task.tokenizer.pad_id, rope_factor=task.rope_factor).to(device)
        values = task.language.log_probabilities(batch).double().cpu().numpy()
        for row, position in enumerate(group):
            log_probabilities[position] = values[row, at[position]][columns]
    return log_probabilities

"""Evaluation of a language model on sequences: nats per residue, in all and by class."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table

from ds4sci.data.language.batches import DocumentReader
from ds4sci.data.language.packing import Rows, make_rows
from ds4sci.data.language.windows import Coverage, Regions
from ds4sci.data.sequences import SequenceStore
from ds4sci.metrics.language import perplexity
from ds4sci.tasks.evaluations import Evaluation, EvaluationRequest, EvaluationResult
from ds4sci.tasks.evaluations.ngram_baseline import score_ngrams

if TYPE_CHECKING:
    from ds4sci.tasks.language_modeling import LanguageModelingTask


def sequence_evaluation(task: LanguageModelingTask) -> Evaluation:
    """Nats per residue or base of the sequences in ``--fasta`` (a file, or a sequence store).

    A causal model predicts every token from those before it in its window. A masked model sees each row several times,
    each time with a different part of its residues hidden (the fraction of training), so that each residue is predicted
    once and no visible token contains it. Windows are those of the last phase of the run.

    ``nats`` is per residue, whatever tokens stand for: Σ nats / Σ residues. It is null for a masked model whose token
    boundaries depend on the letters (BPE, unigram, WordPiece), see ``MaskedLMTask.reports_nats_per_residue``; means per
    token are then all there is. With the option ``--ngrams``, n-gram models of every order are trained on the training
    sequences of the run and score the same sequences.

    The result has ``sequences`` (path), ``records``, ``alphabet``; the numbers of residues ``total_residues`` (in the
    file), ``tokenized_residues`` (in a token) and ``residues`` (scored); ``excluded`` (reason → residues in no token),
    ``not_scored`` (reason → residues in a token that are not scored), ``untokenized_records`` (names of the records
    without a token); ``tokens``, ``nats``, ``nats_per_token``, ``perplexity``, ``accuracy``, ``classes`` (token →
    count, nats, perplexity), ``soft_masked`` and ``ngrams``. Raises ValueError if no residue can be scored.
    """

    def run(request: EvaluationRequest) -> EvaluationResult:
        fasta = request.files["fasta"]
        with tempfile.TemporaryDirectory() as folder:
            store = task.open_sequences(fasta, Path(folder))
            reader = DocumentReader(store, task.tokenizer, unknown_weight=task.config.data.unknown_weight)
            row = task.row_length(task.last_phase)
            rows = _pack(store, task, reader, fasta, row)
            task.model.eval()
            with torch.no_grad():
                parts = task.score(
                    task.model, reader, rows, list(range(len(rows))), row, device=request.device, every_token=True
                )
            values = {"sequences": str(fasta), "records": len(store)} | _summarize(parts, task, store, rows.coverage)
            if request.options.get("ngrams"):
                values["ngrams"] = score_ngrams(task, store)
        return EvaluationResult(values, _table(values))

    return Evaluation(run, inputs=("fasta",), options=("ngrams",))


def _pack(
    store: SequenceStore, task: LanguageModelingTask, reader: DocumentReader, fasta: Path, row: int | None
) -> Rows:
    """Rows of the whole store. The ValueError about sequences without tokens names the first record."""
    try:
        return make_rows(
            Regions.whole(store.lengths, range(len(store))), task.tokenizer, reader.residues,
            document_tokens=task.document_length, row_tokens=row, seed=task.seed,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{fasta}: {error}; its first record is {store.location(0)}") from None


def _summarize(
    parts: list[dict[str, Any]], task: LanguageModelingTask, store: SequenceStore, coverage: Coverage
) -> dict[str, Any]:
    classes: dict[str, list[float]] = {}
    for part in parts:
        for name, (nats, count, _) in part["classes"].items():
            one = classes.setdefault(name, [0.0, 0])
            one[0] += nats
            one[1] += count
    tokens, residues, weightless = (sum(part[name] for part in parts) for name in ("tokens", "residues", "weightless"))
    if not residues:
        names = ", ".join(store.name(record) for record in range(min(3, len(store))))
        raise ValueError(
            f"nothing to score: of {coverage.describe(_unit(store.alphabet))}, none counts (unknown letters, or a "
            f"single token with nothing before it), in {len(store)} records ({names}{', …' if len(store) > 3 else ''})"
        )
    nats = sum(part["residue_nats"] for part in parts) / residues if task.reports_nats_per_residue else None
    soft = [sum(part["soft"][i] for part in parts) for i in range(2)]
    not_scored = {
        "unknown or of weight 0": weightless,
        "not predicted: the first token of a window" if task.is_causal else "not predicted: between k-mers":
            coverage.tokenized_residues - residues - weightless,
    }  # fmt: skip
    return {
        "alphabet": store.alphabet,
        "total_residues": coverage.total_residues,
        "tokenized_residues": coverage.tokenized_residues,
        "excluded": coverage.excluded,
        "untokenized_records": [store.name(record) for record in coverage.untokenized_records],
        "residues": residues,
        "not_scored": {reason: count for reason, count in not_scored.items() if count},
        "tokens": tokens,
        "nats": nats,
        "nats_per_token": sum(part["nats"] for part in parts) / tokens,
        "perplexity": perplexity(nats) if nats is not None else None,
        "accuracy": sum(part["correct"] for part in parts) / tokens,
        "classes": {name: _class(*pair) for name, pair in sorted(classes.items())},
        "soft_masked": _class(*soft) if soft[1] and nats is not None else None,
    }


def _unit(alphabet: str) -> str:
    return "base" if alphabet == "dna" else "residue"


def _class(nats: float, count: float) -> dict[str, float]:
    return {"count": int(count), "nats": nats / count, "perplexity": perplexity(nats / count)}


def _table(values: dict[str, Any]) -> Table:
    unit = _unit(values["alphabet"])
    notes = [f"{count:,} {reason}" for name in ("excluded", "not_scored") for reason, count in values[name].items()]
    if values["untokenized_records"]:
        names = ", ".join(values["untokenized_records"][:5])
        notes.append(f"{len(values['untokenized_records'])} records without a token: {names}")
    if values["nats"] is None:
        notes.append(f"no nats per {unit}: the visible tokens of this tokenizer carry information on the masked ones")
    table = Table(
        title=f"{values['records']} sequences, {values['tokenized_residues']:,} of {values['total_residues']:,} "
        f"{unit}s in tokens, {values['residues']:,} scored",
        caption="; ".join(notes) or None, title_justify="left", caption_justify="left",
    )  # fmt: skip
    table.add_column("model")
    table.add_column(f"nats per {unit if values['nats'] is not None else 'token'}", justify="right")
    table.add_column("perplexity", justify="right")
    nats = values["nats_per_token"] if values["nats"] is None else values["nats"]
    table.add_row("this run", f"{nats:.4f}", f"{perplexity(nats):.3f}")
    if values.get("soft_masked"):
        table.add_row(
            "  soft-masked", f"{values['soft_masked']['nats']:.4f}", f"{values['soft_masked']['perplexity']:.3f}"
        )
    for order, nats in values.get("ngrams", {}).get("nats", {}).items():
        table.add_row(f"{int(order) + 1}-gram", f"{nats:.4f}", f"{perplexity(nats):.3f}")
    return table

"""What a trained language model says of sequences: nats per residue, effects of variants, contacts, embeddings."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ds4sci.baselines.ngrams import measure_ngrams
from ds4sci.config.run_file import RunConfig
from ds4sci.data.language.batches import DocumentReader, as_batch
from ds4sci.data.language.packing import Rows, make_rows
from ds4sci.data.language.windows import Coverage, Regions
from ds4sci.data.sequences import SequenceStore, index
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.files.atomic_files import replace_text
from ds4sci.machine import provenance
from ds4sci.metrics import contacts as contact_metrics
from ds4sci.metrics import variants as variant_effects
from ds4sci.metrics.language import perplexity
from ds4sci.metrics.local import pseudo_beta
from ds4sci.tasks.language_modeling import LanguageTask
from ds4sci.train import checkpoint
from ds4sci.types import RESIDUES

ORDERS = {"protein": 3, "dna": 12}
"""Residues of context of the n-gram models that a run is compared with, at most."""


def load(run: Path, which: str, overrides: Sequence[str] = ()) -> tuple[RunConfig, LanguageTask, int]:
    """Config, task with the weights of ``which``, and their step. Raises ValueError for a run of another kind."""
    config, task = checkpoint.load_run(run, which=which, overrides=overrides)
    if not isinstance(task, LanguageTask):
        raise ValueError(f"{run}: its task {config.task.name!r} is no language model; --chains is for `fold` runs")
    task.model.to(_device())
    return config, task, int(checkpoint.chosen(run, which).name.removeprefix("step_"))


def evaluate_sequences(
    run: Path | str,
    fasta: Path | str,
    out: Path | str | None = None,
    *,
    which: str = "best",
    overrides: Sequence[str] = (),
    ngrams: bool = False,
    show: bool = True,
) -> dict[str, Any]:
    """Nats per residue or base of the sequences in ``fasta`` (a file, or a store), in all and by class.

    A causal model predicts every token from those before it in its window. A masked model gets each row several times,
    a part of its residues hidden in each (as many as in training), so that each is predicted once and nothing visible
    holds it. ``nats`` is per residue, whatever tokens stand for: Σ nats / Σ residues. Windows are those of the last
    phase of the run. The means of a masked model whose token boundaries depend on the letters (BPE, unigram, WordPiece)
    are per token alone, with ``nats`` null: see ``LanguageTask.counts_residues``.

    ngrams  also train n-gram models of every order on what the run was trained on, and score the same sequences

    Writes ``out`` (JSON): ``run, checkpoint, step, sequences, records``; ``given`` residues of the file, ``read`` those
    in a token, ``left_out`` reason → the others, ``residues`` those scored, ``not_scored`` reason → those read and not
    scored, ``silent`` names of records of which nothing is read; ``tokens, nats, nats_per_token, perplexity, accuracy,
    classes`` (token → count, nats, perplexity), ``soft_masked``, ``ngrams``, ``machine``, ``commit``, ``seconds``.
    Raises ValueError for a run, checkpoint or file that cannot be used, and where no residue can be scored.
    """
    run, fasta = Path(run), Path(fasta)
    _, task, step = load(run, which, overrides)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        store = store_of(task, fasta, Path(folder))
        reader = DocumentReader(store, task.tokenizer, unknown_weight=task.config.data.unknown_weight)
        last = task.config.data.phases[-1]
        row = (last.row_length or last.length) if task.config.data.packing else None
        rows = _rows_of(store, task, reader, fasta, row)
        task.model.eval()
        with torch.no_grad():
            parts = task.score(
                task.model, reader, rows, list(range(len(rows))), row, device=_device(), every_token=True
            )
        result = _summary(parts, task, store, rows.coverage) | {
            "run": str(run), "checkpoint": which, "step": step, "sequences": str(fasta), "records": len(store),
        }  # fmt: skip
        if ngrams:
            result["ngrams"] = _ngrams(task, store)
    result |= {
        "machine": provenance.describe(),
        "commit": provenance.commit(),
        "seconds": round(time.monotonic() - began, 1),
    }
    _write(out, result)
    if show:
        Console().print(_table(result, task))
    return result


def _rows_of(store: SequenceStore, task: LanguageTask, reader: DocumentReader, fasta: Path, row: int | None) -> Rows:
    """Rows of all of ``store``; ValueError names the first records where none has a token."""
    last = task.config.data.phases[-1]
    try:
        return make_rows(
            Regions.whole(store.lengths, range(len(store))), task.tokenizer, reader.residues,
            document_tokens=last.length, row_tokens=row,
            seed=task.seed,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{fasta}: {error}; its first record is {store.location(0)}") from None


def _summary(
    parts: list[dict[str, Any]], task: LanguageTask, store: SequenceStore, coverage: Coverage
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
            f"nothing to score: of {coverage.describe(_unit(store))}, none counts (unknown letters, or a lone token "
            f"that nothing comes before), in {len(store)} records ({names}{', …' if len(store) > 3 else ''})"
        )
    nats = sum(part["residue_nats"] for part in parts) / residues if task.counts_residues else None
    soft = [sum(part["soft"][i] for part in parts) for i in range(2)]
    not_scored = {
        "unknown or of weight 0": weightless,
        "not predicted: the first token of a window" if not task.mlm_probability else "not predicted: between k-mers":
            coverage.read - residues - weightless,
    }  # fmt: skip
    return {
        "alphabet": store.alphabet,
        "given": coverage.given,
        "read": coverage.read,
        "left_out": coverage.left_out,
        "silent": [store.name(record) for record in coverage.unread_records],
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


def _unit(store: SequenceStore) -> str:
    return "base" if store.alphabet == "dna" else "residue"


def _class(nats: float, count: float) -> dict[str, float]:
    return {"count": int(count), "nats": nats / count, "perplexity": perplexity(nats / count)}


def _ngrams(task: LanguageTask, store: SequenceStore) -> dict[str, Any]:
    """n-grams of what the run was trained on, without unknown letters where the run does not count them either."""
    reader, regions, _, _ = task.train_valid_readers()
    counts_unknown = task.config.data.unknown_weight > 0
    places = zip(regions.record.tolist(), regions.start.tolist(), regions.stop.tolist(), strict=True)
    train = [part for place in places for part in _parts(reader.store, *place, counts_unknown=counts_unknown)]
    whole = [(i, 0, int(length)) for i, length in enumerate(store.lengths)]
    test = [part for place in whole for part in _parts(store, *place, counts_unknown=counts_unknown)]
    known = np.unique(np.concatenate([np.unique(s) for s in train])) if train else np.zeros(0, np.uint8)
    kept = [part for s in test for part in _split(s, np.isin(s, known))]
    if not kept:
        raise ValueError(
            f"--ngrams: no residue of {store.folder if not test else store.location(0)} is a letter that training had"
        )
    measured = measure_ngrams(train, kept, ORDERS[store.alphabet], seed=task.seed)
    unknown = int(store.lengths.sum()) - sum(map(len, test))
    unseen = sum(map(len, test)) - sum(map(len, kept))
    left_out = {"unknown": unknown, "letters that training had not": unseen}
    return measured | {"left_out": {reason: count for reason, count in left_out.items() if count}}


def _parts(store: SequenceStore, record: int, start: int, stop: int, *, counts_unknown: bool) -> list[np.ndarray]:
    """A record's residues, cut at unknown ones unless they count."""
    letters = np.asarray(store.residues(record, start, stop))
    return _split(letters, np.ones(len(letters), bool) if counts_unknown else ~store.unknown_mask(record, start, stop))


def _split(letters: np.ndarray, fine: np.ndarray) -> list[np.ndarray]:
    """The stretches of ``letters`` that are ``fine``."""
    edges = np.flatnonzero(np.diff(fine, prepend=False, append=False))
    return [letters[a:b] for a, b in edges.reshape(-1, 2).tolist()]


def _table(result: dict[str, Any], task: LanguageTask) -> Table:
    unit = "base" if result["alphabet"] == "dna" else "residue"
    notes = [f"{count:,} {reason}" for name in ("left_out", "not_scored") for reason, count in result[name].items()]
    if result["silent"]:
        names = ", ".join(result["silent"][:5])
        notes.append(f"nothing read of {len(result['silent'])} records: {names}")
    if result["nats"] is None:
        notes.append(f"no nats per {unit}: the visible tokens of this tokenizer tell about the masked ones")
    table = Table(
        title=f"{result['records']} sequences, {result['read']:,} of {result['given']:,} {unit}s read, "
        f"{result['residues']:,} scored",
        caption="; ".join(notes) or None, title_justify="left", caption_justify="left",
    )  # fmt: skip
    table.add_column("")
    table.add_column(f"nats per {unit if result['nats'] is not None else 'token'}", justify="right")
    table.add_column("perplexity", justify="right")
    nats = result["nats_per_token"] if result["nats"] is None else result["nats"]
    table.add_row("model", f"{nats:.4f}", f"{perplexity(nats):.3f}")
    if result.get("soft_masked"):
        table.add_row(
            "  soft-masked", f"{result['soft_masked']['nats']:.4f}", f"{result['soft_masked']['perplexity']:.3f}"
        )
    for order, nats in result.get("ngrams", {}).get("nats", {}).items():
        table.add_row(f"{int(order) + 1}-gram", f"{nats:.4f}", f"{perplexity(nats):.3f}")
    return table


def evaluate_variants(
    run: Path | str,
    fasta: Path | str,
    csv: Path | str,
    out: Path | str | None = None,
    *,
    which: str = "best",
    marginal: str = "masked",
    measured_column: str | None = "DMS_score",
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Score the variants of ``csv`` (column ``mutant``: ``A24G`` or ``A24G:K30R``) of the one sequence in ``fasta``.

    marginal  ``masked``: each mutated position in turn behind a mask; ``wildtype``: one pass over the sequence as it is

    A variant's score is Σ log p(mutant) − log p(wild type) (Meier et al. 2021). Returns, and writes: ``scores``,
    ``spearman`` with ``measured_column`` (None where the file has none, or nothing to rank). Raises ValueError naming
    line and column.
    """
    run, fasta = Path(run), Path(fasta)
    if marginal not in ("masked", "wildtype"):
        raise ValueError(f"marginal = {marginal!r}: expected masked or wildtype")
    _, task, step = load(run, which, overrides)
    with tempfile.TemporaryDirectory() as folder:
        store = store_of(task, fasta, Path(folder))
        if len(store) != 1:
            raise ValueError(f"{fasta}: variants are of one sequence; the file has {len(store)}")
        letters = np.array(store.residues(0))
    sequence = letters.tobytes().decode()
    read = variant_effects.read_variants(csv, sequence, measured_column=measured_column)
    if marginal == "masked" and not task.mlm_probability:
        raise ValueError("masked marginals need a masked model; for a causal one take --marginal wildtype")
    table = residue_log_probabilities(
        task, letters, variant_effects.mutated_positions(read) if marginal == "masked" else None
    )
    if marginal == "wildtype" and np.isnan(table[0]).any():
        for one in read:
            if any(mutation.position == 0 for mutation in one.mutations):
                raise ValueError(
                    f"{csv}: {one.text}: a causal model without a begin token says nothing of the first residue; "
                    "leave such variants out"
                )
    scores = variant_effects.marginal_scores(table, read)
    measured = np.array([one.measured for one in read])
    rank = None if np.isnan(measured).any() else variant_effects.spearman(scores, measured)
    if rank is not None and np.isnan(rank):
        rank = None  # one variant, or all alike: there is no order to compare
    result = {
        "run": str(run), "step": step, "sequence": str(fasta), "variants": str(csv), "marginal": marginal,
        "spearman": rank, "scores": {one.text: float(score) for one, score in zip(read, scores, strict=True)},
        "machine": provenance.describe(), "commit": provenance.commit(),
    }  # fmt: skip
    _write(out, result)
    return result


@torch.no_grad()
def residue_log_probabilities(
    task: LanguageTask, letters: np.ndarray, masked: np.ndarray | None, *, together: int = 16
) -> np.ndarray:
    """float64 [n, 20], nats, in the order of ``RESIDUES``: rows ``masked`` each with its residue masked, others NaN;
    all rows of one pass with None."""
    if not task.tokenizer.encoder.one_per_residue:
        raise ValueError("the effect of a variant needs a tokenizer with one token a residue")
    ids, place, size = task.tokenizer.encode(letters)
    if missing := [letter for letter in RESIDUES if letter not in task.tokenizer.tokens]:
        raise ValueError(
            f"variants are of amino acids, and the tokenizer has no token for {', '.join(missing[:5])}"
            f"{', …' if len(missing) > 5 else ''}"
        )
    columns = [task.tokenizer.tokens.index(letter) for letter in RESIDUES]
    at = np.flatnonzero(size == 1)
    found = np.full((len(letters), len(RESIDUES)), np.nan)
    task.model.eval()
    if masked is None:
        batch = as_batch([ids], len(ids), task.tokenizer.pad_id, rope_factor=task.rope_factor).to(_device())
        values = task.language.log_probabilities(batch)[0].double().cpu().numpy()
        shift = 0 if task.mlm_probability else 1  # what a causal model says of a token stands at the one before it
        source = at - shift
        fine = source >= 0
        found[place[at][fine]] = values[source[fine]][:, columns]
        return found  # of a first residue that nothing comes before, the model says nothing
    for first in range(0, len(masked), together):
        group = masked[first : first + together]
        copies = []
        for position in group:
            one = ids.copy()
            one[at[position]] = task.tokenizer.mask_id
            copies.append(one)
        batch = as_batch(copies, len(ids), task.tokenizer.pad_id, rope_factor=task.rope_factor).to(_device())
        values = task.language.log_probabilities(batch).double().cpu().numpy()
        for row, position in enumerate(group):
            found[position] = values[row, at[position]][columns]
    return found


def evaluate_contacts(
    run: Path | str,
    chains: Path | str,
    out: Path | str | None = None,
    *,
    which: str = "best",
    learn: int = 20,
    longest: int = 512,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Contacts from attention: APC, logistic regression over all heads learnt on ``learn`` chains, precision on the
    rest.

    ``chains``: a chain set (``.npz``) of known structures; Cβ within 8 Å is a contact. Chains beyond ``longest``
    residues are left out, and counted; so are those without a pair of known residues 6 apart (``unmeasured``, by name).
    Returns, and writes, the means of P@L, P@L/2, P@L/5 at separations of 6, 12 and
    24, and those of chance (the share of pairs that touch).
    """
    run, chains = Path(run), Path(chains)
    _, task, step = load(run, which, overrides)
    if not task.tokenizer.encoder.one_per_residue:
        raise ValueError("contacts need a tokenizer with one token a residue")
    records = ChainSet.open(chains)
    order = np.random.default_rng(0).permutation(len(records))
    kept = [int(i) for i in order if 32 <= records.lengths[i] <= longest]
    if len(kept) <= learn:
        raise ValueError(
            f"{chains}: {len(kept)} chains of 32 to {longest} residues; {learn} to learn from and one more"
        )
    examples, tables, chance, unmeasured = [], [], [], []
    model: contact_metrics.ContactRegression | None = None
    for number, place in enumerate(kept):
        record = records[place]
        points, present = pseudo_beta(record.atom_positions, record.atom_mask, record.sequence)
        touching = contact_metrics.contact_map(points, present)
        ids, _, size = task.tokenizer.encode(np.frombuffer(record.sequence.encode(), np.uint8))
        maps = task.language.attention_maps(torch.from_numpy(ids)[None].to(_device()), rope_factor=task.rope_factor)
        own = np.flatnonzero(size == 1)
        maps = maps[:, own][:, :, own]
        if number < learn:
            examples.append(contact_metrics.pair_features(maps, touching, present))
            continue
        far = np.triu(np.ones_like(touching), 6) & present[:, None] & present[None]
        if not far.any():
            unmeasured.append(record.id)
            continue
        model = model or contact_metrics.fit_contact_regression(examples)
        tables.append(contact_metrics.precision_table(model(maps), touching, present))
        chance.append(float(touching[far].mean()))
    if not tables:
        raise ValueError(
            f"{chains}: no chain to score has two residues with known Cβ at least 6 apart: {', '.join(unmeasured[:5])}"
        )
    columns = {key: [table[key] for table in tables if not np.isnan(table[key])] for key in tables[0]}
    means = {key: float(np.mean(values)) if values else None for key, values in columns.items()}
    result = {
        "run": str(run), "step": step, "chains": str(chains), "learnt_on": learn, "scored": len(tables),
        "left_out": len(records) - len(kept), "unmeasured": unmeasured, "precision": means,
        "chance": float(np.mean(chance)),
        "heads_used": int((model.weight != 0).sum()) if model else 0, "machine": provenance.describe(),
        "commit": provenance.commit(),
    }  # fmt: skip
    _write(out, result)
    return result


def store_of(task: LanguageTask, path: Path, folder: Path) -> SequenceStore:
    """The sequences of ``path``, indexed in ``folder`` if they are a file, read in the alphabet of the run.

    Raises ValueError for a store of another alphabet, and for letters that the run's has not.
    """
    if path.is_dir():
        store = SequenceStore.open(path)
        if task.alphabet not in ("auto", store.alphabet):
            raise ValueError(f"--fasta {path} has {store.alphabet} sequences, and the run learnt {task.alphabet} ones")
        return store
    if not path.is_file():
        raise ValueError(f"--fasta {path}: no such file")
    index([path], folder / "store", alphabet=task.alphabet, bad=task.config.data.on_bad_record, jobs=1)  # type: ignore[arg-type]
    return SequenceStore.open(folder / "store")


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _write(out: Path | str | None, result: dict[str, Any]) -> None:
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        replace_text(Path(out), json.dumps(result, indent=1, allow_nan=False) + "\n")

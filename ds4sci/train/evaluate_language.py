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

from ds4sci import machine
from ds4sci.baselines.ngrams import measure_ngrams
from ds4sci.config import RunConfig
from ds4sci.data.chains import ChainSet
from ds4sci.data.language import Document, Reader, collate
from ds4sci.data.rows import Regions, make_rows
from ds4sci.data.sequences import SequenceStore, index
from ds4sci.models.hf_contacts import attention_maps
from ds4sci.scores import contacts as contact_scores
from ds4sci.scores import variants as variant_scores
from ds4sci.scores.language import perplexity
from ds4sci.scores.local import pseudo_beta
from ds4sci.tasks._language import LanguageTask
from ds4sci.train import checkpoint
from ds4sci.train.durable import replace_text
from ds4sci.types import IGNORED, RESIDUES, LanguageBatch

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
    a part of its tokens masked in each (as many as in training, all of them replaced by the mask), so that every token
    is predicted once. Tokens of several residues (k-mers, codons) are counted with their residues: ``nats`` is per
    residue. Windows are those of the last phase of the run.

    ngrams  also train n-gram models of every order on what the run was trained on, and score the same sequences

    Writes ``out`` (JSON): ``run, checkpoint, step, sequences, records, residues, tokens, nats, nats_per_token,
    perplexity, accuracy, classes`` (letter → count, nats, perplexity), ``soft_masked``, ``ngrams``, ``machine``,
    ``commit``, ``seconds``. Raises ValueError for a run, checkpoint or file that cannot be used.
    """
    run, fasta = Path(run), Path(fasta)
    _, task, step = load(run, which, overrides)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        store = store_of(task, fasta, Path(folder))
        reader = Reader(store, task.coder, unknown_weight=task.config.data.unknown_weight)
        last = task.config.data.phases[-1]
        row = last.row or last.length
        rows = make_rows(
            Regions.whole(store.lengths, range(len(store))), task.coder, document=last.length, row=row, seed=task.seed
        )
        task.model.eval()
        with torch.no_grad():
            parts = task.score(
                task.model, reader, rows, list(range(len(rows))), row, device=_device(), every_token=True,
                rope_factor=last.rope_factor,
            )  # fmt: skip
        result = _summary(parts, task, store) | {
            "run": str(run), "checkpoint": which, "step": step, "sequences": str(fasta), "records": len(store),
        }  # fmt: skip
        if ngrams:
            result["ngrams"] = _ngrams(task, store)
    result |= {"machine": machine.describe(), "commit": machine.commit(), "seconds": round(time.monotonic() - began, 1)}
    _write(out, result)
    if show:
        Console().print(_table(result, task))
    return result


def _summary(parts: list[dict[str, Any]], task: LanguageTask, store: SequenceStore) -> dict[str, Any]:
    classes: dict[str, list[float]] = {}
    for part in parts:
        for name, (nats, count) in part["classes"].items():
            one = classes.setdefault(name, [0.0, 0])
            one[0] += nats
            one[1] += count
    tokens = sum(part["tokens"] for part in parts)
    special = set(task.coder.tokenizer.all_special_tokens)
    sizes = {
        name: 0 if name in special else len(name) if not task.coder.encoder.one_per_residue else 1 for name in classes
    }
    residues = sum(sizes[name] * int(count) for name, (_, count) in classes.items())
    own = {name: pair for name, pair in classes.items() if sizes[name]}
    nats = sum(pair[0] for pair in own.values()) / max(1, residues)
    soft = [sum(part["soft"][i] for part in parts) for i in range(2)]
    return {
        "alphabet": store.alphabet,
        "residues": residues,
        "tokens": tokens,
        "nats": nats,
        "nats_per_token": sum(part["nats"] for part in parts) / max(1, tokens),
        "perplexity": perplexity(nats),
        "accuracy": sum(part["right"] for part in parts) / max(1, tokens),
        "classes": {name: _class(*pair) for name, pair in sorted(classes.items())},
        "soft_masked": _class(*soft) if soft[1] else None,
    }


def _class(nats: float, count: float) -> dict[str, float]:
    return {"count": int(count), "nats": nats / count, "perplexity": perplexity(nats / count)}


def _ngrams(task: LanguageTask, store: SequenceStore) -> dict[str, Any]:
    reader, regions, _, _ = task.sides()
    places = zip(regions.record.tolist(), regions.start.tolist(), regions.stop.tolist(), strict=True)
    train = [np.asarray(reader.store.residues(*place)) for place in places]
    test = [np.asarray(store.residues(i)) for i in range(len(store))]
    known = np.unique(np.concatenate([np.unique(s) for s in train]))
    kept = [part for s in test for part in _known_parts(s, known)]
    return measure_ngrams(train, kept, ORDERS[store.alphabet], seed=task.seed)


def _known_parts(letters: np.ndarray, known: np.ndarray) -> list[np.ndarray]:
    """``letters`` without those that training never saw, which have no probability."""
    fine = np.isin(letters, known)
    if fine.all():
        return [letters]
    parts = (part[np.isin(part, known)] for part in np.split(letters, np.flatnonzero(~fine)))
    return [part for part in parts if part.size]


def _table(result: dict[str, Any], task: LanguageTask) -> Table:
    unit = "base" if result["alphabet"] == "dna" else "residue"
    table = Table(title=f"{result['records']} sequences, {result['residues']:,} {unit}s", title_justify="left")
    table.add_column("")
    table.add_column(f"nats per {unit}", justify="right")
    table.add_column("perplexity", justify="right")
    table.add_row("model", f"{result['nats']:.4f}", f"{result['perplexity']:.3f}")
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
    ``spearman`` with ``measured_column`` (None where the file has none). Raises ValueError naming line and column.
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
    read = variant_scores.read_variants(csv, sequence, measured_column=measured_column)
    if marginal == "masked" and not task.fraction:
        raise ValueError("masked marginals need a masked model; for a causal one take --marginal wildtype")
    table = residue_log_probabilities(
        task, letters, variant_scores.mutated_positions(read) if marginal == "masked" else None
    )
    scores = variant_scores.marginal_scores(table, read)
    measured = np.array([one.measured for one in read])
    rank = None if np.isnan(measured).any() else variant_scores.spearman(scores, measured)
    result = {
        "run": str(run), "step": step, "sequence": str(fasta), "variants": str(csv), "marginal": marginal,
        "spearman": rank, "scores": {one.text: float(score) for one, score in zip(read, scores, strict=True)},
        "machine": machine.describe(), "commit": machine.commit(),
    }  # fmt: skip
    _write(out, result)
    return result


@torch.no_grad()
def residue_log_probabilities(
    task: LanguageTask, letters: np.ndarray, masked: np.ndarray | None, *, together: int = 16
) -> np.ndarray:
    """float64 [n, 20], nats, in the order of ``RESIDUES``: rows ``masked`` each with its residue masked, others NaN;
    all rows of one pass with None."""
    if not task.coder.encoder.one_per_residue:
        raise ValueError("the effect of a variant needs a tokenizer with one token a residue")
    ids, place, size = task.coder.encode(letters)
    columns = [task.coder.names.index(letter) for letter in RESIDUES]
    at = np.flatnonzero(size == 1)
    found = np.full((len(letters), len(RESIDUES)), np.nan)
    task.model.eval()
    if masked is None:
        values = task.language.log_probabilities(_rows([ids], task).to(_device()))[0].double().cpu().numpy()
        shift = 0 if task.fraction else 1  # what a causal model says of a token stands at the one before it
        source = at - shift
        fine = source >= 0
        found[place[at][fine]] = values[source[fine]][:, columns]
        if not fine.all():
            found[place[at][~fine]] = -np.log(len(RESIDUES))
        return found
    for first in range(0, len(masked), together):
        group = masked[first : first + together]
        copies = []
        for position in group:
            one = ids.copy()
            one[at[position]] = task.coder.mask
            copies.append(one)
        values = task.language.log_probabilities(_rows(copies, task).to(_device())).double().cpu().numpy()
        for row, position in enumerate(group):
            found[position] = values[row, at[position]][columns]
    return found


def _rows(rows: list[np.ndarray], task: LanguageTask) -> LanguageBatch:
    """One document a row, all of one length, nothing to predict."""
    n = len(rows[0])
    none = np.full(n, IGNORED)
    made = []
    for ids in rows:
        document = Document(ids, np.zeros(n, np.float32), np.zeros(n, bool), np.zeros(n, bool), "row")
        made.append([(document, (ids, none, document.weights))])
    return collate(made, n, task.coder.pad)


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
    residues are left out, and counted. Returns, and writes, the means of P@L, P@L/2, P@L/5 at separations of 6, 12 and
    24, and those of chance (the share of pairs that touch).
    """
    run, chains = Path(run), Path(chains)
    _, task, step = load(run, which, overrides)
    if not task.coder.encoder.one_per_residue:
        raise ValueError("contacts need a tokenizer with one token a residue")
    records = ChainSet.open(chains)
    order = np.random.default_rng(0).permutation(len(records))
    kept = [int(i) for i in order if 32 <= records.lengths[i] <= longest]
    if len(kept) <= learn:
        raise ValueError(
            f"{chains}: {len(kept)} chains of 32 to {longest} residues; {learn} to learn from and one more"
        )
    examples, tables, chance = [], [], []
    model: contact_scores.ContactRegression | None = None
    for number, place in enumerate(kept):
        record = records[place]
        points, present = pseudo_beta(record.atom_positions, record.atom_mask, record.sequence)
        touching = contact_scores.contacts_of(points, present)
        ids, _, size = task.coder.encode(np.frombuffer(record.sequence.encode(), np.uint8))
        maps = attention_maps(task.language, torch.from_numpy(ids)[None].to(_device()))
        own = np.flatnonzero(size == 1)
        maps = maps[:, own][:, :, own]
        if number < learn:
            examples.append(contact_scores.pair_features(maps, touching, present))
            continue
        model = model or contact_scores.fit_contacts(examples)
        tables.append(contact_scores.precision_table(model(maps), touching, present))
        far = np.triu(np.ones_like(touching), 6) & present[:, None] & present[None]
        chance.append(float(touching[far].mean()))
    means = {key: float(np.nanmean([table[key] for table in tables])) for key in tables[0]}
    result = {
        "run": str(run), "step": step, "chains": str(chains), "learnt_on": learn, "scored": len(tables),
        "left_out": len(records) - len(kept), "precision": means, "chance": float(np.mean(chance)),
        "heads_used": int((model.weight != 0).sum()) if model else 0, "machine": machine.describe(),
        "commit": machine.commit(),
    }  # fmt: skip
    _write(out, result)
    return result


def store_of(task: LanguageTask, path: Path, folder: Path) -> SequenceStore:
    """The sequences of ``path``, indexed in ``folder`` if they are a file."""
    if path.is_dir():
        return SequenceStore.open(path)
    if not path.is_file():
        raise ValueError(f"--fasta {path}: no such file")
    index([path], folder / "store", alphabet=task.config.data.alphabet, bad=task.config.data.bad, jobs=1)  # type: ignore[arg-type]
    return SequenceStore.open(folder / "store")


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _write(out: Path | str | None, result: dict[str, Any]) -> None:
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        replace_text(Path(out), json.dumps(result, indent=1, allow_nan=False) + "\n")

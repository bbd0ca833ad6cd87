"""Lower bound of the evaluation loss: random bases cost ln 4 nats each, for any tokenizer and task.

The oracle knows every base that a visible token contains and nothing about the others, so its loss is the minimum that
any model can reach. It replaces the model in the evaluation of a run.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ds4sci.baselines.ngrams import fit
from ds4sci.data.language.batches import DocumentReader, TrainingPhase, batches
from ds4sci.data.language.packing import make_rows
from ds4sci.data.language.targets import MaskingPolicy, PredictionUnits, count_new_residues
from ds4sci.data.language.windows import Regions
from ds4sci.tasks import causal_lm, masked_lm
from ds4sci.tasks.language_modeling import LanguageModelingTask
from ds4sci.types import IGNORE_INDEX, LanguageBatch, LanguageOutput
from tests.support.in_memory_sequences import TOKENIZERS, InMemoryStore, random_dna
from tests.support.trained_tokenizers import LEARNED, learned_tokenizer

LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip
BERT = {
    "model_type": "bert", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0,
}  # fmt: skip
DNA = [name for name in TOKENIZERS if name != "esm"]


def make_task(kind: str, tokenizer: str, fraction: float = 0.15) -> LanguageModelingTask:
    options = (
        {"kind": "tests.support.trained_tokenizers", "name": tokenizer}
        if tokenizer in LEARNED
        else TOKENIZERS[tokenizer]
    )
    data: dict[str, Any] = {"path": Path("none"), "tokenizer": options, "phases": [{"length": 48, "row_length": 96}]}
    if kind == "masked":
        config = masked_lm.Config.model_validate(
            {"model": {"config": BERT}, "data": data | {"mlm_probability": fraction}}
        )
        return masked_lm.build(config, seed=0, steps=1)
    return causal_lm.build(causal_lm.Config.model_validate({"model": {"config": LLAMA}, "data": data}), seed=0, steps=1)


class Oracle(nn.Module):
    """A model whose loss is ln 4 for each base of a label that no visible token contains, and 0 for visible bases."""

    def __init__(self, task: LanguageModelingTask, store: InMemoryStore) -> None:
        super().__init__()
        self.task, self.store = task, store
        self.paid = np.zeros(0)

    def forward(self, batch: LanguageBatch) -> LanguageOutput:
        flat, labels = batch.input_ids.flatten().numpy(), batch.labels.flatten().numpy()
        losses = np.zeros(len(flat), np.float32)
        for name, (first, last) in zip(batch.ids, batch.doc_spans.tolist(), strict=True):
            record, start, stop = map(int, re.findall(r"\d+", name))
            ids, place, size = self.task.tokenizer.encode(self.store.residues(record, start - 1, stop))
            assert len(ids) == last - first
            visible = flat[first:last] == ids
            for i in np.flatnonzero(labels[first:last] != IGNORE_INDEX).tolist():
                token = i if not self.task.is_causal else i + 1
                seen = np.zeros(stop - start + 1, bool)
                for j in range(len(ids)):
                    tells = visible[j] if not self.task.is_causal else j <= i
                    if tells and not self.task.tokenizer.is_unknown(ids[j]):
                        seen[place[j] : place[j] + size[j]] = True
                hidden = ~seen[place[token] : place[token] + size[token]]
                losses[first + i] = hidden.sum() * math.log(4)
        shape = batch.labels.shape
        return LanguageOutput(
            torch.from_numpy(losses).view(shape), torch.zeros(shape, dtype=torch.bool), batch.labels, batch.weights,
            batch.soft_masked,
        )  # fmt: skip


def score(task: LanguageModelingTask, model: nn.Module, store: InMemoryStore) -> tuple[list[dict[str, Any]], Any]:
    reader = DocumentReader(store, task.tokenizer)
    rows = make_rows(
        Regions.whole(store.lengths, range(len(store.sequences))),
        task.tokenizer,
        reader.residues,
        document_tokens=48,
        row_tokens=96,
        seed=0,
    )
    parts = task.score(model, reader, rows, list(range(len(rows))), 96, device=torch.device("cpu"), every_token=True)
    return parts, rows


@pytest.mark.parametrize("fraction", [0.0, 0.15, 0.6], ids=["causal", "masked", "masked-60"])
@pytest.mark.parametrize("name", [*DNA, *LEARNED])
def test_the_oracle_loss_is_ln_4_for_every_base_once(name, fraction) -> None:
    task = make_task("masked" if fraction else "causal", name, fraction)
    if name in LEARNED and fraction:
        assert not task.reports_nats_per_residue
        return
    assert task.reports_nats_per_residue
    rng = np.random.default_rng(3)
    store = InMemoryStore([*random_dna(rng, [90, 17]).sequences, *random_dna(rng, [60], "ACGTACGTACGTN").sequences])
    parts, rows = score(task, Oracle(task, store), store)
    residues = sum(part["residues"] for part in parts)
    assert sum(part["residue_nats"] for part in parts) == pytest.approx(residues * math.log(4), rel=1e-6)
    weightless = sum(part["weightless"] for part in parts)
    unscored = rows.coverage.tokenized_residues - residues - weightless
    if fraction == 0.0 and not task.tokenizer.num_prefix_tokens:
        assert 0 < unscored <= 6 * len(rows.record)
    elif fraction == 0.6 and "/" in name:
        assert (
            0 <= unscored < rows.coverage.tokenized_residues / 2
        )  # two passes: residues between k-mers are not predicted
    else:
        assert unscored == 0
    assert 0 < weightless <= 60  # WordPiece reads the whole record with an N as one unknown word


def test_training_masks_hide_predicted_residues() -> None:
    """No visible token contains a base that counts; the fraction of predicted bases is ``mlm_probability``."""
    task, store = make_task("masked", "kmer-6/1"), random_dna(np.random.default_rng(4), [400])
    one, rng = DocumentReader(store, task.tokenizer).document(0, 0, 400), np.random.default_rng(0)
    policy, asked, hidden_of_all = MaskingPolicy(0.15, task.tokenizer.mask_id, task.tokenizer.residue_ids), 0, 0
    for _ in range(200):
        made = policy.apply(one, rng)
        at = np.flatnonzero(made.labels != IGNORE_INDEX)
        asked += int(made.residues.sum())
        hidden = made.inputs == task.tokenizer.mask_id
        hidden_of_all += int(hidden.sum())
        shown = np.zeros(400, bool)
        for j in np.flatnonzero(~hidden):
            shown[one.start[j] : one.start[j] + 6] = True
        for i in at[hidden[at]]:
            held = shown[one.start[i] : one.start[i] + 6]
            if made.residues[i] == 6:
                assert not held.any()
    assert asked / (200 * 400) == pytest.approx(0.15, abs=0.01)
    assert hidden_of_all / (200 * len(one.ids)) < 0.3


class SoftMaskedStore(InMemoryStore):
    """A store in which every third interval of five bases is soft-masked."""

    def soft_mask(self, record: int, start: int, stop: int) -> np.ndarray:
        return np.arange(start, stop) // 5 % 3 == 0


@pytest.mark.parametrize("name", ["nucleotide", "kmer-3", "kmer-6/1", "kmer-3/2", "codon"])
def test_reverse_complement_and_bases_without_weight(name) -> None:
    task, store = make_task("masked", name), SoftMaskedStore(random_dna(np.random.default_rng(6), [150]).sequences)
    reader = DocumentReader(store, task.tokenizer, soft_masked_weight=0.0, reverse_complement=1.0)
    one = reader.document(0, 0, 150, np.random.default_rng(0))
    assert one.name.endswith("-")
    soft = store.soft_mask(0, 0, 150)[::-1]
    counted = np.zeros(150, int)
    for pass_index in range(task.masking_policy.num_passes()):
        made = task.masking_policy.apply_pass(one, pass_index, np.random.default_rng(1))
        shown = np.zeros(150, bool)
        for j in np.flatnonzero((made.inputs == one.ids) & (one.size > 0)):
            shown[one.start[j] : one.start[j] + one.size[j]] = True
        for i in np.flatnonzero((made.labels != IGNORE_INDEX) & (made.weights > 0)):
            span = slice(one.start[i], one.start[i] + one.size[i])
            assert (~shown[span]).sum() == made.residues[i]
            assert not soft[span].any()
            counted[span] += ~shown[span]
    assert counted.max() == 1
    assert 0 < counted.sum() <= (~soft).sum()


def test_n_gram_losses_are_above_the_lower_bound() -> None:
    rng = np.random.default_rng(8)
    train, test = random_dna(rng, [4000, 900]).sequences, random_dna(rng, [3000, 1]).sequences
    model = fit(train, 4)
    losses = model.losses(test)
    error = losses.std(axis=1) / math.sqrt(losses.shape[1])
    assert (losses.mean(axis=1) > math.log(4) - 3 * error - 1e-4).all()
    assert (losses.mean(axis=1) < 1.5).all()


def test_prediction_units_partition_the_residues() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        k = int(rng.integers(1, 7))
        stride, n = int(rng.integers(1, k + 1)), int(rng.integers(k, 60))
        start = np.arange(0, n - k + 1, stride)
        size, unknown = np.full(len(start), k), rng.random(len(start)) < 0.1
        units, fresh = PredictionUnits.from_tokens(start, size, unknown), count_new_residues(start, size, unknown)
        whole = int(start[-1]) + k
        assert int(units.residues.sum()) == int(fresh.sum()) == whole
        assert (units.first <= units.label).all()
        assert (units.label <= units.last).all()
        assert len(np.unique(units.label[~unknown[units.label]])) >= 1 or unknown.all()


def test_tokens_next_to_a_masked_learned_token_reveal_information() -> None:
    """The best masked model with a learned tokenizer has a loss below ln 4 per base, so nats per base mean nothing."""
    own, rng = learned_tokenizer("bpe"), np.random.default_rng(0)
    words = [token for token in own.get_vocab() if set(token) <= set("ACGT")]
    paid = count = 0.0
    for _ in range(12):
        text = "".join(rng.choice(list("ACGT"), 80))
        tokens = own.tokenize(text)
        for i in range(4, len(tokens) - 4, 3):
            left, right = "".join(tokens[:i]), "".join(tokens[i + 1 :])
            tried = own.backend_tokenizer.encode_batch([left + w + right for w in words], add_special_tokens=False)
            fits = {
                w: 4.0 ** -len(w)
                for w, found in zip(words, tried, strict=True)
                if found.tokens == [*tokens[:i], w, *tokens[i + 1 :]]
            }
            paid -= math.log(fits[tokens[i]] / sum(fits.values()))
            count += len(tokens[i])
    assert 0.9 < paid / count / math.log(4) < 0.99


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_the_loss_of_a_trained_model_is_above_the_lower_bound(kind) -> None:
    """Overlapping k-mers: a model with a few thousand weights soon copies the letters of visible adjacent tokens."""
    torch.manual_seed(0)
    task = make_task(kind, "kmer-3/1")
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-2)
    task.model.train()
    for step in range(60):
        store = random_dna(rng, [46 * 8])
        reader = DocumentReader(store, task.tokenizer)
        rows = make_rows(
            Regions.whole(store.lengths, [0]), task.tokenizer, None, document_tokens=48, row_tokens=96, seed=step
        )
        batch = next(iter(batches(
            reader, task.masking_policy, [TrainingPhase(0, rows, 96, 8)], seed=step, start_step=0, rank=0, world_size=1,
            micro_batch_size=len(rows), accumulation_steps=1, pad_id=task.tokenizer.pad_id,
        )))  # fmt: skip
        output = task.model(batch)
        loss = (output.losses * output.weights).sum() / output.weights.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    task.model.eval()
    with torch.no_grad():
        parts, _ = score(task, task.model, random_dna(np.random.default_rng(9), [600]))
    means = np.array([part["residue_nats"] / part["residues"] for part in parts if part["residues"]])
    error = means.std(ddof=1) / math.sqrt(len(means))
    mean = sum(p["residue_nats"] for p in parts) / sum(p["residues"] for p in parts)
    assert math.log(4) - 3 * error < mean < 1.2 * math.log(4)

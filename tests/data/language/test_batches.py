"""Documents and batches of language models: masks, labels, weights, and an order that depends only on (seed, step)."""

from __future__ import annotations

import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ds4sci.data.language import corpus
from ds4sci.data.language.batches import DocumentReader, TrainingPhase, batches, evaluation_batches
from ds4sci.data.language.packing import make_rows
from ds4sci.data.language.targets import MaskingPolicy
from ds4sci.data.language.tokenizer_adapter import open_tokenizer
from ds4sci.data.language.windows import Regions
from ds4sci.data.sequences import SequenceStore, index
from ds4sci.types import IGNORE_INDEX


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SequenceStore:
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("sequences")
    lines = []
    for number, length in enumerate([300, 40, 90, 17, 61, 33]):
        letters = "".join(rng.choice(list("ACGT"), length))
        lines.append(f">r{number}\n{letters[: length // 2].lower()}{letters[length // 2 : -2]}NN\n")
    (folder / "dna.fa").write_text("".join(lines))
    index([folder / "dna.fa"], folder / "store", jobs=1)
    return SequenceStore.open(folder / "store")


def make_reader(store: SequenceStore, **more: Any) -> DocumentReader:
    return DocumentReader(
        store, open_tokenizer(None, {"kind": "nucleotide"}, causal=False), soft_masked_weight=0.25, **more
    )


def make_batches(store: SequenceStore, policy: MaskingPolicy, **given: Any) -> Any:
    own = make_reader(store, reverse_complement=0.5)
    rows = make_rows(
        Regions.whole(store.lengths, range(len(store))), own.tokenizer, document_tokens=64, row_tokens=128, seed=1
    )
    settings: dict[str, Any] = {
        "seed": 5,
        "start_step": 0,
        "rank": 0,
        "world_size": 1,
        "micro_batch_size": 4,
        "accumulation_steps": 1,
        "pad_id": own.tokenizer.pad_id,
    }
    return batches(own, policy, [TrainingPhase(0, rows, 128, 8)], **settings | given)


def masked_policy(store: SequenceStore) -> MaskingPolicy:
    tokenizer = make_reader(store).tokenizer
    return MaskingPolicy(0.15, tokenizer.mask_id, tokenizer.residue_ids)


def test_document_weights_and_soft_mask(store) -> None:
    own = make_reader(store)
    found = own.document(1, 10, 40)
    ends = len(own.tokenizer.encoder.prefix), len(own.tokenizer.encoder.suffix)
    inner = slice(ends[0], len(found.ids) - ends[1])
    assert found.name == "r1:11-40"
    assert "".join(own.tokenizer.tokens[i] for i in found.ids[inner]) == store.residues(1, 10, 40).tobytes().decode()
    assert found.soft_masked[inner].tolist() == [True] * 10 + [False] * 20
    assert found.weights[inner].tolist() == [0.25] * 10 + [1.0] * 18 + [0.0] * 2  # N has weight 0
    assert (found.size == 0).sum() == sum(ends)


def test_reverse_complement(store) -> None:
    own = make_reader(store, reverse_complement=1.0)
    found, plain = own.document(2, 0, 90, np.random.default_rng(0)), own.document(2, 0, 90)
    size = len(own.tokenizer.encoder.prefix)
    letters = [own.tokenizer.tokens[i] for i in plain.ids[size : size + 90]]
    reversed_letters = [own.tokenizer.tokens[i] for i in found.ids[size : size + 90]]
    assert reversed_letters == [{"A": "T", "C": "G", "G": "C", "T": "A", "N": "N"}[x] for x in letters[::-1]]
    assert found.weights[size : size + 90].tolist() == plain.weights[size : size + 90][::-1].tolist()
    assert found.name.endswith("-")


def test_masking_proportions_are_those_of_bert(store) -> None:
    policy, seen = masked_policy(store), np.zeros(4)
    for batch in islice(make_batches(store, policy), 150):
        chosen = batch.labels != IGNORE_INDEX
        assert not (chosen & (batch.labels < 4)).any(), "special tokens are never predicted"
        given = batch.input_ids[chosen]
        same = given == batch.labels[chosen]
        seen += [int(chosen.sum()), int((given == policy.mask_id).sum()), int(same.sum()), batch.tokens]
        assert torch.equal(batch.weights > 0, chosen & (batch.weights > 0))
    assert seen[0] / seen[3] == pytest.approx(0.15, abs=0.01)
    assert seen[1] / seen[0] == pytest.approx(0.8, abs=0.02)
    assert 0.1 < seen[2] / seen[0] < 0.15  # 10 % kept, and replacements that hit the same letter


def test_causal_labels_are_the_next_tokens_of_the_same_document(store) -> None:
    for batch in islice(make_batches(store, MaskingPolicy()), 10):
        flat, labels = batch.input_ids.flatten(), batch.labels.flatten()
        inside = torch.zeros(len(flat), dtype=torch.bool)
        for start, stop in batch.doc_spans.tolist():
            assert torch.equal(labels[start : stop - 1], flat[start + 1 : stop])
            assert labels[stop - 1] == IGNORE_INDEX
            assert batch.position_ids.flatten()[start:stop].tolist() == list(range(stop - start))
            inside[start:stop] = True
        assert (labels[~inside] == IGNORE_INDEX).all()
        assert batch.tokens == int(inside.sum())


def equal(one: Any, other: Any) -> bool:
    names = ("input_ids", "labels", "weights", "position_ids", "soft_masked", "doc_spans")
    return one.ids == other.ids and all(torch.equal(getattr(one, n), getattr(other, n)) for n in names)


def test_a_step_does_not_depend_on_ranks_accumulation_or_workers(store) -> None:
    policy = masked_policy(store)
    whole = list(islice(make_batches(store, policy), 6))
    for ranks, micro, accumulation in ((2, 2, 1), (4, 1, 1), (1, 2, 2), (2, 1, 2)):
        own = [
            list(
                islice(
                    make_batches(
                        store, policy, rank=r, world_size=ranks, micro_batch_size=micro, accumulation_steps=accumulation
                    ),
                    6 * accumulation,
                )
            )
            for r in range(ranks)
        ]
        for step in range(6):
            parts = [
                own[r][step * accumulation + micro_batch] for micro_batch in range(accumulation) for r in range(ranks)
            ]
            assert all(part.step == step for part in parts)
            assert torch.equal(torch.cat([part.input_ids for part in parts]), whole[step].input_ids)
            assert torch.equal(torch.cat([part.labels for part in parts]), whole[step].labels)
    for workers in (1, 3):
        stream = make_batches(store, policy, workers=workers)
        assert all(equal(a, b) for a, b in zip(islice(stream, 6), whole, strict=True))
        stream.close()


def test_resume_in_the_middle_of_an_epoch(store) -> None:
    policy = masked_policy(store)
    whole = list(islice(make_batches(store, policy), 12))
    assert all(
        equal(a, b) for a, b in zip(islice(make_batches(store, policy, start_step=5), 7), whole[5:], strict=True)
    )


def test_evaluation_predicts_every_residue_once(store) -> None:
    own, policy = make_reader(store), masked_policy(store)
    rows = make_rows(
        Regions.whole(store.lengths, range(len(store))), own.tokenizer, document_tokens=64, row_tokens=128, seed=1
    )
    counts: dict[str, torch.Tensor] = {}
    for batch in evaluation_batches(
        own,
        policy,
        rows,
        range(len(rows)),
        seed=0,
        pad_id=own.tokenizer.pad_id,
        batch_size=2,
        token_budget=128,
        pad_multiple=8,
        every_token=True,
    ):
        key = "".join(batch.ids)
        counts[key] = counts.get(key, 0) + (batch.labels != IGNORE_INDEX).long()
        hidden = batch.labels != IGNORE_INDEX
        assert (batch.input_ids[hidden] == policy.mask_id).all()
    total = sum(int(c.sum()) for c in counts.values())
    assert max(int(c.max()) for c in counts.values()) == 1
    assert total == int(store.lengths.sum())


def test_k_mers_of_three_bases(store) -> None:
    own = DocumentReader(store, open_tokenizer(None, {"kind": "kmer", "k": 3}, causal=True), soft_masked_weight=0.5)
    tokenizer = own.tokenizer
    found = own.document(0, 0, 300)
    first = len(tokenizer.encoder.prefix)
    assert tokenizer.tokens[found.ids[first]] == store.residues(0, 0, 3).tobytes().decode()
    assert set(found.weights[found.size > 0].tolist()) == {0.5, 1.0, 0.0}


def test_a_single_record_is_split_near_its_end(tmp_path) -> None:
    file = tmp_path / "g.fa"
    file.write_text(">chromosome\n" + "ACGTTGCA" * 500 + "\n")
    split = corpus.open_train_valid(
        file, None, alphabet="auto", on_bad_record="error", fraction=0.1, identity=0.5, seed=0
    )
    assert split.train_regions.stop.tolist() == [3600]
    assert (split.valid_regions.start.tolist(), split.valid_regions.stop.tolist()) == ([3600], [4000])
    again = corpus.open_store(file)
    assert len(again) == 1
    assert Path(str(file) + ".ds4sci").is_dir()


def test_homologs_across_two_files_give_a_warning(tmp_path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    chains = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 80)) for _ in range(4)]
    train, leaking, clean = (tmp_path / name for name in ("train.fa", "leaking.fa", "clean.fa"))
    train.write_text(f">a\n{chains[0]}\n>b\n{chains[1]}\n")
    leaking.write_text(f">c\n{chains[2]}\n>d\n{chains[1][5:]}\n")
    clean.write_text(f">e\n{chains[3]}\n")
    settings: dict[str, Any] = {
        "alphabet": "auto",
        "on_bad_record": "error",
        "fraction": 0.1,
        "identity": 0.5,
        "seed": 0,
    }
    with pytest.warns(UserWarning, match=r"1 of 2 validation records have homologs with at least 50%.*d and b"):
        corpus.open_train_valid(train, leaking, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corpus.open_train_valid(train, clean, **settings)
    monkeypatch.setattr(corpus, "LEAKAGE_CHECK_LIMIT", 100)
    with pytest.warns(UserWarning, match=r"too many to check for homologs.*ds4sci data leakage"):
        corpus.open_train_valid(train, leaking, **settings)


def test_errors_of_opening(tmp_path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        corpus.open_store(tmp_path / "none.fa")
    with pytest.raises(ValueError, match="kind is missing"):
        open_tokenizer(None, {"k": 3}, causal=True)
    with pytest.raises(ValueError, match="a new model needs a tokenizer"):
        open_tokenizer(None, {}, causal=True)
    (tmp_path / "p.fa").write_text(">p\nMKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ\n")
    (tmp_path / "d.fa").write_text(">d\nACGTACGTACGTACGTACGTACGTACGTACGTACGT\n")
    with pytest.raises(ValueError, match=r"d.fa has dna sequences, and data.path protein sequences"):
        corpus.open_train_valid(
            tmp_path / "p.fa",
            tmp_path / "d.fa",
            alphabet="auto",
            on_bad_record="error",
            fraction=0.1,
            identity=0.5,
            seed=0,
        )


def test_evaluation_masks_all_predicted_tokens(store) -> None:
    own, policy = make_reader(store), masked_policy(store)
    rows = make_rows(
        Regions.whole(store.lengths, range(len(store))), own.tokenizer, document_tokens=64, row_tokens=128, seed=1
    )
    settings: dict[str, Any] = {
        "seed": 0,
        "pad_id": own.tokenizer.pad_id,
        "batch_size": 2,
        "token_budget": 128,
        "pad_multiple": 8,
    }
    batches_made = list(evaluation_batches(own, policy, rows, range(len(rows)), **settings))
    asked = torch.cat([batch.input_ids[batch.labels != IGNORE_INDEX] for batch in batches_made])
    assert len(asked) > 20
    assert (asked == policy.mask_id).all()
    assert sum(batch.tokens for batch in batches_made) / len(asked) == pytest.approx(policy.num_passes(), rel=0.2)


def test_ambiguity_codes_have_the_weight_of_n(tmp_path) -> None:
    """They are read as N, and predicting N needs no knowledge of the base."""
    (tmp_path / "r.fa").write_text(">r\nACGTRYKMACGTNACGTBDHVSWACGT\n")
    tokenizer = open_tokenizer(None, {"kind": "nucleotide"}, causal=False)
    own = DocumentReader(corpus.open_store(tmp_path / "r.fa", alphabet="dna"), tokenizer)
    found = own.document(0, 0, 27)
    counted = [w > 0 for w, n in zip(found.weights, found.size, strict=True) if n]
    assert counted == [letter in "ACGT" for letter in "ACGTRYKMACGTNACGTBDHVSWACGT"]

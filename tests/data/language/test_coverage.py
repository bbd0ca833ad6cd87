"""Coverage of residues by windows: read = given − left out for any tokenizer and length, and no document is cut."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds4sci.data import tokenizers
from ds4sci.data.language import corpus
from ds4sci.data.language.batches import DocumentReader, TrainingPhase, batches, evaluation_batches
from ds4sci.data.language.packing import make_rows
from ds4sci.data.language.targets import MaskingPolicy
from ds4sci.data.language.tokenizer_adapter import TokenizerAdapter
from ds4sci.data.language.windows import NO_TOKEN, Regions, cut_windows
from ds4sci.types import IGNORE_INDEX
from tests.support.in_memory_sequences import TOKENIZERS, InMemoryStore, random_dna, tokenizer_adapter
from tests.support.trained_tokenizers import LEARNED

EVERY = [*TOKENIZERS, *LEARNED]


def residues_without_token(name: str, store: InMemoryStore) -> int:
    """Residues that are in no token if the tokenizer is called on each whole record."""
    encode = tokenizer_adapter(name).encoder.token_spans
    total = 0
    for text in store.sequences:
        held = np.zeros(len(text), bool)
        for a, n in zip(*encode(text), strict=True):
            held[a : a + n] = True
        total += int((~held).sum())
    return total


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=4),
    document=st.integers(16, 80),
    seed=st.integers(0, 9),
    strands=st.booleans(),
    gaps=st.booleans(),
)
@pytest.mark.parametrize("name", EVERY)
def test_windows_hold_every_residue_with_a_token(name, lengths, document, seed, strands, gaps) -> None:
    own, store = (
        tokenizer_adapter(name),
        random_dna(np.random.default_rng(seed), lengths, "ACGTACGTACGTN" if gaps else "ACGT"),
    )
    reader = DocumentReader(store, own)
    found = cut_windows(
        Regions.whole(store.lengths, range(len(lengths))),
        own,
        reader.residues,
        document_tokens=document,
        both_strands=strands,
    )
    read, ends = 0, (own.num_prefix_tokens, own.num_special_tokens - own.num_prefix_tokens)
    held = [np.zeros(length, int) for length in lengths]
    for region, start, stop, tokens in zip(found.region, found.start, found.stop, found.tokens, strict=True):
        for strand in (0.0, 1.0) if strands else (0.0,):
            reversed_reader = DocumentReader(store, own, reverse_complement=strand)
            one = reversed_reader.document(int(region), int(start), int(stop), np.random.default_rng(0))
            assert len(one.ids) <= tokens <= document
            assert one.ids[: ends[0]].tolist() == own.encoder.prefix.tolist()
            assert one.ids[len(one.ids) - ends[1] :].tolist() == own.encoder.suffix.tolist()
        one = reader.document(int(region), int(start), int(stop))
        for a, n in zip(one.start, one.size, strict=True):
            held[region][start + a : start + a + n] = 1
        read += stop - start
    covered = sum(int(h.sum()) for h in held)
    assert covered == found.coverage.tokenized_residues
    assert found.coverage.total_residues == sum(lengths) == covered + found.coverage.excluded.get(NO_TOKEN, 0)
    # Windows lose the residues that the tokenizer leaves out of whole records, and at most the rest of a stride.
    step = (
        own.fixed_stride.stride
        if own.fixed_stride is not None and own.fixed_stride.stride < own.fixed_stride.width
        else 1
    )
    assert sum(lengths) - covered <= residues_without_token(name, store) + (step - 1) * len(lengths)
    silent = {i for i, h in enumerate(held) if not h.any()}
    assert set(found.coverage.untokenized_records) == silent


@pytest.mark.parametrize("name", EVERY)
def test_training_and_evaluation_read_all_given_residues(name) -> None:
    own, store = tokenizer_adapter(name), random_dna(np.random.default_rng(1), [700, 331, 64])
    policy = MaskingPolicy(0.15, own.mask_id, own.residue_ids)
    reader = DocumentReader(store, own, reverse_complement=0.5)
    rows = make_rows(
        Regions.whole(store.lengths, range(3)),
        own,
        reader.residues,
        document_tokens=48,
        row_tokens=96,
        seed=0,
        both_strands=True,
    )
    assert rows.coverage.total_residues == 1095
    assert rows.coverage.tokenized_residues >= 1095 - 3 * 4  # frame 2, and two bases after the last codon
    scored = {}
    for fraction in (0.15, 0.0):
        made = evaluation_batches(
            DocumentReader(store, own),
            MaskingPolicy(fraction, own.mask_id, own.residue_ids),
            rows,
            range(len(rows)),
            seed=0,
            pad_id=own.pad_id,
            batch_size=1,
            token_budget=96,
            pad_multiple=8,
            every_token=True,
        )
        scored[fraction] = sum(int(batch.residues.sum()) for batch in made)
    assert scored[0.15] == rows.coverage.tokenized_residues
    unseen = (
        0
        if own.num_prefix_tokens
        else sum(
            int(DocumentReader(store, own).document(int(r), int(a), int(b)).size[0])
            for r, a, b in zip(rows.record, rows.start, rows.stop, strict=True)
        )
    )
    assert scored[0.0] == rows.coverage.tokenized_residues - unseen
    stream = batches(
        reader,
        policy,
        [TrainingPhase(0, rows, 96, 8)],
        seed=3,
        start_step=0,
        rank=0,
        world_size=1,
        micro_batch_size=len(rows),
        accumulation_steps=1,
        pad_id=own.pad_id,
    )
    for batch in islice(stream, 3):  # several epochs: shifted and reversed windows, never truncated
        for start, stop in batch.doc_spans.tolist():
            ids = batch.input_ids.flatten()[start:stop]
            if own.num_special_tokens > own.num_prefix_tokens:
                assert ids[-1] == own.encoder.suffix[-1]
        assert int(batch.residues[batch.labels != IGNORE_INDEX].sum()) == int(batch.residues.sum())


def test_a_bpe_tokenizer_reads_all_of_12_000_bases() -> None:
    """An estimate of the number of tokens from a run of A would read only 1,375 of them."""
    own, store = tokenizer_adapter("bpe"), random_dna(np.random.default_rng(2), [3000] * 4)
    rows = make_rows(
        Regions.whole(store.lengths, range(4)),
        own,
        DocumentReader(store, own).residues,
        document_tokens=128,
        row_tokens=128,
        seed=0,
    )
    assert rows.coverage.describe("base") == "12,000 of 12,000 bases read"
    assert rows.packing_efficiency > 0.9
    assert int((rows.stop - rows.start).sum()) == 12_000


def test_codons_stay_in_frame_and_k_mer_windows_overlap_only_if_needed() -> None:
    text = np.frombuffer(b"ACGTTGCAAGCTTAGCCGATATCGGATCCTAGGCATTA", np.uint8)
    store = InMemoryStore([text])
    for frame in (0, 1, 2):
        own = TokenizerAdapter(tokenizers.build("codon", frame=frame))
        rows = make_rows(Regions.whole(store.lengths, [0]), own, None, document_tokens=4, row_tokens=None, seed=0)
        assert rows.shift_step == 3
        read = [
            DocumentReader(store, own).document(0, int(a), int(b)) for a, b in zip(rows.start, rows.stop, strict=True)
        ]
        words = [own.tokens[i] for one in read for i in one.ids]
        whole = text.tobytes().decode()[frame:]
        assert words == [whole[i : i + 3] for i in range(0, len(whole) - 2, 3)]
        assert rows.coverage.excluded.get(NO_TOKEN, 0) == len(text) - 3 * len(words)
    own = TokenizerAdapter(tokenizers.build("kmer", k=6, stride=1))
    store = random_dna(np.random.default_rng(0), [28])  # windows of 25 and 3 bases would lose the last 3
    rows = make_rows(Regions.whole(store.lengths, [0]), own, None, document_tokens=20, row_tokens=None, seed=0)
    assert list(zip(rows.start.tolist(), rows.stop.tolist(), strict=True)) == [(0, 22), (22, 28)]


def test_records_without_tokens_are_reported() -> None:
    own, store = tokenizer_adapter("kmer-6/1"), random_dna(np.random.default_rng(0), [4, 30, 5])
    rows = make_rows(Regions.whole(store.lengths, range(3)), own, None, document_tokens=64, row_tokens=64, seed=0)
    assert rows.coverage.untokenized_records == (0, 2)
    assert rows.coverage.describe("base") == "30 of 39 bases read, 9 in no token, nothing read of 2 records"
    with pytest.raises(ValueError, match="no sequence to make rows of: 9 residues in 2 records, none of them in a"):
        make_rows(Regions.whole(store.lengths, [0, 2]), own, None, document_tokens=64, row_tokens=64, seed=0)


def test_windows_of_a_learned_tokenizer_are_cached(tmp_path, monkeypatch) -> None:
    """The first rank of the first run cuts them; another tokenizer or length has its own cache."""
    (tmp_path / "g.fa").write_text(
        f">g\n{random_dna(np.random.default_rng(0), [600]).sequences[0].tobytes().decode()}\n>h\nNNN\n"
    )
    store, calls = corpus.open_store(tmp_path / "g.fa"), []
    monkeypatch.setattr(corpus, "cut_windows", lambda *given, **named: calls.append(1) or cut_windows(*given, **named))
    regions = Regions.whole(store.lengths, range(2))

    def made(name: str, document: int = 48) -> Any:
        return corpus.cut_windows_cached(
            store, regions, tokenizer_adapter(name), store.residues, document_tokens=document, both_strands=False
        )

    first, again = made("bpe"), made("bpe")
    assert len(calls) == 1
    assert first.coverage == again.coverage
    assert all(np.array_equal(a, b) for a, b in zip(first.arrays().values(), again.arrays().values(), strict=True))
    assert made("bpe", 64).tokens.max() > 48
    made("unigram")
    assert len(calls) == 3
    made("nucleotide")
    assert len(list(tmp_path.glob("*.npz"))) == 3
